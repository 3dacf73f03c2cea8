"""What happens to agents: registered, heard, silent, restarted, gone; and their tasks with them.

An agent is DOWN when its session is silent for 10 s and its lease is gone, or it is silent for
60 s, or its supervisor says that the runtime died. Less than that makes it SUSPECT: it gets no
new work, and nothing is taken from it. A newer incarnation takes its place at once.

A `stop` task must never run twice at once: whatever its agent's state, it is not given out again
until 13 s after the agent was last heard, unless a supervisor says that all of it is dead.

An agent that is heard and does not keep its word is no better than a silent one, see `overdue`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from muster.domain.agent import AgentRecord
from muster.domain.agent_lifecycle import TRANSITIONS, AgentEvent, AgentState, AgentWish
from muster.domain.errors import InvalidInput
from muster.domain.ids import AgentId, TaskId
from muster.domain.mass_failure import LEAST_SILENT
from muster.domain.task import OnDisconnect, Wish
from muster.domain.task_lifecycle import HELD_STATES
from muster_scheduler.core import drains, overdue, quarantine, recovering, tasks
from muster_scheduler.core.deadlines import STOP_GIVEN_AWAY_MS
from muster_scheduler.core.health import Blame
from muster_scheduler.core.mass_failure import Seen
from muster_scheduler.core.records import NOBODY, AgentEntry, AttemptRef, Evidence, Now, OpenTask
from muster_scheduler.core.state import ClusterState
from muster_scheduler.core.suspects import charged, judge_kept

SILENT_AND_LEASELESS_MS = 10_000
SILENT_MS = 60_000
# A session is answered every second; three missed beats are worth a doubt.
SUSPECT_MS = 3_500
# Agents that are silent for so long count when many fall silent together: before any is given up.
MASS_SILENT_MS = 6_000
# A supervisor kills and starts a runtime well within this.
RESTART_MS = 60_000
# An agent that is gone is shown for this long.
FORGET_MS = 10 * 60_000
# Agents are judged every second. A leader that did not for this long was stopped or cut off: what
# it did not hear meanwhile says nothing about agents.
JUDGED_LATE_MS = 3_000

_GONE = frozenset({AgentState.DOWN, AgentState.LEFT, AgentState.RESTARTING})


def registered(state: ClusterState, record: AgentRecord, now: Now) -> None:
    """The registry shows this incarnation of the agent."""
    agent = state.entry(record.spec.id, now)
    if record.incarnation < agent.incarnation:
        return
    _meet(state, agent, record.incarnation, now)
    agent.record = record
    agent.leased = True
    known = agent.id in state.table
    try:
        state.table.upsert(
            agent.id,
            record.spec.capacity,
            frozenset(s.name for s in record.spec.skills),
            dict(record.spec.labels),
            placeable=False,
            health=agent.health,
            why_not="not connected",
        )
    except InvalidInput as error:
        # More names of resources than a cluster may have: it stays, and gets no work.
        agent.note(Evidence(now.wall_ms, agent.state, str(error)))
    if not known and agent.id in state.table:
        # Tasks met before their agent's capacity was known are booked now.
        held, agent.tasks = list(agent.tasks.values()), {}
        for task in held:
            state.held[task.spec.tenant] -= 1
            state.charge(task, agent)
    _settle(state, agent, now)


def unregistered(state: ClusterState, ident: AgentId, now: Now) -> None:
    """The registry no longer shows the agent: its lease has expired, or it has left."""
    agent = state.agents.get(ident)
    if agent is None:
        return
    agent.leased = False
    if agent.draining and not agent.session:
        _leave(state, agent, "it left", now)
    else:
        _settle(state, agent, now)


def registry_snapshot(state: ClusterState, records: Iterable[AgentRecord], now: Now) -> None:
    """All that the registry shows; others are not registered."""
    state.registry_seen = True
    shown = {r.spec.id: r for r in records}
    for record in shown.values():
        registered(state, record, now)
    for ident in [i for i in state.agents if i not in shown]:
        unregistered(state, ident, now)


def connected(
    state: ClusterState,
    ident: AgentId,
    incarnation: int,
    held: Collection[tuple[AttemptRef, bool]],
    now: Now,
) -> bool:
    """A runtime has opened a session; `held` are its attempts and whether each has ended.

    False: a newer incarnation is known, and this one must end. What storage says wins: an
    attempt that is the agent's and is not held is pushed again, one that is held and is not the
    agent's is dropped; ended ones are judged when their outcome arrives.
    """
    agent = state.entry(ident, now)
    if incarnation < agent.incarnation:
        return False
    _meet(state, agent, incarnation, now)
    agent.session = True
    agent.draining = False
    # What was pushed before may never have arrived; it is pushed again below.
    agent.owed.clear()
    agent.heard_boot_ms = now.boot_ms
    there = {(ref.task_id, ref.attempt) for ref, _ in held}
    push = state.commands.pushes[ident]
    for task in list(agent.tasks.values()):
        durable = task.stored == (task.status.state, task.status.attempt)
        if (task.id, task.status.attempt) not in there and durable:
            push.assign.append(task)
        if task.status.wish is not Wish.NONE:
            push.cancel.append((task.ref(), task.status.wish))
    for ref, is_ended in held:
        task_here = agent.tasks.get(ref.task_id)
        ours = task_here is not None and task_here.status.attempt == ref.attempt
        if not ours and not is_ended:
            push.drop.append(ref)
    if agent.wish is AgentWish.DRAIN:
        push.drain = True
    _settle(state, agent, now)
    return True


def disconnected(state: ClusterState, ident: AgentId, incarnation: int, now: Now) -> None:
    """The runtime's session has ended; whether the runtime has, is not known."""
    agent = state.agents.get(ident)
    if agent is None or agent.incarnation != incarnation:
        return
    agent.session = False
    if agent.draining and not agent.leased:
        _leave(state, agent, "it left", now)
    else:
        state.refresh(agent)


