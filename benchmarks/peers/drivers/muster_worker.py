"""The nap as a Muster skill."""

from __future__ import annotations

from benchmarks.peers.drivers import measuring
from muster.skill import skill


@skill
def nap(number: int, journal: str) -> int:
    """The peers' common nap."""
    return measuring.nap(number, journal)
