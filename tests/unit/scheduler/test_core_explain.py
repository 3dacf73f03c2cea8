"""Why a task waits, in sentences."""

from __future__ import annotations

import pytest
from tests.unit.scheduler.core_bench import FAILURE, A, B, Bench

from muster.domain.agent_lifecycle import AgentWish
from muster.domain.resources import ResourceVector
from muster.domain.task import Constraint, Lifetime, TaskStatus
from muster.domain.task_lifecycle import TaskState
from muster_scheduler.core import agents, expected
from muster_scheduler.core.explain import Explanation, explain
from muster_scheduler.core.records import OpenTask
from muster_scheduler.placement.plan import Policy
from muster_scheduler.placement.strategy import names


def why(bench: Bench, task: OpenTask) -> Explanation:
    bench.settle()
    return explain(bench.state, task, bench.now)


def test_no_agent_at_all() -> None:
    bench = Bench()
    found = why(bench, bench.admit())
    assert found.summary == "no agent is registered"
    assert found.smallest_change == "one agent with skill echo"
    assert (found.state, found.queue_position, found.queue_length) == (TaskState.PENDING, 1, 1)


def test_a_skill_that_nobody_offers() -> None:
    bench = Bench()
    bench.join(A)
    bench.join(B)
    found = why(bench, bench.admit(skill="vision"))
    assert found.summary == "none of the 2 agents offers skill vision"
    assert (found.agents, found.excluded) == (2, {"skill": 2})


def test_reasons_are_counted_over_agents() -> None:
    bench = Bench()
    bench.join(A, labels=[("zone", "a")])
    bench.join(B, labels=[("zone", "b")])
    agents.set_wish(bench.state, B, AgentWish.CORDON, bench.now)
    zoned = why(bench, bench.admit(constraints=(Constraint("zone", "==", ("b",)),)))
    assert zoned.summary == "no agent can take it now: 1 × zone == b, 1 × cordoned"


def test_the_smallest_change_that_would_place_it() -> None:
    bench = Bench()
    bench.join(A, cpu=4_000)
    bench.join(B, cpu=2_000)
    found = why(bench, bench.admit(resources=ResourceVector.of({"cpu": 5_000})))
    assert found.smallest_change == "cpu 5 → 4"
    assert "cpu short by" in found.summary


def test_a_constraint_that_no_agent_meets() -> None:
    bench = Bench()
    zone_b = Constraint("zone", "==", ("b",))
    alone = why(bench, bench.admit(constraints=(zone_b,)))
    assert alone.smallest_change == "one agent with skill echo and zone == b"
    assert alone.change is not None
    assert alone.change.labels == {"zone": "b"}
    bench.join(A, labels=[("zone", "a")])
    zoned = why(bench, bench.admit(constraints=(zone_b,)))
    assert zoned.smallest_change == "no constraint zone == b"
    asks = ResourceVector.of({"cpu": 64_000})
    # Two are wrong with each agent, so no single change of the task helps.
    large = bench.admit(constraints=(zone_b,), resources=asks)
    assert why(bench, large).smallest_change == "an agent with skill echo and zone == b and cpu 64"


def test_constraints_that_contradict_each_other() -> None:
    bench = Bench()
    both = (Constraint("zone", "==", ("b",)), Constraint("zone", "not_in", ("a", "b")))
    found = why(bench, bench.admit(constraints=both))
    assert found.change is None
    assert found.smallest_change == "no single change: no agent can meet all of its constraints"


def test_what_no_agent_has_is_named_and_waiting_for_tasks_is_not_advised() -> None:
    bench = Bench()
    bench.join(A, labels=[("zone", "a")])
    asks = {"cpu": 64_000, "gpu": 1_000}
    large = why(bench, bench.admit(resources=ResourceVector.of(asks)))
    assert large.smallest_change == "an agent with skill echo and cpu 64 and gpu 1"
    bench.run(resources=ResourceVector.of({"cpu": 4_000}))
    full = why(bench, bench.admit(resources=ResourceVector.of({"cpu": 1_000})))
    assert full.smallest_change == (
        "one more agent with skill echo, or wait for running tasks to end"
    )


