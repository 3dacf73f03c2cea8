"""What a leader's core notes, expects, follows and finds late."""

from __future__ import annotations

import numpy as np
import pytest
from tests.unit.scheduler.core_bench import FAILURE, A, B, Bench

from muster.domain.ids import AgentId
from muster.domain.task import Lifetime, Outcome, OutcomeKind
from muster_scheduler.core import agents
from muster_scheduler.core.choices import Choices
from muster_scheduler.core.foretelling import (
    expected_run_s,
    features_of_agent,
    remaining_s,
    response_s,
)
from muster_scheduler.core.notes import LOST, MAX_NOTES, MAX_SAVED_UP
from muster_scheduler.core.records import Begun, OpenTask
from muster_scheduler.core.stragglers import Stragglers
from muster_scheduler.learning.attempts import MAX_PARSED_BYTES, Attempt, TaskFeatures
from muster_scheduler.learning.bandit import Choice
from muster_scheduler.placement.auto import ChosenPlan
from muster_scheduler.placement.plan import Policy

TOOK_2_S = Outcome(OutcomeKind.SUCCEEDED, output_json=b"1", started_at_ms=5_000, ended_at_ms=7_000)


def noting() -> Bench:
    bench = Bench()
    bench.state.notes.per_s = 200
    return bench


def test_an_attempt_is_noted_with_what_was_known() -> None:
    bench = noting()
    bench.join(A, cpu=4_000, slots=4)
    held = bench.run()
    task = bench.run(skill="echo", input_json=b'{"n":3}', estimate_ms=700)
    bench.wait(3_000)
    bench.end(task, TOOK_2_S)
    (note,) = bench.state.notes.take()
    assert (note.task_id, note.attempt, note.agent, note.skill) == (task.id, 1, A, "echo")
    assert (note.outcome, note.ended_at_ms - note.started_at_ms) == ("succeeded", 2_000)
    assert (note.estimate_ms, note.input_json, note.since_created_ms) == (700, b'{"n":3}', 3_000)
    # One of four slots was taken when it came.
    assert note.load == pytest.approx(0.25)
    assert bench.state.notes.take() == []
    assert held.begun is not None


def test_failed_and_lost_attempts_are_noted_as_such() -> None:
    bench = noting()
    bench.join(A)
    failed, lost = bench.run(), bench.run()
    bench.end(failed, FAILURE)
    bench.silence(agents.SILENT_MS)
    notes = {note.task_id: note.outcome for note in bench.state.notes.take()}
    assert notes == {failed.id: "failed", lost.id: LOST}


def test_no_more_are_noted_than_are_saved_up() -> None:
    bench = noting()
    bench.join(A, slots=1000, cpu=1_000_000)
    for _ in range(3):
        bench.wait(1_000)
        bench.state.notes.refill(bench.now)
    many = [bench.admit() for _ in range(MAX_SAVED_UP + 100)]
    bench.settle()
    assert sum(task.begun is not None for task in many) == MAX_SAVED_UP
    bench.wait(500)
    later = [bench.admit() for _ in range(200)]
    bench.settle()
    assert sum(task.begun is not None for task in later) == 100


def test_without_anybody_to_take_them_nothing_is_noted() -> None:
    bench = Bench()
    bench.join(A)
    assert bench.run().begun is None


def test_notes_are_bounded_and_large_inputs_left_out() -> None:
    bench = noting()
    bench.join(A)
    task = bench.run(input_json=b"1" * (MAX_PARSED_BYTES + 1))
    notes = bench.state.notes
    for _ in range(MAX_NOTES + 3):
        notes.end(task, Begun(0.0), "succeeded", None, bench.now)
    assert notes.dropped == 3
    kept = notes.take()
    assert len(kept) == MAX_NOTES
    assert (kept[0].input_json, kept[0].input_bytes) == (b"", MAX_PARSED_BYTES + 1)


# ------------------------------------------------------------------------------ expectations


