"""What the end of an attempt means: ended, tried again, given to another agent, buried."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from tests.unit.scheduler.core_bench import FAILURE, SUCCESS, A, B, ident

from muster.agent.error_kinds import NON_RETRYABLE_ERROR_KINDS
from muster.domain.ids import AgentId
from muster.domain.task import (
    POISON_DEATHS,
    Lifetime,
    Outcome,
    OutcomeKind,
    TaskSpec,
    TaskStatus,
    Wish,
)
from muster.domain.task_lifecycle import TaskEvent, TaskState
from muster_scheduler.core.outcomes import (
    MAX_AVOID,
    RETRY_FIRST_MS,
    RETRY_LAST_MS,
    RETURNED_PAUSE_MS,
    after_loss,
    after_outcome,
    assigned,
    ended,
    retry_pause_ms,
)

CLOCK_MS = 100_000
WALL_MS = 1_700_000_000_000
RUNNING = TaskStatus(
    TaskState.RUNNING,
    attempt=1,
    agent=A,
    incarnation=3,
    created_clock_ms=CLOCK_MS - 1_000,
    started_at_ms=5,
    started_clock_ms=CLOCK_MS - 500,
)
TIMED_OUT = Outcome(OutcomeKind.TIMED_OUT, error="its time was up", error_kind="timeout")
RETURNED = Outcome(OutcomeKind.RETURNED, error="drained", error_kind="drained")
CANCELLED = Outcome(OutcomeKind.CANCELLED, error="cancelled", ended_at_ms=77)


def spec(**fields: object) -> TaskSpec:
    return TaskSpec(**{"id": ident(1), "skill": "echo", **fields})  # type: ignore[arg-type]


def after(
    outcome: Outcome, status: TaskStatus = RUNNING, jitter: float = 0.5, **fields: object
) -> TaskStatus:
    return after_outcome(
        spec(**fields), status, outcome, clock_ms=CLOCK_MS, wall_ms=WALL_MS, jitter=jitter
    )


def lost(
    status: TaskStatus = RUNNING, *, blamed: bool, not_before: int = 0, **fields: object
) -> TaskStatus:
    return after_loss(
        spec(**fields),
        status,
        why="it is down",
        blamed=blamed,
        not_before_clock_ms=not_before,
        clock_ms=CLOCK_MS,
        wall_ms=WALL_MS,
    )


# ------------------------------------------------------------------------------ retries


def test_a_success_ends_the_task_with_its_output() -> None:
    status = after(SUCCESS)
    assert status.state is TaskState.SUCCEEDED
    assert status.outcome == SUCCESS
    assert (status.ended_at_ms, status.failures, status.attempt) == (SUCCESS.ended_at_ms, 0, 1)


def test_a_failure_is_tried_again_and_its_agent_avoided() -> None:
    status = after(FAILURE)
    assert status.state is TaskState.PENDING
    assert (status.attempt, status.failures, status.agent_deaths) == (1, 1, 0)
    assert (status.agent, status.incarnation, status.started_at_ms) == ("", 0, 0)
    assert status.avoid == (A,)
    assert status.not_before_clock_ms == CLOCK_MS + RETRY_FIRST_MS // 2
    assert status.why == "attempt 1 failed on agent a: it broke"
    assert status.outcome == FAILURE


def test_the_last_of_max_attempts_ends_the_task() -> None:
    again = after(FAILURE, max_attempts=2)
    assert again.state is TaskState.PENDING
    second = replace(again, state=TaskState.ASSIGNED, attempt=2, agent=B)
    final = after(FAILURE, second, max_attempts=2)
    assert final.state is TaskState.FAILED
    assert (final.failures, final.why) == (2, "it broke")


def test_attempts_that_did_not_fail_do_not_count_against_max_attempts() -> None:
    seventh = replace(RUNNING, attempt=7, failures=0, agent_deaths=2)
    assert after(FAILURE, seventh, max_attempts=2).state is TaskState.PENDING


@pytest.mark.parametrize("kind", sorted(NON_RETRYABLE_ERROR_KINDS))
def test_what_would_fail_in_the_same_way_is_not_tried_again(kind: str) -> None:
    status = after(replace(FAILURE, error_kind=kind), max_attempts=100)
    assert (status.state, status.failures) == (TaskState.FAILED, 1)


def test_a_timed_out_attempt_is_tried_again_and_the_last_one_is_timed_out() -> None:
    assert after(TIMED_OUT).state is TaskState.PENDING
    assert after(TIMED_OUT).failures == 1
    assert after(TIMED_OUT, max_attempts=1).state is TaskState.TIMED_OUT


@given(st.integers(0, 10_000), st.floats(0, 1, exclude_max=True))
def test_the_pause_is_full_jitter_below_a_doubling_bound(failures: int, jitter: float) -> None:
    pause_ms = retry_pause_ms(failures, jitter)
    bound_ms = RETRY_FIRST_MS * 2 ** max(failures - 1, 0) if failures < 30 else RETRY_LAST_MS
    assert 0 <= pause_ms <= min(bound_ms, RETRY_LAST_MS)
    assert retry_pause_ms(failures, 0.0) == 0
    assert retry_pause_ms(failures, 0.999_999) >= min(bound_ms, RETRY_LAST_MS) - 1


def test_only_the_last_few_agents_are_avoided_each_once() -> None:
    status = RUNNING
    for name in ("a", "b", "b", "c", "d", "e"):
        failed = after(FAILURE, replace(status, agent=AgentId(name)), max_attempts=100)
        status = replace(failed, state=TaskState.ASSIGNED, attempt=failed.attempt + 1)
    assert status.avoid == ("c", "d", "e")
    assert len(status.avoid) == MAX_AVOID


# ------------------------------------------------------------------- returned and wished


@pytest.mark.parametrize("outcome", [RETURNED, CANCELLED])
def test_returned_work_charges_nobody(outcome: Outcome) -> None:
    status = after(outcome, max_attempts=1)
    assert status.state is TaskState.PENDING
    assert (status.failures, status.agent_deaths, status.avoid) == (0, 0, ())
    assert status.not_before_clock_ms == CLOCK_MS + RETURNED_PAUSE_MS
    assert status.why.startswith("agent a gave it back")


@pytest.mark.parametrize("outcome", [RETURNED, CANCELLED, FAILURE, TIMED_OUT])
def test_a_cancelled_task_ends_however_its_attempt_did(outcome: Outcome) -> None:
    status = after(outcome, replace(RUNNING, wish=Wish.CANCEL))
    assert status.state is TaskState.CANCELLED
    assert (status.wish, status.failures, status.outcome) == (Wish.NONE, 0, outcome)


def test_a_success_beats_a_cancellation_under_way() -> None:
    status = after(SUCCESS, replace(RUNNING, wish=Wish.CANCEL))
    assert (status.state, status.wish) == (TaskState.SUCCEEDED, Wish.NONE)


def test_past_its_total_deadline_a_task_is_timed_out_and_not_tried_again() -> None:
    status = after(TIMED_OUT, replace(RUNNING, wish=Wish.TIME_OUT), total_deadline_ms=1_000)
    assert status.state is TaskState.TIMED_OUT
    assert status.why == "its deadline had passed"


def test_a_wish_for_the_attempts_own_timeout_costs_one_attempt() -> None:
    wished = replace(RUNNING, wish=Wish.TIME_OUT)
    again = after(CANCELLED, wished, timeout_ms=100, total_deadline_ms=5_000)
    assert (again.state, again.failures, again.wish) == (TaskState.PENDING, 1, Wish.NONE)
    final = after(CANCELLED, wished, timeout_ms=100, max_attempts=1)
    assert (final.state, final.wish) == (TaskState.TIMED_OUT, Wish.NONE)


def test_a_task_that_was_not_started_in_time_is_timed_out() -> None:
    unstarted = replace(RUNNING, state=TaskState.ASSIGNED, wish=Wish.TIME_OUT, started_at_ms=0)
    assert after(RETURNED, unstarted, start_deadline_ms=1_000).state is TaskState.TIMED_OUT
    started_once = replace(unstarted, failures=1)
    assert after(RETURNED, started_once, start_deadline_ms=1_000).state is TaskState.PENDING


# ------------------------------------------------------------------------------ services


def test_a_service_that_ends_well_is_run_again_without_a_failure() -> None:
    status = after(SUCCESS, lifetime=Lifetime.SERVICE)
    assert (status.state, status.failures) == (TaskState.PENDING, 0)
    assert CLOCK_MS <= status.not_before_clock_ms <= CLOCK_MS + RETRY_FIRST_MS


def test_a_service_is_tried_again_past_max_attempts_and_any_kind_of_failure() -> None:
    worn = replace(RUNNING, failures=1_000)
    status = after(replace(FAILURE, error_kind="not_json"), worn, lifetime=Lifetime.SERVICE)
    assert (status.state, status.failures) == (TaskState.PENDING, 1_001)
    assert status.not_before_clock_ms == CLOCK_MS + RETRY_LAST_MS // 2


@pytest.mark.parametrize("outcome", [SUCCESS, FAILURE, CANCELLED])
def test_a_cancelled_service_ends(outcome: Outcome) -> None:
    status = after(outcome, replace(RUNNING, wish=Wish.CANCEL), lifetime=Lifetime.SERVICE)
    assert status.state is TaskState.CANCELLED


# ------------------------------------------------------------------------------- losses


def test_a_lost_task_waits_again_at_once_and_no_failure_is_charged() -> None:
    status = lost(blamed=False, max_attempts=1)
    assert status.state is TaskState.PENDING
    assert (status.failures, status.agent_deaths, status.not_before_clock_ms) == (0, 0, 0)
    assert status.why == "it is down"


@pytest.mark.parametrize("blamed", [False, True])
def test_a_lost_task_that_may_still_run_waits_for_its_fence(blamed: bool) -> None:
    assert lost(blamed=blamed, not_before=CLOCK_MS + 7).not_before_clock_ms == CLOCK_MS + 7


def test_a_task_is_dead_after_three_agents_died_with_it() -> None:
    status = RUNNING
    for deaths in range(1, POISON_DEATHS):
        status = lost(status, blamed=True)
        assert (status.state, status.agent_deaths) == (TaskState.PENDING, deaths)
        status = assigned(status, ident(1), A, 4, WALL_MS)
    buried = lost(status, blamed=True)
    assert buried.state is TaskState.DEAD
    assert (buried.agent_deaths, buried.failures, buried.attempt) == (3, 0, 3)
    assert buried.why == "3 agents died while they ran it; the last: it is down"
    assert buried.outcome is not None
    assert buried.outcome.error == buried.why


def test_deaths_for_which_it_is_not_blamed_do_not_bury_it() -> None:
    status = replace(RUNNING, agent_deaths=POISON_DEATHS - 1)
    assert lost(status, blamed=False).state is TaskState.PENDING


def test_a_cancelled_task_that_is_lost_ends_as_cancelled() -> None:
    status = lost(replace(RUNNING, wish=Wish.CANCEL), blamed=True)
    assert (status.state, status.agent_deaths) == (TaskState.CANCELLED, 0)


def test_an_assignment_counts_the_attempt_and_forgets_the_last_one() -> None:
    waiting = TaskStatus(attempt=4, why="it failed", not_before_clock_ms=9, failures=2)
    status = assigned(waiting, ident(1), B, 8, WALL_MS)
    assert (status.state, status.attempt, status.agent) == (TaskState.ASSIGNED, 5, B)
    assert (status.incarnation, status.assigned_at_ms, status.failures) == (8, WALL_MS, 2)
    assert (status.why, status.not_before_clock_ms, status.started_at_ms) == ("", 0, 0)


@pytest.mark.parametrize(
    ("event", "state", "kind"),
    [
        (TaskEvent.CANCEL, TaskState.CANCELLED, OutcomeKind.CANCELLED),
        (TaskEvent.TIME_OUT, TaskState.TIMED_OUT, OutcomeKind.TIMED_OUT),
    ],
)
def test_a_task_that_ends_without_an_attempt_has_the_reason_as_its_outcome(
    event: TaskEvent, state: TaskState, kind: OutcomeKind
) -> None:
    status = ended(TaskStatus(), ident(1), event, WALL_MS, why="so it is")
    assert (status.state, status.ended_at_ms, status.why) == (state, WALL_MS, "so it is")
    assert status.outcome == Outcome(
        kind, error="so it is", error_kind=event.value.lower(), ended_at_ms=WALL_MS
    )
