"""What a placement is asked for and what comes back: policy, plan, why a task has no place."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from muster.domain.errors import InvalidInput

DEFAULT_STRATEGY = "worst_fit"
# The article names no budget; a tenth of a second is the longest that a leader's loop may miss.
DEFAULT_BUDGET_S = 0.1


@dataclass(frozen=True, slots=True)
class Policy:
    """How to place. Raises InvalidInput for weights, bounds or budgets that mean nothing.

    w_t, w_u, w_b   weights of T, 1 - U and B in J, each ≥ 0, not all 0
    penalty         weight of the unplaced share of the cluster in J, ≥ 0
    objective       what plans with equal unplaced work are compared by
    bounds          largest accepted T, B or J and smallest accepted U, by name (ε-constraint)
    budget_s        seconds that an improving strategy may take; the shell makes `stop` from it
    measured        whether the plan's T, U, B and J are computed; off on the online path
    """

    strategy: str = DEFAULT_STRATEGY
    w_t: float = 0.4
    w_u: float = 0.3
    w_b: float = 0.3
    penalty: float = 10.0
    objective: Literal["J", "T", "makespan"] = "J"
    bounds: Mapping[str, float] = field(default_factory=dict)
    budget_s: float = DEFAULT_BUDGET_S
    measured: bool = False

    def __post_init__(self) -> None:
        weights = {"w_t": self.w_t, "w_u": self.w_u, "w_b": self.w_b}
        for name, value in {**weights, "penalty": self.penalty}.items():
            if not (math.isfinite(value) and value >= 0):
                raise InvalidInput(f"policy.{name}", value, "must be a finite number of at least 0")
        if not any(weights.values()):
            raise InvalidInput("policy", weights, "at least one weight must be above 0")
        if self.objective not in ("J", "T", "makespan"):
            raise InvalidInput("policy.objective", self.objective, "one of J T makespan")
        for name, value in self.bounds.items():
            if name not in ("T", "U", "B", "J") or math.isnan(value):
                raise InvalidInput(f"policy.bounds.{name}", value, "bounds are numbers for T U B J")
        if not (math.isfinite(self.budget_s) and self.budget_s > 0):
            raise InvalidInput("policy.budget_s", self.budget_s, "must be above 0")


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
