"""What a process becomes when it is forked to call skills.

It shares its memory with user code and is trusted with nothing beyond the attempts it was given.
"""

from __future__ import annotations

import asyncio
import mmap
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from muster.agent.async_runner import serve_async
from muster.agent.run_answers import RunnerSettings
from muster.agent.sync_runner import SyncRunner


def serve(
    mode: str,
    connection: socket.socket,
    settings: RunnerSettings,
    folder: Path,
    board: mmap.mmap,
) -> None:
    """Runs attempts until there is nothing more to do in this process."""
    _reseed()
    if mode == "sync":
        SyncRunner(connection, settings, folder, board).serve()
    else:
        asyncio.run(serve_async(connection, settings, folder, board))


def _reseed() -> None:
    """Forks of one process would otherwise all draw the same numbers from numpy."""
    numpy_random: Any = sys.modules.get("numpy.random")
    if numpy_random is not None:
        seed: Callable[[], None] = numpy_random.seed
        seed()
