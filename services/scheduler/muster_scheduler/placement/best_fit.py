"""Pack: each task to the agent that has least left after it. A baseline of the literature."""

from __future__ import annotations

import numpy as np

from muster_scheduler.placement import fast
from muster_scheduler.placement.by_agent import DemandByRow
from muster_scheduler.placement.classes import Demand, TaskBatch
from muster_scheduler.placement.constructive import ConstructiveStrategy
from muster_scheduler.placement.shares import WELL, free_share_after, free_shares_after, is_sick
from muster_scheduler.placement.snapshot import FloatArray, IntArray, Snapshot
from muster_scheduler.placement.strategy import register

# Above every share.
_SICK = 2.0


@register("best_fit")
class BestFit(ConstructiveStrategy):
    """The feasible agent of least free share after placing, the first among equals.

    The free share is `worst_fit`'s. A sick agent comes after all that are well.
    """

    name = "best_fit"
    only_worsens = False

    def scan_keys(
        self, snapshot: Snapshot, free: IntArray, demand: Demand | DemandByRow
    ) -> FloatArray | IntArray:
        keys = free_shares_after(snapshot, free, demand)
        keys[is_sick(snapshot)] += _SICK
        return keys

    def fast_pass(self, snapshot: Snapshot, tasks: TaskBatch) -> fast.Pass | None:
        if is_sick(snapshot).any():
            # The loops multiply shares, which puts none of them behind all others.
            return None
        return fast.SharePass(snapshot, tasks, np.ones(snapshot.row_count), only_worsens=False)

    def row_key(
        self,
        row: int,  # noqa: ARG002
        free: list[int],
        capacity: list[int],
        health: float,
        demand: Demand,
    ) -> float:
        share = free_share_after(free, capacity, demand)
        return share if health >= WELL else share + _SICK
