"""The parent of an embedded cluster: starts all at once, tells when ready, ends in order."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from muster.local.log_files import rotate
from muster.local.nursery import Nursery, StartFailed
from muster.local.parts import GRACE_S, ClusterPlan, Part, Stage, parts_of
from muster.local.probe import agents_not_ready, why_not_ready

# Far above the few seconds that two cores need; a first start also compiles bytecode.
READY_TIMEOUT_S = 60.0
_POLL_S = 0.05
_UPKEEP_S = 5.0
# How /readyz of a scheduler begins that waits for an operator.
_HALTED = "halted: "
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


async def run_cluster(
    plan: ClusterPlan,
    *,
    api_key: str,
    on_ready: Callable[[str], None],
    tell: Callable[[str], None],
    ready_timeout_s: float = READY_TIMEOUT_S,
    parts: Sequence[Part] | None = None,
) -> bool:
    """Runs until a signal asks for the end; False when that came before all was ready.

    `on_ready` is told why scheduling is halted, when it is: one sentence, else nothing.
    `parts` stand in for those of the plan, in clusters that are to be disturbed. Raises
    StartFailed. Either way nothing is left running.
    """
    signals = _StopSignals()
    nursery = Nursery(plan.state.log_dir, tell, adopt=True)
    try:
        nursery.start(parts_of(plan) if parts is None else parts)
        halts: list[str] = []
        starting = _until_ready(plan, nursery, api_key, ready_timeout_s, halts)
        if not await _unless_stopped(starting, signals, nursery.failed):
            return False
        nursery.started = True
        on_ready("".join(halts))
        await _unless_stopped(_upkeep(plan, nursery), signals, nursery.failed)
        return True
    finally:
        await _end(nursery, signals, tell)
        signals.close()


async def _unless_stopped(
    work: Coroutine[None, None, None], signals: _StopSignals, failed: asyncio.Future[None]
) -> bool:
    """Whether `work` ended before a signal came; raises its error, or that of `failed`."""
    working = asyncio.create_task(work)
    asked = asyncio.create_task(signals.asked.wait())
    waits: set[asyncio.Future[Any]] = {working, asked, failed}
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        if failed.done():
            failed.result()
        if not working.done():
            return False
        working.result()
        return True
    finally:
        working.cancel()
        asked.cancel()
        await asyncio.gather(working, asked, return_exceptions=True)


async def _until_ready(
    plan: ClusterPlan,
    nursery: Nursery,
    api_key: str,
    timeout_s: float,
    halts: list[str],
) -> None:
    """Also returns when all that is missing is an operator's word; `halts` then says for what."""
    give_up_s = time.monotonic() + timeout_s
    waiting = {c.part.name: c.part.ready_port for c in nursery.children.values()}
    waiting = {name: port for name, port in waiting.items() if port}
    while missing := await _missing(plan, waiting, api_key):
        if all(why.startswith(_HALTED) for why in missing.values()):
            # The operator needs a cluster that answers to decide what is to become of it.
            halts.append(next(iter(missing.values())).removeprefix(_HALTED))
            return
        if time.monotonic() > give_up_s:
            raise StartFailed(_sentence(plan, nursery, missing, timeout_s))
        await asyncio.sleep(_POLL_S)


async def _missing(plan: ClusterPlan, waiting: dict[str, int], api_key: str) -> dict[str, str]:
    """Why which part is not ready; parts that are leave `waiting`."""
    missing: dict[str, str] = {}
    for name, port in list(waiting.items()):
        why = await why_not_ready(port)
        if why is None:
            del waiting[name]
        else:
            missing[name] = why
    return missing or await agents_not_ready(plan.ports["http"], api_key, plan.agent_ids)


def _sentence(
    plan: ClusterPlan, nursery: Nursery, missing: dict[str, str], timeout_s: float
) -> str:
    said = []
    for name, why in sorted(missing.items()):
        last = nursery.children[name].last_words()
        said.append(f"{name}: {why}" + (f" (its log ends: {last})" if last else ""))
    return f"not ready after {timeout_s:g} s: {'; '.join(said)}; logs are in {plan.state.log_dir}"


async def _upkeep(plan: ClusterPlan, nursery: Nursery) -> None:
    logs = [plan.state.log("up"), *(child.log for child in nursery.children.values())]
    while True:
        await asyncio.sleep(_UPKEEP_S)
        for log in logs:
            rotate(log)
        nursery.sweep_orphans()


async def _end(nursery: Nursery, signals: _StopSignals, tell: Callable[[str], None]) -> None:
    for stage in Stage:
        children = [c for c in nursery.children.values() if c.part.stage is stage]
        # Before it was ready nobody has work there that an agent would have to finish.
        grace_s = GRACE_S[stage] if nursery.started or stage is not Stage.AGENT else 0.0
        for name in await nursery.end(children, grace_s, signals.hurry):
            if nursery.started:
                tell(f"{name} did not end within {grace_s:g} s and was killed")
    await nursery.close()


class _StopSignals:
    """SIGINT, SIGTERM and SIGHUP ask for the end; a second one for a quick end."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.hurry = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        # Under nohup a closed terminal means nothing.
        ignored = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else set()
        self._numbers = [number for number in _STOP_SIGNALS if number not in ignored]
        for number in self._numbers:
            self._loop.add_signal_handler(number, self._note)

    def _note(self) -> None:
        if self.asked.is_set():
            self.hurry.set()
        self.asked.set()

    def close(self) -> None:
        for number in self._numbers:
            self._loop.remove_signal_handler(number)
