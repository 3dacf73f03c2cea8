"""`python -m muster.agent`: an agent, configured by MUSTER_* (see `muster.agent.config`)."""

from __future__ import annotations

import os
import sys

from muster.agent.config import AgentConfig
from muster.agent.supervisor import run_agent
from muster.agent.supervisor_core import EXIT_CONFIGURATION
from muster.domain.errors import ConfigurationError


def main() -> None:
    """Runs until drained. Exit code 78 with one sentence when it cannot run as configured."""
    try:
        config = AgentConfig.from_env(os.environ)
    except ConfigurationError as error:
        print(f"muster agent: {error}", file=sys.stderr, flush=True)
        sys.exit(EXIT_CONFIGURATION)
    sys.exit(run_agent(config))


if __name__ == "__main__":
    main()
