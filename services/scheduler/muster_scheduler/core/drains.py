"""Drains with a deadline: what still runs on the agent then goes back to the queue, uncharged."""

from __future__ import annotations

from typing import Final

from muster.domain.agent_lifecycle import AgentWish
from muster.domain.ids import AgentId
from muster.domain.task import OnDisconnect
from muster_scheduler.core import tasks
from muster_scheduler.core.deadlines import STOP_GIVEN_AWAY_MS
from muster_scheduler.core.records import AgentEntry, Now, OpenTask
from muster_scheduler.core.state import ClusterState

# An agent that is heard ends what it is told to drop within so long: first asked, then killed.
DROPPED_MS: Final = 5_000


def set_deadline(
    state: ClusterState, ident: AgentId, wish: AgentWish, deadline_ms: int, now: Now
) -> None:
    """The wish has come, with a deadline (0 = without); the one before it counts no more."""
    if wish is AgentWish.DRAIN and deadline_ms > 0:
        state.drains[ident] = now.clock_ms + deadline_ms
    else:
        state.drains.pop(ident, None)


def judge(state: ClusterState, now: Now) -> None:
    """Empties agents whose drain's deadline has come; called about once a second."""
    for ident, at_clock_ms in list(state.drains.items()):
        if now.clock_ms < at_clock_ms:
            continue
        del state.drains[ident]
        agent = state.agents.get(ident)
        if agent is not None and agent.wish is AgentWish.DRAIN:
            _empty(state, agent, now)


def _empty(state: ClusterState, agent: AgentEntry, now: Now) -> None:
    held = list(agent.tasks.values())
    why = f"agent {agent.id} was drained, and the deadline of that has come"
    for task in held:
        tasks.lost(state, task, why, False, now, fence_ms=_fence_ms(agent, task))
    counted = f"{len(held)} tasks went" if len(held) != 1 else "1 task went"
    state.note(agent, "DRAIN_DEADLINE", f"its drain's deadline: {counted} back to the queue", now)


def _fence_ms(agent: AgentEntry, task: OpenTask) -> int:
    """How much longer it may run there. One that is not heard kills `stop` tasks by itself."""
    if task.spec.on_disconnect is OnDisconnect.STOP:
        return STOP_GIVEN_AWAY_MS
    return DROPPED_MS if agent.session and task.started else 0
