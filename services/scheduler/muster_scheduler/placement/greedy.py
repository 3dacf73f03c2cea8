"""The article's algorithm (section 5.1), placement for placement."""

from __future__ import annotations

import numpy as np

from muster_scheduler.placement import fast
from muster_scheduler.placement.by_agent import DemandByRow
from muster_scheduler.placement.classes import Demand, TaskBatch
from muster_scheduler.placement.constructive import ConstructiveStrategy
from muster_scheduler.placement.shares import WELL, is_sick
from muster_scheduler.placement.snapshot import FloatArray, IntArray, Snapshot
from muster_scheduler.placement.strategy import register

# cpu, memory and network: the article's three, the first of every snapshot's columns.
_COST_COLUMNS = (0, 1, 2)
# Above every cost.
_SICK = 1 << 61


@register("greedy")
class Greedy(ConstructiveStrategy):
    """Each task to the feasible agent of least cost Σ_k |c_jk - r_ik|, the first among equals.

    k runs over cpu, memory and network in base units, c_jk is the agent's total capacity, not
    what is left of it; whether a task fits is decided by what is left. Other resources and slots
    decide only whether it fits. The sums are exact integers. A sick agent comes after all that are
    well; the article knows none.

    Where a task fits, c_jk is at least r_ik, so that the cost is Σ_k c_jk less what the task
    wants: all tasks rank the agents alike, by their total, and `fast_pass` rests on that.

    So it fills the agent that is just large enough before it looks at the next, and sends every
    tiny task to the first of equal agents.
    """

    name = "greedy"
    only_worsens = True

    def scan_keys(
        self,
        snapshot: Snapshot,
        free: IntArray,  # noqa: ARG002
        demand: Demand | DemandByRow,
    ) -> FloatArray | IntArray:
        costs = np.zeros(snapshot.row_count, np.int64)
        for column in _COST_COLUMNS:
            costs += np.abs(snapshot.capacity[:, column] - demand.amounts[column])
        costs[is_sick(snapshot)] += _SICK
        return costs

    def fast_pass(self, snapshot: Snapshot, tasks: TaskBatch) -> fast.Pass:
        totals = snapshot.capacity[:, _COST_COLUMNS].sum(axis=1)
        return fast.OrderPass(snapshot, tasks, np.lexsort((totals, is_sick(snapshot))))

    def row_key(
        self,
        row: int,  # noqa: ARG002
        free: list[int],  # noqa: ARG002
        capacity: list[int],
        health: float,
        demand: Demand,
    ) -> float:
        cost = 0
        for column in _COST_COLUMNS:
            cost += abs(capacity[column] - demand.amounts[column])
        return cost if health >= WELL else cost + _SICK
