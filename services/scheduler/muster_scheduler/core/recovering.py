"""What is done about agents that are down: their tasks wait for them, or are given to others.

An agent that is found DOWN begins a recovery. While it holds the agent's tasks they stay charged
to it and run nowhere else; each second the planner (`muster_scheduler.recovery`) says whether to
wait, to restart or to give them away, and which of them. A held task goes on when the same
incarnation comes back, is run again when a newer one registers, and is given away when the planner,
its owner or the end of the horizon says so. A new leader holds nothing: it meets agents anew.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from muster.domain.agent_lifecycle import AgentWish
from muster.domain.ids import TaskId
from muster.domain.policy import Policy
from muster.domain.task import OnDisconnect, Wish
from muster.domain.task_lifecycle import TaskState
from muster_scheduler.core import restarting, tasks
from muster_scheduler.core.deadlines import STOP_GIVEN_AWAY_MS
from muster_scheduler.core.foretelling import elapsed_s
from muster_scheduler.core.records import SUSPECT_DEATHS, AgentEntry, Now, OpenTask
from muster_scheduler.core.recoveries import MAX_ACTIONS, MAX_OPEN_RECOVERIES, Recovery
from muster_scheduler.core.recovery_view import cluster_of, failure_of, is_reachable
from muster_scheduler.core.state import ClusterState
from muster_scheduler.recovery import (
    Action,
    Bounds,
    Decision,
    FailureKind,
    RecoverySettings,
    decide,
    decide_all,
    restart_emptied,
)

# Plans made in one second at most, so that a cluster that falls apart does not stop its leader.
MAX_PLANS_PER_S: Final = 64
# A newer incarnation registers first and opens its session a moment later. What was held for it
# waits that long before it may be placed elsewhere.
REJOIN_MS: Final = 1_000
# Whoever was heard this lately is on its way back, and nothing is taken from it; see `agents`.
HEARD_MS: Final = 3_500
# Of one that was given up and heard since, whose session broke again: as for any silence without a
# lease, see `agents`.
HEARD_SINCE_MS: Final = 10_000
# How long after its horizon a recovery is followed: for tasks that wait for a place, and an agent
# that may still come back.
FOLLOWED_MS: Final = 10 * 60_000
# Of one outage, once no task waits for it; the hourly budget is the tighter bound.
MAX_RESTARTS_OF_EMPTY: Final = 100


def begin(
    state: ClusterState,
    agent: AgentEntry,
    why: str,
    to_charge: Iterable[OpenTask],
    now: Now,
    *,
    dead: bool,
) -> bool:
    """The agent is DOWN. True: what becomes of its tasks is decided here, now and later.

    `to_charge`: tasks that are charged with its death once they are lost; `dead`: nothing of the
    incarnation runs any more, that is certain.
    """
    book = state.recoveries
    recovery = book.open.get(agent.id)
    blamed = {(task.id, task.status.attempt) for task in to_charge}
    if recovery is not None and recovery.back_boot_ms is None:
        recovery.blamed |= blamed
        if dead:
            restarting.died_again(state, recovery, now)
    else:
        if recovery is not None:
            _close(state, recovery, now)
        if not _is_worth_a_plan(state, agent):
            return False
        recovery = _opened(state, agent, why, now, dead=dead)
        recovery.blamed = blamed
        if dead:
            restarting.supervisor_restarts(state, recovery, now)
    if recovery.holding:
        _let_go(state, recovery, agent, now)
    if recovery.holding or not recovery.actions:
        _decide(state, [(recovery, agent)], now)
    state.commands.recoveries.append(recovery)
    return True


def holds(state: ClusterState, agent: AgentEntry) -> bool:
    """Whether the agent's tasks wait for it although it is down."""
    recovery = state.recoveries.open.get(agent.id)
    return recovery is not None and recovery.holding and recovery.back_boot_ms is None


