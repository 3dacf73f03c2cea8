"""What a placement is asked for and what comes back: policy, plan, why a task has no place."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from muster.domain.policy import DEFAULT_STRATEGY, Policy
from muster_scheduler.placement.devices import Devices

__all__ = ["DEFAULT_STRATEGY", "Plan", "Policy", "Unplaceable"]


@dataclass(frozen=True, slots=True)
class Unplaceable:
    """Why a class of tasks fits nowhere: agents excluded, by the first reason that excludes each.

    "skill", a constraint ("zone == a"), "avoided", a row's `why_not` ("cordoned"), or a resource
    ("cpu short by 500m": the least that any of these agents lacks now; "… even when empty": these
    lack it always). The counts sum to the agents that the task cannot go to.
    """

    reasons: Mapping[str, int]
    agents: int = 0

    def __str__(self) -> str:
        if not self.agents:
            return "there is no agent"
        if not self.reasons:
            return "the room it needs was taken by tasks before it"
        shown = ", ".join(f"{reason}: {count}" for reason, count in self.reasons.items())
        return f"{self.agents - sum(self.reasons.values())} of {self.agents} agents fit ({shown})"


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """A proposal; the shell revalidates it.

    assignment   int32 [N], agent rows, -1 unplaced
    reasons      by index of each unplaced task among the first `considered`; worked out when a
                 value is first asked for, from the agents as they are then
    devices      indices by resource name, of each placed task that asks for devices, by its index
    considered   tasks looked at before `stop`; the rest are -1 without a reason
    T, U, B, J   as in `objective`, NaN unless the policy asks for them
    lower_bound  of the policy's objective, where the strategy knows one
    """

    assignment: NDArray[np.int32]
    reasons: Mapping[int, Unplaceable]
    strategy: str
    considered: int
    T: float = math.nan
    U: float = math.nan
    B: float = math.nan
    J: float = math.nan
    lower_bound: float | None = None
    devices: Mapping[int, Devices] = field(default_factory=dict)
