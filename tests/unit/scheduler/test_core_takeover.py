"""Reconciliation: an agent's hello against the books, and a new leader against storage."""

from __future__ import annotations

import pytest
from msgspec.structs import replace
from tests.unit.scheduler.core_bench import (
    CLOCK_AT_BOOT_MS,
    SUCCESS,
    A,
    B,
    Bench,
    held,
    ident,
    record,
)

from muster.domain.agent_lifecycle import AgentState
from muster.domain.task import OnDisconnect, TaskStatus, Wish
from muster.domain.task_lifecycle import ENDED_STATES, TaskState
from muster_scheduler.core import agents, tasks
from muster_scheduler.core.agents import SILENT_AND_LEASELESS_MS, SILENT_MS
from muster_scheduler.core.deadlines import STOP_GIVEN_AWAY_MS, TIMEOUT_GRACE_MS
from muster_scheduler.core.records import AttemptRef


@pytest.fixture
def bench() -> Bench:
    made = Bench()
    made.join(A)
    return made


# ------------------------------------------------------------------------------- hello


def test_what_an_agent_holds_and_should_is_left_alone(bench: Bench) -> None:
    task = bench.run()
    bench.words(A)
    bench.connect(A, held=[(task.ref(), False)])
    bench.settle()
    assert bench.words(A) == []
    assert bench.end(task)


def test_what_an_agent_should_hold_and_does_not_is_pushed_again(bench: Bench) -> None:
    task = bench.run()
    bench.words(A)
    bench.connect(A)
    bench.settle()
    assert bench.words(A) == ["assign"]
    assert (task.status.attempt, bench.used(A)) == (1, 1)


def test_an_assignment_that_is_not_durable_yet_is_pushed_when_it_is_and_once(
    bench: Bench,
) -> None:
    bench.admit()
    writes = bench.drain()
    bench.connect(A)
    assert bench.drain() == []
    assert bench.words(A) == []
    bench.answer(writes)
    bench.drain()
    assert bench.words(A) == ["assign"]


def test_what_an_agent_holds_and_should_not_is_dropped(bench: Bench) -> None:
    stranger = AttemptRef(ident(99), 1, bench.spec().tenant)
    task = bench.run()
    older = replace(task.ref(), attempt=task.status.attempt - 1)
    bench.words(A)
    bench.connect(A, held=[(stranger, False), (older, False), (task.ref(), False)])
    bench.settle()
    assert bench.told[A] == [("drop", stranger), ("drop", older)]


def test_an_ended_attempt_is_judged_by_its_outcome_and_not_by_the_hello(bench: Bench) -> None:
    mine, stranger = bench.run(), AttemptRef(ident(99), 1, bench.spec().tenant)
    bench.words(A)
    bench.connect(A, held=[(mine.ref(), True), (stranger, True)])
    bench.settle()
    assert bench.words(A) == []
    assert bench.end(mine)
    assert not tasks.outcome(bench.state, A, 1, stranger, SUCCESS, bench.now)
    bench.settle()
    assert sorted(bench.words(A)) == ["ack", "stale"]


@pytest.mark.parametrize("is_held", [True, False])
def test_a_wish_is_told_again(bench: Bench, is_held: bool) -> None:
    task = bench.run()
    tasks.cancel(bench.state, task, bench.now)
    bench.settle()
    bench.words(A)
    bench.connect(A, held=[(task.ref(), False)] if is_held else [])
    bench.settle()
    assert bench.words(A) == ["cancel cancel"] if is_held else ["assign", "cancel cancel"]


def test_an_agent_without_a_session_gets_nothing_new_and_keeps_what_it_has(bench: Bench) -> None:
    task = bench.run()
    agents.disconnected(bench.state, A, 1, bench.now)
    waiting = bench.admit()
    bench.settle()
    assert (waiting.queued, task.status.agent) == (True, A)
    bench.connect(A, held=[(task.ref(), False)])
    bench.settle()
    assert waiting.status.agent == A


# ------------------------------------------------------------------------ a new leader


def test_a_new_leader_takes_over_what_agents_hold_and_charges_it_once_they_are_known() -> None:
    bench = Bench()
    running = bench.load(held(A, state=TaskState.RUNNING, started_at_ms=5, started_clock_ms=7))
    waiting = bench.load(TaskStatus(created_clock_ms=1))
    bench.settle()
    assert (running.started, waiting.queued) == (True, True)
    bench.join(A, slots=1)
    assert bench.used(A) == 1
    bench.connect(A, held=[(running.ref(), False)])
    bench.settle()
    assert waiting.queued
    bench.end(running)
    bench.settle()
    assert waiting.status.agent == A
    assert bench.used(A) == 1


def test_loading_twice_or_what_has_ended_changes_nothing() -> None:
    bench = Bench()
    task = bench.load(TaskStatus())
    tasks.load(bench.state, task.spec, held(A), None, bench.now)
    assert bench.state.tasks[task.id] is task
    for state in ENDED_STATES:
        tasks.load(bench.state, bench.spec(), TaskStatus(state), None, bench.now)
    assert len(bench.state.tasks) == len(bench.state.queue) == 1


