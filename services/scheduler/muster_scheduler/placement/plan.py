"""What a placement is asked for and what comes back: policy, plan, why a task has no place."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from muster.domain.errors import InvalidInput
from muster_scheduler.placement.devices import Devices

DEFAULT_STRATEGY = "worst_fit"
# The article names no budget; a tenth of a second is the longest that a leader's loop may miss.
DEFAULT_BUDGET_S = 0.1
# Beyond an hour a cluster has changed so much that a plan for it means nothing.
MAX_BUDGET_S = 3600.0
# The weights are proportions; sums and products of such ones stay far from infinity.
MAX_WEIGHT = 1e9


@dataclass(frozen=True, slots=True)
class Policy:
    """How to place. Raises InvalidInput for weights, bounds or budgets that mean nothing.

    w_t, w_u, w_b   weights of T, 1 - U and B in J, each 0 to 1e9, not all 0
    penalty         weight of the unplaced share of the cluster in J, 0 to 1e9
    objective       what plans with equal unplaced work are compared by
    bounds          largest accepted T, B or J and smallest accepted U, by name (ε-constraint);
                    T and B at least 0, U 0 to 1, J at least w_t: T is never below T_ref while
                    every task has a place, so no plan could meet a smaller one
    budget_s        seconds that an improving strategy may take, up to 3600; the shell makes
                    `stop` from it
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
            _check_number(f"policy.{name}", value, 0.0, MAX_WEIGHT)
        if not any(weights.values()):
            raise InvalidInput("policy", weights, "at least one of w_t, w_u, w_b must be above 0")
        if self.objective not in ("J", "T", "makespan"):
            raise InvalidInput("policy.objective", self.objective, "one of J T makespan")
        self._check_bounds()
        _check_number("policy.budget_s", self.budget_s, 0.0, MAX_BUDGET_S)
        if not self.budget_s:
            limit = f"must be above 0 and at most {MAX_BUDGET_S:g} seconds"
            raise InvalidInput("policy.budget_s", self.budget_s, limit)

    def _check_bounds(self) -> None:
        for name, value in self.bounds.items():
            field_name = f"policy.bounds.{name}"
            if name not in ("T", "U", "B", "J"):
                raise InvalidInput(field_name, value, "bounds are for T, U, B and J")
            _check_number(field_name, value, 0.0, 1.0 if name == "U" else math.inf)
        if self.bounds.get("J", math.inf) < self.w_t:
            limit = f"contradicts w_t, {self.w_t:g}: J is at least that while every task is placed"
            raise InvalidInput("policy.bounds.J", self.bounds["J"], limit)


def _check_number(field_name: str, value: object, least: float, most: float) -> None:
    """A bool is no number here: JSON's `true` as a weight is a mistake of its sender."""
    limit = f"must be a number from {least:g}"
    limit += f" to {most:g}" if math.isfinite(most) else " up"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidInput(field_name, value, limit)
    if not (math.isfinite(value) and least <= value <= most):
        raise InvalidInput(field_name, value, limit)


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