def heard(state: ClusterState, ident: AgentId, incarnation: int, now: Now) -> None:
    """Any message of the runtime's session."""
    agent = state.agents.get(ident)
    if agent is not None and agent.incarnation == incarnation:
        agent.heard_boot_ms = now.boot_ms
        if agent.state is AgentState.SUSPECT or agent.state in _GONE:
            _settle(state, agent, now)


def supervisor_heard(state: ClusterState, ident: AgentId, now: Now) -> None:
    """Any message of the supervisor's session."""
    agent = state.agents.get(ident)
    if agent is not None:
        agent.supervisor_boot_ms = now.boot_ms


def draining(state: ClusterState, ident: AgentId, incarnation: int) -> None:
    """The runtime drains of its own accord: place nothing more there."""
    agent = state.agents.get(ident)
    if agent is not None and agent.incarnation == incarnation and not agent.draining:
        agent.draining = True
        state.refresh(agent)


def suspicion(
    state: ClusterState, ident: AgentId, incarnation: int, suspected: bool, phi: float, now: Now
) -> None:
    """The monitor's failure detector has changed its mind about the agent."""
    agent = state.agents.get(ident)
    if agent is None or (incarnation and incarnation != agent.incarnation):
        return
    agent.suspected, agent.phi = suspected, phi
    state.refresh(agent)
    _settle(state, agent, now)


def runtime_died(
    state: ClusterState,
    ident: AgentId,
    incarnation: int,
    started: Collection[AttemptRef],
    started_known: bool,
    why: str,
    now: Now,
) -> None:
    """The supervisor's word: that incarnation is dead and all of its processes are gone."""
    agent = state.agents.get(ident)
    if agent is None or incarnation < agent.incarnation:
        return
    _meet(state, agent, incarnation, now)
    agent.session, agent.buried = False, True
    suspects = {(r.task_id, r.attempt) for r in started} if started_known else None
    why = f"its supervisor says that the runtime died: {why}"
    _die(state, agent, why, suspects, now, fenced=True)


