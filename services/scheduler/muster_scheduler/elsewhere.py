"""Work in a process of its own: one request in, one answer out, on a pipe clean of other words."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import BinaryIO

from muster.domain.errors import DeadlineExceeded, Unavailable


async def ask_elsewhere(module: str, request: bytes, *, timeout_s: float, what: str) -> bytes:
    """What `python -m module` answers to `request`; it is killed when nobody waits any more.

    Raises Unavailable when the process fails, DeadlineExceeded after `timeout_s`; both say `what`.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        module,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(timeout_s):
            out, said = await process.communicate(request)
    except TimeoutError:
        raise DeadlineExceeded(what, timeout_s) from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        last = said.decode(errors="replace").strip().rpartition("\n")[2]
        raise Unavailable(what, f"it ended with exit code {process.returncode}: {last}")
    return out


def answer_pipe() -> BinaryIO:
    """What was standard output, for the answers alone; what is printed goes to standard error.

    Libraries print from their own code, past Python: HiGHS says a line when it repairs a solution,
    and it would stand in the midst of an answer. To be called once, first of all.
    """
    pipe = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return pipe
