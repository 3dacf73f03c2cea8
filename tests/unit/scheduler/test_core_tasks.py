"""Tasks in the leader's books: decisions ahead of writes, answers of storage, cancel, deadlines."""

from __future__ import annotations

import itertools

import pytest
from msgspec.structs import replace
from tests.unit.scheduler.core_bench import FAILURE, SUCCESS, A, B, Bench, held, tenant

from muster.domain.ids import AgentId
from muster.domain.resources import ResourceVector
from muster.domain.task import Lifetime, Outcome, OutcomeKind, TaskStatus, Wish
from muster.domain.task_lifecycle import TaskState
from muster_scheduler.core import tasks
from muster_scheduler.core.deadlines import TIMEOUT_GRACE_MS, timeout_for
from muster_scheduler.core.outcomes import RETRY_FIRST_MS, RETURNED_PAUSE_MS
from muster_scheduler.core.tasks import Verdict

RETURNED = Outcome(OutcomeKind.RETURNED, error="no slot", error_kind="no_slot")


@pytest.fixture
def bench() -> Bench:
    made = Bench()
    made.join(A)
    return made


# --------------------------------------------------------------------- the usual way


def test_a_new_task_is_created_as_assigned_in_one_write_and_pushed_when_durable(
    bench: Bench,
) -> None:
    task = bench.admit()
    (write,) = bench.drain()
    assert write.expect is None
    assert (write.status.state, write.status.attempt) == (TaskState.ASSIGNED, 1)
    assert bench.words(A) == []
    bench.answer([write])
    assert bench.drain() == []
    assert bench.told[A] == [("assign", task.ref())]


def test_a_task_without_an_agent_for_it_is_created_pending() -> None:
    bench = Bench()
    bench.admit()
    (write,) = bench.drain()
    assert (write.expect, write.status.state) == (None, TaskState.PENDING)


def test_an_outcome_is_acknowledged_only_when_it_is_durable(bench: Bench) -> None:
    task = bench.run()
    bench.words(A)
    assert bench.end(task)
    (write,) = bench.drain()
    assert (write.expect, write.status.state) == ((TaskState.ASSIGNED, 1), TaskState.SUCCEEDED)
    assert bench.words(A) == []
    bench.answer([write])
    bench.drain()
    assert bench.words(A) == ["ack"]
    assert task.id not in bench.state.tasks
    assert bench.used(A) == 0


def test_running_is_written_only_for_attempts_that_have_not_ended(bench: Bench) -> None:
    quick, slow = bench.run(), bench.run()
    bench.end(quick)
    tasks.flush_started(bench.state, bench.now)
    writes = {w.task: w.status.state for w in bench.drain()}
    assert writes == {quick: TaskState.SUCCEEDED, slow: TaskState.RUNNING}
    assert slow.status.started_clock_ms == bench.now.clock_ms
    tasks.flush_started(bench.state, bench.now)
    assert bench.drain() == []


def test_a_second_start_of_the_attempt_says_nothing_new(bench: Bench) -> None:
    task = bench.run()
    first_ms = task.status.started_at_ms
    bench.wait(50)
    bench.start(task)
    assert task.status.started_at_ms == first_ms


def test_a_failed_task_is_placed_again_after_its_pause_on_another_agent(bench: Bench) -> None:
    bench.join(B)
    task = bench.run()
    first = task.status.agent
    bench.end(task, FAILURE)
    bench.settle()
    assert task.status.state is TaskState.PENDING
    bench.wait(RETRY_FIRST_MS)
    tasks.due(bench.state, bench.now)
    bench.settle()
    assert (task.status.state, task.status.attempt) == (TaskState.ASSIGNED, 2)
    assert {first, task.status.agent} == {A, B}
    assert not task.started


def test_rather_on_the_agent_that_failed_it_than_nowhere(bench: Bench) -> None:
    task = bench.run()
    bench.end(task, FAILURE)
    bench.wait(RETRY_FIRST_MS)
    tasks.due(bench.state, bench.now)
    bench.settle()
    assert (task.status.agent, task.status.attempt) == (A, 2)
    bench.end(task)
    bench.settle()
    assert (bench.used(A), bench.used(A, "cpu")) == (0, 0)


def test_returned_work_waits_a_moment_and_charges_nobody(bench: Bench) -> None:
    task = bench.run()
    bench.end(task, RETURNED)
    bench.settle()
    assert (task.status.failures, task.status.avoid) == (0, ())
    assert not task.queued
    bench.wait(RETURNED_PAUSE_MS)
    tasks.due(bench.state, bench.now)
    assert task.queued


