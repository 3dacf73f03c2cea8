"""The compiled passes choose what the plain pass chooses, task by task."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muster.domain.resources import ResourceVector
from muster.domain.task import Constraint
from muster_scheduler.placement import (
    AgentTable,
    ClassTable,
    Plan,
    Policy,
    TaskBatch,
    TaskClass,
    constructive,
    fast,
    get,
)

STRATEGIES = ("best_fit", "first_fit", "greedy", "worst_fit")


@pytest.fixture(autouse=True, scope="module")
def _loaded() -> None:
    fast.load()


def instance(seed: int, agents: int, kinds: int, count: int) -> tuple[AgentTable, TaskBatch]:
    """Small and large amounts, some agents full, overfull, sick, cordoned, or not for all."""
    rng = np.random.default_rng(seed)
    table, classes = AgentTable(), ClassTable()
    unit = int(rng.choice([1, 1000, 2**40]))
    for index in range(agents):
        capacity = {
            "cpu": int(rng.integers(0, 9)) * unit,
            "memory": int(rng.integers(0, 9)) * unit + int(rng.integers(0, 3)),
            "slots": int(rng.integers(0, 9)),
            "tokens": int(rng.integers(0, 3)),
            "disk": int(rng.integers(0, 9)),
            "licences": int(rng.integers(0, 4)),
        }
        row = table.upsert(
            f"a{index}",
            ResourceVector.of(capacity),
            frozenset({"echo"} if rng.random() < 0.9 else {"other"}),
            {"zone": str(rng.integers(0, 2))},
            placeable=bool(rng.random() < 0.95),
            health=float(rng.choice([1.0, 0.7, 0.0])),
        )
        if rng.random() < 0.2:
            table.take(row, table.demand_row(ResourceVector.of({"cpu": 3 * unit, "disk": 5})))
    if agents > 2:
        table.remove("a1")
    ids = []
    for _ in range(kinds):
        demand = {
            "cpu": int(rng.integers(0, 3)) * unit // 2,
            "memory": int(rng.integers(0, 3)) * unit // 3,
            "slots": int(rng.integers(0, 2)),
            "disk": int(rng.integers(0, 2)),
            "licences": int(rng.random() < 0.1),
            "tokens": int(rng.random() < 0.1),
            "unheard": int(rng.random() < 0.03),
        }
        constraints = (Constraint("zone", "==", ("1",)),) if rng.random() < 0.3 else ()
        avoid = frozenset({"a0", "gone"} if rng.random() < 0.2 else ())
        skill = "echo" if rng.random() < 0.9 else "other"
        ids.append(classes.intern(TaskClass(skill, ResourceVector.of(demand), constraints, avoid)))
    picked = [ids[k] for k in rng.integers(0, kinds, count).tolist()]
    return table, TaskBatch.of(classes, picked)


def planned(strategy: str, table: AgentTable, batch: TaskBatch, *, compiled: bool) -> Plan:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constructive, "_TASKS_FOR_KERNELS", 0 if compiled else 10**9)
        rng = np.random.default_rng(0)
        return get(strategy).plan(table.view(), batch, Policy(), 0.0, rng, lambda: False, 0)


@pytest.mark.parametrize("strategy", STRATEGIES)
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    agents=st.sampled_from([0, 1, 3, 30, 63, 64, 65, 200]),
    kinds=st.sampled_from([1, 2, 9, 150]),
    count=st.sampled_from([0, 1, 40, 150, 600, 1100]),
)
def test_compiled_and_plain_passes_give_one_plan(
    strategy: str, seed: int, agents: int, kinds: int, count: int
) -> None:
    table, batch = instance(seed, agents, kinds, count)
    plain = planned(strategy, table, batch, compiled=False)
    quick = planned(strategy, table, batch, compiled=True)
    assert quick.assignment.tolist() == plain.assignment.tolist()
    assert quick.assignment.dtype == plain.assignment.dtype
    assert quick.considered == plain.considered
    assert {i: (r.reasons, r.agents) for i, r in quick.reasons.items()} == {
        i: (r.reasons, r.agents) for i, r in plain.reasons.items()
    }


@pytest.mark.parametrize("strategy", ["best_fit", "worst_fit"])
def test_classes_beyond_the_memory_for_trees_are_placed_alike(
    strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, batch = instance(7, 40, 6, 300)
    plain = planned(strategy, table, batch, compiled=False)
    monkeypatch.setattr(fast, "_TREE_BYTES", 2 * 8 * 128)
    assert planned(strategy, table, batch, compiled=True).assignment.tolist() == (
        plain.assignment.tolist()
    )


def test_a_class_that_is_forgotten_leaves_its_number_to_another() -> None:
    table, classes = AgentTable(), ClassTable()
    table.upsert("a", ResourceVector.of({"cpu": 9}), frozenset({"x", "y"}), {}, placeable=True)
    table.upsert("b", ResourceVector.of({"cpu": 9}), frozenset({"y", "z"}), {}, placeable=True)
    old = classes.intern(TaskClass("x", ResourceVector.of({"cpu": 1})))
    kept = classes.intern(TaskClass("y", ResourceVector.of({"cpu": 9})))
    assert classes.forget_all_but({kept}) == 1
    new = classes.intern(TaskClass("z", ResourceVector.of({"cpu": 2})))
    assert new == old
    plan = planned("greedy", table, TaskBatch.of(classes, [kept, new, new]), compiled=True)
    assert plan.assignment.tolist() == [0, 1, 1]


def test_a_resource_that_agents_come_to_offer_later_is_found() -> None:
    table, classes = AgentTable(), ClassTable()
    table.upsert("a", ResourceVector.of({"cpu": 9}), frozenset({"x"}), {}, placeable=True)
    batch = TaskBatch.of(classes, [classes.intern(TaskClass("x", ResourceVector.of({"tpu": 1})))])
    assert planned("greedy", table, batch, compiled=True).assignment.tolist() == [-1]
    table.upsert("b", ResourceVector.of({"tpu": 1}), frozenset({"x"}), {}, placeable=True)
    assert planned("greedy", table, batch, compiled=True).assignment.tolist() == [1]


def test_one_form_of_each_kernel_serves_all_plans() -> None:
    """Another form would be compiled in the middle of a placement."""
    for seed, agents, kinds in ((1, 0, 1), (2, 1, 2), (3, 70, 40)):
        table, batch = instance(seed, agents, kinds, 100)
        for strategy in STRATEGIES:
            planned(strategy, table, batch, compiled=True)
            get(strategy).plan(
                table.view().freeze(),
                batch,
                Policy(),
                0.0,
                np.random.default_rng(0),
                lambda: False,
                0,
            )
    from muster_scheduler.placement.compiled import constructive as kernels

    used: list[Any] = [kernels.place_in_order, kernels.place_by_share]
    assert [len(kernel.signatures) for kernel in used] == [1, 1]
