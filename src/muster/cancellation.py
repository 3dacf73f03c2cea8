"""A cancellation that no failure of a moment can hide."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


async def contained(work: Coroutine[Any, Any, None]) -> None:
    """Runs `work` in a task of its own; raises what it raises.

    When the caller is cancelled it cancels `work`, waits for its end, and raises CancelledError,
    whatever `work` made of it. For who goes on after a failure: before Python 3.13 a TaskGroup
    whose child fails in the moment of its cancellation raises the child's error alone, and who
    handles that one would run for ever (https://github.com/python/cpython/issues/116720).
    """
    task = asyncio.create_task(work)
    try:
        await asyncio.wait([task])
    except asyncio.CancelledError:
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            # Read, so that nobody is told that it never was.
            task.exception()
        raise
    await task