def met(
    state: ClusterState, agent: AgentEntry, older: list[tuple[OpenTask, int]], now: Now
) -> bool:
    """A newer incarnation registers: what the older one held is run again, best of all there.

    `older`: the tasks, and how long each may still run (ms). False: nothing was held for it.
    """
    recovery = state.recoveries.open.get(agent.id)
    if recovery is None or recovery.back_boot_ms is not None:
        return False
    for task, may_run_ms in older:
        ref = (task.id, task.status.attempt)
        fence_ms = 0 if recovery.dead else may_run_ms
        _await(recovery, task, now)
        recovery.rerun += 1
        why = f"agent {agent.id} was restarted as incarnation {agent.incarnation}"
        wait_ms = max(fence_ms, REJOIN_MS)
        tasks.lost(state, task, why, ref in recovery.blamed, now, fence_ms=wait_ms)
        if fence_ms < REJOIN_MS:
            recovery.rejoining.append(task)
    recovery.holding = False
    return True


def joined(state: ClusterState, agent: AgentEntry, now: Now) -> None:
    """The agent is READY again."""
    recovery = state.recoveries.open.get(agent.id)
    if recovery is None or recovery.back_boot_ms is not None:
        return
    for task in recovery.rejoining:
        waits = task.status.state is TaskState.PENDING and not task.queued
        # One that is to run alone has its pause to the end: it stands in no queue afterwards.
        plain = task.status.agent_deaths < SUSPECT_DEATHS
        if waits and plain and state.tasks.get(task.id) is task:
            state.enqueue(task)
    recovery.rejoining.clear()
    recovery.back_boot_ms = now.boot_ms
    with_work = agent.incarnation == recovery.incarnation
    recovery.kept = len(agent.tasks) if with_work and recovery.holding else 0
    recovery.holding = False
    restarting.learn_return(state, recovery, with_work, now)
    state.recoveries.ledger.settle(agent.id)
    if not recovery.awaited:
        _close(state, recovery, now)
    state.commands.recoveries.append(recovery)


def left(state: ClusterState, agent: AgentEntry, now: Now) -> None:
    """The agent has left or is forgotten: nobody waits for it any more."""
    recovery = state.recoveries.open.get(agent.id)
    if recovery is not None:
        recovery.holding = False
        _close(state, recovery, now)


def step(state: ClusterState, now: Now) -> None:
    """Decides anew for all that is held, follows restarts; called about once a second."""
    book = state.recoveries
    if not book.open:
        return
    to_plan = []
    for recovery in list(book.open.values()):
        _look_for_awaited(state, recovery, now)
        agent = state.agents.get(recovery.agent)
        if agent is None or _is_over(recovery, now):
            _close(state, recovery, now)
            continue
        if recovery.back_boot_ms is not None or _is_heard(recovery, agent, now):
            continue
        restarting.learn_absence(state, recovery, now)
        restarting.follow_restart(state, recovery, agent, now)
        if recovery.holding:
            _let_go(state, recovery, agent, now)
        if recovery.holding:
            to_plan.append((recovery, agent))
        elif _wants_a_restart(state, recovery, agent, now):
            restarting.order(state, recovery, agent, now, tries=MAX_RESTARTS_OF_EMPTY)
    # Whoever was not planned for yet comes first.
    to_plan.sort(key=lambda pair: bool(pair[0].actions))
    _decide(state, to_plan, now)


def follow(state: ClusterState, now: Now) -> None:
    """Notes which lost tasks run again; called several times a second where that can be had."""
    for recovery in list(state.recoveries.open.values()):
        if recovery.awaited:
            _look_for_awaited(state, recovery, now)


# ------------------------------------------------------------------------ opening and closing


def _is_worth_a_plan(state: ClusterState, agent: AgentEntry) -> bool:
    known = agent.id in state.table and agent.incarnation > 0
    return known and len(state.recoveries.open) < MAX_OPEN_RECOVERIES


def _may_hold(agent: AgentEntry) -> bool:
    """An agent that is to get no work would not be given its tasks again."""
    return agent.wish is AgentWish.NONE and not agent.draining


def _may_plan(state: ClusterState, now: Now) -> bool:
    second, count = state.recoveries.decided
    if second != now.boot_ms // 1000:
        second, count = now.boot_ms // 1000, 0
    state.recoveries.decided = (second, count + 1)
    return count < MAX_PLANS_PER_S