def test_tasks_wait_while_agents_are_full_and_follow_when_room_is_made() -> None:
    bench = Bench()
    bench.join(A, slots=2)
    first, second, third = bench.admit(), bench.admit(), bench.admit()
    bench.settle()
    assert [t.status.state for t in (first, second)] == [TaskState.ASSIGNED] * 2
    assert third.queued
    bench.end(first)
    bench.settle()
    assert third.status.state is TaskState.ASSIGNED
    assert bench.used(A) == 2


# ----------------------------------------------------------------- ahead of the writes


def test_decisions_made_while_a_write_is_under_way_go_with_the_next_one(bench: Bench) -> None:
    task = bench.admit()
    (create,) = bench.drain()
    tasks.cancel(bench.state, task, bench.now)
    assert bench.drain() == []
    assert bench.words(A) == []
    bench.answer([create])
    (wish,) = bench.drain()
    assert (wish.expect, wish.status.wish) == ((TaskState.ASSIGNED, 1), Wish.CANCEL)
    bench.answer([wish])
    bench.drain()
    assert bench.words(A) == ["assign", "cancel cancel"]


def test_an_assignment_that_was_overtaken_is_never_pushed(bench: Bench) -> None:
    bench.join(B)
    task = bench.admit()
    (create,) = bench.drain()
    first = task.status.agent
    tasks.lost(bench.state, task, "it is down", False, bench.now)
    assert bench.drain() == []
    assert (task.status.state, task.status.attempt) == (TaskState.ASSIGNED, 2)
    bench.answer([create])
    (second,) = bench.drain()
    assert (second.expect, second.status.attempt) == ((TaskState.ASSIGNED, 1), 2)
    bench.answer([second])
    bench.drain()
    pushed = [
        (agent, ref.attempt) for agent in (A, B) for w, ref in bench.told[agent] if w == "assign"
    ]
    assert pushed == [(task.status.agent, 2)]
    assert bench.used(A) + bench.used(B) == 1
    assert first in (A, B)


def test_a_retry_and_its_next_place_may_be_one_write() -> None:
    bench = Bench(jitter=lambda: 0.0)
    bench.join(A)
    task = bench.run()
    bench.words(A)
    bench.end(task, FAILURE)
    tasks.due(bench.state, bench.now)
    (write,) = bench.drain()
    assert (write.expect, write.status.state) == ((TaskState.ASSIGNED, 1), TaskState.ASSIGNED)
    assert (write.status.attempt, write.status.failures) == (2, 1)
    bench.answer([write])
    bench.drain()
    assert sorted(bench.words(A)) == ["ack", "assign"]


def test_a_task_that_ends_before_its_first_write_is_created_open_all_the_same() -> None:
    bench = Bench()
    task = bench.admit()
    assert tasks.cancel(bench.state, task, bench.now) is TaskState.CANCELLED
    (create,) = bench.drain()
    assert (create.expect, create.status.state) == (None, TaskState.PENDING)
    assert create.status.created_clock_ms == bench.now.clock_ms
    bench.answer([create])
    (end,) = bench.drain()
    assert (end.expect, end.status.state) == ((TaskState.PENDING, 0), TaskState.CANCELLED)
    bench.answer([end])
    assert not bench.state.tasks


def test_draining_is_not_slowed_by_tasks_that_wait_for_storage(bench: Bench) -> None:
    done = [bench.run() for _ in range(5)]
    for task in done:
        bench.end(task, FAILURE)
    writes = bench.drain()
    for task in done:
        tasks.cancel(bench.state, task, bench.now)
    assert not bench.state.dirty
    assert all(task.ahead for task in done)
    bench.answer(writes)
    assert {w.status.state for w in bench.drain()} == {TaskState.CANCELLED}


# -------------------------------------------------------------------- storage's answers


def test_a_repeated_write_that_had_got_through_counts_as_done(bench: Bench) -> None:
    task = bench.admit()
    (write,) = bench.drain()
    bench.stored[task.id] = write.status
    bench.answer([write], Verdict.STALE)
    bench.drain()
    assert bench.words(A) == ["assign"]
    assert task.stored == (TaskState.ASSIGNED, 1)


