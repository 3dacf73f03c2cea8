"""`greedy` against a plain transcription of the article's algorithm (section 5.1)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from muster.domain.resources import ResourceVector
from muster_scheduler.placement import AgentTable, ClassTable, Policy, TaskBatch, TaskClass, get


@dataclass(frozen=True)
class Amounts:
    cpu: int
    memory: int
    network: int

    def triple(self) -> list[int]:
        return [self.cpu, self.memory, self.network]

    def vector(self) -> ResourceVector:
        return ResourceVector.of({"cpu": self.cpu, "memory": self.memory, "network": self.network})


def reference(agents: list[Amounts], tasks: list[Amounts]) -> list[int]:
    """For each task in order: among the agents with enough left, the one whose total differs
    least from the demand; a later agent wins only by being strictly cheaper."""
    left = [agent.triple() for agent in agents]
    placements = []
    for task in tasks:
        wanted = task.triple()
        choice, lowest = -1, float("inf")
        for index, agent in enumerate(agents):
            if any(have < want for have, want in zip(left[index], wanted, strict=True)):
                continue
            cost = sum(abs(c - r) for c, r in zip(agent.triple(), wanted, strict=True))
            if cost < lowest:
                choice, lowest = index, cost
        if choice >= 0:
            left[choice] = [a - b for a, b in zip(left[choice], wanted, strict=True)]
        placements.append(choice)
    return placements


def placed_by_greedy(agents: list[Amounts], tasks: list[Amounts]) -> list[int]:
    table, classes = AgentTable(), ClassTable()
    for index, agent in enumerate(agents):
        table.upsert(f"a{index}", agent.vector(), frozenset({"echo"}), {}, placeable=True)
    ids = [classes.intern(TaskClass("echo", task.vector())) for task in tasks]
    plan = get("greedy").plan(
        table.view(),
        TaskBatch.of(classes, ids),
        Policy(),
        0.0,
        np.random.default_rng(0),
        lambda: False,
        0,
    )
    return [int(row) for row in plan.assignment]


def amounts(largest: int) -> st.SearchStrategy[Amounts]:
    number = st.integers(0, largest)
    return st.builds(Amounts, number, number, number)


@settings(max_examples=150, deadline=None)
@given(st.lists(amounts(30), max_size=8), st.lists(amounts(12), max_size=40))
def test_greedy_is_the_articles_algorithm_on_few_agents(
    agents: list[Amounts], tasks: list[Amounts]
) -> None:
    assert placed_by_greedy(agents, tasks) == reference(agents, tasks)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    agent_count=st.integers(20, 70),
    task_count=st.integers(0, 200),
    kinds=st.sampled_from([1, 3, 200]),
    magnitude=st.sampled_from([6, 1000, 2**52]),
)
def test_greedy_is_the_articles_algorithm_on_many_agents(
    seed: int, agent_count: int, task_count: int, kinds: int, magnitude: int
) -> None:
    rng = np.random.default_rng(seed)
    agents = [Amounts(*row) for row in rng.integers(0, magnitude, (agent_count, 3)).tolist()]
    kind_amounts = [Amounts(*row) for row in rng.integers(0, magnitude // 3, (kinds, 3)).tolist()]
    tasks = [kind_amounts[k] for k in rng.integers(0, kinds, task_count).tolist()]
    assert placed_by_greedy(agents, tasks) == reference(agents, tasks)


def test_greedy_sends_tiny_tasks_to_the_first_of_equal_agents() -> None:
    agents = [Amounts(100, 100, 100)] * 3
    assert placed_by_greedy(agents, [Amounts(1, 1, 1)] * 5) == [0] * 5


def test_costs_that_floats_cannot_tell_apart_are_told_apart() -> None:
    """Sums of three amounts pass 2**53, where neighbouring integers share one float."""
    top = 2**53 - 1
    agents = [Amounts(top, top, top), Amounts(top, top, top - 1)]
    assert placed_by_greedy(agents, [Amounts(1, 1, 1)]) == [1]
