"""The runtime as a process: `python -m muster.agent.runtime_process SUPERVISOR_PID`.

Its configuration comes as JSON on standard input. The zygote is started before the large
imports, so that both happen at the same time.
"""

from __future__ import annotations

import os
import sys

from muster.agent.config import AgentConfig
from muster.agent.process_tree import die_with_parent
from muster.agent.zygote_link import ZygoteLink
from muster.agent.zygote_settings import ZygoteSettings
from muster.domain.errors import ConfigurationError, SkillImportError

# EX_CONFIG of sysexits.h: starting again would not help.
EXIT_CONFIGURATION = 78


def main() -> None:
    """Runs until drained, killed or misconfigured."""
    if len(sys.argv) > 1:
        die_with_parent(int(sys.argv[1]))
    config = AgentConfig.from_json(sys.stdin.buffer.read())
    settings = ZygoteSettings(
        sources=list(config.skills),
        builtin=config.builtin,
        max_result_bytes=config.max_result_bytes,
        max_files=config.max_files,
        address_space_bytes=config.address_space_bytes,
        search_path=os.getcwd(),
    )
    zygote = ZygoteLink(settings, config.skill_environ(os.environ))
    import asyncio  # noqa: PLC0415  see the module's docstring

    import uvloop  # noqa: PLC0415

    from muster.agent.runtime import Runtime  # noqa: PLC0415

    async def run() -> None:
        await Runtime(config, zygote).run()

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run())
    except (ConfigurationError, SkillImportError) as error:
        print(f"muster agent: {error}", file=sys.stderr, flush=True)
        sys.exit(EXIT_CONFIGURATION)


if __name__ == "__main__":
    main()
