"""Who may register under an id, and with which incarnation. Pure."""

from __future__ import annotations

import hmac
from dataclasses import dataclass

from muster.domain.errors import Conflict
from muster.domain.ids import AgentId


@dataclass(frozen=True, slots=True)
class Holder:
    """The living registration of an id."""

    incarnation: int
    key_hash: bytes


@dataclass(frozen=True, slots=True)
class Admission:
    """`incarnation` to register with; None = a new one is to be given out."""

    incarnation: int | None


def admit(agent: AgentId, holder: Holder | None, key_hash: bytes, incarnation: int) -> Admission:
    """`incarnation` is that of a living runtime which lost its registration, 0 of a new start.

    Raises Conflict for another instance, and for a runtime that has been replaced.
    """
    if holder is not None:
        if not hmac.compare_digest(holder.key_hash, key_hash):
            raise Conflict(
                f"agent {agent} is alive and was registered with another instance key; "
                "choose another id, or wait until it has left"
            )
        if 0 < incarnation < holder.incarnation:
            raise Conflict(
                f"agent {agent}: incarnation {incarnation} was replaced by "
                f"incarnation {holder.incarnation}"
            )
    return Admission(incarnation if incarnation > 0 else None)