def set_wish(
    state: ClusterState,
    ident: AgentId,
    wish: AgentWish,
    now: Now,
    *,
    who: str = "",
    deadline_ms: int = 0,
) -> None:
    """The operator wants the agent used, spared (CORDON) or emptied (DRAIN).

    `deadline_ms`: after so long a drain gives what still runs back to the queue; 0 = never.
    """
    state.wishes[ident] = wish
    drains.set_deadline(state, ident, wish, deadline_ms, now)
    agent = state.agents.get(ident)
    if agent is None:
        return
    agent.wish = wish
    within = f" within {deadline_ms / 1000:g} s" if deadline_ms else ""
    state.note(agent, "WISH", f"its operators want: {wish.value}{within}", now, who)
    if wish is AgentWish.NONE:
        quarantine.pardon(state, agent, now)
    if wish is AgentWish.DRAIN:
        state.commands.pushes[ident].drain = True
        if _can(agent, AgentEvent.DRAIN):
            state.enter(agent, AgentEvent.DRAIN, "drained on request", now)
    elif agent.state is AgentState.DRAINING:
        state.enter(agent, AgentEvent.UNDRAIN, "no longer drained", now)
        # What it was doubted for meanwhile did not show while it drained.
        _settle(state, agent, now)
    state.refresh(agent)


def restart(state: ClusterState, ident: AgentId, why: str, now: Now) -> bool:
    """Asks the agent's supervisor for a new runtime; False when none is connected."""
    agent = state.agents[ident]
    if not agent.supervised:
        return False
    agent.restarting = True
    state.commands.restarts.append((ident, agent.incarnation, why))
    if _can(agent, AgentEvent.RESTART):
        state.enter(agent, AgentEvent.RESTART, why, now)
    return True


def judge(state: ClusterState, now: Now) -> None:
    """Looks at every agent's silence; called about once a second while it may be judged."""
    _pardon(state, now)
    judge_kept(state, now)
    _look_for_mass_failure(state, now)
    for agent in list(state.agents.values()):
        silent_ms = now.boot_ms - agent.heard_boot_ms
        # Who is heard keeps its word all the same.
        is_silent = agent.state not in _GONE and silent_ms >= SUSPECT_MS
        if is_silent and state.mass_failure.spares(agent.zone):
            _settle(state, agent, now)
            continue
        leaseless = state.registry_seen and not agent.leased
        gone = leaseless and silent_ms >= SILENT_AND_LEASELESS_MS
        if agent.state in _GONE:
            away = gone or silent_ms >= SILENT_MS
            if agent.tasks and away and not recovering.holds(state, agent):
                _lose_tasks(state, agent, f"agent {agent.id} stayed away", set(), now)
            _judge_gone(state, agent, now)
            continue
        if gone or silent_ms >= SILENT_MS:
            seconds = silent_ms // 1000
            why = f"it was silent for {seconds} s"
            _die(state, agent, why + (" and its lease is gone" if gone else ""), None, now)
            continue
        if silent_ms >= STOP_GIVEN_AWAY_MS:
            for task in list(agent.tasks.values()):
                if task.spec.on_disconnect is OnDisconnect.STOP:
                    tasks.lost(state, task, f"agent {agent.id} is cut off", False, now)
        if agent.session and silent_ms < SUSPECT_MS and overdue.look_at(state, agent, now):
            state.health.blame(agent.id, Blame.UNENDED, now.clock_ms)
            restart(state, agent.id, "it does not end what it was told to end", now)
        _settle(state, agent, now)
    recovering.step(state, now)
    quarantine.judge(state, now)
    drains.judge(state, now)


