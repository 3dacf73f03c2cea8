"""The cost of being watched: the reporting part of an agent by itself, in a process of its own."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

# Runner processes that the figures are summed over, and lines that tasks print each second.
RUNNERS = 16
LINES_PER_S = 100
_TICK_S = 0.01


def agent_share(monitor: str, secret: str, seconds: float) -> dict[str, Any]:
    """Runs the process and gives what it has measured."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.monitor_load_agent", monitor, secret, str(seconds)],
        cwd=Path(__file__).resolve().parents[1],
        stdout=subprocess.PIPE,
        check=True,
        timeout=seconds + 60,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


async def _report(monitor: str, secret: str, seconds: float, pids: list[int]) -> dict[str, Any]:
    from muster.agent.events import AttemptKey  # noqa: PLC0415
    from muster.agent.figures import Figures  # noqa: PLC0415
    from muster.agent.journal import Journal  # noqa: PLC0415
    from muster.agent.logbook import LogBook  # noqa: PLC0415
    from muster.agent.peers import Endpoints, Peers  # noqa: PLC0415
    from muster.agent.reporting import MonitorLink  # noqa: PLC0415
    from muster.domain.ids import DEFAULT_TENANT, AgentId, request_prefix, task_id  # noqa: PLC0415
    from muster.rpc.clock import wall_ms  # noqa: PLC0415

    peers = Peers(secret)
    peers.update(Endpoints(monitors=(monitor,)))
    figures = Figures(lambda: pids, "/")
    samples = 0

    def sample() -> dict[str, float]:
        nonlocal samples
        samples += 1
        return {**figures.sample(), "agent_slots": 16.0, "agent_running": 16.0}

    link: MonitorLink
    logs = LogBook(lambda: link.wake())  # noqa: PLW0108  it is made below
    link = MonitorLink(
        agent=AgentId("agent-0"),
        peers=peers,
        secret=secret,
        logs=logs,
        journal=Journal("runtime", "agent-0"),
        sample=sample,
        incarnation=lambda: 1,
    )
    running = asyncio.create_task(link.run())
    key = AttemptKey(task_id(request_prefix(DEFAULT_TENANT, "k", 1), 0), 1)

    async def print_lines(until_s: float) -> int:
        printed = 0
        while (now_s := time.monotonic()) < until_s:
            logs.write(
                key,
                DEFAULT_TENANT,
                "stdout",
                "",
                "a line of some fifty characters or so",
                wall_ms(),
            )
            printed += 1
            await asyncio.sleep(max(0.0, 1 / LINES_PER_S - (time.monotonic() - now_s)))
        return printed

    await print_lines(time.monotonic() + 2)
    began_s, cpu_s, before = time.monotonic(), time.process_time(), samples
    lines = await print_lines(began_s + seconds)
    elapsed_s, used_s = time.monotonic() - began_s, time.process_time() - cpu_s
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    return {
        "seconds": round(elapsed_s, 2),
        "runners": len(pids),
        "samples": samples - before,
        "lines": lines,
        "agent_cpu": round(used_s / elapsed_s, 4),
    }


def main() -> None:
    monitor, secret, seconds = sys.argv[1:]
    # Processes to be measured, as busy as nothing.
    runners = [
        subprocess.Popen(
            [sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE
        )
        for _ in range(RUNNERS)
    ]
    try:
        found = asyncio.run(_report(monitor, secret, float(seconds), [r.pid for r in runners]))
    finally:
        for runner in runners:
            runner.kill()
            runner.wait()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