def _opened(state: ClusterState, agent: AgentEntry, why: str, now: Now, *, dead: bool) -> Recovery:
    kind = FailureKind.UNREACHABLE
    if dead:
        kind = FailureKind.DIED
    elif is_reachable(agent, now):
        kind = FailureKind.HUNG
    view = state.table.view()
    slots = int(view.capacity[state.table.row_of(agent.id), view.columns["slots"]])
    recovery = Recovery(
        id=f"{now.wall_ms:013d}-{agent.id}",
        agent=agent.id,
        incarnation=agent.incarnation,
        kind=kind,
        why=why,
        policy=state.policy.recovery,
        began=now,
        heard_boot_ms=now.boot_ms if dead else agent.heard_boot_ms,
        slots=max(0, slots),
        tasks=len(agent.tasks),
        dead=dead,
        learned_boot_ms=now.boot_ms,
    )
    state.recoveries.open[agent.id] = recovery
    return recovery


def _is_over(recovery: Recovery, now: Now) -> bool:
    if recovery.back_boot_ms is not None and not recovery.awaited:
        return True
    return now.boot_ms - recovery.began.boot_ms >= FOLLOWED_MS and not recovery.holding


def _close(state: ClusterState, recovery: Recovery, now: Now) -> None:
    book = state.recoveries
    book.ledger.settle(recovery.agent)
    if book.open.get(recovery.agent) is recovery:
        del book.open[recovery.agent]
    for _, lost_ms, _, _ in recovery.awaited.values():
        # Not running yet: what they have waited so far is counted.
        recovery.cost_ms += lost_ms + now.boot_ms - recovery.heard_boot_ms
    recovery.ended = now
    state.commands.recoveries.append(recovery)


# -------------------------------------------------------------------------------- decisions


def settings_of(state: ClusterState) -> RecoverySettings:
    """The planner's settings with the policy's bounds and what a move takes."""
    policy: Policy = state.policy
    limits = policy.recovery_bounds
    bounds = Bounds(limits.get("T"), limits.get("U"), limits.get("B"))
    move_s = round(state.recoveries.move_s, 1)
    return replace(state.recoveries.settings, bounds=bounds, move_s=move_s)


def _decide(state: ClusterState, pairs: list[tuple[Recovery, AgentEntry]], now: Now) -> None:
    pairs = [pair for pair in pairs if _may_plan(state, now)]
    if not pairs:
        return
    book, policy = state.recoveries, state.policy.recovery
    held = [task for _, agent in pairs for task in agent.tasks.values()]
    cluster = cluster_of(state, held)
    failures = [failure_of(state, recovery, agent, now) for recovery, agent in pairs]
    settings, now_s = settings_of(state), now.clock_ms / 1000
    if len(failures) == 1:
        decisions = [
            decide(failures[0], cluster, book.beliefs, book.ledger, settings, now_s, policy)
        ]
    else:
        decisions = decide_all(
            failures, cluster, book.beliefs, book.ledger, settings, now_s, policy
        )
    for (recovery, agent), decision in zip(pairs, decisions, strict=True):
        _act(state, recovery, agent, decision, now)
        # The others come first the next time.
        book.open[recovery.agent] = book.open.pop(recovery.agent)


def _wants_a_restart(state: ClusterState, recovery: Recovery, agent: AgentEntry, now: Now) -> bool:
    """Of an agent without tasks, which its supervisor does not restart by itself."""
    if recovery.restarting_boot_ms is not None or not is_reachable(agent, now):
        return False
    if recovery.policy != "planned":
        return True
    book = state.recoveries
    failure = failure_of(state, recovery, agent, now)
    return _may_plan(state, now) and restart_emptied(
        failure, book.beliefs, settings_of(state), now.clock_ms / 1000
    )


