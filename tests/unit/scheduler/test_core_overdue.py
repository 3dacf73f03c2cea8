"""Agents that are heard and do not keep their word: what they were given comes back."""

from __future__ import annotations

import pytest
from tests.unit.scheduler.core_bench import A, B, Bench

from muster.domain.agent_lifecycle import AgentState
from muster.domain.ids import AgentId
from muster.domain.task import OnDisconnect
from muster.domain.task_lifecycle import TaskState
from muster_scheduler.core import agents, tasks
from muster_scheduler.core.agents import JUDGED_LATE_MS
from muster_scheduler.core.overdue import DISTRUSTED_MS, UNENDED_MS, UNSTARTED_MS

# Agents are judged each second, and what is owed counts from when it was first seen.
SEEN_MS = 1_000


@pytest.fixture
def bench() -> Bench:
    made = Bench()
    made.join(A)
    return made


def passes(bench: Bench, ms: int, *heard: AgentId) -> None:
    """As `silence`, with storage answering all the while."""
    for _ in range(ms // 1_000):
        bench.silence(1_000, *heard)


def test_what_an_agent_never_starts_is_taken_back_and_goes_to_another(bench: Bench) -> None:
    task = bench.admit()
    bench.settle()
    bench.join(B)
    bench.words(A)
    passes(bench, UNSTARTED_MS, A, B)
    assert (task.status.agent, bench.words(A)) == (A, [])
    passes(bench, SEEN_MS, A, B)
    assert task.status.agent == B
    assert (task.status.attempt, task.status.failures, task.status.agent_deaths) == (2, 0, 0)
    assert bench.words(A) == ["drop"]
    # The agent that did not keep its word gets nothing new for a while.
    assert bench.agent_state(A) is AgentState.SUSPECT
    assert "did not start them" in bench.state.agents[A].evidence[-1].why
    assert {bench.run().status.agent for _ in range(8)} == {B}
    passes(bench, DISTRUSTED_MS + SEEN_MS, A, B)
    assert bench.agent_state(A) is AgentState.READY


def test_a_task_that_came_back_says_why_and_prefers_other_agents(bench: Bench) -> None:
    task = bench.admit()
    bench.settle()
    passes(bench, UNSTARTED_MS + SEEN_MS, A)
    assert task.status.state is TaskState.PENDING
    assert task.status.why == "agent a was given it and did not start it within 30 s"
    assert task.status.avoid == (A,)


def test_what_came_back_waits_once_although_others_wait_like_it() -> None:
    """It changes lines, for it avoids the agent now."""
    bench = Bench()
    bench.join(A, slots=2)
    every = [bench.admit() for _ in range(5)]
    bench.settle()
    passes(bench, UNSTARTED_MS + SEEN_MS, A)
    queue = bench.state.queue
    assert sorted(t.id for line in queue.lines() for t in line) == [t.id for t in every]
    assert sum(line.count for line in queue.lines()) == len(queue) == len(every)
    bench.join(B)
    bench.settle()
    assert [task.status.agent for task in every] == [B] * len(every)


def test_what_has_started_or_is_not_durable_is_not_waited_for(bench: Bench) -> None:
    running = bench.run()
    bench.admit()
    writes = bench.drain()  # storage is away: the assignment was not pushed
    for _ in range(2 * UNSTARTED_MS // 1_000):
        bench.wait(1_000)
        bench.heard(A)
        agents.judge(bench.state, bench.now)
    assert bench.state.agents[A].owed == {}
    bench.answer(writes)
    passes(bench, UNSTARTED_MS, A)
    assert (running.status.attempt, bench.words(A).count("drop")) == (1, 0)


def test_a_session_that_is_opened_again_and_a_leader_that_was_stopped_count_anew(
    bench: Bench,
) -> None:
    task = bench.admit()
    bench.settle()
    passes(bench, UNSTARTED_MS - 1_000, A)
    bench.connect(A)
    passes(bench, UNSTARTED_MS, A)
    assert task.status.attempt == 1
    bench.wait(JUDGED_LATE_MS + UNSTARTED_MS)
    bench.heard(A)
    passes(bench, UNSTARTED_MS, A)
    assert task.status.attempt == 1
    passes(bench, 2_000, A)
    assert task.status.state is TaskState.PENDING


def test_a_deadline_gets_an_unstarted_task_back_from_an_agent_that_does_not_answer(
    bench: Bench,
) -> None:
    task = bench.admit(start_deadline_ms=5_000)
    bench.settle()
    bench.words(A)
    passes(bench, UNSTARTED_MS, A)
    before = task.status.state
    assert bench.words(A) == ["cancel time_out"]
    passes(bench, SEEN_MS, A)
    assert (before, task.status.state) == (TaskState.ASSIGNED, TaskState.TIMED_OUT)


def test_a_cancelled_task_that_was_never_started_need_not_wait_for_ever(bench: Bench) -> None:
    task = bench.admit()
    bench.settle()
    tasks.cancel(bench.state, task, bench.now)
    bench.settle()
    passes(bench, UNSTARTED_MS, A)
    before = task.status.state
    passes(bench, SEEN_MS, A)
    assert (before, task.status.state) == (TaskState.ASSIGNED, TaskState.CANCELLED)


def test_a_stop_task_is_only_taken_from_a_living_agent_by_a_new_runtime(bench: Bench) -> None:
    task = bench.admit(on_disconnect=OnDisconnect.STOP)
    bench.settle()
    passes(bench, 2 * UNSTARTED_MS, A)
    assert (task.status.attempt, bench.restarts) == (1, [])
    bench.state.agents[A].supervised = True
    passes(bench, SEEN_MS, A)
    assert (task.status.attempt, bench.restarts) == (1, [(A, 1)])
    agents.runtime_died(bench.state, A, 1, [], True, "restarted", bench.now)
    bench.settle()
    assert task.status.state is TaskState.PENDING
    assert task.status.agent_deaths == 0


def test_a_cancel_that_is_never_confirmed_ends_with_the_runtime_and_not_before(
    bench: Bench,
) -> None:
    task, other = bench.run(), bench.run()
    bench.state.agents[A].supervised = True
    tasks.cancel(bench.state, task, bench.now)
    bench.settle()
    passes(bench, UNENDED_MS, A)
    assert (task.status.state, bench.restarts) == (TaskState.ASSIGNED, [])
    passes(bench, SEEN_MS, A)
    assert (task.status.state, bench.restarts) == (TaskState.ASSIGNED, [(A, 1)])
    passes(bench, 20_000, A)
    assert bench.restarts == [(A, 1)], "asked once"
    agents.runtime_died(bench.state, A, 1, [other.ref()], True, "restarted", bench.now)
    bench.settle()
    assert task.status.state is TaskState.CANCELLED
    assert (other.status.state, other.status.agent_deaths) == (TaskState.PENDING, 0)
