"""Why a task waits, in words and numbers; worked out when somebody asks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from muster.domain.quantity import format_quantity
from muster.domain.resources import unit_of
from muster.domain.task_lifecycle import ENDED_STATES, TaskState
from muster_scheduler.core.records import Now, OpenTask
from muster_scheduler.core.state import ClusterState
from muster_scheduler.placement.classes import first_unmet
from muster_scheduler.placement.explain import constraint_text
from muster_scheduler.placement.explain import explain as why_nowhere
from muster_scheduler.placement.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class Explanation:
    """`excluded` counts agents by the first reason that excludes each."""

    state: TaskState
    summary: str
    queue_position: int = 0
    queue_length: int = 0
    excluded: Mapping[str, int] = field(default_factory=dict)
    agents: int = 0
    smallest_change: str = ""


def explain(state: ClusterState, task: OpenTask, now: Now) -> Explanation:
    """Explains an open task as things stand."""
    status = task.status
    if status.state in ENDED_STATES:
        return Explanation(status.state, "it has ended; that is being recorded")
    if status.state is not TaskState.PENDING:
        doing = "runs" if task.started else "was sent to be run"
        return Explanation(
            status.state, f"attempt {status.attempt} {doing} on agent {status.agent}"
        )
    if task.id in state.suspects:
        deaths = status.agent_deaths
        return Explanation(
            status.state,
            f"it waits for an agent of its own, for {deaths} agents died while they ran it",
        )
    if not task.queued:
        pause_ms = max(0, status.not_before_clock_ms - now.clock_ms)
        why = f"; {status.why}" if status.why else ""
        return Explanation(status.state, f"it is tried again in {pause_ms / 1000:.1f} s{why}")
    snapshot = state.table.view()
    wanted = state.classes[task.plain_class_id]
    found = why_nowhere(snapshot, wanted)
    excluded = sum(found.reasons.values())
    position = state.queue.position(task, state.held, now.clock_ms)
    if found.agents == 0:
        summary, change = "no agent is registered", f"one agent with skill {task.spec.skill}"
    elif found.reasons.get("skill") == found.agents:
        summary = f"none of the {found.agents} agents offers skill {task.spec.skill}"
        change = f"one agent with skill {task.spec.skill}"
    elif excluded == found.agents:
        reasons = ", ".join(f"{n} × {why}" for why, n in found.reasons.items())
        summary = f"no agent can take it now: {reasons}"
        change = _smallest_change(state, task)
    else:
        summary, change = "it is its turn next, or tasks before it take what is free", ""
    if status.why:
        summary += f" ({status.why})"
    return Explanation(
        status.state,
        summary,
        position,
        len(state.queue),
        found.reasons,
        found.agents,
        change,
    )


def _smallest_change(state: ClusterState, task: OpenTask) -> str:
    """The smallest cut of one resource that would place the task on some eligible agent."""
    snapshot = state.table.view()
    eligible = state.classes.eligible(task.plain_class_id, snapshot)
    demand = state.classes.demand(task.plain_class_id, snapshot)
    best: tuple[float, str] | None = None
    for row in eligible.nonzero()[0].tolist():
        free = snapshot.free[row]
        short = [(k, amount) for k, amount in demand.columns if free[k] < amount]
        if len(short) != 1 or demand.missing:
            continue
        column, amount = short[0]
        name, available = snapshot.names[column], max(0, int(free[column]))
        if name == "slots" or available == 0:
            continue
        unit = unit_of(name)
        text = f"{name} {format_quantity(amount, unit)} → {format_quantity(available, unit)}"
        cut = 1.0 - available / amount
        if best is None or cut < best[0]:
            best = (cut, text)
    if best is not None:
        return best[1]
    lacking = _lacking_everywhere(task, snapshot)
    if lacking:
        return f"an agent with skill {task.spec.skill} and " + " and ".join(lacking)
    return f"one more agent with skill {task.spec.skill}, or wait for running tasks to end"


def _lacking_everywhere(task: OpenTask, snapshot: Snapshot) -> list[str]:
    """What the task wants of an agent and none that offers its skill has, used or not."""
    rows = [
        r for r in snapshot.alive.nonzero()[0].tolist() if task.spec.skill in snapshot.skills[r]
    ]
    lacking = [
        constraint_text(constraint)
        for constraint in task.spec.constraints
        if all(first_unmet((constraint,), snapshot, row) is not None for row in rows)
    ]
    for name, amount in task.spec.resources.items():
        column = snapshot.columns.get(name)
        if column is None or not any(snapshot.capacity[row, column] >= amount for row in rows):
            lacking.append(f"{name} {format_quantity(amount, unit_of(name))}")
    return lacking
