"""At most so many tasks of a group on one agent: in a plan, with what runs, and as it ends."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.scheduler.core_bench import A, B, Bench

from muster.domain.errors import InvalidInput
from muster.domain.resources import ResourceVector
from muster.domain.task import Constraint
from muster.domain.task_lifecycle import TaskState
from muster_scheduler.placement import AgentTable, ClassTable, Policy, TaskBatch, TaskClass, get
from muster_scheduler.placement.classes import Spread

CONSTRUCTIVE = ("best_fit", "first_fit", "greedy", "worst_fit")
GROUP = ("t", "app", "web")


def cluster(agents: int) -> AgentTable:
    table = AgentTable()
    for index in range(agents):
        capacity = ResourceVector.of({"cpu": 64_000, "slots": 64})
        table.upsert(f"a{index}", capacity, frozenset({"echo"}), {}, placeable=True)
    return table


def spread_class(most: int, group: tuple[str, str, str] = GROUP, cpu: int = 100) -> TaskClass:
    demand = ResourceVector.of({"cpu": cpu, "slots": 1})
    return TaskClass("echo", demand, spread=(Spread(group, most),))


def planned(strategy: str, table: AgentTable, batch: TaskBatch) -> list[int]:
    rng = np.random.default_rng(0)
    plan = get(strategy).plan(table.view(), batch, Policy(), 0.0, rng, lambda: False, 0)
    return [int(row) for row in plan.assignment]


@pytest.mark.parametrize("strategy", CONSTRUCTIVE)
@settings(max_examples=25, deadline=None)
@given(
    agents=st.sampled_from([1, 3, 24, 25, 40]),
    most=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    picks=st.lists(st.integers(0, 3), max_size=120),
    running=st.lists(st.integers(0, 39), max_size=10),
)
def test_no_agent_holds_more_of_a_group_than_any_of_its_tasks_allows(
    strategy: str, agents: int, most: tuple[int, int], picks: list[int], running: list[int]
) -> None:
    table, classes = cluster(agents), ClassTable()
    other = ("t", "app", "db")
    kinds = [
        spread_class(most[0]),
        spread_class(most[1], cpu=200),
        spread_class(1, other),
        TaskClass("echo", ResourceVector.of({"slots": 1})),
    ]
    ids = [classes.intern(kind) for kind in kinds]
    counts = {GROUP: dict.fromkeys(range(agents), 0), other: dict.fromkeys(range(agents), 0)}
    for row in running:
        if row < agents:
            table.join(row, GROUP)
            counts[GROUP][row] += 1
    batch = TaskBatch.of(classes, [ids[k] for k in picks])
    for kind, row in zip(picks, planned(strategy, table, batch), strict=True):
        if kind == 3:
            assert row >= 0
            continue
        spread = kinds[kind].spread[0]
        here = counts[spread.group]
        if row < 0:
            assert min(here.values()) >= spread.most, "an agent could have taken it"
        else:
            assert here[row] < spread.most
            here[row] += 1


def test_a_full_group_is_the_reason_that_people_are_shown() -> None:
    table, classes = cluster(2), ClassTable()
    table.join(0, GROUP)
    batch = TaskBatch.of(classes, [classes.intern(spread_class(1))] * 2)
    rng = np.random.default_rng(0)
    plan = get("worst_fit").plan(table.view(), batch, Policy(), 0.0, rng, lambda: False, 0)
    assert plan.assignment.tolist() == [1, -1]
    assert plan.reasons[1].reasons == {"app max 1": 1}


def test_an_agent_that_goes_takes_its_counts_along() -> None:
    table = cluster(2)
    table.join(0, GROUP)
    table.join(1, GROUP)
    frozen = table.view().freeze()
    table.remove("a0")
    assert table.view().crowds == {GROUP: {1: 1}}
    table.leave(1, GROUP)
    assert table.view().crowds == {}
    assert frozen.crowds == {GROUP: {0: 1, 1: 1}}


@pytest.mark.parametrize("strategy", CONSTRUCTIVE)
def test_tasks_of_a_group_wait_until_one_of_it_ends(strategy: str) -> None:
    bench = Bench()
    bench.state.policy = Policy(strategy=strategy)
    bench.join(A)
    bench.join(B)
    constraints = (Constraint("app", "max", ("1",)),)
    web = [bench.admit(labels=(("app", "web"),), constraints=constraints) for _ in range(3)]
    other = bench.admit(labels=(("app", "db"),), constraints=constraints)
    bench.settle()
    assert {web[0].status.agent, web[1].status.agent} == {A, B}
    assert web[2].status.state is TaskState.PENDING
    assert other.status.state is TaskState.ASSIGNED
    freed = web[1].status.agent
    bench.start(web[1])
    bench.end(web[1])
    bench.settle()
    assert web[2].status.agent == freed


def test_the_leader_refuses_what_a_plan_puts_too_close(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not every strategy counts groups; the one who charges does."""

    class Heap:
        name = "heap"

        def plan(self, snapshot: object, tasks: TaskBatch, *_: object) -> object:
            from muster_scheduler.placement import Plan

            return Plan(np.zeros(len(tasks), np.int32), {}, "heap", len(tasks))

    monkeypatch.setattr("muster_scheduler.core.placing.get", lambda _: Heap())
    bench = Bench()
    bench.join(A)
    tasks = [bench.admit(constraints=(Constraint("app", "max", ("2",)),)) for _ in range(4)]
    bench.settle()
    assert [t.status.state for t in tasks].count(TaskState.ASSIGNED) == 2


@pytest.mark.parametrize("values", [(), ("0",), ("-1",), ("two",), ("10001",), ("1", "2"), ("²",)])
def test_a_spread_that_means_nothing_is_refused(values: tuple[str, ...]) -> None:
    with pytest.raises(InvalidInput, match=r"constraints\.values: .*max takes"):
        Constraint("app", "max", values)
