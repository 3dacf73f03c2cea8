"""`learned` places by t_ij and may wait; `auto` draws, logs propensities, and is guarded."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muster.domain.errors import InvalidInput
from muster.domain.resources import ResourceVector
from muster_scheduler.learning.bandit import Bandit, Choice
from muster_scheduler.placement import (
    AgentTable,
    ClassTable,
    Plan,
    Policy,
    TaskBatch,
    TaskClass,
    evaluate,
    get,
)
from muster_scheduler.placement.auto import Auto, ChosenPlan
from muster_scheduler.placement.classes import Spread
from muster_scheduler.placement.learned import ForetoldBatch


def cluster(slots: list[int], used: list[int], gpu: int = 0) -> tuple[AgentTable, ClassTable]:
    table = AgentTable()
    one = ResourceVector.of({"slots": 1})
    for index, count in enumerate(slots):
        capacity = ResourceVector.of({"slots": count, "gpu": gpu})
        row = table.upsert(f"a{index}", capacity, frozenset({"s"}), {}, placeable=True)
        for _ in range(used[index]):
            table.take(row, table.demand_row(one))
    return table, ClassTable()


def place(
    table: AgentTable,
    classes: ClassTable,
    times: list[list[float]],
    release: list[list[float]] | None = None,
    gpu: int = 0,
) -> Plan:
    demand = ResourceVector.of({"slots": 1, "gpu": gpu})
    class_id = classes.intern(TaskClass("s", demand))
    count = len(times)
    batch = ForetoldBatch(
        classes,
        np.full(count, class_id, np.int32),
        np.zeros(count, np.int32),
        np.ones(count),
        np.array(times),
        release_s=None if release is None else np.array(release),
    )
    rng = np.random.default_rng(1)
    return get("learned").plan(table.view(), batch, Policy(), 0.0, rng, lambda: False, 0)


def test_each_task_goes_where_it_ends_soonest_while_there_is_room() -> None:
    table, classes = cluster([1, 1, 1], [0, 0, 0])
    plan = place(table, classes, [[3.0, 1.0, 2.0]] * 4)
    assert plan.assignment.tolist() == [1, 2, 0, -1]
    assert list(plan.reasons) == [3]


def test_among_equally_fast_agents_the_emptier_gets_the_task() -> None:
    table, classes = cluster([4, 4, 4], [2, 0, 1])
    plan = place(table, classes, [[1.0, 1.0, 1.0]] * 3)
    assert plan.assignment.tolist() == [1, 1, 2]


def test_devices_are_named() -> None:
    table, classes = cluster([4, 4], [0, 0], gpu=2000)
    plan = place(table, classes, [[1.0, 2.0]] * 3, gpu=1000)
    assert plan.assignment.tolist() == [0, 0, 1]
    assert [dict(plan.devices[i]) for i in range(3)] == [
        {"gpu": (0,)},
        {"gpu": (1,)},
        {"gpu": (0,)},
    ]


INF = float("inf")


def test_a_task_waits_for_a_full_agent_that_is_much_faster() -> None:
    table, classes = cluster([1, 1], [1, 0])
    assert place(table, classes, [[1.0, 8.0]], [[1.0], [INF]]).assignment.tolist() == [-1]
    # Not when it is only a little faster, takes long to be free, or when that is not known.
    assert place(table, classes, [[1.0, 3.0]], [[1.0], [INF]]).assignment.tolist() == [1]
    assert place(table, classes, [[1.0, 8.0]], [[7.0], [INF]]).assignment.tolist() == [1]
    assert place(table, classes, [[1.0, 8.0]]).assignment.tolist() == [1]


def test_those_who_wait_for_an_agent_line_up() -> None:
    table, classes = cluster([1, 1], [1, 0])
    # Ends at 2, 3 and 4 on the fast agent; the fourth would end at 5, more than half of 8.
    plan = place(table, classes, [[1.0, 8.0]] * 5, [[1.0], [INF]])
    assert plan.assignment.tolist() == [-1, -1, 1, -1, -1]


def test_without_times_the_default_places() -> None:
    table, classes = cluster([4, 2], [3, 0])
    class_id = classes.intern(TaskClass("s", ResourceVector.of({"slots": 1})))
    batch = TaskBatch.of(classes, [class_id] * 2)
    rng = np.random.default_rng(1)
    plans = [
        get(name).plan(table.view(), batch, Policy(), 0.0, rng, lambda: False, 0)
        for name in ("learned", "worst_fit")
    ]
    assert plans[0].assignment.tolist() == plans[1].assignment.tolist()
    assert plans[0].strategy == "learned"


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_auto_is_never_below_its_guard_and_logs_propensities(seed: int) -> None:
    rng = np.random.default_rng(seed)
    slots = rng.integers(0, 4, 5).tolist()
    table, classes = cluster(slots, [0] * 5)
    class_id = classes.intern(TaskClass("s", ResourceVector.of({"slots": 1})))
    count = int(rng.integers(0, 12))
    batch = TaskBatch(
        classes,
        np.full(count, class_id, np.int32),
        np.zeros(count, np.int32),
        np.ones(count),
        rng.uniform(1, 8, (count, 5)),
    )
    policy, view = Policy(), table.view()
    auto = Auto()
    plan = auto.plan(view, batch, policy, 0.0, np.random.default_rng(seed), lambda: False, 0)
    guard = get("worst_fit").plan(view, batch, policy, 0.0, rng, lambda: False, 0)
    ours = evaluate(view, batch, plan.assignment, policy).order(policy)
    assert ours <= evaluate(view, batch, guard.assignment, policy).order(policy)
    assert isinstance(plan, ChosenPlan)
    assert plan.choice is not None
    assert sum(plan.choice.propensities.values()) == pytest.approx(1.0)
    assert plan.choice.propensities[plan.choice.arm] > 0
    again = auto.plan(view, batch, policy, 0.0, np.random.default_rng(seed), lambda: False, 0)
    assert again.assignment.tolist() == plan.assignment.tolist()


def test_a_bandit_learns_which_arm_is_better_in_which_context() -> None:
    bandit, rng = Bandit(2), np.random.default_rng(1)
    for _ in range(300):
        full = float(rng.random() < 0.5)
        choice = bandit.choose(("a", "b"), (1.0, full), rng)
        bandit.learn(choice, -1.0 if (choice.arm == "a") == bool(full) else -2.0)
    assert bandit.choose(("a", "b"), (1.0, 1.0), rng).propensities["a"] > 0.9
    assert bandit.choose(("a", "b"), (1.0, 0.0), rng).propensities["b"] > 0.9
    # No arm is ever lost.
    assert bandit.choose(("a", "b"), (1.0, 0.0), rng).propensities["a"] >= 0.02

    other = Bandit(2)
    assert other.load_json(bandit.to_json()) is None
    same = [b.choose(("a", "b"), (1.0, 1.0), np.random.default_rng(2)) for b in (bandit, other)]
    assert same[0] == same[1]


@pytest.mark.parametrize(
    "stored",
    [
        b"no",
        b'{"a": 1}',
        b'{"a": {"precision": [[1]], "weighted": [1]}}',
        b'{"a": {"precision": [[-1, 0], [0, 1]], "weighted": [1, 1]}}',
    ],
)
def test_stored_choices_that_make_no_sense_change_nothing(stored: bytes) -> None:
    bandit = Bandit(2)
    bandit.learn(Choice("a", (1.0, 0.0), {"a": 1.0}), -1.0)
    before = bandit.to_json()
    assert bandit.load_json(stored)
    assert bandit.to_json() == before


def test_what_means_nothing_is_refused() -> None:
    bandit, rng = Bandit(2), np.random.default_rng(1)
    with pytest.raises(InvalidInput, match="arms"):
        bandit.choose((), (1.0, 0.0), rng)
    with pytest.raises(InvalidInput, match="context"):
        bandit.choose(("a",), (1.0, float("nan")), rng)
    with pytest.raises(InvalidInput, match="reward"):
        bandit.learn(Choice("a", (1.0, 0.0), {"a": 1.0}), float("nan"))


def test_no_agent_gets_more_of_a_group_than_the_spread_allows() -> None:
    table, classes = cluster([4, 4], [0, 0])
    spread = (Spread(("t", "run", "7"), 2),)
    class_id = classes.intern(TaskClass("s", ResourceVector.of({"slots": 1}), spread=spread))
    batch = TaskBatch(
        classes,
        np.full(5, class_id, np.int32),
        np.zeros(5, np.int32),
        np.ones(5),
        np.array([[1.0, 2.0]] * 5),
    )
    rng = np.random.default_rng(1)
    plan = get("learned").plan(table.view(), batch, Policy(), 0.0, rng, lambda: False, 0)
    assert plan.assignment.tolist() == [0, 0, 1, 1, -1]
