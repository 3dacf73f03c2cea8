"""Attempts that run and say nothing: a task with a `progress_timeout` must report in that time.

Measured in cluster time from the start, the last progress or partial output, whatever came last,
and by the leader's boot clock as well: cluster time jumps when storage confirms the term after a
standstill, and a jump is not silence. A parent that waits for its children, and an attempt on an
agent that is not heard, are let be. An attempt that is stuck is told to end as after its timeout,
and counts as a failure of its skill.
"""

from __future__ import annotations

from typing import Final

from muster.domain.task import Outcome, OutcomeKind, TaskSpec, TaskStatus, Wish
from muster.domain.task_lifecycle import HELD_STATES
from muster_scheduler.core.commands import Stuck
from muster_scheduler.core.deadlines import Moment
from muster_scheduler.core.outcomes import NO_PROGRESS_KIND
from muster_scheduler.core.records import Now, OpenTask
from muster_scheduler.core.state import ClusterState

# An agent that was not heard for so long may have progress to tell that has not come.
UNHEARD_MS: Final = 3_500
NO_PROGRESS: Final = "no progress for "


def told(task: OpenTask, now: Now) -> None:
    """Its attempt has reported progress or partial output."""
    task.progress_clock_ms, task.progress_boot_ms = now.clock_ms, now.boot_ms


def begin(state: ClusterState, task: OpenTask, now: Now) -> None:
    """Its present attempt has started, or this leader has found it running."""
    timeout_ms = task.spec.progress_timeout_ms
    if timeout_ms:
        told(task, now)
        state.deadlines.add(now.clock_ms + timeout_ms, Moment.PROGRESS, task)


def due(state: ClusterState, task: OpenTask, now: Now) -> Stuck | None:
    """Its moment has come: stuck, or looked at again when it may be."""
    if task.status.state not in HELD_STATES or not task.started:
        return None
    if task.status.wish is not Wish.NONE:
        return None
    timeout_ms = task.spec.progress_timeout_ms
    agent = state.agents.get(task.status.agent)
    heard = agent is not None and agent.session and now.boot_ms - agent.heard_boot_ms < UNHEARD_MS
    if task.waiting or not heard:
        # Full time once it goes on, or is heard again.
        told(task, now)
    silent_ms = now.boot_ms - task.progress_boot_ms
    at_ms = max(task.progress_clock_ms + timeout_ms, now.clock_ms + timeout_ms - silent_ms)
    if now.clock_ms < at_ms:
        state.deadlines.add(at_ms, Moment.PROGRESS, task)
        return None
    why = f"{NO_PROGRESS}{timeout_ms / 1000:g} s"
    return Stuck(task, task.status.agent, task.status.attempt, why)


def outcome_of(spec: TaskSpec, status: TaskStatus, said: Outcome) -> Outcome:
    """What the end of an attempt counts as, given what its agent says: that of a stuck one is a
    failure for want of progress. The record says that it was stuck, for leaders may change."""
    if status.wish is not Wish.TIME_OUT or not status.why.startswith(NO_PROGRESS):
        return said
    if said.kind is OutcomeKind.SUCCEEDED:
        # The work was done all the same.
        return said
    assert spec.progress_timeout_ms, f"{spec.id} cannot be stuck"
    return Outcome(
        OutcomeKind.FAILED,
        error=status.why,
        error_kind=NO_PROGRESS_KIND,
        started_at_ms=said.started_at_ms,
        ended_at_ms=said.ended_at_ms,
    )
