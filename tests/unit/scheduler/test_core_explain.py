"""Why a task waits, in sentences."""

from __future__ import annotations

from tests.unit.scheduler.core_bench import FAILURE, A, B, Bench

from muster.domain.agent_lifecycle import AgentWish
from muster.domain.resources import ResourceVector
from muster.domain.task import Constraint, TaskStatus
from muster.domain.task_lifecycle import TaskState
from muster_scheduler.core import agents
from muster_scheduler.core.explain import Explanation, explain
from muster_scheduler.core.records import OpenTask


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


def test_what_no_agent_has_is_named_and_waiting_for_tasks_is_not_advised() -> None:
    bench = Bench()
    bench.join(A, labels=[("zone", "a")])
    zoned = why(bench, bench.admit(constraints=(Constraint("zone", "==", ("b",)),)))
    assert zoned.smallest_change == "an agent with skill echo and zone == b"
    asks = {"cpu": 64_000, "gpu": 1_000}
    large = why(bench, bench.admit(resources=ResourceVector.of(asks)))
    assert large.smallest_change == "an agent with skill echo and cpu 64 and gpu 1"
    bench.run(resources=ResourceVector.of({"cpu": 4_000}))
    full = why(bench, bench.admit(resources=ResourceVector.of({"cpu": 1_000})))
    assert full.smallest_change == (
        "one more agent with skill echo, or wait for running tasks to end"
    )


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
