"""Each task to the first agent where it fits. A baseline of the literature."""

from __future__ import annotations

import numpy as np

from muster_scheduler.placement import fast
from muster_scheduler.placement.by_agent import DemandByRow
from muster_scheduler.placement.classes import Demand, TaskBatch
from muster_scheduler.placement.constructive import ConstructiveStrategy
from muster_scheduler.placement.shares import WELL, is_sick
from muster_scheduler.placement.snapshot import FloatArray, IntArray, Snapshot
from muster_scheduler.placement.strategy import register

# Above every row.
_SICK = 1 << 40


@register("first_fit")
class FirstFit(ConstructiveStrategy):
    """The feasible agent of the lowest row; a sick one after all that are well."""

    name = "first_fit"
    only_worsens = True

    def scan_keys(
        self,
        snapshot: Snapshot,
        free: IntArray,  # noqa: ARG002
        demand: Demand | DemandByRow,  # noqa: ARG002
    ) -> FloatArray | IntArray:
        keys = np.arange(snapshot.row_count, dtype=np.int64)
        keys[is_sick(snapshot)] += _SICK
        return keys

    def fast_pass(self, snapshot: Snapshot, tasks: TaskBatch) -> fast.Pass:
        return fast.OrderPass(snapshot, tasks, np.argsort(is_sick(snapshot), kind="stable"))

    def row_key(
        self,
        row: int,
        free: list[int],  # noqa: ARG002
        capacity: list[int],  # noqa: ARG002
        health: float,
        demand: Demand,  # noqa: ARG002
    ) -> float:
        return row if health >= WELL else row + _SICK
