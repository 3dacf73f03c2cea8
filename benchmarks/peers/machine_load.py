"""How much of the machine others took meanwhile: what says whether a figure can be believed."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

# Of the line "cpu" in /proc/stat.
_STEAL = 7
# Of /proc/PID/stat after the name in parentheses: utime, stime, cutime, cstime.
_TIMES = slice(11, 15)


@dataclass(frozen=True, slots=True)
class CpuSeconds:
    """Since some moment of the past: had by other processes, taken by the hypervisor, and what
    the machine's cores could have given."""

    others: float
    stolen: float
    offered: float


def cpu_seconds() -> CpuSeconds:
    """Now; to be asked while this process has no children.

    The time of a process that ends passes to the one that waited for it, so that others' sum
    loses nothing. What we started cannot be counted that way: Ray waits for none of its workers.
    """
    ticks = os.sysconf("SC_CLK_TCK")
    others = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        if stat.parent.name != str(os.getpid()):
            with contextlib.suppress(OSError):
                others += process_ticks(stat.read_text())
    cpu = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    return CpuSeconds(
        others=others / ticks,
        stolen=int(cpu[_STEAL]) / ticks,
        offered=time.monotonic() * (os.cpu_count() or 1),
    )


def process_ticks(stat: str) -> int:
    """Of a process and its children that have ended, from its /proc/PID/stat."""
    # The name may have spaces and parentheses in it.
    return sum(int(word) for word in stat.rpartition(")")[2].split()[_TIMES])


def others_share(before: CpuSeconds, after: CpuSeconds) -> float:
    """Of the machine's CPU time between the two: what others and the hypervisor had, 0 … 1."""
    offered = after.offered - before.offered
    taken = after.others - before.others + after.stolen - before.stolen
    return min(max(taken / offered, 0.0), 1.0) if offered > 0 else 0.0
