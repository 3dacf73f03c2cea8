"""Finds places for waiting tasks: the queue proposes, a strategy plans, the table is charged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from muster.domain.agent_lifecycle import AgentState
from muster.domain.ids import AgentId
from muster_scheduler.core.foretelling import (
    Placements,
    foretold,
    placed_as_proposed,
    tasks_at_once,
    tasks_beyond,
)
from muster_scheduler.core.improving import due_parts, in_loop
from muster_scheduler.core.mix import TOLD_THE_MIX
from muster_scheduler.core.outcomes import assigned
from muster_scheduler.core.quarantine import probe_given
from muster_scheduler.core.queue import Candidate, Line, LineKey
from muster_scheduler.core.records import AttemptRef, Effect, EffectKind, Now, OpenTask
from muster_scheduler.core.state import ClusterState
from muster_scheduler.core.suspects import place_alone
from muster_scheduler.placement.classes import TaskBatch
from muster_scheduler.placement.devices import NO_DEVICES, Devices
from muster_scheduler.placement.readiness import live
from muster_scheduler.placement.snapshot import Snapshot
from muster_scheduler.placement.strategy import get

# Tasks planned at once: long enough to be quick, short enough that beats are answered between.
MAX_PLAN = 512
# Rounds in one call; the rest waits for the next, so that the loop stays responsive.
MAX_ROUNDS = 8


def _never() -> bool:
    return False


def place(state: ClusterState, now: Now) -> int:
    """Gives waiting tasks to agents while some fit; returns how many were placed."""
    state.place_again = False
    state.notes.refill(now)
    placed = 0
    if state.suspects:
        for task, agent in place_alone(state, now):
            given = state.devices_on(task, agent.id)
            if given is None:
                # The agent lost devices meanwhile: the task is placed as others are.
                state.queue.add(task)
            else:
                _assign(state, task, agent.id, now, given)
                placed += 1
        state.placed_count += placed
    if state.proposal is not None:
        placed += _follow_proposal(state, now)
    blocked: set[LineKey] = set()
    most = tasks_at_once(state, MAX_PLAN)
    for _ in range(MAX_ROUNDS):
        if not len(state.queue):
            return placed
        snapshot = state.table.view()
        room = _room_in(state, snapshot)
        candidates = state.queue.take(room, state.held, now.clock_ms, most, blocked)
        if not candidates:
            return placed
        placed += _plan(state, snapshot, candidates, blocked, now)
    # More may fit: the shell calls again after it has listened to what came meanwhile.
    state.place_again = True
    return placed


def _room_in(state: ClusterState, snapshot: Snapshot) -> Callable[[Line], tuple[int, int]]:
    """How many tasks of a line could find a place at most, and as which class."""
    known: dict[int, int] = {}
    beyond = tasks_beyond(state)

    def room_of(class_id: int) -> int:
        found = known.get(class_id)
        if found is not None:
            return found
        eligible = state.classes.eligible(class_id, snapshot)
        demand = state.classes.demand(class_id, snapshot)
        rows = np.flatnonzero(eligible)
        places = 0
        if rows.size and not demand.missing:
            fits = None
            for column, amount in demand.columns:
                here = snapshot.free[rows, column] // amount
                fits = here if fits is None else np.minimum(fits, here)
            if fits is not None:
                places = int(np.maximum(fits, 0).sum())
        known[class_id] = places
        return places

    def room(line: Line) -> tuple[int, int]:
        if line.starved_at == snapshot.version:
            return 0, line.key[2]
        class_id = line.key[2]
        places = room_of(class_id)
        if places:
            return places + beyond, class_id
        head = line.head()
        if head is not None and head.plain_class_id != class_id:
            # Rather on an agent that failed it before than nowhere.
            return room_of(head.plain_class_id), head.plain_class_id
        # Who holds its most of a group may have room again without a change of its row.
        if not (state.classes.spread(class_id) or state.classes.eligible(class_id, snapshot).any()):
            line.starved_at = snapshot.version
        return 0, class_id

    return room


def _plan(
    state: ClusterState,
    snapshot: Snapshot,
    candidates: list[Candidate],
    blocked: set[LineKey],
    now: Now,
) -> int:
    batch = TaskBatch.of(
        state.classes,
        [c.class_id for c in candidates],
        priority=[c.task.spec.priority for c in candidates],
        estimate_s=[c.task.spec.estimate_ms / 1000 or 1.0 for c in candidates],
    )
    chosen = in_loop(state.policy)
    if chosen == state.policy.strategy:
        batch = foretold(state, snapshot, [c.task for c in candidates], batch, now)
    if chosen in TOLD_THE_MIX:
        batch = replace(batch, mix=state.arrivals.mix())
    strategy = get(live(chosen))
    plan = strategy.plan(snapshot, batch, state.policy, now.clock_ms / 1000, state.rng, _never, 0)
    placements = Placements(state, snapshot, batch, plan, now)
    has_devices = state.table.has_devices
    unplaced: list[Candidate] = []
    places = zip(candidates, plan.assignment.tolist(), strict=True)
    for index, (candidate, row) in enumerate(places):
        given = None
        if row >= 0 and _admits(state, snapshot, candidate.class_id, row):
            agent_id = AgentId(state.table.agent_id_at(row))
            if state.on_parole and not state.agents[agent_id].usable:
                # It was given its probe a moment ago.
                unplaced.append(candidate)
                blocked.add(candidate.line.key)
                continue
            given = NO_DEVICES
            if has_devices:
                planned = plan.devices.get(index, NO_DEVICES)
                given = state.devices_on(candidate.task, agent_id, planned)
        if given is None:
            unplaced.append(candidate)
            blocked.add(candidate.line.key)
        else:
            _assign(state, candidate.task, agent_id, now, given)
            placements.placed(index, candidate.task, row)
    state.queue.put_back(unplaced)
    count = len(candidates) - len(unplaced)
    state.placed_count += count
    return count


def _follow_proposal(state: ClusterState, now: Now) -> int:
    """Carries out what of an improving strategy's plan can be by now; returns how many."""
    placed = 0
    for task, agent_id, class_id in due_parts(state, now):
        snapshot = state.table.view()
        if not (
            _admits(state, snapshot, class_id, snapshot.rows[agent_id])
            and state.agents[AgentId(agent_id)].usable
        ):
            state.stale_proposals += 1
            continue
        state.queue.discard(task)
        _assign(state, task, agent_id, now)
        placed_as_proposed(state, snapshot, task, snapshot.rows[agent_id])
        placed += 1
    state.followed_proposals += placed
    state.placed_count += placed
    return placed


def _admits(state: ClusterState, snapshot: Snapshot, class_id: int, row: int) -> bool:
    """Whether the agent may hold one more of the task's groups; not every strategy counts them."""
    spread = state.classes.spread(class_id)
    return not spread or all(
        snapshot.crowds.get(one.group, {}).get(row, 0) < one.most for one in spread
    )


def _assign(
    state: ClusterState,
    task: OpenTask,
    agent_id: AgentId,
    now: Now,
    devices: Devices = NO_DEVICES,
) -> None:
    """Charges the agent at once; the attempt is pushed when its assignment is durable."""
    agent = state.agents[agent_id]
    given = tuple(sorted(devices.items())) if devices else ()
    status = assigned(task.status, task.id, agent_id, agent.incarnation, now.wall_ms, given)
    task.started = False
    state.charge(task, agent, devices)
    if state.on_parole and agent.state is AgentState.PAROLE:
        probe_given(state, agent, task, status.attempt)
    ref = AttemptRef(task.id, status.attempt, task.spec.tenant)
    state.decide(task, status, Effect(EffectKind.ASSIGN, agent_id, ref))
