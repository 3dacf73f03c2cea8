"""Makes the compiled placement loops ready beside a scheduler that already works.

Compiling takes seconds and would make the leader's loop stutter, so another process does it and
leaves the code on disk. Until it is loaded, and where it cannot be kept, placements go through the
plain pass, which makes the same choices.
"""

from __future__ import annotations

import asyncio
import sys
from importlib import import_module

import structlog

from muster_scheduler.placement import fast

_LOG = structlog.get_logger("muster.scheduler")

# Several times what compiling takes on one busy core.
_COMPILE_TIMEOUT_S = 300.0
# In the process that compiles: last in line for the processor, and told apart where the code
# cannot be kept.
_NOT_KEPT = 3
_COMPILE = f"""
import os, sys
os.nice(15)
from muster_scheduler.placement.compiled import disk_cache
why = disk_cache.why_unusable()
if why:
    print(why, file=sys.stderr)
    sys.exit({_NOT_KEPT})
from muster_scheduler.placement import fast
fast.load()
"""
# As the loop stays answering while these are imported one by one, and not while all are at once.
_HEAVY = ("llvmlite.binding", "numba", "muster_scheduler.placement.compiled.constructive")


async def warm_kernels() -> None:
    """Return once the kernels serve, or once it is known that they will not."""
    try:
        code, said = await _compile()
        if code == 0:
            for name in _HEAVY:
                await asyncio.to_thread(import_module, name)
            await asyncio.to_thread(fast.load)
            _LOG.info("the compiled placement loops are ready")
            return
    except (OSError, ImportError, TimeoutError) as error:
        said = f"{type(error).__name__}: {error}"
    _LOG.warning("placements stay with the plain pass", reason=said)


async def _compile() -> tuple[int, str]:
    """Exit code and last line of the process that compiles."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        _COMPILE,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(_COMPILE_TIMEOUT_S):
            _, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    lines = errors.decode(errors="replace").strip().splitlines()
    return process.returncode or 0, lines[-1] if lines else f"exit code {process.returncode}"
