"""Sick agents in placement: every strategy that builds plans task by task takes them last or less,
and health that is equal everywhere changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muster.domain.resources import ResourceVector
from muster_scheduler.placement import fast, strategy
from muster_scheduler.placement.classes import ClassTable, TaskBatch
from muster_scheduler.placement.plan import Policy
from muster_scheduler.placement.shares import WELL
from muster_scheduler.placement.snapshot import AgentTable

NAMES = ("greedy", "first_fit", "best_fit", "dot_product", "worst_fit")


def plan(name: str, healths: list[float], tasks: int, seed: int) -> list[int]:
    """Rows of alike tasks on agents of random size and this health."""
    rng = np.random.default_rng(seed)
    table, classes = AgentTable(), ClassTable()
    for number, health in enumerate(healths):
        capacity = {"cpu": int(rng.integers(1, 4)) * 1_000, "memory": 1 << 30, "slots": 64}
        vector = ResourceVector.of(capacity)
        table.upsert(f"a{number}", vector, frozenset({"echo"}), {}, placeable=True, health=health)
    demand = ResourceVector.of({"cpu": 1_000, "slots": 1})
    class_id = classes.id_of("echo", demand, (), frozenset(), ())
    batch = TaskBatch.of(
        classes, [class_id] * tasks, priority=[50] * tasks, estimate_s=[1.0] * tasks
    )
    made = strategy.get(name).plan(
        table.view(), batch, Policy(name), 0.0, np.random.default_rng(1), lambda: False, 0
    )
    rows: list[int] = made.assignment.tolist()
    return rows


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, deadline=None)
@given(
    healths=st.lists(st.sampled_from([1.0, WELL, 0.69, 0.3]), min_size=1, max_size=30),
    tasks=st.integers(1, 100),
    seed=st.integers(0, 1_000),
)
def test_the_sick_come_last(name: str, healths: list[float], tasks: int, seed: int) -> None:
    rows = plan(name, healths, tasks, seed)
    if name == "worst_fit":
        # It weighs; the first task goes to a sick one only where the well ones are smaller.
        return
    placed = [row for row in rows if row >= 0]
    sick = [healths[row] < WELL for row in placed]
    # Tasks are alike, so once no well one fits none fits any more.
    assert sick == sorted(sick)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, deadline=None)
@given(
    agents=st.integers(1, 30),
    health=st.sampled_from([WELL, 0.5, 0.1]),
    tasks=st.integers(1, 100),
    seed=st.integers(0, 1_000),
)
def test_equal_health_changes_nothing(
    name: str, agents: int, health: float, tasks: int, seed: int
) -> None:
    well = plan(name, [1.0] * agents, tasks, seed)
    assert plan(name, [health] * agents, tasks, seed) == well


@pytest.mark.parametrize("name", NAMES)
def test_of_equal_agents_the_well_one_is_taken(name: str) -> None:
    rows = plan(name, [0.6, 1.0], 1, 7)
    assert rows == [1]


@pytest.mark.parametrize("name", NAMES)
def test_the_compiled_loops_agree(name: str) -> None:
    rng = np.random.default_rng(3)
    healths = [float(rng.choice([1.0, 0.6, 0.3])) for _ in range(120)]
    fast.load()
    # Enough tasks for the loops, and so few that they are not used.
    assert plan(name, healths, 100, 9)[:40] == plan(name, healths, 40, 9)
