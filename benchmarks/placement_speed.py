"""How many tasks a second a constructive strategy places, beside plain Python and numpy.

python benchmarks/placement_speed.py --tasks N --agents M [--classes C] --strategy greedy [--json]

Instance: every agent has 8 to 64 cores, 16 to 256 GiB and 1 to 10 Gbit/s, drawn evenly; every
task (with --classes: every class, and each task is of a random one) wants 0.2 to 1.8 times the
mean, drawn per resource, where N means make up --fill of all capacity.

Plain Python and numpy look at every agent for every task, as the strategy is defined. Plain Python
gets the first tasks only, as many as take about --plain-seconds. Muster is timed over the whole
call `plan`, from snapshot and batch to plan; knowing the tasks' classes is part of taking tasks in
(`interning_per_s`). Its figure is the median of --runs, one thread. `same_result`: all three made
the same choices, task by task.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from muster.domain.resources import ResourceVector
from muster_scheduler.placement import (
    AgentTable,
    ClassTable,
    Policy,
    TaskBatch,
    TaskClass,
    fast,
    get,
)

RESOURCES = ("cpu", "memory", "network")
STRATEGIES = ("greedy", "first_fit", "best_fit", "worst_fit")
_Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Instance:
    """capacity int64 [M, 3]; demand int64 [N, 3], equal rows for tasks of one class."""

    capacity: _Ints
    demand: _Ints


def instance(tasks: int, agents: int, classes: int, fill: float, seed: int) -> Instance:
    rng = np.random.default_rng(seed)
    capacity = np.empty((agents, 3), np.int64)
    capacity[:, 0] = rng.integers(8, 65, agents) * 1000
    capacity[:, 1] = rng.integers(16, 257, agents) << 30
    capacity[:, 2] = rng.integers(1, 11, agents) * 10**9
    mean = fill * capacity.sum(axis=0) / tasks
    demand = (rng.uniform(0.2, 1.8, (classes or tasks, 3)) * mean).astype(np.int64)
    if classes:
        demand = demand[rng.integers(0, classes, tasks)]
    return Instance(capacity, demand)


def by_plain_python(strategy: str, given: Instance, seconds: float) -> tuple[list[int], float]:
    """Choices for the first tasks, as many as the time allows, and how long they took."""
    capacity = given.capacity.tolist()
    free = given.capacity.tolist()
    choices: list[int] = []
    begin = time.perf_counter()
    for wanted in given.demand.tolist():
        if time.perf_counter() - begin > seconds:
            break
        cpu, memory, network = wanted
        choice, least = -1, float("inf")
        for row, room in enumerate(free):
            if room[0] < cpu or room[1] < memory or room[2] < network:
                continue
            if strategy == "first_fit":
                choice = row
                break
            total = capacity[row]
            if strategy == "greedy":
                key = abs(total[0] - cpu) + abs(total[1] - memory) + abs(total[2] - network)
            else:
                key = min(
                    (have - want) / whole
                    for have, want, whole in zip(room, wanted, total, strict=True)
                    if want
                )
                key = -key if strategy == "worst_fit" else key
            if key < least:
                choice, least = row, key
        if choice >= 0:
            room = free[choice]
            room[0] -= cpu
            room[1] -= memory
            room[2] -= network
        choices.append(choice)
    return choices, time.perf_counter() - begin


def by_numpy(strategy: str, given: Instance) -> tuple[list[int], float]:
    """The same over arrays, a column each, for all tasks."""
    columns = [np.ascontiguousarray(c) for c in given.capacity.T]
    free = [c.copy() for c in columns]
    rows = np.arange(len(columns[0]))
    choices: list[int] = []
    begin = time.perf_counter()
    for wanted in given.demand.tolist():
        fits = free[0] >= wanted[0]
        for k in (1, 2):
            fits &= free[k] >= wanted[k]
        keys: Any = rows
        if strategy == "greedy":
            keys = sum(abs(c - want) for c, want in zip(columns, wanted, strict=True))
        elif strategy != "first_fit":
            shares = [
                (have - want) / whole
                for have, want, whole in zip(free, wanted, columns, strict=True)
                if want
            ]
            keys = np.minimum.reduce(shares) * (-1 if strategy == "worst_fit" else 1)
        worst = np.iinfo(np.int64).max if keys.dtype.kind == "i" else np.inf
        choice = int(np.where(fits, keys, worst).argmin())
        if not fits[choice]:
            choice = -1
        else:
            for k in range(3):
                free[k][choice] -= wanted[k]
        choices.append(choice)
    return choices, time.perf_counter() - begin


def by_muster(strategy: str, given: Instance, runs: int) -> tuple[list[int], list[float], float]:
    """Choices, seconds of each run, seconds of interning."""
    table, classes = AgentTable(), ClassTable()
    for row, amounts in enumerate(given.capacity.tolist()):
        vector = ResourceVector.of(dict(zip(RESOURCES, amounts, strict=True)))
        table.upsert(f"agent-{row}", vector, frozenset({"work"}), {}, placeable=True)
    vectors = [
        ResourceVector.of(dict(zip(RESOURCES, amounts, strict=True)))
        for amounts in given.demand.tolist()
    ]
    begin = time.perf_counter()
    ids = [classes.intern(TaskClass("work", vector)) for vector in vectors]
    interning = time.perf_counter() - begin
    batch = TaskBatch.of(classes, ids)
    policy = Policy(strategy=strategy)
    never: Callable[[], bool] = lambda: False  # noqa: E731
    fast.load()
    spent, choices = [], []
    for _ in range(runs):
        rng = np.random.default_rng(0)
        begin = time.perf_counter()
        plan = get(strategy).plan(table.view(), batch, policy, 0.0, rng, never, 0)
        spent.append(time.perf_counter() - begin)
        choices = plan.assignment.tolist()
    return choices, spent, interning


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--agents", type=int, default=1_000)
    parser.add_argument("--classes", type=int, default=0, help="0: every task is its own")
    parser.add_argument("--strategy", choices=STRATEGIES, default="greedy")
    parser.add_argument("--fill", type=float, default=0.7, help="share of capacity asked for")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--plain-seconds", type=float, default=5.0)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    if min(asked.tasks, asked.agents, asked.runs) < 1 or asked.classes < 0 or asked.fill <= 0:
        parser.error("tasks, agents, runs and fill must be above 0, classes at least 0")
    given = instance(asked.tasks, asked.agents, asked.classes, asked.fill, asked.seed)
    plain, plain_s = by_plain_python(asked.strategy, given, asked.plain_seconds)
    arrays, arrays_s = by_numpy(asked.strategy, given)
    ours, spent, interning_s = by_muster(asked.strategy, given, asked.runs)
    row = {
        "tasks": asked.tasks,
        "agents": asked.agents,
        "classes": asked.classes or asked.tasks,
        "strategy": asked.strategy,
        "fill": asked.fill,
        "seed": asked.seed,
        "plain_python_per_s": round(len(plain) / plain_s),
        "plain_python_tasks": len(plain),
        "numpy_per_s": round(asked.tasks / arrays_s),
        "muster_per_s": round(asked.tasks / statistics.median(spent)),
        "muster_least_per_s": round(asked.tasks / max(spent)),
        "muster_most_per_s": round(asked.tasks / min(spent)),
        "runs": asked.runs,
        "interning_per_s": round(asked.tasks / interning_s),
        "placed": sum(row >= 0 for row in ours),
        "same_result": ours == arrays and ours[: len(plain)] == plain,
    }
    if asked.json:
        print(orjson.dumps(row).decode())
    else:
        table = Table("", "placements/s", title=f"{asked.strategy}, seed {asked.seed}")
        table.add_row(f"plain Python (first {len(plain)})", f"{row['plain_python_per_s']:,}")
        table.add_row("numpy", f"{row['numpy_per_s']:,}")
        spread = f"{row['muster_least_per_s']:,} to {row['muster_most_per_s']:,}"
        table.add_row("Muster", f"{row['muster_per_s']:,} ({spread})")
        table.add_row("same result", str(row["same_result"]))
        Console().print(table)
    if not row["same_result"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
