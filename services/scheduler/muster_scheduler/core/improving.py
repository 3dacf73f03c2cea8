"""What an improving strategy is asked while tasks wait, and what becomes of its proposal.

The leader's loop never waits for one: it places at once, by the strategy's seed. What finds no
room is planned elsewhere for the next wave, as if the work that runs had ended, and as room comes
free a task goes where the proposal has it, if nothing speaks against it by then.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from muster.domain.ids import AgentId
from muster.domain.policy import DEFAULT_STRATEGY, Policy
from muster.domain.task import Lifetime
from muster_scheduler.core.foretelling import foretold, tasks_at_once
from muster_scheduler.core.queue import Line
from muster_scheduler.core.records import Now, OpenTask
from muster_scheduler.core.state import ClusterState
from muster_scheduler.placement.classes import TaskBatch
from muster_scheduler.placement.snapshot import IntArray, Snapshot

# The strategies that are too slow for the leader's loop, and what places at once in their stead.
SEEDS = MappingProxyType(
    {
        "annealing": DEFAULT_STRATEGY,
        "exact": DEFAULT_STRATEGY,
        "genetic": DEFAULT_STRATEGY,
        "quota": "fragmentation",
        "search": DEFAULT_STRATEGY,
        "swarm": DEFAULT_STRATEGY,
    }
)
# Waiting tasks planned at once, the first of the queue: about a wave of a cluster's places.
MAX_IMPROVED = 512
# One task that waits takes the first room that comes.
_LEAST_IMPROVED = 2
# Then the queue and the agents are others, and the proposal is no longer followed.
_FOLLOWED_FOR_MS = 5_000


def in_loop(policy: Policy) -> str:
    """The strategy that places at once."""
    return SEEDS.get(policy.strategy, policy.strategy)


@dataclass(frozen=True, slots=True, eq=False)
class Wave:
    """Waiting tasks, by the queue's order, and the agents as they will be without what runs."""

    tasks: tuple[OpenTask, ...]
    attempts: tuple[int, ...]
    batch: TaskBatch
    snapshot: Snapshot
    policy: Policy


@dataclass(slots=True, eq=False)
class Proposal:
    """Where a wave's tasks should go. `rows` int64 and `pending` bool, [N]; rows of tasks that
    are not pending mean nothing."""

    wave: Wave
    agents: tuple[AgentId, ...]
    rows: IntArray
    pending: NDArray[np.bool_]
    made_clock_ms: int

    def is_over(self, now: Now) -> bool:
        return now.clock_ms - self.made_clock_ms > _FOLLOWED_FOR_MS or not self.pending.any()


def next_wave(state: ClusterState, now: Now) -> Wave | None:
    """What is to be planned now; None when there is nothing to improve."""
    if state.policy.strategy not in SEEDS or len(state.queue) < _LEAST_IMPROVED:
        return None
    snapshot = state.table.view()
    most = tasks_at_once(state, MAX_IMPROVED)

    def room(line: Line) -> tuple[int, int]:
        class_id = line.key[2]
        demand = state.classes.demand(class_id, snapshot)
        # Devices are given out one by one, when it is known which are free.
        if demand.missing or any(column in snapshot.device_free for column, _ in demand.columns):
            return 0, class_id
        return (most if state.classes.eligible(class_id, snapshot).any() else 0), class_id

    taken = state.queue.take(room, state.held, now.clock_ms, most, set())
    state.queue.put_back(taken)
    if len(taken) < _LEAST_IMPROVED:
        return None
    tasks = tuple(c.task for c in taken)
    batch = TaskBatch.of(
        state.classes,
        [c.class_id for c in taken],
        priority=[t.spec.priority for t in tasks],
        estimate_s=[t.spec.estimate_ms / 1000 or 1.0 for t in tasks],
    )
    batch = foretold(state, snapshot, tasks, batch, now)
    attempts = tuple(t.status.attempt for t in tasks)
    return Wave(tasks, attempts, batch, _without_what_ends(state, snapshot), state.policy)


def _without_what_ends(state: ClusterState, snapshot: Snapshot) -> Snapshot:
    used = np.zeros_like(snapshot.used)
    for agent in state.agents.values():
        for task in agent.tasks.values():
            if task.spec.lifetime is not Lifetime.FINITE and task.row >= 0:
                demand = state.classes.demand(task.plain_class_id, snapshot)
                used[task.row] += demand.amounts
    free = snapshot.capacity - used
    return replace(snapshot, used=used, free=free, device_free={}, log=None)


def propose(state: ClusterState, wave: Wave, assignment: NDArray[np.int32], now: Now) -> None:
    """Follows the plan of the wave from now on. A wave planned by another policy is dropped."""
    if state.policy != wave.policy:
        state.stale_proposals += int((assignment >= 0).sum())
        return
    idents = wave.snapshot.agent_ids
    agents = tuple(AgentId(idents[row]) if row >= 0 else AgentId("") for row in assignment.tolist())
    rows = np.maximum(assignment, 0).astype(np.int64)
    state.proposal = Proposal(wave, agents, rows, assignment >= 0, now.clock_ms)
    state.place_again = True


def due_parts(state: ClusterState, now: Now) -> list[tuple[OpenTask, AgentId, int]]:
    """Tasks of the proposal that have room where they should go, each with its class.

    Each was looked at against what is now: its task waits with the same attempt and class, the
    agent is the same, eligible and has room for one such task, and no task of higher (aged)
    priority waits. What will never hold again is dropped and counted.
    """
    proposal = state.proposal
    if proposal is None:
        return []
    if proposal.is_over(now) or state.policy != proposal.wave.policy:
        state.stale_proposals += int(proposal.pending.sum())
        state.proposal = None
        return []
    view = state.table.view()
    slots = view.free[proposal.rows, view.columns["slots"]] > 0
    found: list[tuple[OpenTask, AgentId, int]] = []
    urgent: int | None = None
    used_rows: set[int] = set()
    for index in np.flatnonzero(proposal.pending & slots).tolist():
        task, row = proposal.wave.tasks[index], int(proposal.rows[index])
        agent = proposal.agents[index]
        class_id = int(proposal.wave.batch.class_id[index])
        same = task.queued and task.status.attempt == proposal.wave.attempts[index]
        if not same or task.class_id != class_id or view.rows.get(agent) != row:
            proposal.pending[index] = False
            state.stale_proposals += 1
            continue
        if row in used_rows or not state.classes.eligible(class_id, view)[row]:
            continue
        demand = state.classes.demand(class_id, view)
        if demand.missing or any(view.free[row, k] < amount for k, amount in demand.columns):
            continue
        if urgent is None:
            urgent = state.queue.most_urgent(now.clock_ms)
        if state.queue.urgency(task, now.clock_ms) < urgent:
            continue
        proposal.pending[index] = False
        used_rows.add(row)
        found.append((task, agent, class_id))
    return found
