"""T, U and B of the running cluster."""

from __future__ import annotations

import random

import numpy as np
import pytest

from muster.domain.resources import ResourceVector
from muster.domain.task import TaskSpec, TaskStatus
from muster_scheduler.core.records import Now, OpenTask
from muster_scheduler.core.running import RunningObjective
from muster_scheduler.core.state import ClusterState
from muster_scheduler.placement.plan import Policy

NOW = Now(1_000, 50_000, 1)


def cluster(agents: int) -> ClusterState:
    state = ClusterState(Policy(), np.random.default_rng(1), random.random)
    for number in range(agents):
        name = state.entry(f"a{number}", NOW).id  # type: ignore[arg-type]
        capacity = ResourceVector.of({"cpu": 1000, "slots": 4})
        state.table.upsert(name, capacity, frozenset({"echo"}), {}, True)
    return state


def put(state: ClusterState, number: int, agent: str, estimate_ms: int, since_ms: int = 0) -> None:
    resources = ResourceVector.of({"cpu": 250})
    spec = TaskSpec(f"{number:026d}", "echo", resources=resources, estimate_ms=estimate_ms)  # type: ignore[arg-type]
    status = TaskStatus(started_clock_ms=since_ms)
    task = OpenTask(spec, status, None, stored=True)
    task.started = since_ms > 0
    state.classify(task)
    state.charge(task, state.agents[agent])  # type: ignore[index]


def measured(state: ClusterState) -> tuple[tuple[float, float, float], int]:
    objective, steps = RunningObjective(), 1
    assert not objective.step(state, NOW), "no round was begun"
    objective.begin(state)
    while not objective.step(state, NOW):
        steps += 1
    assert not objective.step(state, NOW), "the round is over"
    return objective.now, steps


def test_t_is_what_is_left_and_u_and_b_are_of_the_agents() -> None:
    state = cluster(2)
    put(state, 1, "a0", estimate_ms=8_000)
    put(state, 2, "a0", estimate_ms=8_000, since_ms=45_000)
    put(state, 3, "a0", estimate_ms=2_000, since_ms=40_000)
    t, u, b = measured(state)[0]
    assert t == pytest.approx(8.0 + 3.0 + 0.0)
    # 750 of 2,000 millicores and 3 of 8 slots; loads 0.75 and 0.
    assert u == pytest.approx(0.375)
    assert b == pytest.approx(0.375)


def test_an_empty_cluster_has_figures_too() -> None:
    assert measured(cluster(0)) == ((0.0, 0.0, 0.0), 1)


def test_a_large_cluster_is_looked_at_in_several_steps() -> None:
    state = cluster(2_500)
    put(state, 1, "a0", estimate_ms=1_000)
    put(state, 2, "a2499", estimate_ms=2_000)
    (t, _, _), steps = measured(state)
    assert t == pytest.approx(3.0)
    assert steps == 5
