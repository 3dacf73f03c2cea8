"""Pack: each task to the agent that has least left after it. A baseline of the literature."""

from __future__ import annotations

import numpy as np

from muster_scheduler.placement import fast
from muster_scheduler.placement.by_agent import DemandByRow
from muster_scheduler.placement.classes import Demand, TaskBatch
from muster_scheduler.placement.constructive import ConstructiveStrategy
from muster_scheduler.placement.shares import free_share_after, free_shares_after
from muster_scheduler.placement.snapshot import FloatArray, IntArray, Snapshot
from muster_scheduler.placement.strategy import register


@register("best_fit")
class BestFit(ConstructiveStrategy):
    """The feasible agent of least free share after placing, the first among equals.

    The free share is `worst_fit`'s. Health does not count.
    """

    name = "best_fit"
    only_worsens = False

    def scan_keys(
        self, snapshot: Snapshot, free: IntArray, demand: Demand | DemandByRow
    ) -> FloatArray | IntArray:
        return free_shares_after(snapshot, free, demand)

    def fast_pass(self, snapshot: Snapshot, tasks: TaskBatch) -> fast.Pass:
        return fast.SharePass(snapshot, tasks, np.ones(snapshot.row_count), only_worsens=False)

    def row_key(
        self,
        row: int,  # noqa: ARG002
        free: list[int],
        capacity: list[int],
        health: float,  # noqa: ARG002
        demand: Demand,
    ) -> float:
        return free_share_after(free, capacity, demand)
