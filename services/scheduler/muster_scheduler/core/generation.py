"""Whether the store is still the one that it was: its clock only grows, unless it was rolled back.

The cluster's clock is a counter in the store. A leader writes it down elsewhere (etcd) after the
store has confirmed it, so a sound store is never behind what was written down.
"""

from __future__ import annotations

from dataclasses import dataclass

# A weak store syncs once a second, and late by one more; the clock moves in steps of less than
# one. What is behind by more was lost in another way.
WEAK_LOSS_MS = 3_000


@dataclass(frozen=True, slots=True)
class Marker:
    """How far a store had come. `store` names its data, `run` the start of a weak one; "" = not
    known."""

    clock_ms: int
    term: int
    store: str = ""
    run: str = ""

    def or_later(self, other: Marker | None) -> Marker:
        """The one that is further on; of two stores' this one, for they do not compare."""
        if other is None or other.store != self.store or other.clock_ms <= self.clock_ms:
            return self
        return other


@dataclass(frozen=True, slots=True)
class Found:
    """What a store says of itself when a term is taken."""

    clock_ms: int
    store: str = ""
    weak: bool = False
    run: str = ""


@dataclass(frozen=True, slots=True)
class Sound:
    """Nothing is missing, as far as can be told."""


@dataclass(frozen=True, slots=True)
class Lost:
    """A weak store lost what it may lose; `why` says how much."""

    why: str
    ms: int


@dataclass(frozen=True, slots=True)
class RolledBack:
    """The store is another one, or an older state of it."""

    why: str


Verdict = Sound | Lost | RolledBack


def judge(marker: Marker | None, found: Found) -> Verdict:
    """Compares a store with what was written down of it; None: nothing ever was."""
    if marker is None:
        return Sound()
    behind_ms = marker.clock_ms - found.clock_ms
    if marker.store and found.store and marker.store != found.store:
        return RolledBack(
            f"Redis holds other data than it did: store {found.store[:8]} at"
            f" {_seconds(found.clock_ms)} of cluster time in place of store {marker.store[:8]} at"
            f" {_seconds(marker.clock_ms)}"
        )
    if found.weak and behind_ms <= WEAK_LOSS_MS:
        started_anew = marker.run != found.run and marker.run and found.run
        if behind_ms > 0 or started_anew:
            behind_ms = max(0, behind_ms)
            return Lost(
                f"Redis was started again without having synced: it is {_seconds(behind_ms)}"
                " behind, and what it acknowledged in its last 2 s may be lost",
                behind_ms,
            )
        return Sound()
    if behind_ms > 0:
        return RolledBack(
            f"Redis was rolled back by {_seconds(behind_ms)}: it is at"
            f" {_seconds(found.clock_ms)} of cluster time and was at {_seconds(marker.clock_ms)}"
        )
    return Sound()


def _seconds(ms: int) -> str:
    return f"{ms / 1000:.1f} s"