def taught(bench: Bench, *, factor_of_b: float = 4.0) -> None:
    """A takes a second a unit, B several; as the leader learns it, from attempts."""
    rng = np.random.default_rng(1)
    state = bench.state
    lessons = []
    for number, size in enumerate(rng.uniform(1, 9, 160).tolist()):
        ident = (A, B)[number % 2]
        seconds = size * (factor_of_b if ident == B else 1.0) * float(rng.uniform(0.95, 1.05))
        task = TaskFeatures("echo", 0.0, 8, (("n", size),))
        lessons.append(Attempt(task, features_of_agent(state.agents[ident], ident, 0.0), seconds))
    state.foresight.observe(lessons)
    assert state.foresight.model is not None


def pair() -> Bench:
    bench = noting()
    bench.join(A, cpu=2_000, slots=2)
    bench.join(B, cpu=2_000, slots=2)
    taught(bench)
    return bench


def test_times_are_expected_per_agent_and_none_before_there_is_a_model() -> None:
    bench = Bench()
    bench.join(A)
    bench.join(B)
    task = bench.admit(input_json=b'{"n":5}')
    assert expected_run_s(bench.state, task, A) is None
    assert response_s(bench.state, bench.state.table.view(), [task]) is None
    taught(bench)
    on_a, on_b = (expected_run_s(bench.state, task, agent) for agent in (A, B))
    assert on_a is not None
    assert on_b is not None
    assert 3.5 < on_a[0] < 7
    assert 14 < on_b[0] < 28
    assert on_a[0] <= on_a[1]
    view = bench.state.table.view()
    times = response_s(bench.state, view, [task])
    assert times is not None
    assert times[0, view.rows[A]] < times[0, view.rows[B]]
    # A skill that nobody has seen is as long as was declared.
    other = bench.admit(skill="new", estimate_ms=2_500)
    assert expected_run_s(bench.state, other, A) is None


def test_agents_that_come_later_are_expected_of_too() -> None:
    bench = pair()
    late = AgentId("late")
    task = bench.admit(input_json=b'{"n":5}')
    assert response_s(bench.state, bench.state.table.view(), [task]) is not None
    bench.join(late)
    times = response_s(bench.state, bench.state.table.view(), [task])
    assert times is not None
    assert times.shape == (1, 3)


def test_learned_gives_the_fast_agent_and_rather_waits_for_it() -> None:
    bench = pair()
    bench.state.policy = Policy(strategy="learned")
    first = [running(bench) for _ in range(2)]
    assert [task.status.agent for task in first] == [A, A]
    assert first[0].predicted_s > 0
    bench.wait(2_000)
    then = [bench.admit(input_json=b'{"n":5}') for _ in range(2)]
    bench.settle()
    # What is left of 5 s and another 5 s on A is over sooner than 20 s on B.
    assert [task.status.agent for task in then] == ["", ""]
    for task in first:
        bench.end(task, TOOK_2_S)
    bench.settle()
    assert [task.status.agent for task in then] == [A, A]


def running(bench: Bench, size: int = 5, **fields: object) -> OpenTask:
    return bench.run(input_json=f'{{"n":{size}}}'.encode(), **fields)


def test_what_is_left_shrinks_and_then_grows_with_what_is_late() -> None:
    bench = noting()
    bench.join(A)
    bench.join(B)
    taught(bench, factor_of_b=1.0)
    task = running(bench)
    first = remaining_s(bench.state, task, bench.now)
    bench.wait(3_000)
    then = remaining_s(bench.state, task, bench.now)
    bench.wait(300_000)
    late = remaining_s(bench.state, task, bench.now)
    assert first is not None
    assert then is not None
    assert late is not None
    assert then < first
    assert late > first
    waiting = bench.admit(skill="nobody has it")
    assert remaining_s(bench.state, waiting, bench.now) is None


