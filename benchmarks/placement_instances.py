"""Published and generated placement instances as snapshots and batches."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from muster.domain.resources import ResourceVector
from muster_scheduler.placement import AgentTable, ClassTable, Snapshot, TaskBatch, TaskClass
from muster_scheduler.placement.snapshot import FIRST_COLUMNS, FloatArray, IntArray

_SKILL = "task"
# The makespan stands in the name of a published solution, with a decimal comma.
_MAKESPAN = re.compile(r"_(\d+(?:,\d+)?)\.sol$")


@dataclass(frozen=True, slots=True)
class Instance:
    """One placement to solve; `best` is the best published value, where there is one."""

    name: str
    snapshot: Snapshot
    tasks: TaskBatch
    best: float | None = None


def read_hcsp(path: Path) -> Instance:
    """Tasks on unequal machines: `n m …`, then n * m times, task by task (Braun et al. 2001).

    Raises ValueError naming the file and what is wrong with it.
    """
    numbers = path.read_text().split()
    try:
        tasks, machines = int(numbers[0]), int(numbers[1])
        times = np.array(numbers[-tasks * machines :], np.float64).reshape(tasks, machines)
    except (ValueError, IndexError) as error:
        raise ValueError(f"{path}: not an HCSP instance (n m, then n * m times)") from error
    found = [
        float(match[1].replace(",", "."))
        for solution in path.parent.glob(f"{path.name}_*.sol")
        if (match := _MAKESPAN.search(solution.name))
    ]
    capacity = np.zeros((machines, len(FIRST_COLUMNS)), np.int64)
    snapshot, batch = build(capacity, np.zeros((tasks, len(FIRST_COLUMNS)), np.int64), times)
    return Instance(path.name, snapshot, batch, min(found, default=None))


def read_gap(path: Path, best_known: dict[str, float]) -> Instance:
    """Generalised assignment (Chu and Beasley 1997): `m n`, costs, weights, capacities.

    The costs are t_ij, the weights r_ij of `cpu`. Raises ValueError as `read_hcsp`.
    """
    numbers = path.read_text().split()
    try:
        agents, tasks = int(numbers[0]), int(numbers[1])
        body = np.array(numbers[2 : 2 + 2 * agents * tasks + agents], np.int64)
        costs = body[: agents * tasks].reshape(agents, tasks).T
        weights = body[agents * tasks : 2 * agents * tasks].reshape(agents, tasks).T
        limits = body[2 * agents * tasks :].reshape(agents)
    except (ValueError, IndexError) as error:
        raise ValueError(f"{path}: not a GAP instance (m n, costs, weights, capacities)") from error
    capacity = np.zeros((agents, len(FIRST_COLUMNS)), np.int64)
    capacity[:, 0] = limits
    demand = np.zeros((tasks, agents, len(FIRST_COLUMNS)), np.int64)
    demand[:, :, 0] = weights
    times = np.ascontiguousarray(costs, np.float64)
    snapshot, batch = build(capacity, demand.min(axis=1), times, demand)
    return Instance(path.name, snapshot, batch, best_known.get(path.name))


def build(
    capacity: IntArray, demand: IntArray, times: FloatArray, by_agent: IntArray | None = None
) -> tuple[Snapshot, TaskBatch]:
    """Agents that may take every task; capacity [M, K], demand [N, K], times [N, M]."""
    table, classes = AgentTable(), ClassTable()
    for index, amounts in enumerate(capacity.tolist()):
        vector = ResourceVector.of(dict(zip(FIRST_COLUMNS, amounts, strict=True)))
        table.upsert(f"agent-{index:04}", vector, frozenset({_SKILL}), {}, placeable=True)
    ids = [
        classes.intern(
            TaskClass(_SKILL, ResourceVector.of(dict(zip(FIRST_COLUMNS, amounts, strict=True))))
        )
        for amounts in demand.tolist()
    ]
    batch = TaskBatch(
        classes,
        np.array(ids, np.int32),
        np.zeros(len(ids), np.int32),
        times.min(axis=1),
        times,
        by_agent,
    )
    return table.view().freeze(), batch
