"""Bounded waiting for something that real processes will bring about."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

# What has not happened by then hangs. It is no measure of speed: the processor of a machine that
# tests may be away for seconds, and no test may fail for that.
HANG_S = 60.0
_PAUSE_S = 0.01


async def eventually(
    check: Callable[[], bool], *work: asyncio.Task[Any], within_s: float = HANG_S
) -> None:
    """Returns once `check()` is true; fails the test when that takes longer than `within_s`.

    `work` is what shall bring it about: when one of these tasks ends before, the test fails at
    once, with the task's own error as the cause.
    """
    try:
        async with asyncio.timeout(within_s):
            while not check():
                for task in work:
                    if task.done():
                        cause = None if task.cancelled() else task.exception()
                        name = task.get_name()
                        raise AssertionError(f"{name} ended before it came true") from cause
                await asyncio.sleep(_PAUSE_S)
    except TimeoutError:
        raise AssertionError(f"it did not come true within {within_s:g} s") from None
