"""T, U, B and J against the article's formulas and against numbers worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muster.domain.resources import ResourceVector
from muster_scheduler.placement import (
    AgentTable,
    ClassTable,
    Policy,
    TaskBatch,
    TaskClass,
    evaluate,
)
from muster_scheduler.placement.objective import loads


def close(value: float, expected: float, rel: float = 1e-12, floor: float = 0.0) -> bool:
    return math.isclose(value, expected, rel_tol=rel, abs_tol=floor)


def cluster(*capacities: dict[str, int]) -> AgentTable:
    table = AgentTable()
    for index, capacity in enumerate(capacities):
        table.upsert(f"a{index}", ResourceVector.of(capacity), frozenset(), {}, placeable=True)
    return table


def batch(
    demands: list[dict[str, int]],
    estimate_s: list[float] | None = None,
    priority: list[int] | None = None,
) -> TaskBatch:
    classes = ClassTable()
    ids = [classes.intern(TaskClass("echo", ResourceVector.of(d))) for d in demands]
    return TaskBatch.of(classes, ids, priority, estimate_s)


def rows(*assignment: int) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    return np.array(assignment, np.int32)


@settings(max_examples=100, deadline=None)
@given(
    agents=st.integers(1, 12),
    capacity=st.integers(1, 10**12),
    data=st.data(),
)
def test_equal_agents_and_one_resource_give_the_articles_formulas(
    agents: int, capacity: int, data: st.DataObject
) -> None:
    """T = Σ x t, U = Σ x r / (M R), B = sqrt(Σ (L_j - mean)² / M), spelt out with fsum."""
    task = st.tuples(st.integers(0, agents - 1), st.integers(1, capacity), st.floats(0.001, 1e4))
    tasks = data.draw(st.lists(task, max_size=30))
    table = cluster(*[{"cpu": capacity}] * agents)
    score = evaluate(
        table.view(),
        batch([{"cpu": r} for _, r, _ in tasks], [t for _, _, t in tasks]),
        rows(*[j for j, _, _ in tasks]),
        Policy(),
    )
    loads = [sum(r for j, r, _ in tasks if j == agent) / capacity for agent in range(agents)]
    mean = math.fsum(loads) / agents
    imbalance = math.sqrt(math.fsum((load - mean) ** 2 for load in loads) / agents)
    utilisation = sum(r for _, r, _ in tasks) / (agents * capacity)
    assert close(score.T, math.fsum(t for _, _, t in tasks))
    assert close(score.U, utilisation)
    assert close(score.B, imbalance, floor=1e-12)
    expected = 0.4 * bool(tasks) + 0.3 * (1 - utilisation) + 0.3 * imbalance
    assert close(score.J, expected)


def test_unequal_agents_several_resources_and_running_work() -> None:
    table = cluster({"cpu": 10, "memory": 100}, {"cpu": 30})
    table.take(0, table.demand_row(ResourceVector.of({"memory": 50})))
    tasks = batch([{"cpu": 5}, {"cpu": 15}, {"cpu": 20}], [1.0, 2.0, 4.0], [0, 0, 9])
    score = evaluate(table.view(), tasks, rows(0, 1, -1), Policy())
    # cpu 20 of 40, memory 50 of 100; both agents' dominant share is a half.
    assert (score.T, score.U, score.B) == (3.0, 0.5, 0.0)
    assert score.makespan == 2.0
    # The unplaced task wants half the cluster's cpu and none of its memory.
    assert (score.unplaced, score.unplaced_weight) == (0.25, 10.0)
    assert close(score.J, 0.4 * 3 / 7 + 0.3 * 0.5 + 10 * 0.25)


def test_agents_that_are_gone_do_not_count() -> None:
    table = cluster({"cpu": 10}, {"cpu": 10}, {"cpu": 10})
    table.remove("a1")
    score = evaluate(table.view(), batch([{"cpu": 10}]), rows(2), Policy())
    assert (score.U, score.B) == (0.5, 0.5)


def test_response_times_may_differ_by_agent() -> None:
    table = cluster({"cpu": 10}, {"cpu": 10})
    tasks = replace(batch([{"cpu": 1}] * 2), response_s=np.array([[1.0, 3.0], [2.0, 8.0]]))
    score = evaluate(table.view(), tasks, rows(1, 1), Policy(w_t=1, w_u=0, w_b=0))
    assert (score.T, score.makespan) == (11.0, 11.0)
    assert close(score.J, 11 / 3)
    spread = evaluate(table.view(), tasks, rows(1, 0), Policy())
    assert (spread.T, spread.makespan) == (5.0, 3.0)


@settings(max_examples=60, deadline=None)
@given(
    agents=st.integers(1, 8),
    capacity=st.integers(1, 10**9),
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(0, 25),
)
def test_demands_and_times_by_agent_give_the_articles_formulas(
    agents: int, capacity: int, seed: int, count: int
) -> None:
    """As above with the article's r_ij and t_ij, and with tasks that have no place."""
    rng = np.random.default_rng(seed)
    table = cluster(*[{"cpu": capacity}] * agents)
    view = table.view()
    times = rng.uniform(0.001, 1e4, (count, agents))
    demands = np.zeros((count, agents, len(view.names)), np.int64)
    demands[:, :, 0] = rng.integers(1, capacity + 1, (count, agents))
    assignment = rng.integers(-1, agents, count).astype(np.int32)
    tasks = replace(batch([{}] * count), response_s=times, demand_by_agent=demands)
    score = evaluate(view, tasks, assignment, Policy())
    pairs = [(i, j) for i, j in enumerate(assignment.tolist()) if j >= 0]
    on = [[i for i, j in pairs if j == agent] for agent in range(agents)]
    shares = [sum(int(demands[i, j, 0]) for i in on[j]) / capacity for j in range(agents)]
    mean = math.fsum(shares) / agents
    total = math.fsum(times[i, j] for i, j in pairs)
    utilisation = sum(int(demands[i, j, 0]) for i, j in pairs) / (agents * capacity)
    imbalance = math.sqrt(math.fsum((share - mean) ** 2 for share in shares) / agents)
    left = sum(int(demands[i, :, 0].min()) for i in range(count) if assignment[i] < 0)
    unplaced = left / (agents * capacity)
    assert close(score.T, total)
    assert close(score.U, utilisation)
    assert close(score.B, imbalance, floor=1e-12)
    assert close(score.makespan, max(math.fsum(times[i, j] for i in on[j]) for j in range(agents)))
    assert close(score.unplaced, unplaced)
    reference = math.fsum(times.min(axis=1).tolist())
    expected = 0.4 * (total / reference if count else 0.0) + 0.3 * (1 - utilisation)
    assert close(score.J, expected + 0.3 * imbalance + 10 * unplaced)
    assert np.allclose(loads(view, tasks, assignment), shares, rtol=1e-12, atol=0)