def test_a_task_that_a_gateway_created_too_keeps_the_moment_of_its_creation() -> None:
    bench = Bench()
    task = bench.admit()
    (write,) = bench.drain()
    created_ms = bench.now.clock_ms - 700
    bench.stored[task.id] = TaskStatus(created_clock_ms=created_ms)
    bench.answer([write], Verdict.STALE)
    bench.join(A)
    bench.settle()
    assert bench.stored[task.id].state is TaskState.ASSIGNED
    assert bench.stored[task.id].created_clock_ms == created_ms


def test_deadlines_count_from_the_moment_of_creation_that_storage_has() -> None:
    bench = Bench()
    task = bench.admit(start_deadline_ms=5_000)
    (write,) = bench.drain()
    bench.stored[task.id] = TaskStatus(created_clock_ms=bench.now.clock_ms + 2_000)
    bench.answer([write], Verdict.STALE)
    bench.wait(6_900)
    tasks.due(bench.state, bench.now)
    assert task.status.state is TaskState.PENDING
    bench.wait(100)
    tasks.due(bench.state, bench.now)
    assert task.status.why == "it had to be started by now (waited 5000 ms)"


def test_a_task_that_a_gateway_had_created_meanwhile_is_looked_up(bench: Bench) -> None:
    task = bench.admit()
    (write,) = bench.drain()
    bench.stored[task.id] = TaskStatus()
    bench.answer([write], Verdict.STALE)
    bench.drain()
    assert bench.reloads == [task.id]
    assert task.id not in bench.state.tasks
    assert (bench.used(A), len(bench.state.queue), bench.state.held) == (0, 0, {})
    assert bench.words(A) == []
    tasks.load(bench.state, task.spec, bench.stored[task.id], None, bench.now)
    bench.settle()
    assert bench.words(A) == ["assign"]


def test_a_cancellation_survives_that_the_task_was_stored_otherwise(bench: Bench) -> None:
    task = bench.admit()
    (write,) = bench.drain()
    tasks.cancel(bench.state, task, bench.now)
    bench.stored[task.id] = TaskStatus()
    bench.answer([write], Verdict.STALE)
    bench.drain()
    tasks.load(bench.state, task.spec, bench.stored[task.id], None, bench.now)
    bench.settle()
    assert bench.stored[task.id].state is TaskState.CANCELLED
    assert not bench.state.cancel_again


def test_an_outcome_that_storage_refuses_is_refused_to_the_agent(bench: Bench) -> None:
    task = bench.run()
    bench.words(A)
    bench.end(task)
    (write,) = bench.drain()
    bench.stored[task.id] = held(B, attempt=9)
    bench.answer([write], Verdict.STALE)
    bench.drain()
    assert bench.words(A) == ["stale"]
    assert bench.reloads == [task.id]


def test_a_task_that_is_gone_from_storage_is_forgotten_and_dropped(bench: Bench) -> None:
    task = bench.run()
    bench.words(A)
    tasks.cancel(bench.state, task, bench.now)
    (write,) = bench.drain()
    bench.answer([write], Verdict.GONE)
    bench.drain()
    assert bench.words(A) == ["drop"]
    assert bench.reloads == []
    assert (bench.used(A), bench.state.tasks) == (0, {})


# ---------------------------------------------------------------------------- outcomes


def test_a_repeated_outcome_is_acknowledged_once_with_the_first(bench: Bench) -> None:
    task = bench.run()
    bench.words(A)
    ref = task.ref()
    bench.end(task, FAILURE)
    assert tasks.outcome(bench.state, A, 1, ref, FAILURE, bench.now)
    writes = bench.drain()
    assert tasks.outcome(bench.state, A, 1, ref, FAILURE, bench.now)
    assert bench.drain() == []
    bench.answer(writes)
    bench.drain()
    assert bench.words(A) == ["ack"]
    assert task.status.failures == 1


def test_a_repeat_after_the_first_is_settled_is_stale(bench: Bench) -> None:
    task = bench.run()
    ref = task.ref()
    bench.end(task, FAILURE)
    bench.settle()
    bench.words(A)
    assert not tasks.outcome(bench.state, A, 1, ref, FAILURE, bench.now)
    bench.drain()
    assert bench.words(A) == ["stale"]


def test_a_repeat_is_answered_also_while_something_else_of_the_task_is_written(
    bench: Bench,
) -> None:
    """The first acknowledgement may have gone down with a session."""
    task = bench.run()
    ref = task.ref()
    bench.end(task, FAILURE)
    bench.settle()
    bench.words(A)
    tasks.cancel(bench.state, task, bench.now)
    writes = bench.drain()
    assert not tasks.outcome(bench.state, A, 1, ref, FAILURE, bench.now)
    bench.answer(writes)
    bench.drain()
    assert bench.words(A) == ["stale"]