def test_an_agent_that_only_a_cordon_keeps_from_it() -> None:
    bench = Bench()
    bench.join(A)
    bench.join(B)
    agents.disconnected(bench.state, A, 1, bench.now)
    agents.set_wish(bench.state, A, AgentWish.CORDON, bench.now)
    agents.set_wish(bench.state, B, AgentWish.CORDON, bench.now)
    task = bench.admit()
    found = why(bench, task)
    assert found.smallest_change == "uncordon agent b"
    agents.set_wish(bench.state, B, AgentWish.NONE, bench.now)
    bench.settle()
    assert task.status.state is TaskState.ASSIGNED


def test_a_brief_answer_leaves_out_what_takes_longer() -> None:
    bench = Bench()
    bench.join(A)
    task = bench.admit(resources=ResourceVector.of({"cpu": 5_000}))
    bench.settle()
    found = explain(bench.state, task, bench.now, brief=True)
    assert (found.smallest_change, found.change, found.start) == ("", None, None)
    assert not found.candidates
    assert found.summary == why(bench, task).summary
    assert found.excluded


def test_candidates_are_scored_as_the_strategy_scores_them() -> None:
    bench = Bench()
    bench.join(A, cpu=4_000)
    bench.join(B, cpu=8_000)
    waiting = why(bench, bench.admit(resources=ResourceVector.of({"cpu": 10_000})))
    (first, best), (second, next_best) = waiting.candidates
    assert (first, best.rank, best.fits, second, next_best.rank) == (B, 1, False, A, 2)
    assert best.terms["free_share_after"] == -0.25
    task = bench.run(resources=ResourceVector.of({"cpu": 2_000}))
    assert task.status.agent == B
    (first, best), (second, next_best) = why(bench, task).candidates
    assert (first, best.rank, best.fits) == (B, 1, True)
    # As it would be without the task that is there already.
    assert best.terms["free_share_after"] == best.terms["score"] == 0.75
    assert (second, next_best.terms["free_share_after"]) == (A, 0.5)


@pytest.mark.parametrize("strategy", names())
def test_every_strategy_has_scores(strategy: str) -> None:
    bench = Bench()
    bench.state.policy = Policy(strategy)
    bench.join(A)
    bench.join(B)
    found = why(bench, bench.admit(resources=ResourceVector.of({"cpu": 10_000})))
    assert {agent for agent, _ in found.candidates} == {A, B}
    assert all("score" in one.terms for _, one in found.candidates)


HALF = ResourceVector.of({"cpu": 2_000})


def start_of(bench: Bench, task: OpenTask) -> tuple[float | None, str]:
    start = why(bench, task).start
    assert start is not None
    return start.in_s, start.why


def test_a_task_starts_when_what_runs_before_it_has_ended() -> None:
    bench = Bench()
    bench.join(A, cpu=4_000)
    for estimate_ms in (30_000, 10_000):
        bench.run(resources=HALF, estimate_ms=estimate_ms)
    first = bench.admit(resources=HALF, estimate_ms=5_000)
    assert start_of(bench, first) == (10.0, "")
    second = bench.admit(resources=HALF, estimate_ms=20_000)
    assert start_of(bench, second) == (15.0, "")
    whole = bench.admit(resources=ResourceVector.of({"cpu": 4_000}), estimate_ms=1)
    assert start_of(bench, whole) == (35.0, "")


