"""The cost of being watched: the reporting part of an agent by itself, in a process of its own."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Runner processes that the figures are summed over, and lines that tasks print each second.
RUNNERS = 16
LINES_PER_S = 100


def agent_share(monitor: str, secret: str, seconds: float) -> dict[str, Any]:
    """Runs the process and gives what it has measured."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.monitor_load_agent", monitor, secret, str(seconds)],
        cwd=Path(__file__).resolve().parents[1],
        stdout=subprocess.PIPE,
        check=True,
        timeout=4 * seconds + 60,
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
    key = AttemptKey(task_id(request_prefix(DEFAULT_TENANT, "k", 1), 0), 1)

    def say() -> None:
        text = "a line of some fifty characters, as programs do it"
        logs.write(key, DEFAULT_TENANT, "stdout", "", text, wall_ms())

    async def phase(act: Callable[[], None]) -> tuple[float, int]:
        """Cores used while `act` is called LINES_PER_S times a second."""
        began_s, cpu_s, calls = time.monotonic(), time.process_time(), 0
        while (now_s := time.monotonic()) < began_s + seconds:
            act()
            calls += 1
            await asyncio.sleep(max(0.0, 1 / LINES_PER_S - (time.monotonic() - now_s)))
        return (time.process_time() - cpu_s) / (time.monotonic() - began_s), calls

    # What the measuring loop costs by itself.
    loop, _ = await phase(lambda: None)
    running = asyncio.create_task(link.run())
    await asyncio.sleep(2)
    before = samples
    quiet, _ = await phase(lambda: None)
    taken = samples - before
    busy, lines = await phase(say)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    return {
        "seconds": seconds,
        "runners": len(pids),
        "samples": taken,
        "lines": lines,
        "cpu_beats_and_figures": round(quiet - loop, 4),
        "cpu_with_lines": round(busy - loop, 4),
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