@pytest.mark.parametrize(
    ("agent", "incarnation", "attempt"), [(A, 1, 2), (A, 1, 0), (A, 2, 1), (B, 1, 1)]
)
def test_an_outcome_of_another_attempt_incarnation_or_agent_is_stale(
    bench: Bench, agent: AgentId, incarnation: int, attempt: int
) -> None:
    task = bench.run()
    ref = replace(task.ref(), attempt=attempt)
    assert not tasks.outcome(bench.state, agent, incarnation, ref, SUCCESS, bench.now)
    bench.drain()
    assert bench.told[agent][-1] == ("stale", ref)
    assert task.status.state is TaskState.ASSIGNED


def test_an_outcome_of_a_task_that_nobody_knows_is_stale(bench: Bench) -> None:
    task = bench.run()
    ref = task.ref()
    bench.end(task)
    bench.settle()
    assert not tasks.outcome(bench.state, A, 1, ref, SUCCESS, bench.now)


# ------------------------------------------------------------------------------ cancel


def test_a_waiting_task_is_cancelled_at_once() -> None:
    bench = Bench()
    task = bench.admit()
    bench.settle()
    assert tasks.cancel(bench.state, task, bench.now) is TaskState.CANCELLED
    assert len(bench.state.queue) == 0
    bench.settle()
    assert bench.stored[task.id].state is TaskState.CANCELLED
    assert not bench.state.tasks


def test_a_task_that_waits_for_its_next_try_is_cancelled_at_once(bench: Bench) -> None:
    task = bench.run()
    bench.end(task, FAILURE)
    bench.settle()
    tasks.cancel(bench.state, task, bench.now)
    bench.settle()
    assert bench.stored[task.id].state is TaskState.CANCELLED
    bench.wait(RETRY_FIRST_MS)
    tasks.due(bench.state, bench.now)
    assert len(bench.state.queue) == 0


@pytest.mark.parametrize("is_started", [False, True])
def test_a_placed_task_keeps_its_place_until_its_agent_confirms(
    bench: Bench, is_started: bool
) -> None:
    task = bench.admit()
    bench.settle()
    if is_started:
        bench.start(task)
        tasks.flush_started(bench.state, bench.now)
        bench.settle()
    bench.words(A)
    state = tasks.cancel(bench.state, task, bench.now)
    assert state is (TaskState.RUNNING if is_started else TaskState.ASSIGNED)
    bench.settle()
    assert bench.stored[task.id].wish is Wish.CANCEL
    assert (bench.words(A), bench.used(A)) == (["cancel cancel"], 1)
    bench.end(task, Outcome(OutcomeKind.CANCELLED))
    bench.settle()
    assert bench.stored[task.id].state is TaskState.CANCELLED
    assert bench.used(A) == 0


def test_cancelling_twice_or_after_the_end_changes_nothing(bench: Bench) -> None:
    task = bench.run()
    tasks.cancel(bench.state, task, bench.now)
    bench.settle()
    tasks.cancel(bench.state, task, bench.now)
    assert bench.drain() == []
    bench.end(task)
    assert tasks.cancel(bench.state, task, bench.now) is TaskState.SUCCEEDED
    bench.settle()
    assert bench.stored[task.id].state is TaskState.SUCCEEDED


def test_a_cancellation_outweighs_a_timeout_under_way(bench: Bench) -> None:
    task = bench.run(timeout_ms=1_000)
    bench.wait(1_000 + TIMEOUT_GRACE_MS)
    tasks.due(bench.state, bench.now)
    assert task.status.wish is Wish.TIME_OUT
    tasks.cancel(bench.state, task, bench.now)
    bench.end(task, Outcome(OutcomeKind.TIMED_OUT))
    bench.settle()
    assert bench.stored[task.id].state is TaskState.CANCELLED


# --------------------------------------------------------------------------- deadlines


def test_a_waiting_task_is_timed_out_when_it_should_have_started() -> None:
    bench = Bench()
    task = bench.admit(start_deadline_ms=500)
    bench.settle()
    bench.wait(499)
    tasks.due(bench.state, bench.now)
    assert task.queued
    bench.wait(1)
    tasks.due(bench.state, bench.now)
    bench.settle()
    status = bench.stored[task.id]
    assert status.state is TaskState.TIMED_OUT
    assert status.why == "it had to be started by now (waited 500 ms)"
    assert len(bench.state.queue) == 0


