"""Makes compiled loops ready beside a scheduler that works, once they are worth it.

numba costs 120 MiB and its code seconds of compiling, and a small cluster never gains that back:
its batches are quick by the plain pass, which makes the same choices. So nothing is loaded until
enough tasks have met the plain pass in large batches on many agents, or until somebody chooses a
strategy that has no other way. Another process then compiles, last in line for the processor, and
leaves the code on disk; this one only loads it, beside its loop.
"""

from __future__ import annotations

import asyncio
import sys
from importlib import import_module
from typing import NoReturn

import structlog

from muster_scheduler.placement import fast, readiness
from muster_scheduler.placement.plan import DEFAULT_STRATEGY
from muster_scheduler.placement.rehearsal import rehearse

_LOG = structlog.get_logger("muster.scheduler")

# Between looks at what the loop wants.
_LOOK_S = 1.0
# Looks at what is wanted for one at what was missed. The first one only notes where that count
# stands, so that the load that meets a new leader is never made worse.
_LOOKS = 5
# Tasks between two such looks that would have been placed much quicker. By the plain pass they cost
# at least 15 microseconds each, about what loading does in all, and the loop stands still for it.
_WORTH_TASKS = 5_000
# Several times what compiling takes on one busy core.
_COMPILE_TIMEOUT_S = 300.0
# In the process that compiles: last in line for the processor, one of all schedulers at a time.
_COMPILE = """
import os, sys
os.nice(15)
from muster_scheduler.placement.compiled import disk_cache
why = disk_cache.why_unusable()
if why:
    sys.exit(why)
from muster_scheduler.placement.rehearsal import rehearse
with disk_cache.alone():
    rehearse(sys.argv[1])
"""
# As the loop stays answering while these are imported one by one, and not while all are at once.
_HEAVY = ("llvmlite.binding", "numba", "muster_scheduler.placement.compiled.constructive")


class Warming:
    """What is ready in this process, and the making of the rest, one strategy at a time."""

    def __init__(self) -> None:
        self._ready: dict[str, bool] = {}
        self._given_up: set[str] = set()
        self._one_at_a_time = asyncio.Lock()

    async def watch(self) -> NoReturn:
        """Make ready what the policy names, and the constructive strategies' loops once they are
        worth it."""
        fast.leave_loading_to_shell()
        before = fast.missed_tasks()
        while True:
            for _ in range(_LOOKS):
                await asyncio.sleep(_LOOK_S)
                for strategy in readiness.wanted():
                    await self._make_wanted(strategy)
            missed = fast.missed_tasks()
            if missed - before >= _WORTH_TASKS and DEFAULT_STRATEGY not in self._ready:
                await self.make_ready(DEFAULT_STRATEGY)
            before = missed

    async def _make_wanted(self, strategy: str) -> None:
        """What cannot be compiled ahead is compiled here, which makes the loop slow for a while."""
        is_ready = await self.make_ready(strategy)
        if not is_ready and strategy not in self._given_up:
            try:
                await asyncio.to_thread(rehearse, strategy)
                is_ready = True
            except (OSError, ImportError) as error:
                self._given_up.add(strategy)
                _LOG.error("the default strategy stands in", strategy=strategy, reason=str(error))
        readiness.settle(strategy, is_ready=is_ready)

    async def make_ready(self, strategy: str) -> bool:
        """Return once the strategy plans without delay, or with False once it is known that its
        loops cannot be kept: it then has to compile them in this process, or do without."""
        async with self._one_at_a_time:
            if strategy not in self._ready:
                self._ready[strategy] = await _make_ready(strategy)
            return self._ready[strategy]


async def _make_ready(strategy: str) -> bool:
    try:
        code, said = await _compile(strategy)
        if code == 0:
            for name in _HEAVY:
                await asyncio.to_thread(import_module, name)
            await asyncio.to_thread(rehearse, strategy)
            _LOG.info("compiled placement loops are ready", strategy=strategy)
            return True
    except (OSError, ImportError, TimeoutError) as error:
        said = f"{type(error).__name__}: {error}"
    _LOG.warning("placement loops are not compiled ahead", strategy=strategy, reason=said)
    return False


async def _compile(strategy: str) -> tuple[int, str]:
    """Exit code and last line of the process that compiles."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        _COMPILE,
        strategy,
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
