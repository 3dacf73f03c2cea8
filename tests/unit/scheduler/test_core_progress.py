"""Attempts that show no progress: told to end, failed, tried elsewhere."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.scheduler.core_bench import SUCCESS, A, B, Bench, held

from muster.domain.task import Outcome, OutcomeKind, Wish
from muster.domain.task_lifecycle import TaskState
from muster_scheduler.core import agents, progress, tasks
from muster_scheduler.core.records import OpenTask

KILLED = Outcome(OutcomeKind.CANCELLED, error="told to end", started_at_ms=3, ended_at_ms=7)
TIMEOUT_MS = 5_000


@pytest.fixture
def bench() -> Bench:
    made = Bench()
    made.join(A)
    made.join(B)
    return made


def watched(bench: Bench, **fields: object) -> OpenTask:
    return bench.run(progress_timeout_ms=TIMEOUT_MS, **fields)


def told_to_end(task: OpenTask) -> bool:
    return task.status.wish is Wish.TIME_OUT


def pass_by(bench: Bench, ms: int) -> None:
    bench.silence(ms, *bench.state.agents)


def test_a_silent_attempt_is_told_to_end_and_fails_on_the_agents_word(bench: Bench) -> None:
    task = watched(bench, max_attempts=2)
    first = task.status.agent
    pass_by(bench, TIMEOUT_MS - 1_000)
    assert not told_to_end(task)
    pass_by(bench, 1_000)
    assert told_to_end(task)
    assert [(s.task, s.agent, s.why) for s in bench.stuck] == [(task, first, "no progress for 5 s")]
    # It holds its place until the agent confirms.
    assert task.status.agent == first
    bench.end(task, KILLED)
    assert (task.status.failures, task.status.avoid) == (1, (first,))
    assert task.status.why == f"attempt 1 failed on agent {first}: no progress for 5 s"
    pass_by(bench, 1_000)
    assert task.status.agent not in ("", first)
    bench.start(task)
    pass_by(bench, TIMEOUT_MS)
    bench.end(task, KILLED)
    bench.settle()
    status = bench.stored[task.id]
    assert status.state is TaskState.FAILED
    assert status.outcome is not None
    assert (status.outcome.error, status.outcome.error_kind) == (
        "no progress for 5 s",
        "no_progress",
    )
    assert len(bench.stuck) == 2


def test_progress_gives_it_time_again(bench: Bench) -> None:
    task = watched(bench)
    for _ in range(10):
        pass_by(bench, TIMEOUT_MS - 1_000)
        progress.told(task, bench.now)
    assert not told_to_end(task)
    pass_by(bench, TIMEOUT_MS)
    assert told_to_end(task)


def test_a_success_that_comes_all_the_same_counts(bench: Bench) -> None:
    task = watched(bench)
    pass_by(bench, TIMEOUT_MS)
    bench.end(task, SUCCESS)
    assert task.status.state is TaskState.SUCCEEDED


def test_a_task_without_the_timeout_is_never_looked_at(bench: Bench) -> None:
    task = bench.run()
    pass_by(bench, 100 * TIMEOUT_MS)
    assert not told_to_end(task)


def test_a_parent_that_waits_for_its_children_is_not_stuck(bench: Bench) -> None:
    task = watched(bench)
    status = task.status
    tasks.waiting_attempt(bench.state, status.agent, 1, task.ref(), True)
    pass_by(bench, 10 * TIMEOUT_MS)
    assert not told_to_end(task)
    tasks.waiting_attempt(bench.state, status.agent, 1, task.ref(), False)
    pass_by(bench, 2 * TIMEOUT_MS)
    assert told_to_end(task)


def test_an_agent_that_is_not_heard_is_not_asked_for_progress(bench: Bench) -> None:
    task = watched(bench)
    agent = task.status.agent
    # Its lease stays, so it is merely suspected.
    bench.silence(3 * TIMEOUT_MS, *[a for a in (A, B) if a != agent])
    assert not told_to_end(task)
    pass_by(bench, 1_000)
    assert not told_to_end(task)
    pass_by(bench, TIMEOUT_MS)
    assert told_to_end(task)


def test_the_next_leader_gives_full_time_and_knows_a_stuck_one() -> None:
    bench = Bench()
    bench.join(A)
    running: dict[str, Any] = {
        "state": TaskState.RUNNING,
        "started_at_ms": 5,
        "started_clock_ms": 1,
    }
    fresh = bench.load(held(A, **running), progress_timeout_ms=TIMEOUT_MS)
    stuck_status = held(A, wish=Wish.TIME_OUT, why="no progress for 5 s", **running)
    stuck = bench.load(stuck_status, progress_timeout_ms=TIMEOUT_MS)
    agents.connected(bench.state, A, 1, [(fresh.ref(), False), (stuck.ref(), False)], bench.now)
    pass_by(bench, TIMEOUT_MS - 1_000)
    assert not told_to_end(fresh)
    pass_by(bench, 1_000)
    assert told_to_end(fresh)
    bench.end(stuck, KILLED)
    bench.settle()
    outcome = bench.stored[stuck.id].outcome
    assert outcome is not None
    assert outcome.error_kind == "no_progress"


@given(st.lists(st.integers(1, 2 * TIMEOUT_MS), max_size=20))
def test_it_is_stuck_exactly_when_a_pause_reaches_the_timeout(pauses: list[int]) -> None:
    bench = Bench()
    bench.join(A)
    task = watched(bench)
    for pause_ms in pauses:
        bench.wait(pause_ms)
        bench.heard(A)
        tasks.due(bench.state, bench.now)
        assert told_to_end(task) is (pause_ms >= TIMEOUT_MS)
        if pause_ms >= TIMEOUT_MS:
            return
        progress.told(task, bench.now)


def test_cluster_time_that_jumps_is_no_silence(bench: Bench) -> None:
    task = watched(bench)
    pass_by(bench, 1_000)
    # The first confirmation after a standstill: cluster time catches up at once.
    bench.jumped_ms += 3 * TIMEOUT_MS
    pass_by(bench, 1_000)
    assert not told_to_end(task)
    pass_by(bench, TIMEOUT_MS)
    assert told_to_end(task)
