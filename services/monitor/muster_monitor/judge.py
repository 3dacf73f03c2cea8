"""Looks at the failure detectors ten times a second and posts what changed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from muster_monitor import metrics
from muster_monitor.failure_detector import ObserverSettings
from muster_monitor.state import MonitorState

_LOG = structlog.get_logger("muster.monitor")

_SWEEP_EVERY_TICKS = 10
_EXPIRE_EVERY_TICKS = 300


async def judge(
    state: MonitorState, boot_ms: Callable[[], int], wall_ms: Callable[[], int]
) -> None:
    """Until cancelled. The detectors notice by the clock when this loop itself was held up."""
    tick_ms = ObserverSettings().tick_ms
    tick = 0
    planned_ms = boot_ms()
    while True:
        now_ms, at_ms = boot_ms(), wall_ms()
        state.senses.trust.came_round(planned_ms, now_ms)
        look(state, now_ms, at_ms)
        tick += 1
        if tick % _SWEEP_EVERY_TICKS == 0:
            sweep(state, now_ms, at_ms)
        if tick % _EXPIRE_EVERY_TICKS == 0:
            for agent in state.rings.expire(at_ms):
                state.forget(agent, at_ms)
        planned_ms = boot_ms() + tick_ms
        await asyncio.sleep(tick_ms / 1000)


def look(state: MonitorState, now_ms: int, wall_ms: int) -> None:
    """One look: verdicts go to the board, watchers are woken."""
    lag_ms = state.table.observe_lag(now_ms)
    if lag_ms:
        _LOG.warning("the monitor itself was held up", stalled_ms=lag_ms)
    trust = state.senses.trust
    changes = state.table.verdicts(now_ms, trust.distrust_ms, trust.may_suspect)
    for verdict in changes:
        state.board.post(verdict, wall_ms, heard=state.table.incarnation(verdict.agent) > 0)
        if verdict.suspected:
            metrics.SUSPICIONS.inc()
        _LOG.warning(
            "an agent is suspected" if verdict.suspected else "a suspicion is lifted",
            agent=verdict.agent,
            incarnation=verdict.incarnation,
            why=verdict.why,
        )
    if changes:
        state.suspicions_changed.fire()


def sweep(state: MonitorState, now_ms: int, wall_ms: int) -> None:
    """Once a second: suspicions as findings, and findings that end by time."""
    senses = state.senses
    # Who was never registered does not make a majority, however many names somebody reports by.
    reasons = state.board.reasons
    elsewhere = state.overruled.among(reasons)
    heard = [a for a in state.table.agents() if a not in elsewhere and senses.knows(a)]
    known = set(heard)
    suspects = {agent: why for agent, why in reasons.items() if agent in known}
    senses.suspects_are(suspects, heard, now_ms, wall_ms)
    senses.sweep(now_ms, wall_ms)
