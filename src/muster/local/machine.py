"""How much cpu and memory this machine gives to an embedded cluster's agents."""

from __future__ import annotations

import os
from pathlib import Path

_MIB = 1024 * 1024
# Where the limits of a container are, version 2 first.
_MEMORY_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_CPU_LIMIT = "/sys/fs/cgroup/cpu.max"


def cpu_count() -> int:
    """Whole cores that this process may use, at least 1."""
    count = len(os.sched_getaffinity(0))
    quota, _, period = _read(_CPU_LIMIT).partition(" ")
    if quota.isdigit() and period.isdigit() and int(period) > 0:
        count = min(count, int(quota) // int(period))
    return max(1, count)


def memory_bytes() -> int:
    """The machine's memory, or the container's limit where that is lower."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = [int(text) for path in _MEMORY_LIMITS if (text := _read(path)).isdigit()]
    return min([total, *(limit for limit in limits if limit > 0)])


def fair_share(agents: int, memory: int) -> str:
    """One agent's part of `memory` bytes as a quantity in whole Mi, at least 1Mi."""
    return f"{max(1, memory // max(1, agents) // _MIB)}Mi"


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
