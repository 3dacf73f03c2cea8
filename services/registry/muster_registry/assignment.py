"""Which monitor an agent should report to: rendezvous hashing (Thaler and Ravishankar 1998). Pure.

Every registry gives the same order, and a monitor more or less moves only the agents that it
has or had.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


def _weight(agent: str, address: str) -> bytes:
    return hashlib.blake2b(f"{agent}\x00{address}".encode(), digest_size=8).digest()


def by_preference(agent: str, addresses: Sequence[str]) -> tuple[str, ...]:
    """All addresses, the one to use first; the others are where to turn when it is away."""
    return tuple(sorted(addresses, key=lambda address: (_weight(agent, address), address)))
