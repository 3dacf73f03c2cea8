"""Restarts of agents that are down, and what is learned from how they end and who comes back."""

from __future__ import annotations

from typing import Final

from muster.domain.agent_lifecycle import TRANSITIONS, AgentEvent, AgentState
from muster_scheduler.core.records import AgentEntry, Now
from muster_scheduler.core.recoveries import Recovery
from muster_scheduler.core.recovery_view import is_reachable
from muster_scheduler.core.state import ClusterState
from muster_scheduler.recovery import FailureKind, pause_s

# Staying away is told to the beliefs in steps of this.
_LEARN_EVERY_MS: Final = 5_000


def supervisor_restarts(state: ClusterState, recovery: Recovery, now: Now) -> None:
    """A supervisor that tells of a death restarts by itself; the hourly budget says for how often
    that is waited for."""
    recovery.order_boot_ms = None
    if state.recoveries.budget(recovery.agent).spend(now.clock_ms / 1000):
        recovery.tried += 1
        recovery.restarting_boot_ms = now.boot_ms
        state.recoveries.changed_beliefs = True
    else:
        recovery.restarting_boot_ms = None


def died_again(state: ClusterState, recovery: Recovery, now: Now) -> None:
    """The supervisor's word on an agent that is down already: the restart that was ordered has
    begun, or one has failed, or it has ended a hung runtime of its own accord."""
    was_dead, recovery.dead = recovery.dead, True
    ordered = recovery.restarting_boot_ms is not None
    if ordered and not was_dead:
        recovery.order_boot_ms = None
        return
    if ordered:
        _restart_ended(state, recovery, False, now)
    supervisor_restarts(state, recovery, now)


def order(
    state: ClusterState, recovery: Recovery, agent: AgentEntry, now: Now, *, tries: int = 0
) -> None:
    """Has the agent's supervisor restart it, after a pause where that was tried before.

    `tries`: at most so many in one outage; 0 = as the settings say.
    """
    book = state.recoveries
    settings = book.settings
    if recovery.tried >= (tries or settings.tries) or not book.budget(agent.id).spend(
        now.clock_ms / 1000
    ):
        return
    pause_ms = round(1000 * pause_s(recovery.tried, state.jitter(), settings))
    recovery.tried += 1
    recovery.restarting_boot_ms = now.boot_ms
    recovery.order_boot_ms = now.boot_ms + pause_ms
    book.changed_beliefs = True
    follow_restart(state, recovery, agent, now)


def follow_restart(state: ClusterState, recovery: Recovery, agent: AgentEntry, now: Now) -> None:
    since_ms = recovery.restarting_boot_ms
    if recovery.kind is FailureKind.UNREACHABLE and not recovery.dead and is_reachable(agent, now):
        recovery.kind = FailureKind.HUNG
    if since_ms is None:
        return
    if recovery.order_boot_ms is not None:
        if now.boot_ms < recovery.order_boot_ms:
            return
        recovery.order_boot_ms = None
        why = f"it does not answer ({recovery.kind})"
        state.commands.restarts.append((agent.id, agent.incarnation, why))
        if (agent.state, AgentEvent.RESTART) in TRANSITIONS:
            state.enter(agent, AgentEvent.RESTART, why, now)
    elif now.boot_ms - since_ms >= 1000 * state.recoveries.settings.restart_deadline_s:
        _restart_ended(state, recovery, False, now)
        recovery.restarting_boot_ms = None
        if agent.state is AgentState.RESTARTING:
            deadline_s = state.recoveries.settings.restart_deadline_s
            state.enter(agent, AgentEvent.DIED, f"not restarted within {deadline_s} s", now)


def _restart_ended(state: ClusterState, recovery: Recovery, worked: bool, now: Now) -> None:
    assert recovery.restarting_boot_ms is not None
    took_s = min(86_400.0, (now.boot_ms - recovery.restarting_boot_ms) / 1000)
    book = state.recoveries
    book.beliefs.restart_ended(recovery.agent, recovery.kind, worked, took_s, now.clock_ms / 1000)
    book.changed_beliefs = True


# --------------------------------------------------------------------------------- learning


def learn_absence(state: ClusterState, recovery: Recovery, now: Now) -> None:
    """Tells the beliefs that the agent did not come back by itself, in consecutive intervals."""
    if recovery.restarting_boot_ms is not None or recovery.dead:
        recovery.learned_boot_ms = now.boot_ms
        return
    if now.boot_ms - recovery.learned_boot_ms < _LEARN_EVERY_MS:
        return
    since_s = (recovery.learned_boot_ms - recovery.heard_boot_ms) / 1000
    until_s = (now.boot_ms - recovery.heard_boot_ms) / 1000
    recovery.learned_boot_ms = now.boot_ms
    state.recoveries.beliefs.stayed_away(
        recovery.agent, recovery.kind, max(0.0, since_s), until_s, now.clock_ms / 1000
    )
    state.recoveries.changed_beliefs = True


def learn_return(state: ClusterState, recovery: Recovery, with_work: bool, now: Now) -> None:
    if recovery.restarting_boot_ms is not None and not with_work:
        recovery.restart_took_ms = now.boot_ms - recovery.restarting_boot_ms
        _restart_ended(state, recovery, True, now)
    else:
        found_s = (recovery.learned_boot_ms - recovery.heard_boot_ms) / 1000
        back_s = (now.boot_ms - recovery.heard_boot_ms) / 1000
        state.recoveries.beliefs.came_back(
            recovery.agent,
            recovery.kind,
            max(0.0, found_s),
            max(0.0, back_s),
            with_work,
            now.clock_ms / 1000,
        )
        state.recoveries.changed_beliefs = True
    recovery.restarting_boot_ms = recovery.order_boot_ms = None
