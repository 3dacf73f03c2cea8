"""What the end of an attempt means for its task: ended, tried again, or given to another agent.

Three counts are never mixed: `attempt` grows with each assignment and fences, `failures` counts
failures of the skill against `max_attempts`, `agent_deaths` counts agents that died with it.
"""

from __future__ import annotations

from msgspec.structs import replace

from muster.agent.error_kinds import NON_RETRYABLE_ERROR_KINDS
from muster.domain.ids import AgentId
from muster.domain.resources import GivenDevices
from muster.domain.task import (
    MAX_ERROR_CHARS,
    POISON_DEATHS,
    Lifetime,
    Outcome,
    OutcomeKind,
    TaskSpec,
    TaskStatus,
    Wish,
)
from muster.domain.task_lifecycle import ENDED_STATES, TaskEvent, advance

# First pause before a failed skill is tried again; doubled with each failure.
RETRY_FIRST_MS = 200
RETRY_LAST_MS = 60_000
# An agent that had no room after all is asked again after this; it says so rarely.
RETURNED_PAUSE_MS = 100
# Of an attempt that was ended for it.
NO_PROGRESS_KIND = "no_progress"
_WITHOUT_WORDS = {
    TaskEvent.CANCEL: OutcomeKind.CANCELLED,
    TaskEvent.TIME_OUT: OutcomeKind.TIMED_OUT,
}
# A retry avoids the agents that failed it; more than a few would leave none.
MAX_AVOID = 3


def retry_pause_ms(failures: int, jitter: float) -> int:
    """Full jitter: uniform in [0, first · 2^(failures-1)], `jitter` in [0, 1)."""
    ceiling = min(RETRY_LAST_MS, RETRY_FIRST_MS * 2 ** min(max(failures - 1, 0), 20))
    return int(ceiling * jitter)


def assigned(
    status: TaskStatus,
    ident: str,
    agent: AgentId,
    incarnation: int,
    wall_ms: int,
    devices: GivenDevices = (),
) -> TaskStatus:
    """The status of a task that was given to an agent, and these devices of it."""
    return replace(
        status,
        state=advance(status.state, TaskEvent.ASSIGN, ident=ident),
        attempt=status.attempt + 1,
        agent=agent,
        incarnation=incarnation,
        assigned_at_ms=wall_ms,
        started_at_ms=0,
        started_clock_ms=0,
        not_before_clock_ms=0,
        why="",
        devices=devices,
    )


def started(status: TaskStatus, ident: str, started_at_ms: int, clock_ms: int) -> TaskStatus:
    """The status of a task whose agent has begun it."""
    return replace(
        status,
        state=advance(status.state, TaskEvent.START, ident=ident),
        started_at_ms=started_at_ms,
        started_clock_ms=clock_ms,
    )


def ended(
    status: TaskStatus,
    ident: str,
    event: TaskEvent,
    wall_ms: int,
    *,
    outcome: Outcome | None = None,
    why: str = "",
) -> TaskStatus:
    """The status of a task that ends by `event`."""
    state = advance(status.state, event, ident=ident)
    assert state in ENDED_STATES
    kept = outcome or status.outcome
    if kept is None:
        # Without an attempt's own words, the reason stands where its error would.
        kept = Outcome(
            kind=_WITHOUT_WORDS.get(event, OutcomeKind.FAILED),
            error=why,
            error_kind=event.value.lower(),
            ended_at_ms=wall_ms,
        )
    return replace(
        status,
        state=state,
        wish=Wish.NONE,
        started_at_ms=status.started_at_ms or kept.started_at_ms,
        ended_at_ms=kept.ended_at_ms if outcome is not None and kept.ended_at_ms else wall_ms,
        outcome=kept,
        why=why,
    )


def _again(
    status: TaskStatus, ident: str, event: TaskEvent, not_before_clock_ms: int, why: str
) -> TaskStatus:
    return replace(
        status,
        state=advance(status.state, event, ident=ident),
        agent=AgentId(""),
        incarnation=0,
        wish=Wish.NONE,
        started_at_ms=0,
        started_clock_ms=0,
        not_before_clock_ms=not_before_clock_ms,
        why=why[:MAX_ERROR_CHARS],
        devices=(),
    )