def _look_for_mass_failure(state: ClusterState, now: Now) -> None:
    silent_before = now.boot_ms - MASS_SILENT_MS
    silent = sum(1 for agent in state.agents.values() if agent.heard_boot_ms <= silent_before)
    if silent < LEAST_SILENT and not state.mass_failure.zones:
        return
    seen = [
        Seen(
            agent.id,
            agent.zone,
            agent.heard_boot_ms if agent.heard_boot_ms <= silent_before else None,
        )
        for agent in state.agents.values()
        # Of the others it is known why they are silent.
        if not (agent.buried or agent.restarting or agent.draining)
        and agent.state is not AgentState.LEFT
    ]
    state.commands.alarms.extend(state.mass_failure.look(seen, now.boot_ms))


def _judge_gone(state: ClusterState, agent: AgentEntry, now: Now) -> None:
    since_ms = now.boot_ms - agent.since_boot_ms
    there = agent.leased or agent.session or agent.supervised
    if agent.state is AgentState.RESTARTING and since_ms >= RESTART_MS:
        # The supervisor never did it: what is still connected is used again.
        state.enter(agent, AgentEvent.REJOINED, "it was not restarted in time", now)
        agent.restarting = False
        _settle(state, agent, now)
    elif since_ms >= FORGET_MS and not there and not agent.tasks:
        _forget(state, agent)


def _pardon(state: ClusterState, now: Now) -> None:
    last_ms, state.judged_boot_ms = state.judged_boot_ms, now.boot_ms
    if last_ms is not None and now.boot_ms - last_ms > JUDGED_LATE_MS:
        for agent in state.agents.values():
            agent.owed.clear()
            heard_ms = agent.heard_boot_ms + now.boot_ms - last_ms
            agent.heard_boot_ms = min(now.boot_ms, heard_ms)


def _fence_ms(agent: AgentEntry, task: OpenTask, now: Now) -> int:
    """How much longer the task may run on an agent that is not heard."""
    if task.spec.on_disconnect is not OnDisconnect.STOP:
        return 0
    return max(0, STOP_GIVEN_AWAY_MS - (now.boot_ms - agent.heard_boot_ms))


def _meet(state: ClusterState, agent: AgentEntry, incarnation: int, now: Now) -> None:
    """Takes note of a newer incarnation: whatever the older one held is given away."""
    if incarnation <= agent.incarnation:
        return
    first = agent.incarnation == 0
    on_purpose = agent.restarting or agent.draining
    older = [
        (task, _fence_ms(agent, task, now))
        for task in agent.tasks.values()
        if task.status.incarnation < incarnation
    ]
    agent.incarnation = incarnation
    agent.session = agent.draining = agent.suspected = agent.buried = False
    agent.distrusted_until_boot_ms = 0
    agent.owed.clear()
    agent.heard_boot_ms = now.boot_ms
    if not first and agent.state is not AgentState.JOINING:
        if agent.state not in _GONE:
            _blame_death(state, agent, now, on_purpose=on_purpose)
        state.enter(agent, AgentEvent.REJOINED, f"incarnation {incarnation} registered", now)
    agent.restarting = False
    if recovering.met(state, agent, older, now):
        return
    to_charge = set() if on_purpose else charged(task for task, _ in older if task.started)
    for task, fence_ms in older:
        why = f"agent {agent.id} was restarted as incarnation {incarnation}"
        tasks.lost(state, task, why, task in to_charge, now, fence_ms=fence_ms)


