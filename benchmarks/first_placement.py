"""Whether compiling slows the first placements after a scheduler's start, or those meanwhile.

python benchmarks/first_placement.py [--agents 1000] [--runs 3] [--json]

Each run starts a fresh process that places a batch of 16 equal tasks and one of 512 tasks of 32
classes, in turn, every 5 ms, as a scheduler's loop does. `plain`: nothing is loaded, as in the
first seconds after every start and for good on a small cluster. `cold`, `cached`: the compiled
loops are made ready meanwhile (`muster_scheduler.warming`), with an empty cache folder, as once
after an installation, and with the code on disk. Printed, in milliseconds: the first placement of
each kind, the median and the longest while the loops become ready, the placements after, the
longest time for which the event loop did not answer, and when the loops were ready; besides, the
memory of the process at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import psutil
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

_WARM_S = 0.5
_LONGEST_S = 120.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--agents", type=int, default=1000)
    parser.add_argument("--strategy", default="worst_fit")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", choices=("warm", "plain"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        print(orjson.dumps(asyncio.run(_measure(asked))).decode())
        return
    rows = []
    for _ in range(asked.runs):
        with tempfile.TemporaryDirectory() as folder:
            rows += [_start(asked, kind, folder) for kind in ("plain", "cold", "cached")]
    table = Table(*(name.replace("_", " ") for name in rows[0]))
    for row in rows:
        if asked.json:
            print(orjson.dumps(row).decode())
        table.add_row(*(str(value) for value in row.values()))
    if not asked.json:
        Console().print(table)


def _start(asked: argparse.Namespace, kind: str, folder: str) -> dict[str, Any]:
    child = "plain" if kind == "plain" else "warm"
    command = [sys.executable, __file__, "--child", child, "--agents", str(asked.agents)]
    command += ["--strategy", asked.strategy]
    environ = os.environ | {"MUSTER_KERNEL_CACHE": str(Path(folder) / "kernels")}
    done = subprocess.run(command, env=environ, stdout=subprocess.PIPE, check=True)
    # The log of the warm-up comes first.
    return {"start": kind, **orjson.loads(done.stdout.splitlines()[-1])}


async def _measure(asked: argparse.Namespace) -> dict[str, Any]:
    from muster_scheduler.placement import fast  # noqa: PLC0415 - only the child pays for it
    from muster_scheduler.warming import Warming  # noqa: PLC0415

    plan_small, plan_large = _planners(asked.agents, asked.strategy)
    begin = time.perf_counter()
    shell, warming = Warming(), None
    if asked.child == "warm":
        warming = asyncio.create_task(shell.make_ready(asked.strategy))
    spans: dict[str, list[float]] = {"small": [], "large": []}
    after: dict[str, list[float]] = {"small": [], "large": []}
    ready_s, longest_gap, turn = None, 0.0, 0
    until = begin + (_WARM_S if warming is None else _LONGEST_S)
    last = time.perf_counter()
    while time.perf_counter() < until:
        name, plan = (("small", plan_small), ("large", plan_large))[turn % 2]
        turn += 1
        started = time.perf_counter()
        longest_gap = max(longest_gap, started - last - 0.005) if not ready_s else longest_gap
        plan()
        spent = 1000 * (time.perf_counter() - started)
        (after if ready_s else spans)[name].append(spent)
        if warming is not None and warming.done() and ready_s is None:
            assert fast.is_loaded(), "the loops did not become ready"
            ready_s, until = time.perf_counter() - begin, time.perf_counter() + _WARM_S
        last = time.perf_counter()
        await asyncio.sleep(0.005)
    row: dict[str, Any] = {}
    for name, kept in spans.items():
        row[f"{name}_first_ms"] = round(kept[0], 2)
        row[f"{name}_median_ms"] = round(statistics.median(kept), 2)
        row[f"{name}_longest_ms"] = round(max(kept), 2)
        row[f"{name}_after_ms"] = round(statistics.median(after[name]), 2) if ready_s else None
    row["loop_gap_ms"] = round(1000 * longest_gap, 1)
    row["ready_s"] = None if ready_s is None else round(ready_s, 2)
    row["rss_mib"] = round(psutil.Process().memory_info().rss / 2**20)
    return row


def _planners(agents: int, strategy: str) -> tuple[Callable[[], None], Callable[[], None]]:
    from muster.domain.resources import ResourceVector  # noqa: PLC0415
    from muster_scheduler.placement import (  # noqa: PLC0415
        AgentTable,
        ClassTable,
        Policy,
        TaskBatch,
        TaskClass,
        get,
    )

    table, classes = AgentTable(), ClassTable()
    capacity = ResourceVector.of({"cpu": 64_000, "memory": 2**36, "slots": 64})
    for index in range(agents):
        table.upsert(f"agent-{index}", capacity, frozenset({"work"}), {}, placeable=True)

    def planner(count: int, kinds: int) -> Callable[[], None]:
        ids = [
            classes.intern(TaskClass("work", ResourceVector.of({"cpu": 100 + k, "slots": 1})))
            for k in range(kinds)
        ]
        batch = TaskBatch.of(classes, [ids[i % kinds] for i in range(count)])
        policy = Policy(strategy=strategy)

        def plan() -> None:
            rng = np.random.default_rng(0)
            get(strategy).plan(table.view(), batch, policy, 0.0, rng, lambda: False, 0)

        return plan

    return planner(16, 1), planner(512, 32)


if __name__ == "__main__":
    main()
