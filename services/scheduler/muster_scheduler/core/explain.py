"""Why a task waits, in words and numbers; worked out when somebody asks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from muster.domain.agent_lifecycle import AgentWish, may_receive_work
from muster.domain.quantity import format_quantity
from muster.domain.resources import unit_of
from muster.domain.task_lifecycle import ENDED_STATES, TaskState
from muster_scheduler.core.expected import ExpectedStart, expected_start
from muster_scheduler.core.foretelling import foresees, response_s
from muster_scheduler.core.records import NOBODY, Now, OpenTask
from muster_scheduler.core.state import ClusterState
from muster_scheduler.placement.change import (
    Change,
    ChangeKind,
    constraint_text,
    smallest_change,
)
from muster_scheduler.placement.classes import TaskClass, first_unmet, is_met
from muster_scheduler.placement.explain import explain as why_nowhere
from muster_scheduler.placement.plan import Unplaceable
from muster_scheduler.placement.scoring import Candidate, best_candidates
from muster_scheduler.placement.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class Explanation:
    """`excluded` counts agents by the first reason that excludes each.

    `candidates` with their agents' ids; `start` is None unless the task waits for a place;
    `smallest_change` is `change` in words, or says that there is none.
    """

    state: TaskState
    summary: str
    queue_position: int = 0
    queue_length: int = 0
    excluded: Mapping[str, int] = field(default_factory=dict)
    agents: int = 0
    smallest_change: str = ""
    change: Change | None = None
    candidates: Sequence[tuple[str, Candidate]] = ()
    start: ExpectedStart | None = None


def explain(state: ClusterState, task: OpenTask, now: Now, *, brief: bool = False) -> Explanation:
    """Explains an open task as things stand.

    `brief` leaves out the change, the candidates and the start, which take a look at every agent
    and at what runs there: some 10 ms at 1,000 agents.
    """
    status = task.status
    if status.state in ENDED_STATES:
        return Explanation(status.state, "it has ended; that is being recorded")
    if status.state is not TaskState.PENDING:
        doing = "runs" if task.started else "was sent to be run"
        return Explanation(
            status.state,
            f"attempt {status.attempt} {doing} on agent {status.agent}",
            candidates=() if brief else _candidates(state, task),
        )
    if task.id in state.suspects:
        deaths = status.agent_deaths
        return Explanation(
            status.state,
            f"it waits for an agent of its own, for {deaths} agents died while they ran it",
            start=ExpectedStart(None, "it waits for an agent without other work"),
        )
    if not task.queued:
        pause_ms = max(0, status.not_before_clock_ms - now.clock_ms)
        why = f"; {status.why}" if status.why else ""
        return Explanation(
            status.state,
            f"it is tried again in {pause_ms / 1000:.1f} s{why}",
            start=ExpectedStart(pause_ms / 1000, "if there is room for it then"),
        )
    return _waiting(state, task, now, brief=brief)


def _waiting(state: ClusterState, task: OpenTask, now: Now, *, brief: bool) -> Explanation:
    snapshot = state.table.view()
    wanted = state.classes[task.plain_class_id]
    found = why_nowhere(snapshot, wanted)
    change, changed = None, ""
    if not brief and sum(found.reasons.values()) == found.agents:
        change = smallest_change(snapshot, wanted, _cordoned(state, snapshot))
        changed = _in_words(change, snapshot, wanted)
    return Explanation(
        task.status.state,
        _summary(found, task) + (f" ({task.status.why})" if task.status.why else ""),
        state.queue.position(task, state.held, now.clock_ms),
        len(state.queue),
        found.reasons,
        found.agents,
        changed,
        change,
        () if brief else _candidates(state, task),
        None if brief else expected_start(state, task, now),
    )


def _summary(found: Unplaceable, task: OpenTask) -> str:
    if found.agents == 0:
        return "no agent is registered"
    if found.reasons.get("skill") == found.agents:
        return f"none of the {found.agents} agents offers skill {task.spec.skill}"
    if sum(found.reasons.values()) == found.agents:
        reasons = ", ".join(f"{n} × {why}" for why, n in found.reasons.items())
        return f"no agent can take it now: {reasons}"
    return "it is its turn next, or tasks before it take what is free"


def _candidates(state: ClusterState, task: OpenTask) -> list[tuple[str, Candidate]]:
    snapshot = state.table.view()
    run_s = None
    if foresees(state):
        times = response_s(state, snapshot, [task])
        run_s = None if times is None else np.asarray(times[0])
    found = best_candidates(
        state.policy.strategy, snapshot, state.classes[task.plain_class_id], task.row, run_s
    )
    return [(snapshot.agent_ids[one.row], one) for one in found]


def _cordoned(state: ClusterState, snapshot: Snapshot) -> set[int]:
    """Rows of the agents that nothing but an operator's cordon keeps from work."""
    return {
        snapshot.rows[agent.id]
        for agent in state.agents.values()
        if agent.wish is AgentWish.CORDON
        and agent.id in snapshot.rows
        and agent.session
        and may_receive_work(agent.state, AgentWish.NONE)
        and not (agent.draining or agent.suspected)
        and agent.kept_for == NOBODY
    }


def _in_words(change: Change | None, snapshot: Snapshot, wanted: TaskClass) -> str:
    if change is None:
        return _nothing_helps(snapshot, wanted)
    if change.kind is not ChangeKind.ADD_AGENT:
        return str(change)
    offering = [
        r for r in snapshot.alive.nonzero()[0].tolist() if wanted.skill in snapshot.skills[r]
    ]
    what = f"agent with skill {wanted.skill}"
    lacking = _lacking(wanted, snapshot, offering)
    if lacking:
        return ("an " if offering else "one ") + what + " and " + " and ".join(lacking)
    if not offering:
        return f"one {what}"
    return f"one more {what}" + (
        ", or wait for running tasks to end" if _once_idle(snapshot, wanted) else ""
    )


def _nothing_helps(snapshot: Snapshot, wanted: TaskClass) -> str:
    if _once_idle(snapshot, wanted):
        return "wait for running tasks to end"
    return "no single change: no agent can meet all of its constraints"


def _once_idle(snapshot: Snapshot, wanted: TaskClass) -> bool:
    """Whether an agent that may take the class would have room without other work."""
    return any(
        snapshot.placeable[row]
        and wanted.skill in snapshot.skills[row]
        and first_unmet(wanted.constraints, snapshot, row) is None
        and all(_has(snapshot, row, name, amount) for name, amount in wanted.demand.items())
        for row in snapshot.alive.nonzero()[0].tolist()
    )


def _lacking(wanted: TaskClass, snapshot: Snapshot, offering: Sequence[int]) -> list[str]:
    """What the class wants and none of the agents that offer its skill has, used or not."""
    lacking = [
        constraint_text(constraint)
        for constraint in wanted.constraints
        if all(first_unmet((constraint,), snapshot, row) is not None for row in offering)
        and (offering or not is_met(constraint, None))
    ]
    for name, amount in wanted.demand.items():
        if offering and not any(_has(snapshot, row, name, amount) for row in offering):
            lacking.append(f"{name} {format_quantity(amount, unit_of(name))}")
    return lacking


def _has(snapshot: Snapshot, row: int, name: str, amount: int) -> bool:
    column = snapshot.columns.get(name)
    return column is not None and bool(snapshot.capacity[row, column] >= amount)