def test_once_it_leads_only_waiting_tasks_are_taken_in() -> None:
    bench = Bench()
    tasks.load(bench.state, bench.spec(), held(A), None, bench.now, held_too=False)
    assert not bench.state.tasks
    assert bench.load(TaskStatus(), held_too=False).queued


@pytest.mark.parametrize("registry_first", [True, False])
@pytest.mark.parametrize("oldest_first", [True, False])
def test_what_an_older_incarnation_held_is_given_away(
    registry_first: bool, oldest_first: bool
) -> None:
    bench = Bench()
    if registry_first:
        bench.join(A, 3)
    statuses = [held(A, incarnation=2), held(A, incarnation=3)]
    loaded = [bench.load(s) for s in (statuses if oldest_first else statuses[::-1])]
    if not registry_first:
        bench.join(A, 3)
    old, new = loaded if oldest_first else loaded[::-1]
    assert (old.status.state, new.status.state) == (TaskState.PENDING, TaskState.ASSIGNED)
    bench.settle()
    assert (old.status.attempt, old.status.incarnation, new.status.attempt) == (2, 3, 1)
    assert bench.used(A) == 2


def test_a_stop_task_that_an_older_incarnation_held_waits_for_its_fence() -> None:
    bench = Bench()
    bench.join(A, 3)
    task = bench.load(held(A, incarnation=2), on_disconnect=OnDisconnect.STOP)
    assert task.status.not_before_clock_ms == bench.now.clock_ms + STOP_GIVEN_AWAY_MS


def test_every_agent_gets_a_full_grace_period_from_a_new_leader() -> None:
    bench = Bench()
    task = bench.load(held(A))
    agents.registry_snapshot(bench.state, [], bench.now)
    bench.silence(SILENT_AND_LEASELESS_MS - 1_000)
    assert task.status.agent == A
    bench.silence(1_000)
    assert (bench.agent_state(A), task.status.state) == (AgentState.DOWN, TaskState.PENDING)


def test_an_agent_that_died_with_the_old_leader_is_given_up_and_forgotten() -> None:
    bench = Bench()
    task = bench.load(held(A, incarnation=7))
    agents.registry_snapshot(bench.state, [record(B)], bench.now)
    bench.connect(B)
    bench.silence(SILENT_AND_LEASELESS_MS, B)
    assert (task.status.agent, task.status.attempt) == (B, 2)
    bench.silence(700_000, B)
    assert A not in bench.state.agents


def test_until_the_registry_has_spoken_a_missing_lease_says_nothing() -> None:
    bench = Bench()
    task = bench.load(held(A))
    bench.silence(SILENT_MS - 1_000)
    assert task.status.agent == A
    bench.silence(1_000)
    assert task.status.state is TaskState.PENDING


def test_a_supervisor_that_reports_first_is_believed() -> None:
    bench = Bench()
    task = bench.load(held(A, incarnation=4))
    agents.runtime_died(bench.state, A, 4, [task.ref()], True, "signal 9", bench.now)
    assert (task.status.state, task.status.agent_deaths) == (TaskState.PENDING, 1)
    older = bench.load(held(B, incarnation=4))
    agents.runtime_died(bench.state, B, 5, [], True, "signal 9", bench.now)
    assert older.status.state is TaskState.PENDING
    assert not bench.connect(B, 4)


def test_a_new_leader_counts_the_13_s_from_when_it_leads() -> None:
    bench = Bench()
    bench.join(A)
    bench.join(B)
    agents.disconnected(bench.state, A, 1, bench.now)
    task = bench.load(held(A), on_disconnect=OnDisconnect.STOP)
    bench.silence(STOP_GIVEN_AWAY_MS - 1_000, B)
    assert task.status.agent == A
    bench.silence(1_000, B)
    assert task.status.agent == B


def test_pauses_and_deadlines_go_on_under_a_new_leader() -> None:
    bench = Bench()
    bench.join(A)
    pausing = bench.load(TaskStatus(not_before_clock_ms=CLOCK_AT_BOOT_MS + 300, attempt=1))
    late = bench.load(TaskStatus(created_clock_ms=CLOCK_AT_BOOT_MS - 900), total_deadline_ms=1_000)
    overdue = bench.load(
        held(A, state=TaskState.RUNNING, started_at_ms=1, started_clock_ms=1), timeout_ms=10
    )
    assert not pausing.queued
    bench.wait(100)
    tasks.due(bench.state, bench.now)
    assert late.status.state is TaskState.TIMED_OUT
    assert overdue.status.wish is Wish.TIME_OUT
    bench.wait(200)
    tasks.due(bench.state, bench.now)
    assert pausing.queued
    assert TIMEOUT_GRACE_MS < CLOCK_AT_BOOT_MS


def test_a_parent_that_waited_before_its_agent_was_known_lends_all_the_same() -> None:
    bench = Bench()
    task = bench.load(held(A))
    bench.connect(A)
    tasks.waiting_attempt(bench.state, A, 1, task.ref(), True)
    agents.registry_snapshot(bench.state, [record(A)], bench.now)
    assert bench.used(A) == 0
    bench.end(task)
    bench.settle()
    assert bench.used(A) == 0
