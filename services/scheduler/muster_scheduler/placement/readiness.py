"""Which strategies the live loop may ask for a plan: none that would stop it to load or compile.

A strategy without a plain way is first made ready by the shell (`warming`); meanwhile the default
one places. Elsewhere than in a scheduler every strategy loads what it needs by itself.
"""

from __future__ import annotations

from muster_scheduler.placement import fast
from muster_scheduler.placement.constructive import ConstructiveStrategy
from muster_scheduler.placement.plan import DEFAULT_STRATEGY
from muster_scheduler.placement.strategy import get

# It plans by numpy alone as long as it is given no steps to improve with, and the loop gives none.
_PLAIN = frozenset({"learned"})

_wanted: set[str] = set()
_ready: set[str] = set()


def live(name: str) -> str:
    """The strategy to place by now: `name`, or the default while it is not ready."""
    if name in _ready or fast.may_load() or name in _PLAIN:
        return name
    if isinstance(get(name), ConstructiveStrategy):
        return name
    _wanted.add(name)
    return DEFAULT_STRATEGY


def wanted() -> tuple[str, ...]:
    """What the loop has asked for and is not ready, in alphabetical order."""
    return tuple(sorted(_wanted))


def settle(name: str, *, is_ready: bool) -> None:
    """It is ready, or will be asked for again."""
    _wanted.discard(name)
    if is_ready:
        _ready.add(name)


def forget() -> None:
    """As in a new process."""
    _wanted.clear()
    _ready.clear()
