"""How much of the machine others took meanwhile: what says whether a figure can be believed."""

from __future__ import annotations

import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path

# Of the line "cpu" in /proc/stat: user, nice, system, (idle, iowait), irq, softirq, steal.
_BUSY = (0, 1, 2, 5, 6)
_STEAL = 7


@dataclass(frozen=True, slots=True)
class CpuSeconds:
    """Since some moment of the past: of all processes, of this one's children that have ended,
    taken by the hypervisor, and what the machine's cores could have given."""

    busy: float
    own: float
    stolen: float
    offered: float


def cpu_seconds() -> CpuSeconds:
    """Now. Children count once they have ended and were waited for, with all below them."""
    words = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    ticks = os.sysconf("SC_CLK_TCK")
    counted = [int(word) / ticks for word in words]
    children, this = (
        resource.getrusage(who) for who in (resource.RUSAGE_CHILDREN, resource.RUSAGE_SELF)
    )
    return CpuSeconds(
        busy=sum(counted[place] for place in _BUSY),
        own=children.ru_utime + children.ru_stime + this.ru_utime + this.ru_stime,
        stolen=counted[_STEAL],
        offered=time.monotonic() * (os.cpu_count() or 1),
    )


def others_share(before: CpuSeconds, after: CpuSeconds) -> float:
    """Of the machine's CPU time between the two: what neither we nor idleness had, 0 … 1."""
    offered = after.offered - before.offered
    ours = after.own - before.own
    taken = after.busy - before.busy - ours + after.stolen - before.stolen
    return min(max(taken / offered, 0.0), 1.0) if offered > 0 else 0.0