def test_a_start_that_is_not_known_says_why() -> None:
    bench = Bench()
    bench.join(A, cpu=4_000)
    bench.run(resources=HALF)
    known = bench.run(resources=HALF, estimate_ms=8_000)
    waiting = bench.admit(resources=HALF)
    assert start_of(bench, waiting) == (8.0, "if 1 task of unknown length take no longer")
    bench.end(known)
    bench.settle()
    assert waiting.status.state is TaskState.ASSIGNED
    late = bench.admit(resources=HALF)
    said = "it is not known how long 2 tasks before it will run"
    assert start_of(bench, late) == (None, said)
    never = bench.admit(resources=ResourceVector.of({"cpu": 9_000}))
    assert start_of(bench, never) == (None, "no agent could take it, even one without work")


def test_agents_that_get_no_work_are_named_where_they_could_take_it() -> None:
    bench = Bench()
    bench.join(A, cpu=4_000)
    bench.join(B, cpu=1_000)
    for ident in (A, B):
        agents.set_wish(bench.state, ident, AgentWish.CORDON, bench.now)
    waiting = bench.admit(resources=HALF)
    said = "the agents that could take it get no work: 1 × cordoned"
    assert start_of(bench, waiting) == (None, said)
    never = bench.admit(resources=ResourceVector.of({"cpu": 9_000}))
    assert start_of(bench, never) == (None, "no agent could take it, even one without work")
    unknown = bench.admit(skill="vision")
    assert start_of(bench, unknown) == (None, "no agent could take it, even one without work")


def test_services_do_not_end() -> None:
    bench = Bench()
    bench.join(A, cpu=2_000)
    bench.run(resources=HALF, estimate_ms=1_000, lifetime=Lifetime.SERVICE)
    in_s, said = start_of(bench, bench.admit(resources=HALF))
    assert (in_s, "not known how long 1 task" in said) == (None, True)


def test_beyond_the_bounds_nothing_is_foretold(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    bench.join(A, cpu=4_000)
    for _ in range(2):
        bench.run(resources=HALF, estimate_ms=8_000)
    for _ in range(3):
        last = bench.admit(resources=HALF, estimate_ms=1_000)
    assert start_of(bench, last)[0] == 9.0
    monkeypatch.setattr(expected, "MAX_AHEAD", 1)
    assert start_of(bench, last) == (None, "more than 1 tasks wait before it")
    monkeypatch.setattr(expected, "MAX_RUNNING", 1)
    assert start_of(bench, last) == (None, "more than 1 tasks run where it could go")


def test_full_agents() -> None:
    bench = Bench()
    bench.join(A, slots=1)
    bench.run()
    bench.admit()
    found = why(bench, bench.admit())
    assert found.summary == "no agent can take it now: 1 × slots short by 1"
    assert (found.queue_position, found.queue_length) == (2, 2)


def test_a_disconnected_agent() -> None:
    bench = Bench()
    bench.join(A)
    agents.disconnected(bench.state, A, 1, bench.now)
    assert why(bench, bench.admit()).summary == "no agent can take it now: 1 × not connected"


def test_a_pause_before_the_next_try_and_its_end() -> None:
    bench = Bench()
    bench.join(A)
    task = bench.run()
    bench.end(task, FAILURE)
    assert why(bench, task).summary == (
        "it is tried again in 0.1 s; attempt 1 failed on agent a: it broke"
    )
    bench.wait(5_000)
    assert why(bench, task).summary.startswith("it is tried again in 0.0 s")


def test_a_pausing_task_that_a_new_leader_has_only_just_loaded() -> None:
    bench = Bench()
    task = bench.load(TaskStatus(not_before_clock_ms=bench.now.clock_ms + 50))
    bench.wait(60)
    assert why(bench, task).summary == "it is tried again in 0.0 s"


def test_a_task_with_a_place() -> None:
    bench = Bench()
    bench.join(A)
    task = bench.admit()
    assert why(bench, task).summary == "attempt 1 was sent to be run on agent a"
    bench.start(task)
    assert why(bench, task).summary == "attempt 1 runs on agent a"
    bench.end(task)
    assert explain(bench.state, task, bench.now).summary == ("it has ended; that is being recorded")
