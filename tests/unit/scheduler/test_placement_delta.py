"""Compiled deltas against the full evaluation in `objective`, and the strategies built on them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
from muster_scheduler.placement.compiled import delta
from muster_scheduler.placement.compiled.annealer import exact_energy
from muster_scheduler.placement.front import pareto_front
from muster_scheduler.placement.improvement import STARTS
from muster_scheduler.placement.problem import Frame, frame

IMPROVING = ("annealing", "genetic", "search", "swarm")
OBJECTIVES = ("J", "T", "makespan")


@dataclass
class Case:
    snapshot: Snapshot
    tasks: TaskBatch

    def framed(self, policy: Policy) -> Frame:
        framed = frame(self.snapshot, self.tasks, policy)
        assert framed is not None
        return framed


def case(seed: int, tasks: int = 12, agents: int = 4, room: int = 6) -> Case:
    """Unequal agents, some empty rows, running work; times and demands by agent now and then."""
    rng = np.random.default_rng(seed)
    table, classes = AgentTable(), ClassTable()
    for index in range(agents + 1):
        capacity = {
            "cpu": 1000 * int(rng.integers(1, 1 + room)),
            "memory": int(rng.integers(0, 4)) * 512,
        }
        skills = frozenset({"echo"} if rng.random() < 0.9 else {"other"})
        row = table.upsert(f"a{index}", ResourceVector.of(capacity), skills, {}, placeable=True)
        held = ResourceVector.of({"cpu": int(rng.integers(0, 400))})
        table.take(row, table.demand_row(held))
    table.remove("a0")
    ids = [
        classes.intern(
            TaskClass(
                "echo",
                ResourceVector.of(
                    {"cpu": int(rng.integers(0, 1200)), "memory": int(rng.integers(0, 2)) * 256}
                ),
            )
        )
        for _ in range(tasks)
    ]
    snapshot = table.view().freeze()
    rows = snapshot.row_count
    by_agent = None
    if rng.random() < 0.4:
        by_agent = rng.integers(0, 900, (tasks, rows, len(snapshot.names)))
        by_agent[:, :, 1:] = 0
    batch = TaskBatch(
        classes,
        np.array(ids, np.int32),
        rng.integers(0, 100, tasks).astype(np.int32),
        rng.uniform(0.1, 10, tasks),
        rng.uniform(0.1, 10, (tasks, rows)) if rng.random() < 0.7 else None,
        by_agent,
    )
    return Case(snapshot, batch)


def plan_of(strategy: str, found: Case, policy: Policy, *, seed: int = 0, steps: int = 12) -> Plan:
    return get(strategy).plan(
        found.snapshot,
        found.tasks,
        policy,
        0.0,
        np.random.default_rng(seed),
        lambda: False,
        steps,
    )


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), objective=st.sampled_from(OBJECTIVES))
def test_deltas_add_up_to_the_full_evaluation(seed: int, objective: str) -> None:
    """After each of many moves, swaps and removals: T, U, B, J, makespan, unplaced, loads."""
    found = case(seed)
    policy = Policy(objective=objective, w_t=0.5, w_u=0.2, w_b=0.3, penalty=3.0)  # type: ignore[arg-type]
    framed = found.framed(policy)
    problem = framed.problem
    rng = np.random.default_rng(seed)
    state = delta.new_state(problem, np.full(len(found.tasks), -1, np.int32))
    agents = len(framed.rows)
    top = 0.0
    for _ in range(40):
        i, b = int(rng.integers(len(found.tasks))), int(rng.integers(-1, agents))
        others = np.flatnonzero((state.place == b) & (np.arange(len(state.place)) != i))
        i2 = int(rng.choice(others)) if len(others) and rng.random() < 0.5 else -1
        if b == state.place[i]:
            continue
        _, sums = delta.trial(problem, state, i, b, i2)
        delta.apply(problem, state, i, b, i2, sums)
        top = max(top, sums.power)

        score = evaluate(found.snapshot, found.tasks, framed.to_rows(state.place), policy)
        assert math.isclose(sums.time, score.T, rel_tol=1e-9, abs_tol=1e-9)
        used = problem.used_before + sums.used
        assert math.isclose(used, score.U, rel_tol=1e-9, abs_tol=1e-12)
        assert math.isclose(sums.unplaced, score.unplaced, rel_tol=1e-9, abs_tol=1e-9)
        assert math.isclose(sums.weight, score.unplaced_weight, rel_tol=1e-9, abs_tol=1e-9)
        assert math.isclose(delta.imbalance(problem, sums), score.B, rel_tol=1e-6, abs_tol=1e-7)
        assert math.isclose(delta.makespan(state), score.makespan, rel_tol=1e-9, abs_tol=1e-9)
        wanted = {"J": score.J, "T": score.T, "makespan": score.makespan}[objective]
        energy = delta.energy(problem, sums, delta.makespan(state))
        energy -= problem.k_weight * sums.weight
        if objective == "J":
            energy += policy.w_u * (1.0 - problem.used_before)
        assert math.isclose(energy, wanted, rel_tol=1e-6, abs_tol=1e-6)
    fresh = delta.new_state(problem, state.place)
    assert np.allclose(fresh.sums[:6], state.sums[:6], rtol=1e-9, atol=1e-9)
    if objective == "makespan":
        # A power of 32 falls by many digits, and what is left keeps the rounding of the largest.
        assert math.isclose(fresh.sums[6], state.sums[6], rel_tol=1e-9, abs_tol=1e-12 * top)
    assert (fresh.used == state.used).all()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_energy_orders_plans_as_the_score_does(seed: int) -> None:
    found = case(seed)
    policy = Policy(bounds={"B": 0.2, "U": 0.4})
    framed = found.framed(policy)
    rng = np.random.default_rng(seed)
    ranked = []
    for _ in range(8):
        place = rng.integers(-1, len(framed.rows), len(found.tasks)).astype(np.int32)
        state = delta.new_state(framed.problem, place)
        energy = delta.energy(framed.problem, delta.sums_of(state), delta.makespan(state))
        score = evaluate(found.snapshot, found.tasks, framed.to_rows(place), policy)
        ranked.append((score.order(policy), energy))
    ranked.sort()
    for (lower, low), (higher, high) in pairwise(ranked):
        close = np.allclose(lower, higher, rtol=1e-4, atol=1e-6)
        assert close or low < high


@pytest.mark.parametrize("strategy", IMPROVING)
@pytest.mark.parametrize("objective", OBJECTIVES)
@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_improved_plans_fit_and_are_never_worse_than_the_starts(
    strategy: str, objective: str, seed: int
) -> None:
    found = case(seed, tasks=20)
    policy = Policy(strategy, objective=objective, measured=True)  # type: ignore[arg-type]
    plan = plan_of(strategy, found, policy)
    again = plan_of(strategy, found, policy)
    assert plan.assignment.tolist() == again.assignment.tolist()
    snapshot, tasks = found.snapshot, found.tasks
    used = snapshot.used.copy()
    touched = set()
    for i, row in enumerate(plan.assignment.tolist()):
        assert (row < 0) == (i in plan.reasons)
        if row < 0:
            continue
        assert tasks.classes.eligible(int(tasks.class_id[i]), snapshot)[row]
        if tasks.demand_by_agent is None:
            wanted = np.array(tasks.classes.demand(int(tasks.class_id[i]), snapshot).amounts)
        else:
            wanted = tasks.demand_by_agent[i, row]
        used[row] += wanted
        touched |= {(row, k) for k in np.flatnonzero(wanted).tolist()}
    assert all(used[row, k] <= snapshot.capacity[row, k] for row, k in touched)
    if tasks.demand_by_agent is None:
        mine = evaluate(snapshot, tasks, plan.assignment, policy).order(policy)
        for start in STARTS:
            theirs = plan_of(start, found, policy).assignment
            assert mine <= evaluate(snapshot, tasks, theirs, policy).order(policy)


@pytest.mark.parametrize("strategy", [*IMPROVING, "exact"])
def test_improving_finds_the_obvious(strategy: str) -> None:
    """Each task is fast on one agent of its own; no constructive strategy looks at times."""
    if strategy == "exact":
        pytest.importorskip("ortools")
    table, classes = AgentTable(), ClassTable()
    for index in range(4):
        table.upsert(f"a{index}", ResourceVector.of({"cpu": 1000}), frozenset({"echo"}), {}, True)
    task = classes.intern(TaskClass("echo", ResourceVector.of({"cpu": 500})))
    times = np.full((8, 4), 9.0)
    times[np.arange(8), [3, 1, 2, 0, 1, 3, 0, 2]] = 1.0
    batch = TaskBatch(classes, np.full(8, task, np.int32), np.zeros(8, np.int32), np.ones(8), times)
    found = Case(table.view().freeze(), batch)
    for objective in OBJECTIVES:
        policy = Policy(strategy, objective=objective, measured=True, budget_s=5.0)  # type: ignore[arg-type]
        plan = plan_of(strategy, found, policy, steps=60)
        assert plan.assignment.tolist() == [3, 1, 2, 0, 1, 3, 0, 2]
        if plan.lower_bound is not None:
            score = evaluate(found.snapshot, batch, plan.assignment, policy)
            value = {"J": score.J, "T": score.T, "makespan": score.makespan}[objective]
            assert plan.lower_bound <= value * (1 + 1e-6)


@pytest.mark.parametrize("strategy", IMPROVING)
def test_stop_is_asked_and_obeyed(strategy: str) -> None:
    found = case(3, tasks=30)
    asked = []

    def stop() -> bool:
        asked.append(True)
        return len(asked) > 20

    get(strategy).plan(
        found.snapshot,
        found.tasks,
        Policy(strategy),
        0.0,
        np.random.default_rng(0),
        stop,
        10**9,
    )
    assert 20 < len(asked) < 25


@pytest.mark.parametrize("strategy", IMPROVING)
@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_time_that_is_no_number_keeps_the_task_away(strategy: str, wrong: float) -> None:
    found = case(1, tasks=6)
    rows = found.snapshot.row_count
    times = np.ones((6, rows))
    times[2] = wrong
    batch = TaskBatch(
        found.tasks.classes,
        found.tasks.class_id,
        found.tasks.priority,
        found.tasks.estimate_s,
        times,
    )
    plan = plan_of(strategy, Case(found.snapshot, batch), Policy(strategy))
    assert plan.assignment[2] == -1


def test_times_of_nothing_are_no_division_by_zero() -> None:
    found = case(2, tasks=6)
    batch = TaskBatch(found.tasks.classes, found.tasks.class_id, found.tasks.priority, np.zeros(6))
    for strategy in IMPROVING:
        for objective in OBJECTIVES:
            policy = Policy(strategy, objective=objective, measured=True)  # type: ignore[arg-type]
            plan = plan_of(strategy, Case(found.snapshot, batch), policy, steps=4)
            assert math.isfinite(plan.J)


def test_no_point_of_the_front_is_better_than_another() -> None:
    found = case(5, tasks=24)
    points = pareto_front(
        found.snapshot,
        found.tasks,
        Policy(),
        0.0,
        np.random.default_rng(1),
        lambda: False,
        120,
    )
    assert points
    for lower, higher in pairwise(points):
        assert lower.T < higher.T
        assert lower.B > higher.B
    for point in points:
        score = evaluate(found.snapshot, found.tasks, point.assignment, Policy())
        assert (score.T, score.U, score.B) == (point.T, point.U, point.B)


def test_energy_of_an_overloaded_plan_is_infinite() -> None:
    found = case(4, room=1)
    framed = found.framed(Policy())
    place = np.zeros(len(found.tasks), np.int32)
    assert math.isinf(exact_energy(framed.problem, delta.new_state(framed.problem, place)))
