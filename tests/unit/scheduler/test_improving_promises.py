"""What improving strategies are for: they improve, keep to bounds, never lose work, and listen."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from muster.domain.resources import ResourceVector
from muster_scheduler.placement import (
    AgentTable,
    ClassTable,
    Policy,
    Score,
    Snapshot,
    TaskBatch,
    TaskClass,
    evaluate,
    get,
)
from muster_scheduler.placement.front import pareto_front
from muster_scheduler.placement.improvement import STARTS

IMPROVING = ("annealing", "genetic", "search", "swarm")
improving_strategy = pytest.mark.parametrize("strategy", IMPROVING)


def instance(
    seed: int, tasks: int = 60, agents: int = 6, fill: float = 0.7
) -> tuple[Snapshot, TaskBatch]:
    """Agents of unequal size and speed; `fill` of all room is asked for."""
    rng = np.random.default_rng(seed)
    table, classes = AgentTable(), ClassTable()
    sizes = rng.integers(16_000, 64_000, agents)
    for index, size in enumerate(sizes.tolist()):
        capacity = ResourceVector.of({"cpu": size})
        table.upsert(f"a{index}", capacity, frozenset({"echo"}), {}, placeable=True)
    wanted = rng.uniform(0.5, 1.5, tasks)
    amounts = (wanted / wanted.sum() * fill * sizes.sum()).astype(np.int64)
    ids = [classes.intern(TaskClass("echo", ResourceVector.of({"cpu": int(a)}))) for a in amounts]
    times = rng.uniform(10, 100, (tasks, 1)) / rng.uniform(0.5, 2.0, agents)
    times *= rng.uniform(0.8, 1.25, times.shape)
    priority = rng.integers(0, 101, tasks).astype(np.int32)
    batch = TaskBatch(classes, np.array(ids, np.int32), priority, times.min(axis=1), times)
    return table.view().freeze(), batch


def score_of(
    strategy: str,
    snapshot: Snapshot,
    batch: TaskBatch,
    policy: Policy,
    steps: int = 60,
    stop: Callable[[], bool] = lambda: False,
) -> Score:
    rng = np.random.default_rng(1)
    plan = get(strategy).plan(snapshot, batch, policy, 0.0, rng, stop, steps)
    used = np.zeros(snapshot.row_count, np.int64)
    for i, row in enumerate(plan.assignment.tolist()):
        if row >= 0:
            used[row] += batch.classes.demand(int(batch.class_id[i]), snapshot).amounts[0]
    assert (used <= snapshot.capacity[:, 0]).all()
    return evaluate(snapshot, batch, plan.assignment, policy)


@improving_strategy
@pytest.mark.parametrize("objective", ["J", "T", "makespan"])
def test_plans_become_much_better_than_the_best_start(strategy: str, objective: Any) -> None:
    """A move generator that draws nothing of use would leave the start, or our own greedy plan."""
    snapshot, batch = instance(4)
    policy = Policy(strategy, objective=objective, budget_s=1.0)
    begun = score_of(strategy, snapshot, batch, policy, steps=0).order(policy)
    starts = min(score_of(name, snapshot, batch, policy).order(policy)[2] for name in STARTS)
    least = float(batch.estimate_s.sum())
    # No plan is below this; what is above it is what there is to gain.
    floor = {"J": policy.w_t + policy.w_u * 0.3, "T": least, "makespan": least / 6}[objective]
    reached = score_of(strategy, snapshot, batch, policy).order(policy)
    assert begun[0] == reached[0] == 0.0
    assert reached[2] - floor < 0.5 * (starts - floor)
    assert reached[2] - floor < 0.7 * (begun[2] - floor)


@improving_strategy
@pytest.mark.parametrize("fill", [0.7, 1.3])
@pytest.mark.parametrize("bounds", [{"B": 0.02}, {"B": 0.0}, {"T": 2_000.0, "U": 0.6}, {"J": 0.6}])
def test_bounds_and_missing_room_leave_no_plan_worse_than_a_start(
    strategy: str, fill: float, bounds: dict[str, float]
) -> None:
    snapshot, batch = instance(5, tasks=40, agents=5, fill=fill)
    policy = Policy(strategy, bounds=bounds)
    reached = score_of(strategy, snapshot, batch, policy, steps=6).order(policy)
    for start in STARTS:
        assert reached <= score_of(start, snapshot, batch, policy).order(policy), start


@improving_strategy
def test_a_bound_that_can_be_kept_is_kept(strategy: str) -> None:
    snapshot, batch = instance(6)
    policy = Policy(strategy, objective="T", bounds={"B": 0.02})
    free = score_of(strategy, snapshot, batch, Policy(strategy, objective="T"))
    assert free.B > 0.02, "the bound would not bite"
    reached = score_of(strategy, snapshot, batch, policy)
    assert reached.unplaced == 0.0
    assert reached.B <= 0.02


@improving_strategy
@pytest.mark.parametrize("objective", ["J", "T", "makespan"])
def test_stop_is_asked_before_every_step(
    strategy: str, objective: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps are what strategies do between two questions, so a step must not become long.

    The compiled walks are what takes time: each call of one is at most so many draws.
    """
    from muster_scheduler.placement.compiled import annealer, chains

    asked = 0
    draws = 0
    longest = 0

    def stop() -> bool:
        nonlocal asked, draws, longest
        asked += 1
        longest = max(longest, draws)
        draws = 0
        return asked > 80

    def counted(walk: Callable[..., Any], at: int) -> Callable[..., Any]:
        def count(*arguments: Any) -> Any:
            nonlocal draws
            draws += arguments[at]
            return walk(*arguments)

        return count

    monkeypatch.setattr(annealer, "anneal", counted(annealer.anneal, 6))
    monkeypatch.setattr(chains, "walk", counted(chains.walk, 6))
    snapshot, batch = instance(7)
    policy = Policy(strategy, objective=objective, budget_s=1.0)
    score_of(strategy, snapshot, batch, policy, steps=10**9, stop=stop)
    assert 80 < asked < 90
    assert 0 < longest <= 2 * 8192


def test_the_front_of_a_small_instance_is_the_true_one() -> None:
    """By enumeration of all 3^7 plans."""
    snapshot, batch = instance(8, tasks=7, agents=3, fill=0.5)
    policy = Policy()
    demands = [batch.classes.demand(int(c), snapshot).amounts[0] for c in batch.class_id]
    plans = []
    for places in itertools.product(range(3), repeat=7):
        used = np.bincount(places, demands, minlength=3)
        if (used <= snapshot.capacity[:, 0]).all():
            score = evaluate(snapshot, batch, np.array(places, np.int32), policy)
            plans.append((score.T, score.B))
    true: list[tuple[float, float]] = []
    for total, imbalance in sorted(plans):
        if not true or imbalance < true[-1][1] - 1e-12:
            true.append((total, imbalance))
    rng = np.random.default_rng(1)
    points = pareto_front(snapshot, batch, policy, 0.0, rng, lambda: False, 600)
    found = [(point.T, point.B) for point in points]
    for point in found:
        assert any(point == pytest.approx(one) for one in plans)
    missed = [one for one in true if not any(one == pytest.approx(point) for point in found)]
    assert len(true) > 5
    # What a front of so many members must have: the ends, and most of what lies between.
    assert true[0] not in missed
    assert true[-1] not in missed
    assert len(missed) <= 0.2 * len(true)
