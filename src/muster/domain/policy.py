"""How tasks are placed: the policy as a value, and as the JSON document that operators write.

It stands here and not with the strategies, so that the gateway refuses a wrong document by the
same rules that the leader reads it by, also while nobody leads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from muster.domain.durations import format_duration, parse_duration_ms
from muster.domain.errors import InvalidInput

# The strategies that a policy may name; a test holds that these are the ones that there are.
STRATEGIES: Final = (
    "annealing",
    "auto",
    "best_fit",
    "dot_product",
    "exact",
    "first_fit",
    "fragmentation",
    "genetic",
    "greedy",
    "learned",
    "quota",
    "search",
    "swarm",
    "worst_fit",
)
DEFAULT_STRATEGY: Final = "worst_fit"
# The article names no budget; a tenth of a second is the longest that a leader's loop may miss.
DEFAULT_BUDGET_S: Final = 0.1
# Beyond an hour a cluster has changed so much that a plan for it means nothing.
MAX_BUDGET_S: Final = 3600.0
# The weights are proportions; sums and products of such ones stay far from infinity.
MAX_WEIGHT: Final = 1e9
_OBJECTIVES: Final = ("J", "T", "makespan")
_KEYS: Final = ("strategy", "weights", "penalty", "objective", "bounds", "budget", "recovery")
# What may be done about agents that are down; a test holds that these are rules that there are.
RECOVERIES: Final = ("planned", "fixed", "always_migrate")
DEFAULT_RECOVERY: Final = "planned"
_RECOVERY_KEYS: Final = ("policy", "bounds")
# What a recovery may cost: task-seconds of T, shares of U and B.
_RECOVERY_BOUNDS: Final[Mapping[str, float]] = {"T": 1e13, "U": 1.0, "B": 1.0}


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
    recovery        what is done about agents that are down: the least expected cost, one restart
                    and then a move, or a move at once
    recovery_bounds  by how much a recovery may raise T (task-seconds) and B and lower U
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
    recovery: str = DEFAULT_RECOVERY
    recovery_bounds: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        weights = {"w_t": self.w_t, "w_u": self.w_u, "w_b": self.w_b}
        for name, value in {**weights, "penalty": self.penalty}.items():
            _number(f"policy.{name}", value, 0.0, MAX_WEIGHT)
        if not any(weights.values()):
            raise InvalidInput("policy", weights, "at least one of w_t, w_u, w_b must be above 0")
        if self.objective not in _OBJECTIVES:
            raise InvalidInput("policy.objective", self.objective, "one of J T makespan")
        self._check_bounds()
        _number("policy.budget_s", self.budget_s, 0.0, MAX_BUDGET_S)
        if not self.budget_s:
            limit = f"must be above 0 and at most {MAX_BUDGET_S:g} seconds"
            raise InvalidInput("policy.budget_s", self.budget_s, limit)
        _recovery(
            {"policy": self.recovery, "bounds": self.recovery_bounds}, self, "policy.recovery"
        )

    def _check_bounds(self) -> None:
        for name, value in self.bounds.items():
            field_name = f"policy.bounds.{name}"
            if name not in ("T", "U", "B", "J"):
                raise InvalidInput(field_name, value, "bounds are for T, U, B and J")
            _number(field_name, value, 0.0, 1.0 if name == "U" else math.inf)
        if self.bounds.get("J", math.inf) < self.w_t:
            limit = f"contradicts w_t, {self.w_t:g}: J is at least that while every task is placed"
            raise InvalidInput("policy.bounds.J", self.bounds["J"], limit)


def parse_policy(document: object, default: Policy | None = None) -> Policy:
    """The policy of a decoded JSON object; what it leaves out is as in `default` (None: Policy()).

    {"strategy": name, "weights": {"t", "u", "b"}, "penalty": number, "objective": "J" | "T" |
    "makespan", "bounds": {"T", "U", "B", "J"}, "budget": "100ms", "recovery": {"policy": "planned"
    | "fixed" | "always_migrate", "bounds": {"T", "U", "B"}}}. Of `weights` those left out
    are 0; `bounds` are all that there are. Raises InvalidInput naming the field.
    """
    default = default or Policy()
    given = _object("policy", document, _KEYS)
    strategy = given.get("strategy", default.strategy)
    if strategy not in STRATEGIES:
        raise InvalidInput("strategy", strategy, "must be one of " + ", ".join(STRATEGIES))
    objective = given.get("objective", default.objective)
    if objective not in _OBJECTIVES:
        raise InvalidInput("objective", objective, "must be one of " + ", ".join(_OBJECTIVES))
    w_t, w_u, w_b = default.w_t, default.w_u, default.w_b
    if "weights" in given:
        named = _object("weights", given["weights"], ("t", "u", "b"))
        w_t, w_u, w_b = (
            _number(f"weights.{name}", named.get(name, 0), 0.0, MAX_WEIGHT) for name in "tub"
        )
        if not (w_t or w_u or w_b):
            raise InvalidInput("weights", dict(named), "at least one must be above 0")
    penalty = _number("penalty", given.get("penalty", default.penalty), 0.0, MAX_WEIGHT)
    bounds = default.bounds
    if "bounds" in given:
        limits = _object("bounds", given["bounds"], ("T", "U", "B", "J"))
        bounds = {
            name: _number(f"bounds.{name}", value, 0.0, 1.0 if name == "U" else math.inf)
            for name, value in limits.items()
        }
    if bounds.get("J", math.inf) < w_t:
        limit = f"contradicts weights.t, {w_t:g}: J is at least that while every task is placed"
        raise InvalidInput("bounds.J", bounds["J"], limit)
    budget_s = _budget_s(given["budget"]) if "budget" in given else default.budget_s
    recovery, limits_of_it = _recovery(given.get("recovery", {}), default, "recovery")
    return Policy(
        strategy,
        w_t,
        w_u,
        w_b,
        penalty,
        objective,
        bounds,
        budget_s,
        recovery=recovery,
        recovery_bounds=limits_of_it,
    )


def policy_document(policy: Policy) -> dict[str, Any]:
    """The whole policy as `parse_policy` takes it; the budget in whole milliseconds."""
    return {
        "strategy": policy.strategy,
        "weights": {"t": policy.w_t, "u": policy.w_u, "b": policy.w_b},
        "penalty": policy.penalty,
        "objective": policy.objective,
        "bounds": dict(policy.bounds),
        "budget": format_duration(max(1, round(policy.budget_s * 1000))),
        "recovery": {"policy": policy.recovery, "bounds": dict(policy.recovery_bounds)},
    }


def _recovery(value: object, default: Policy, name: str) -> tuple[str, Mapping[str, float]]:
    given = _object(name, value, _RECOVERY_KEYS)
    rule = given.get("policy", default.recovery)
    if rule not in RECOVERIES:
        raise InvalidInput(f"{name}.policy", rule, "must be one of " + ", ".join(RECOVERIES))
    bounds = default.recovery_bounds
    if "bounds" in given:
        limits = _object(f"{name}.bounds", given["bounds"], tuple(_RECOVERY_BOUNDS))
        bounds = {
            key: _number(f"{name}.bounds.{key}", limit, 0.0, _RECOVERY_BOUNDS[key])
            for key, limit in limits.items()
        }
    return rule, bounds


def _object(name: str, value: object, keys: tuple[str, ...]) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InvalidInput(name, value, "must be an object")
    for key in value:
        if key not in keys:
            field_name = str(key) if name == "policy" else f"{name}.{key}"
            raise InvalidInput(field_name, value[key], f"{name} knows {', '.join(keys)} only")
    return value


def _budget_s(value: object) -> float:
    if not isinstance(value, str):
        raise InvalidInput("budget", value, "must be a duration such as 100ms or 2s")
    return parse_duration_ms(value, field="budget", most_ms=int(MAX_BUDGET_S * 1000)) / 1000


def _number(field_name: str, value: object, least: float, most: float) -> float:
    """A bool is no number here: JSON's `true` as a weight is a mistake of its sender."""
    limit = f"must be a number from {least:g}"
    limit += f" to {most:g}" if math.isfinite(most) else " up"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidInput(field_name, value, limit)
    try:
        number = float(value)
    except OverflowError:
        raise InvalidInput(field_name, "…", limit) from None
    if not (math.isfinite(number) and least <= number <= most):
        raise InvalidInput(field_name, value, limit)
    return number