@pytest.mark.parametrize("is_started", [False, True])
def test_the_deadline_to_start_spares_what_has_started(bench: Bench, is_started: bool) -> None:
    task = bench.admit(start_deadline_ms=500)
    bench.settle()
    if is_started:
        bench.start(task)
    bench.wait(500)
    tasks.due(bench.state, bench.now)
    assert task.status.wish is (Wish.NONE if is_started else Wish.TIME_OUT)


def test_a_retry_has_started_in_time_when_its_first_attempt_had(bench: Bench) -> None:
    task = bench.run(start_deadline_ms=50)
    bench.end(task, FAILURE)
    bench.wait(60)
    tasks.due(bench.state, bench.now)
    assert task.status.state is TaskState.PENDING


@pytest.mark.parametrize("is_placed", [False, True])
def test_the_total_deadline_ends_a_task_wherever_it_is(is_placed: bool) -> None:
    bench = Bench()
    if is_placed:
        bench.join(A)
    task = bench.admit(total_deadline_ms=500)
    bench.settle()
    if is_placed:
        bench.start(task)
    bench.words(A)
    bench.wait(500)
    tasks.due(bench.state, bench.now)
    bench.settle()
    if is_placed:
        assert bench.words(A) == ["cancel time_out"]
        bench.end(task, Outcome(OutcomeKind.TIMED_OUT))
        bench.settle()
    assert bench.stored[task.id].state is TaskState.TIMED_OUT


def test_an_attempt_that_outlives_its_timeout_is_ended_and_the_task_tried_again(
    bench: Bench,
) -> None:
    task = bench.run(timeout_ms=1_000)
    bench.wait(1_000 + TIMEOUT_GRACE_MS - 1)
    tasks.due(bench.state, bench.now)
    assert task.status.wish is Wish.NONE
    bench.wait(1)
    tasks.due(bench.state, bench.now)
    bench.words(A)
    bench.settle()
    assert bench.words(A) == ["cancel time_out"]
    bench.end(task, Outcome(OutcomeKind.TIMED_OUT))
    bench.settle()
    assert (task.status.state, task.status.failures) == (TaskState.PENDING, 1)


def test_the_timeout_of_an_earlier_attempt_does_not_touch_the_next() -> None:
    bench = Bench(jitter=lambda: 0.0)
    bench.join(A)
    task = bench.run(timeout_ms=1_000)
    bench.wait(900)
    bench.end(task, FAILURE)
    tasks.due(bench.state, bench.now)
    bench.settle()
    bench.start(task)
    bench.wait(100 + TIMEOUT_GRACE_MS)
    tasks.due(bench.state, bench.now)
    assert (task.status.attempt, task.status.wish) == (2, Wish.NONE)


def test_moments_of_ended_tasks_are_shed(bench: Bench) -> None:
    for _ in range(40):
        batch = [bench.admit(total_deadline_ms=10**9, timeout_ms=10**8) for _ in range(50)]
        bench.settle()
        for task in batch:
            bench.start(task)
            bench.end(task)
        bench.settle()
    kept = bench.run(total_deadline_ms=1_000)
    tasks.due(bench.state, bench.now)
    assert len(bench.state.deadlines) <= 1
    bench.wait(1_000)
    tasks.due(bench.state, bench.now)
    assert kept.status.wish is Wish.TIME_OUT


def test_moments_of_earlier_attempts_are_shed() -> None:
    bench = Bench(jitter=lambda: 0.0)
    bench.join(A)
    task = bench.run(timeout_ms=10**8, max_attempts=10**6)
    for _ in range(1_100):
        bench.end(task, FAILURE)
        tasks.due(bench.state, bench.now)
        bench.settle()
        bench.start(task)
    tasks.due(bench.state, bench.now)
    assert len(bench.state.deadlines) < 1_000


def test_an_attempt_may_run_for_its_timeout_or_what_the_total_leaves(bench: Bench) -> None:
    status = TaskStatus(created_clock_ms=1_000)
    assert timeout_for(bench.spec(), status, 5_000) == 0
    assert timeout_for(bench.spec(timeout_ms=700), status, 5_000) == 700
    assert timeout_for(bench.spec(total_deadline_ms=4_500), status, 5_000) == 500
    both = bench.spec(timeout_ms=700, total_deadline_ms=4_500)
    assert timeout_for(both, status, 4_000) == 700
    assert timeout_for(both, status, 5_000) == 500
    assert timeout_for(both, status, 9_000) == 1


