"""Bounded waiting for something that real processes will bring about."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

# What has not happened by then hangs. It is no measure of speed: the processor of a machine that
# tests may be away for seconds, and no test may fail for that.
HANG_S = 60.0
_PAUSE_S = 0.01


async def eventually(check: Callable[[], bool], *, within_s: float = HANG_S) -> None:
    """Returns once `check()` is true; fails the test when that takes longer than `within_s`."""
    try:
        async with asyncio.timeout(within_s):
            while not check():  # noqa: ASYNC110 -- other processes set no asyncio.Event
                await asyncio.sleep(_PAUSE_S)
    except TimeoutError:
        raise AssertionError(f"it did not come true within {within_s:g} s") from None