def test_a_straggler_is_told_once() -> None:
    bench = noting()
    bench.join(A)
    bench.join(B)
    taught(bench, factor_of_b=1.0)
    late = running(bench)
    running(bench, lifetime=Lifetime.SERVICE)
    stragglers = Stragglers()
    bench.wait(2_000)
    assert stragglers.look(bench.state, bench.now) == []
    bench.wait(60_000)
    (told,) = stragglers.look(bench.state, bench.now)
    assert (told.task, told.attempt, told.source) == (late, 1, "learned")
    assert told.elapsed_s > told.bound_s >= told.expected_s
    bench.wait(60_000)
    assert stragglers.look(bench.state, bench.now) == []


def test_of_what_is_unlike_all_before_nothing_is_expected() -> None:
    bench = noting()
    bench.join(A)
    bench.join(B)
    taught(bench, factor_of_b=1.0)
    huge = running(bench, size=1_000_000)
    bench.wait(600_000)
    assert expected_run_s(bench.state, huge, A) is None
    assert remaining_s(bench.state, huge, bench.now) is None
    assert Stragglers().look(bench.state, bench.now) == []
    # Half as large again as any is still like them.
    assert expected_run_s(bench.state, running(bench, size=14), A) is not None


def test_without_a_model_three_estimates_are_the_bound() -> None:
    bench = Bench()
    bench.join(A)
    bench.run()
    declared = bench.run(estimate_ms=2_000)
    stragglers = Stragglers()
    bench.wait(5_900)
    assert stragglers.look(bench.state, bench.now) == []
    bench.wait(200)
    (told,) = stragglers.look(bench.state, bench.now)
    assert (told.task, told.bound_s, told.source) == (declared, 6.0, "declared")


# ----------------------------------------------------------------------------------- choices


def chosen(arm: str = "greedy") -> ChosenPlan:
    choice = Choice(arm, (1.0, 0.0, 0.0, 0.0, 0.0), {arm: 1.0})
    return ChosenPlan(np.zeros(1, np.int32), {}, "auto", 1, choice=choice)


def test_a_choice_is_judged_once_its_tasks_have_ended() -> None:
    bench = Bench()
    choices = Choices()
    followed = choices.follow(chosen(), bench.now)
    assert followed is not None
    # The next plan of the same second is not followed, nor one that chose nothing.
    assert choices.follow(chosen(), bench.now) is None
    followed.tasks = 2
    policy = Policy(w_t=0.5, w_u=0.25, w_b=0.25)
    choices.ended(followed.number, 6.0, 2.0)
    assert choices.judged(policy, 0.5, 0.1, bench.now) == []
    choices.ended(followed.number, 2.0, 2.0)
    (judged,) = choices.judged(policy, 0.5, 0.1, bench.now)
    assert judged.j == pytest.approx(0.5 * 2.0 + 0.25 * 0.5 + 0.25 * 0.1)
    assert len(choices) == 0


def test_tasks_that_do_not_end_count_against_a_choice() -> None:
    bench = Bench()
    choices = Choices()
    followed = choices.follow(chosen(), bench.now)
    assert followed is not None
    followed.tasks = 2
    choices.ended(followed.number, 2.0, 2.0)
    bench.wait(200_000)
    (judged,) = choices.judged(Policy(w_t=1.0, w_u=0.0, w_b=0.0), 0.5, 0.1, bench.now)
    assert judged.j == pytest.approx((2.0 + 200.0) / 4.0)


def test_a_live_choice_of_auto_is_followed_to_its_notes() -> None:
    bench = noting()
    bench.state.policy = Policy(strategy="auto")
    bench.join(A)
    bench.join(B)
    bench.wait(1_000)
    task = bench.run()
    assert task.begun is not None
    number = task.begun.choice
    followed = bench.state.choices.of(number)
    assert followed is not None
    assert followed.tasks == 1
    assert sum(followed.choice.propensities.values()) == pytest.approx(1.0)
    bench.end(task, TOOK_2_S)
    assert [note.choice for note in bench.state.notes.take()] == [number]