def test_loads_count_what_runs_and_are_0_where_no_agent_is() -> None:
    table = cluster({"cpu": 10, "memory": 100}, {"cpu": 30}, {"cpu": 5})
    table.remove("a2")
    table.take(0, table.demand_row(ResourceVector.of({"memory": 80})))
    tasks = batch([{"cpu": 5}, {"cpu": 15}, {"cpu": 20}])
    assert loads(table.view(), tasks, rows(0, 1, -1)).tolist() == [0.8, 0.5, 0.0]


def test_nothing_at_all_has_a_score() -> None:
    score = evaluate(AgentTable().view(), batch([]), rows(), Policy())
    assert (score.T, score.U, score.B, score.makespan) == (0.0, 0.0, 0.0, 0.0)
    assert close(score.J, 0.3)
    alone = evaluate(AgentTable().view(), batch([{"cpu": 1}]), rows(-1), Policy())
    assert alone.unplaced_weight == 1.0


def test_plans_are_ordered_by_unplaced_work_then_bounds_then_the_objective() -> None:
    table = cluster({"cpu": 10}, {"cpu": 10})
    tasks = batch([{"cpu": 5}, {"cpu": 5}], [1.0, 5.0], [0, 50])
    policy = Policy()
    together, apart, important, minor, none = (
        evaluate(table.view(), tasks, rows(*assignment), policy)
        for assignment in ((0, 0), (0, 1), (-1, 0), (0, -1), (-1, -1))
    )
    ranked = sorted([none, minor, important, together, apart], key=lambda s: s.order(policy))
    assert ranked == [apart, together, important, minor, none]
    assert together.order(Policy(objective="T")) == apart.order(Policy(objective="T"))
    assert together.order(Policy(objective="makespan")) > apart.order(Policy(objective="makespan"))
    bounded = Policy(bounds={"B": 0.1, "U": 0.5}, w_t=1, w_u=0, w_b=0)
    assert together.order(bounded)[1] == pytest.approx(0.4)
    assert apart.order(bounded)[1] == 0.0
    assert apart.order(Policy(bounds={"U": 0.75}))[1] == pytest.approx(0.25)