# -------------------------------------------------------------- books: lent and held


def books(bench: Bench) -> tuple[int, int, int]:
    return bench.used(A, "cpu"), bench.used(A, "memory"), bench.used(A, "slots")


def test_a_waiting_parent_lends_slot_and_cpu_and_takes_them_back(bench: Bench) -> None:
    task = bench.run(resources=ResourceVector.of({"cpu": 1_000, "memory": 1 << 20}))
    assert books(bench) == (1_000, 1 << 20, 1)
    for waiting in (True, True):
        tasks.waiting_attempt(bench.state, A, 1, task.ref(), waiting)
        assert books(bench) == (0, 1 << 20, 0)
    for waiting in (False, False):
        tasks.waiting_attempt(bench.state, A, 1, task.ref(), waiting)
        assert books(bench) == (1_000, 1 << 20, 1)


def test_a_parent_that_ends_while_it_waits_gives_back_what_it_holds_and_no_more(
    bench: Bench,
) -> None:
    task = bench.run(resources=ResourceVector.of({"cpu": 1_000, "memory": 1 << 20}))
    tasks.waiting_attempt(bench.state, A, 1, task.ref(), True)
    bench.end(task)
    bench.settle()
    assert books(bench) == (0, 0, 0)


def test_a_parent_that_is_retried_after_it_waited_is_charged_in_full() -> None:
    bench = Bench(jitter=lambda: 0.0)
    bench.join(A)
    task = bench.run(resources=ResourceVector.of({"cpu": 1_000}))
    tasks.waiting_attempt(bench.state, A, 1, task.ref(), True)
    bench.end(task, FAILURE)
    tasks.due(bench.state, bench.now)
    bench.settle()
    assert (task.waiting, books(bench)) == (False, (1_000, 0, 1))


def test_what_a_waiting_parent_lends_runs_its_child() -> None:
    bench = Bench()
    bench.join(A, slots=1)
    first = bench.run()
    child = bench.admit()
    bench.settle()
    assert child.queued
    tasks.waiting_attempt(bench.state, A, 1, first.ref(), True)
    bench.settle()
    assert child.status.agent == A
    # Both hold it for a moment; nothing more is placed until one ends.
    tasks.waiting_attempt(bench.state, A, 1, first.ref(), False)
    third = bench.admit()
    bench.settle()
    assert (bench.used(A), third.queued) == (2, True)
    for task in (child, first):
        bench.end(task)
    bench.settle()
    assert third.status.agent == A


def test_only_the_present_attempt_can_wait(bench: Bench) -> None:
    task = bench.run()
    for stale in (replace(task.ref(), attempt=0), replace(task.ref(), attempt=2)):
        tasks.waiting_attempt(bench.state, A, 1, stale, True)
    tasks.waiting_attempt(bench.state, A, 2, task.ref(), True)
    tasks.waiting_attempt(bench.state, B, 1, task.ref(), True)
    assert bench.used(A) == 1


def test_places_are_counted_by_tenant(bench: Bench) -> None:
    one, two = tenant("one"), tenant("two")
    kept = [bench.run(tenant=one), bench.run(tenant=one), bench.run(tenant=two)]
    assert bench.state.held == {one: 2, two: 1}
    for task in kept[1:]:
        bench.end(task)
    bench.settle()
    assert bench.state.held == {one: 1}


def test_every_way_out_of_a_place_frees_it_exactly_once(bench: Bench) -> None:
    ways = itertools.cycle(["succeed", "fail", "return", "cancel", "lose", "gone"])
    for way in itertools.islice(ways, 24):
        task = bench.run(lifetime=Lifetime.FINITE, max_attempts=1)
        if way == "succeed":
            bench.end(task)
        elif way == "fail":
            bench.end(task, FAILURE)
        elif way == "return":
            bench.end(task, RETURNED)
            tasks.cancel(bench.state, task, bench.now)
        elif way == "cancel":
            tasks.cancel(bench.state, task, bench.now)
            bench.end(task, Outcome(OutcomeKind.CANCELLED))
        elif way == "lose":
            tasks.cancel(bench.state, task, bench.now)
            tasks.lost(bench.state, task, "it is down", True, bench.now)
        else:
            tasks.cancel(bench.state, task, bench.now)
            bench.answer(bench.drain(), Verdict.GONE)
        bench.settle()
        assert (bench.used(A), dict(bench.state.held), bench.state.agents[A].tasks) == (0, {}, {})
        assert not bench.state.tasks