def _act(
    state: ClusterState, recovery: Recovery, agent: AgentEntry, decision: Decision, now: Now
) -> None:
    give = [agent.tasks[TaskId(ident)] for ident in decision.give_away]
    action = decision.action
    if not recovery.actions:
        recovery.expected_cost_s = decision.option.cost
    if str(action) != recovery.action or give:
        noted = decision.to_plain() | {
            "at_ms": now.wall_ms,
            "after_s": round((now.boot_ms - recovery.began.boot_ms) / 1000, 3),
            "given_away": len(give),
        }
        del noted["give_away"]
        del recovery.actions[MAX_ACTIONS - 1 :]
        recovery.actions.append(noted)
        recovery.action = str(action)
        state.commands.recoveries.append(recovery)
    roomy = decision.assessment.free >= len(give)
    _give_away(state, recovery, agent, give, now, roomy=roomy)
    if action is Action.MIGRATE or not agent.tasks:
        recovery.holding = False
    if action is Action.RESTART and recovery.restarting_boot_ms is None:
        restarting.order(state, recovery, agent, now)


def _let_go(state: ClusterState, recovery: Recovery, agent: AgentEntry, now: Now) -> None:
    """Gives away what must not be held any longer, whatever the plan says."""
    held = list(agent.tasks.values())
    if _may_hold(agent):
        cut_off = not recovery.dead and _silent_ms(recovery, agent, now) >= STOP_GIVEN_AWAY_MS
        held = [
            task
            for task in held
            if task.status.wish is not Wish.NONE
            or (cut_off and task.spec.on_disconnect is OnDisconnect.STOP)
        ]
    _give_away(state, recovery, agent, held, now)
    if not agent.tasks:
        recovery.holding = False


def _is_heard(recovery: Recovery, agent: AgentEntry, now: Now) -> bool:
    """Whether its runtime speaks again: it goes on with its work, and only its lease is missing."""
    silent_ms = now.boot_ms - agent.heard_boot_ms
    if agent.session and silent_ms < HEARD_MS:
        return True
    if recovery.dead or recovery.restarting_boot_ms is not None:
        return False
    return agent.heard_boot_ms > recovery.began.boot_ms and silent_ms < HEARD_SINCE_MS


def _silent_ms(recovery: Recovery, agent: AgentEntry, now: Now) -> int:
    """Since the agent was last heard: one that is down may be heard again and have no lease yet."""
    return now.boot_ms - max(recovery.heard_boot_ms, agent.heard_boot_ms)


def _give_away(
    state: ClusterState,
    recovery: Recovery,
    agent: AgentEntry,
    given: list[OpenTask],
    now: Now,
    *,
    roomy: bool = False,
) -> None:
    why = recovery.why
    for task in given:
        ref = (task.id, task.status.attempt)
        fence_ms = 0
        if not recovery.dead and task.spec.on_disconnect is OnDisconnect.STOP:
            fence_ms = max(0, STOP_GIVEN_AWAY_MS - _silent_ms(recovery, agent, now))
        _await(recovery, task, now, roomy=roomy and not fence_ms)
        recovery.moved += 1
        tasks.lost(state, task, why, ref in recovery.blamed, now, fence_ms=fence_ms)


def _await(recovery: Recovery, task: OpenTask, now: Now, *, roomy: bool = False) -> None:
    silent_ms = now.boot_ms - recovery.heard_boot_ms
    lost_ms = max(0, round(1000 * elapsed_s(task, now)) - silent_ms)
    recovery.awaited[task.id] = (task, lost_ms, now.boot_ms, roomy)


def _look_for_awaited(state: ClusterState, recovery: Recovery, now: Now) -> None:
    for ident, (task, lost_ms, since_ms, roomy) in list(recovery.awaited.items()):
        status = task.status
        is_open = state.tasks.get(ident) is task
        if is_open and not (task.started and status.started_clock_ms):
            continue
        del recovery.awaited[ident]
        at_ms = now.boot_ms
        if is_open:
            at_ms -= max(0, min(at_ms - since_ms, now.clock_ms - status.started_clock_ms))
        waited_ms = at_ms - since_ms
        recovery.longest_wait_ms = max(recovery.longest_wait_ms, waited_ms)
        recovery.cost_ms += lost_ms + at_ms - recovery.heard_boot_ms
        if roomy:
            state.recoveries.note_move(waited_ms / 1000)
    if not recovery.awaited and not recovery.holding:
        state.recoveries.ledger.settle(recovery.agent)
