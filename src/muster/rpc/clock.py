"""The two clocks of the shells: one that only moves forward, one that people read."""

from __future__ import annotations

import time


def boot_ms() -> int:
    """CLOCK_BOOTTIME in milliseconds: monotonic, and counts while the machine sleeps."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


def boot_s() -> float:
    """CLOCK_BOOTTIME in seconds."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def wall_ms() -> int:
    """Unix time in milliseconds; for records and people, never for timeouts."""
    return time.time_ns() // 1_000_000