def _wished(status: TaskStatus, ident: str, wall_ms: int, outcome: Outcome | None) -> TaskStatus:
    if status.wish is Wish.CANCEL:
        return ended(
            status, ident, TaskEvent.CANCEL, wall_ms, outcome=outcome, why="cancelled on request"
        )
    return ended(
        status,
        ident,
        TaskEvent.TIME_OUT,
        wall_ms,
        outcome=outcome,
        why="its deadline had passed",
    )


def _must_end(spec: TaskSpec, status: TaskStatus, clock_ms: int) -> bool:
    """Whether the wish ends the task. One because of the attempt's own timeout ends the attempt
    alone, as if its agent had seen to it."""
    if status.wish is not Wish.TIME_OUT:
        return status.wish is Wish.CANCEL
    waited_ms = clock_ms - status.created_clock_ms
    if spec.total_deadline_ms and waited_ms >= spec.total_deadline_ms:
        return True
    never_started = not (status.started_at_ms or has_started_before(status))
    return never_started and 0 < spec.start_deadline_ms <= waited_ms


def has_started_before(status: TaskStatus) -> bool:
    """Whether an earlier attempt of the task had started."""
    return status.failures > 0 or status.agent_deaths > 0


def after_outcome(
    spec: TaskSpec,
    status: TaskStatus,
    outcome: Outcome,
    *,
    clock_ms: int,
    wall_ms: int,
    jitter: float,
) -> TaskStatus:
    """The task's next status, given how its present attempt ended.

    A success that arrives while a cancellation is under way is a success: the work was done.
    """
    kind = outcome.kind
    if kind is OutcomeKind.SUCCEEDED and spec.lifetime is Lifetime.FINITE:
        return ended(status, spec.id, TaskEvent.SUCCEED, wall_ms, outcome=outcome)
    if _must_end(spec, status, clock_ms):
        return _wished(status, spec.id, wall_ms, outcome)
    if status.wish is Wish.TIME_OUT and outcome.error_kind != NO_PROGRESS_KIND:
        kind = OutcomeKind.TIMED_OUT
    if kind in (OutcomeKind.RETURNED, OutcomeKind.CANCELLED):
        why = f"agent {status.agent} gave it back" + (f": {outcome.error}" if outcome.error else "")
        again_at = clock_ms + RETURNED_PAUSE_MS
        return _again(status, spec.id, TaskEvent.REQUEUE, again_at, why)
    if kind is OutcomeKind.SUCCEEDED:
        again_at = clock_ms + retry_pause_ms(1, jitter)
        return _again(status, spec.id, TaskEvent.RETRY, again_at, "a service is run again")
    failed = replace(status, failures=status.failures + 1, outcome=outcome)
    final = outcome.error_kind in NON_RETRYABLE_ERROR_KINDS or failed.failures >= spec.max_attempts
    if final and spec.lifetime is Lifetime.FINITE:
        event = TaskEvent.TIME_OUT if kind is OutcomeKind.TIMED_OUT else TaskEvent.FAIL
        return ended(failed, spec.id, event, wall_ms, outcome=outcome, why=outcome.error[:200])
    avoid = tuple(dict.fromkeys((*status.avoid, status.agent)))[-MAX_AVOID:]
    again_at = clock_ms + retry_pause_ms(failed.failures, jitter)
    why = f"attempt {status.attempt} failed on agent {status.agent}: {outcome.error[:200]}"
    return _again(replace(failed, avoid=avoid), spec.id, TaskEvent.RETRY, again_at, why)


def after_loss(
    spec: TaskSpec,
    status: TaskStatus,
    *,
    why: str,
    blamed: bool,
    not_before_clock_ms: int,
    clock_ms: int,
    wall_ms: int,
) -> TaskStatus:
    """The task's next status when its agent was lost with it.

    `blamed`: it had started, or it cannot be ruled out, and the agent was not stopped on purpose.
    `not_before_clock_ms`: until then the lost attempt may still run, though it must not overlap.
    """
    if _must_end(spec, status, clock_ms):
        return _wished(status, spec.id, wall_ms, None)
    if not blamed:
        return _again(status, spec.id, TaskEvent.REQUEUE, not_before_clock_ms, why)
    deadly = replace(status, agent_deaths=status.agent_deaths + 1)
    if deadly.agent_deaths >= POISON_DEATHS:
        why = f"{deadly.agent_deaths} agents died while they ran it; the last: {why}"
        return ended(deadly, spec.id, TaskEvent.BURY, wall_ms, why=why)
    return _again(deadly, spec.id, TaskEvent.REQUEUE, not_before_clock_ms, why)
