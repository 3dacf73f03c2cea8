"""Looks at the failure detectors ten times a second and posts what changed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from muster_monitor import metrics
from muster_monitor.alerting.happenings import of_verdicts
from muster_monitor.failure_detector import ObserverSettings
from muster_monitor.state import MonitorState

_LOG = structlog.get_logger("muster.monitor")

_EXPIRE_EVERY_TICKS = 300


async def judge(
    state: MonitorState, boot_ms: Callable[[], int], wall_ms: Callable[[], int]
) -> None:
    """Until cancelled. The detectors notice by the clock when this loop itself was held up."""
    pause_s = ObserverSettings().tick_ms / 1000
    tick = 0
    while True:
        look(state, boot_ms(), wall_ms())
        tick += 1
        if tick % _EXPIRE_EVERY_TICKS == 0:
            for agent in state.rings.expire(wall_ms()):
                state.forget(agent)
        await asyncio.sleep(pause_s)


def look(state: MonitorState, now_ms: int, wall_ms: int) -> None:
    """One look: verdicts go to the board, watchers are woken."""
    lag_ms = state.table.observe_lag(now_ms)
    if lag_ms:
        _LOG.warning("the monitor itself was held up", stalled_ms=lag_ms)
    changes = state.table.verdicts(now_ms)
    for verdict in changes:
        state.board.post(verdict, wall_ms)
        if verdict.suspected:
            metrics.SUSPICIONS.inc()
        _LOG.warning(
            "an agent is suspected" if verdict.suspected else "a suspicion is lifted",
            agent=verdict.agent,
            incarnation=verdict.incarnation,
            why=verdict.why,
        )
    state.findings.post(of_verdicts(changes, wall_ms))
    if changes:
        state.suspicions_changed.fire()
