"""Gives log analysis its time: a small share of the loop, whatever comes. Beats come first."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from muster_monitor.senses import Senses

# At most this long at a stretch, and then at least four times as long for everything else.
SLICE_S = 0.004
_REST_FACTOR = 4.0
# A line costs up to a millisecond when many templates are alike: the clock is read in between.
_AT_ONCE = 10
_IDLE_S = 0.1


async def read_lines(
    senses: Senses, boot_ms: Callable[[], int], wall_ms: Callable[[], int]
) -> None:
    """Until cancelled."""
    while True:
        if not senses.lines.queued:
            await asyncio.sleep(_IDLE_S)
            continue
        began_s = time.perf_counter()
        while senses.lines.queued and time.perf_counter() - began_s < SLICE_S:
            senses.read_lines(_AT_ONCE, boot_ms(), wall_ms())
        await asyncio.sleep((time.perf_counter() - began_s) * _REST_FACTOR)
