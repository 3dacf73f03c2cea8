"""Each task to the agent whose free resources point its way. A baseline of the literature."""

from __future__ import annotations

import numpy as np

from muster_scheduler.placement.by_agent import DemandByRow
from muster_scheduler.placement.classes import Demand
from muster_scheduler.placement.constructive import ConstructiveStrategy
from muster_scheduler.placement.shares import WELL, is_sick
from muster_scheduler.placement.snapshot import FloatArray, IntArray, Snapshot
from muster_scheduler.placement.strategy import register

# Above every alignment, of at most 256 resources.
_SICK = 1024.0


@register("dot_product")
class DotProduct(ConstructiveStrategy):
    """The feasible agent of greatest Σ_k (r_k / c_k) (free_k / c_k), the first among equals.

    The alignment of Tetris (Grandl et al., "Multi-resource Packing for Cluster Schedulers",
    SIGCOMM'14): demand and free resources both as shares of the agent. A sick agent
    comes after all that are well.
    """

    name = "dot_product"
    only_worsens = True

    def scan_keys(
        self, snapshot: Snapshot, free: IntArray, demand: Demand | DemandByRow
    ) -> FloatArray | IntArray:
        keys = np.zeros(snapshot.row_count)
        for column, amount in demand.columns:
            divisor = snapshot.divisor[:, column]
            keys -= (amount / divisor) * (free[:, column] / divisor)
        keys[is_sick(snapshot)] += _SICK
        return keys

    def row_key(
        self,
        row: int,  # noqa: ARG002
        free: list[int],
        capacity: list[int],
        health: float,
        demand: Demand,
    ) -> float:
        key = 0.0
        for column, amount in demand.columns:
            key -= (amount / capacity[column]) * (free[column] / capacity[column])
        return key if health >= WELL else key + _SICK
