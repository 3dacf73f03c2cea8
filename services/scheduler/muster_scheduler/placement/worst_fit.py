"""Spread: each task to the agent that has most left after it. The default."""

from __future__ import annotations

from muster_scheduler.placement import fast
from muster_scheduler.placement.by_agent import DemandByRow
from muster_scheduler.placement.classes import Demand, TaskBatch
from muster_scheduler.placement.constructive import ConstructiveStrategy
from muster_scheduler.placement.shares import free_share_after, free_shares_after
from muster_scheduler.placement.snapshot import FloatArray, IntArray, Snapshot
from muster_scheduler.placement.strategy import register


@register("worst_fit")
class WorstFit(ConstructiveStrategy):
    """The feasible agent of greatest health x free share after placing, the first among equals.

    The free share is that of the scarcest resource which the task asks for, its slot among them.
    A sick agent so counts as a fuller one.
    """

    name = "worst_fit"
    only_worsens = True

    def scan_keys(
        self, snapshot: Snapshot, free: IntArray, demand: Demand | DemandByRow
    ) -> FloatArray | IntArray:
        keys = free_shares_after(snapshot, free, demand)
        keys *= snapshot.health
        keys *= -1.0
        return keys

    def fast_pass(self, snapshot: Snapshot, tasks: TaskBatch) -> fast.Pass:
        return fast.SharePass(snapshot, tasks, -snapshot.health, only_worsens=True)

    def row_key(
        self,
        row: int,  # noqa: ARG002
        free: list[int],
        capacity: list[int],
        health: float,
        demand: Demand,
    ) -> float:
        return -(free_share_after(free, capacity, demand) * health)
