"""Published and generated placement instances as snapshots and batches."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from muster.domain.errors import InvalidInput
from muster.domain.resources import ResourceVector
from muster_scheduler.placement import AgentTable, ClassTable, Snapshot, TaskBatch, TaskClass
from muster_scheduler.placement.snapshot import FIRST_COLUMNS, FloatArray, IntArray

_SKILL = "task"
# What float64 and the sums of an instance hold exactly.
_MOST = 1e12
_MOST_OF_A_SIZE = 1_000_000
# The makespan stands in the name of a published solution, with a decimal comma.
_MAKESPAN = re.compile(r"_(\d+(?:,\d+)?)\.sol$")


@dataclass(frozen=True, slots=True)
class Instance:
    """One placement to solve; `best` is the best published value, where there is one."""

    name: str
    snapshot: Snapshot
    tasks: TaskBatch
    best: float | None = None


class _Words:
    """The words of a file in turn; an error names the file, the line and the word's column."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            text = path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidInput("file", str(path), f"cannot be read: {error}") from error
        self.words = [
            (word, number, column)
            for number, line in enumerate(text.splitlines(), 1)
            for column, word in enumerate(line.split(), 1)
        ]

    def first(self, meaning: str, at: int) -> int:
        """Word `at` as a size, 1 to a million."""
        return int(self.numbers(at, 1, meaning, 1, _MOST_OF_A_SIZE, whole=True)[0])

    def numbers(
        self, at: int, count: int, meaning: str, least: float, most: float, *, whole: bool
    ) -> FloatArray:
        """float64 [count] from word `at` on."""
        if len(self.words) < at + count:
            limit = f"ends after {len(self.words)} numbers, before {meaning} is complete"
            raise InvalidInput("file", str(self.path), limit)
        found = np.zeros(count)
        for index, (word, line, column) in enumerate(self.words[at : at + count]):
            try:
                found[index] = int(word) if whole else float(word)
            except (ValueError, OverflowError):
                found[index] = math.nan
            if not least <= found[index] <= most:
                kind = "a whole number" if whole else "a number"
                where = f"{self.path}: line {line}, column {column}"
                raise InvalidInput(where, word, f"{meaning} is {kind} from {least:g} to {most:g}")
        return found

    def must_end(self, at: int) -> None:
        if len(self.words) > at:
            word, line, column = self.words[at]
            where = f"{self.path}: line {line}, column {column}"
            raise InvalidInput(where, word, "nothing may follow the last number")


def read_hcsp(path: Path) -> Instance:
    """Tasks on unequal machines: `n m …`, then n * m times, task by task (Braun et al. 2001).

    What follows n and m on the first line is left out. Raises InvalidInput naming the file and
    where in it what is wrong.
    """
    words = _Words(path)
    tasks, machines = words.first("n, the number of tasks,", 0), words.first("m, of machines,", 1)
    head = sum(1 for _, line, _ in words.words if line == words.words[0][1])
    if head >= tasks * machines + 2:
        head = 2
    times = words.numbers(head, tasks * machines, "a time", 0.0, _MOST, whole=False)
    words.must_end(head + tasks * machines)
    found = [
        float(match[1].replace(",", "."))
        for solution in path.parent.glob(f"{path.name}_*.sol")
        if (match := _MAKESPAN.search(solution.name))
    ]
    capacity = np.zeros((machines, len(FIRST_COLUMNS)), np.int64)
    demand = np.zeros((tasks, len(FIRST_COLUMNS)), np.int64)
    snapshot, batch = build(capacity, demand, times.reshape(tasks, machines))
    return Instance(path.name, snapshot, batch, min(found, default=None))


def read_gap(path: Path, best_known: dict[str, float]) -> Instance:
    """Generalised assignment (Chu and Beasley 1997): `m n`, costs, weights, capacities.

    The costs are t_ij, the weights r_ij of `cpu`. Raises InvalidInput as `read_hcsp`.
    """
    words = _Words(path)
    agents, tasks = words.first("m, the number of agents,", 0), words.first("n, of tasks,", 1)
    pairs = agents * tasks
    costs = words.numbers(2, pairs, "a cost", 0, _MOST, whole=True).reshape(agents, tasks).T
    weights = words.numbers(2 + pairs, pairs, "a weight", 0, _MOST, whole=True)
    limits = words.numbers(2 + 2 * pairs, agents, "a capacity", 0, _MOST, whole=True)
    words.must_end(2 + 2 * pairs + agents)
    capacity = np.zeros((agents, len(FIRST_COLUMNS)), np.int64)
    capacity[:, 0] = limits
    demand = np.zeros((tasks, agents, len(FIRST_COLUMNS)), np.int64)
    demand[:, :, 0] = weights.reshape(agents, tasks).T
    times = np.ascontiguousarray(costs)
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
