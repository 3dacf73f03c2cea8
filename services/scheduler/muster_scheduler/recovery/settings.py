"""What an operator may set about recovery, and the checks of every number that comes in.

The tables behind the names are in docs/recovery.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from muster.domain.errors import InvalidInput

# A day: bounds that catch a wrong unit, not ones that anybody meets.
MAX_SECONDS: Final = 86_400.0
# A plan is a table of epochs × restarts × seconds of a restart: it stays within milliseconds.
MAX_HORIZON_S: Final = 600
MAX_RESTART_DEADLINE_S: Final = 120
MAX_TRIES: Final = 8
# Task-seconds: ten thousand tasks for ten years.
MAX_TASK_SECONDS: Final = 1e13


def number(field: str, value: object, low: float, high: float) -> float:
    """`value` as a float within [low, high]; anything else (NaN too) raises InvalidInput."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not low <= value <= high:  # type: ignore[operator]
        raise InvalidInput(field, value, f"a number from {low:g} to {high:g} is needed")
    return float(value)  # type: ignore[arg-type]


def whole(field: str, value: object, low: int, high: int) -> int:
    """`value` as an int within [low, high]; anything else raises InvalidInput naming the field."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise InvalidInput(field, value, f"a whole number from {low} to {high} is needed")
    return value


@dataclass(frozen=True, slots=True)
class Bounds:
    """ΔT (task-seconds), ΔU and ΔB (shares) that a recovery may cost; None = not bounded."""

    delta_t_s: float | None = None
    delta_u: float | None = None
    delta_b: float | None = None

    def __post_init__(self) -> None:
        if self.delta_t_s is not None:
            number("recovery.bounds.delta_t_s", self.delta_t_s, 0.0, MAX_TASK_SECONDS)
        if self.delta_u is not None:
            number("recovery.bounds.delta_u", self.delta_u, 0.0, 1.0)
        if self.delta_b is not None:
            number("recovery.bounds.delta_b", self.delta_b, 0.0, 1.0)


@dataclass(frozen=True, slots=True)
class RecoverySettings:
    """How far a plan looks, what restarts may cost, and how load slows agents down.

    `move_s`: from giving a task away to its running elsewhere. `knee`: the share of slots in use
    from which on agents slow down; `slowdown`: by what share, when they are full. `pause_first_s`
    and `pause_cap_s` are the back-off between restarts.
    """

    horizon_s: int = 120
    restart_deadline_s: int = 30
    tries: int = 3
    restarts_per_hour: int = 6
    pause_first_s: float = 1.0
    pause_cap_s: float = 30.0
    move_s: float = 2.0
    knee: float = 0.6
    slowdown: float = 0.5
    fence_s: float = 13.0
    stop_ends_s: float = 12.0
    bounds: Bounds = Bounds()

    def __post_init__(self) -> None:
        whole("recovery.horizon_s", self.horizon_s, 1, MAX_HORIZON_S)
        whole("recovery.restart_deadline_s", self.restart_deadline_s, 1, MAX_RESTART_DEADLINE_S)
        whole("recovery.tries", self.tries, 0, MAX_TRIES)
        whole("recovery.restarts_per_hour", self.restarts_per_hour, 0, 3_600)
        number("recovery.pause_first_s", self.pause_first_s, 0.0, 60.0)
        number("recovery.pause_cap_s", self.pause_cap_s, 0.0, 60.0)
        number("recovery.move_s", self.move_s, 0.0, 3_600.0)
        number("recovery.knee", self.knee, 0.0, 0.99)
        number("recovery.slowdown", self.slowdown, 0.0, 100.0)
        number("recovery.fence_s", self.fence_s, 0.0, 600.0)
        number("recovery.stop_ends_s", self.stop_ends_s, 0.0, 600.0)
