"""The leader's core through hundreds of seeded storms; a failing seed shows what happened."""

from __future__ import annotations

from collections import Counter

import pytest
from tests.scenarios.sim_world import World

from muster.domain.task_lifecycle import TaskState

SEEDS = range(200)
AT_ONCE = 40


@pytest.mark.parametrize("first", range(SEEDS.start, SEEDS.stop, AT_ONCE))
def test_everything_that_was_submitted_ends_whatever_happens(first: int) -> None:
    for seed in range(first, first + AT_ONCE):
        World(seed).run()


def test_the_same_seed_is_the_same_run() -> None:
    one, other = World(5), World(5)
    one.run()
    other.run()
    assert one.kernel.trace() == other.kernel.trace()
    assert one.kernel.steps == other.kernel.steps


def test_the_storms_are_storms() -> None:
    """Many of the runs meet what they are meant to meet."""
    ends: Counter[TaskState] = Counter()
    leaders = attempts = 0
    for seed in range(12):
        world = World(seed)
        world.run()
        leaders += len(world.leaders)
        for _, status in world.store.tasks.values():
            ends[status.state] += 1
            attempts += status.attempt
    assert set(ends) >= {TaskState.SUCCEEDED, TaskState.FAILED, TaskState.CANCELLED}
    assert leaders > 15
    assert attempts > 1.2 * ends.total()
