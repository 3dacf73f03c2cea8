"""The share of an agent that stays free once a task is placed, by its scarcest resource."""

from __future__ import annotations

import numpy as np

from muster_scheduler.placement.by_agent import DemandByRow
from muster_scheduler.placement.classes import Demand
from muster_scheduler.placement.snapshot import BoolArray, FloatArray, IntArray, Snapshot

# Health below which an agent is sick: strategies that do not weigh by health take it only where no
# well one fits.
WELL = 0.7


def is_sick(snapshot: Snapshot) -> BoolArray:
    """bool [M]."""
    sick: BoolArray = snapshot.health < WELL
    return sick


def free_shares_after(
    snapshot: Snapshot, free: IntArray, demand: Demand | DemandByRow
) -> FloatArray:
    """float64 [M], least (free_k - r_k) / c_k over the resources k that the demand asks for.

    Only those: an agent whose GPUs are all taken is not full for a task that wants none. 1 for
    an empty demand; meaningless where the demand does not fit. Where the demand differs by row,
    a resource counts on all rows as soon as one is asked for it.
    """
    shares = np.ones(snapshot.row_count)
    for column, amount in demand.columns:
        np.minimum(shares, (free[:, column] - amount) / snapshot.divisor[:, column], out=shares)
    return shares


def free_share_after(free: list[int], capacity: list[int], demand: Demand) -> float:
    """The same for one row where the demand fits, to the last bit.

    Amounts up to 2**53 convert exactly, so both forms round once, in the division.
    """
    least = 1.0
    for column, amount in demand.columns:
        share = (free[column] - amount) / capacity[column]
        if share < least:  # noqa: PLR1730 - half the time of min() in the innermost loop
            least = share
    return least