def _settle(state: ClusterState, agent: AgentEntry, now: Now) -> None:
    """Moves the agent between JOINING, READY and SUSPECT as what is known of it demands."""
    silent_ms = now.boot_ms - agent.heard_boot_ms
    doubts = []
    if agent.suspected:
        doubts.append(f"the monitor suspects it (phi {agent.phi:.1f})")
    if now.boot_ms < agent.distrusted_until_boot_ms:
        doubts.append("it was given attempts and did not start them")
    if silent_ms >= SUSPECT_MS:
        doubts.append(f"it was silent for {silent_ms / 1000:.1f} s")
    if state.registry_seen and not agent.leased:
        doubts.append("it has no lease")
    if agent.state is AgentState.JOINING:
        if agent.leased and agent.session:
            _join(state, agent, now)
    elif agent.state in _GONE and agent.leased and agent.session and not doubts:
        # Silent long enough to be given up, and back: its tasks are others' now.
        if agent.state is not AgentState.RESTARTING:
            state.enter(agent, AgentEvent.REJOINED, "it is heard again", now)
            _join(state, agent, now)
    elif agent.state in (AgentState.READY, AgentState.PAROLE) and doubts:
        state.enter(agent, AgentEvent.SUSPECTED, ", ".join(doubts), now)
    elif agent.state is AgentState.SUSPECT and not doubts and agent.session:
        state.enter(agent, AgentEvent.CLEARED, "all is well again", now)
    quarantine.settle(state, agent, now)
    state.refresh(agent)


def _join(state: ClusterState, agent: AgentEntry, now: Now) -> None:
    state.enter(agent, AgentEvent.JOINED, "registered and connected", now)
    recovering.joined(state, agent, now)
    if agent.wish is AgentWish.DRAIN:
        state.enter(agent, AgentEvent.DRAIN, "drained on request", now)


def _die(
    state: ClusterState,
    agent: AgentEntry,
    why: str,
    suspects: set[tuple[TaskId, int]] | None,
    now: Now,
    *,
    fenced: bool = False,
) -> None:
    """`suspects`: attempts that may have killed it; None = whatever it had started.

    `fenced`: nothing of it runs any more, that is certain.
    """
    if _can(agent, AgentEvent.DIED):
        # The end of what is being restarted is no second death.
        was_restarted = agent.restarting or agent.state is AgentState.RESTARTING
        state.enter(agent, AgentEvent.DIED, why, now)
        _blame_death(state, agent, now, on_purpose=was_restarted or agent.draining)
    state.refresh(agent)
    begun = [
        t
        for t in agent.tasks.values()
        if not (agent.restarting or agent.draining)
        and (t.started if suspects is None else (t.id, t.status.attempt) in suspects)
    ]
    to_charge = charged(begun)
    why = f"agent {agent.id} is down: {why}"
    if not recovering.begin(state, agent, why, to_charge, now, dead=fenced):
        _lose_tasks(state, agent, why, to_charge, now, fenced=fenced)
    agent.restarting = False


def _blame_death(state: ClusterState, agent: AgentEntry, now: Now, *, on_purpose: bool) -> None:
    if not on_purpose:
        state.health.blame(agent.id, Blame.DEATH, now.clock_ms)


def _lose_tasks(
    state: ClusterState,
    agent: AgentEntry,
    why: str,
    to_charge: set[OpenTask],
    now: Now,
    *,
    fenced: bool = False,
) -> None:
    for task in list(agent.tasks.values()):
        assert task.status.state in HELD_STATES, f"{task!r} is on an agent"
        fence_ms = 0 if fenced else _fence_ms(agent, task, now)
        tasks.lost(state, task, why, task in to_charge, now, fence_ms=fence_ms)


def _leave(state: ClusterState, agent: AgentEntry, why: str, now: Now) -> None:
    if _can(agent, AgentEvent.LEAVE):
        state.enter(agent, AgentEvent.LEAVE, why, now)
    recovering.left(state, agent, now)
    _lose_tasks(state, agent, f"agent {agent.id} has left", set(), now)
    state.refresh(agent)


def _forget(state: ClusterState, agent: AgentEntry) -> None:
    assert not agent.tasks, f"{agent!r} is forgotten with tasks"
    # A recovery that is still followed closes at the next step.
    if agent.kept_for != NOBODY:
        state.open_again(agent)
    if agent.id in state.table:
        state.table.remove(agent.id)
    del state.agents[agent.id]


def _can(agent: AgentEntry, event: AgentEvent) -> bool:
    return (agent.state, event) in TRANSITIONS
