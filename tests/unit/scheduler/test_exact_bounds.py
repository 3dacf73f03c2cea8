"""`exact` keeps to bounds of the policy, finds the optimum under them, and ends when it is told."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from muster.domain.resources import ResourceVector
from muster_scheduler.placement import (
    AgentTable,
    ClassTable,
    Plan,
    Policy,
    Snapshot,
    TaskBatch,
    TaskClass,
    evaluate,
    get,
)

pytest.importorskip("ortools")

TASKS, AGENTS = 6, 3
# Steps end the plans here, not the clock.
BUDGET_S = 600.0


def small(
    seed: int,
    tasks: int = TASKS,
    agents: int = AGENTS,
    cpu: tuple[int, int] = (3000, 6000),
) -> tuple[Snapshot, TaskBatch]:
    rng = np.random.default_rng(seed)
    table, classes = AgentTable(), ClassTable()
    for index in range(agents):
        capacity = ResourceVector.of({"cpu": int(rng.integers(*cpu))})
        table.upsert(f"a{index}", capacity, frozenset({"echo"}), {}, placeable=True)
    ids = [
        classes.intern(TaskClass("echo", ResourceVector.of({"cpu": int(amount)})))
        for amount in rng.integers(300, 1500, tasks)
    ]
    times = rng.uniform(1, 10, (tasks, agents))
    batch = TaskBatch(
        classes, np.array(ids, np.int32), np.zeros(tasks, np.int32), times.min(axis=1), times
    )
    return table.view().freeze(), batch


def planned(
    snapshot: Snapshot, batch: TaskBatch, policy: Policy, stop: Callable[[], bool] = lambda: False
) -> Plan:
    rng = np.random.default_rng(1)
    return get("exact").plan(snapshot, batch, policy, 0.0, rng, stop, 200)


def best_by_enumeration(
    snapshot: Snapshot, batch: TaskBatch, policy: Policy, least: int = 0
) -> Any:
    """`least` is -1 where tasks may be left out."""
    orders = []
    for places in itertools.product(range(least, AGENTS), repeat=TASKS):
        place = np.array(places, np.int32)
        used = np.zeros(AGENTS, np.int64)
        for i, row in enumerate(places):
            if row >= 0:
                used[row] += batch.classes.demand(int(batch.class_id[i]), snapshot).amounts[0]
        if (used <= snapshot.capacity[:, 0]).all():
            orders.append(evaluate(snapshot, batch, place, policy).order(policy))
    return min(orders)


@pytest.mark.parametrize("objective", ["T", "J", "makespan"])
@pytest.mark.parametrize("name", ["T", "U", "B", "J"])
@pytest.mark.parametrize("seed", [1, 2])
def test_the_optimum_under_a_bound_is_found(objective: Any, name: str, seed: int) -> None:
    snapshot, batch = small(seed)
    free = Policy("exact", objective=objective, budget_s=BUDGET_S)
    scores = evaluate(snapshot, batch, planned(snapshot, batch, free).assignment, free)
    # Between what the objective alone gives and what can be had, so that the bound bites.
    other = (
        Policy("exact", w_t=0.0, w_u=0.0, w_b=1.0, budget_s=BUDGET_S)
        if name == "B"
        else Policy("exact", budget_s=BUDGET_S)
    )
    if name == "T":
        other = Policy("exact", objective="T", budget_s=BUDGET_S)
    least = evaluate(snapshot, batch, planned(snapshot, batch, other).assignment, other)
    at = {n: (getattr(scores, n) + getattr(least, n)) / 2 for n in "TUBJ"}[name]
    policy = Policy(
        "exact",
        budget_s=BUDGET_S,
        objective=objective,
        bounds={name: at * (0.9999 if name == "U" else 1.0001)},
    )
    plan = planned(snapshot, batch, policy)
    reached = evaluate(snapshot, batch, plan.assignment, policy).order(policy)
    expected = best_by_enumeration(snapshot, batch, policy)
    assert reached[:2] == (0.0, 0.0)
    assert reached[2] == pytest.approx(expected[2], rel=1e-3)


@pytest.mark.parametrize("objective", ["T", "J", "makespan"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_where_not_all_fit_the_optimum_is_found(objective: Any, seed: int) -> None:
    snapshot, batch = small(seed, cpu=(900, 1900))
    policy = Policy("exact", objective=objective, budget_s=BUDGET_S)
    plan = planned(snapshot, batch, policy)
    ours = evaluate(snapshot, batch, plan.assignment, policy).order(policy)
    best = best_by_enumeration(snapshot, batch, policy, least=-1)
    assert best[0] > 0, "all fit: this instance shows nothing"
    assert ours[:2] == best[:2]
    assert ours[2] == pytest.approx(best[2], rel=1e-4)


def test_many_small_tasks_take_the_place_of_a_large_one() -> None:
    table, classes = AgentTable(), ClassTable()
    capacity = ResourceVector.of({"cpu": 1000})
    table.upsert("a0", capacity, frozenset({"echo"}), {}, placeable=True)
    large, tiny = (
        classes.intern(TaskClass("echo", ResourceVector.of({"cpu": cpu}))) for cpu in (1000, 200)
    )
    batch = TaskBatch.of(classes, [large] + 5 * [tiny])
    plan = planned(table.view().freeze(), batch, Policy("exact", budget_s=BUDGET_S))
    assert plan.assignment.tolist() == [-1, 0, 0, 0, 0, 0]


def test_bounds_that_no_plan_keeps_leave_the_start() -> None:
    snapshot, batch = small(3)
    policy = Policy("exact", objective="T", bounds={"B": 1e-9})
    assert (planned(snapshot, batch, policy).assignment >= 0).all()


def test_it_ends_while_the_solver_runs() -> None:
    """Too large to be solved; `stop` turns true from outside, once the solver is being watched."""
    snapshot, batch = small(4, tasks=300, agents=20)
    policy = Policy("exact", objective="T", budget_s=600.0)
    asked_by_watcher = threading.Event()

    def stop() -> bool:
        if threading.current_thread() is not threading.main_thread():
            asked_by_watcher.set()
        return asked_by_watcher.is_set()

    plan = get("exact").plan(snapshot, batch, policy, 0.0, np.random.default_rng(1), stop, 10**9)
    assert asked_by_watcher.is_set()
    assert len(plan.assignment) == 300
