"""The production cores through a thousand seeded storms; a failing seed shows what happened."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections import Counter

import pytest
from tests.scenarios.replay import main as replay
from tests.scenarios.sim_kernel import SimulationError
from tests.scenarios.sim_world import World

from muster.domain.task_lifecycle import TaskState

SEEDS = 1_000
# Small enough that two workers share them evenly.
AT_ONCE = 25


@pytest.mark.parametrize("first", range(0, SEEDS, AT_ONCE))
def test_everything_that_was_submitted_ends_whatever_happens(first: int) -> None:
    for seed in range(first, first + AT_ONCE):
        World(seed).run()


def test_a_seed_is_the_same_run_in_another_process() -> None:
    """Nothing but the seed decides: no clock, no order of a set, no address."""
    seen = set()
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-m", "tests.scenarios.replay", "--seed", "11"],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            check=True,
            timeout=100,
        )
        seen.add(hashlib.sha256(done.stdout).hexdigest())
    assert len(seen) == 1


def test_the_storms_are_storms() -> None:
    """Many of the runs meet what they are meant to meet."""
    ends: Counter[TaskState] = Counter()
    leaders = attempts = 0
    for seed in range(2_000, 2_030):
        world = World(seed)
        world.run()
        leaders += len(world.leaders)
        for _, status in world.store.rows():
            ends[status.state] += 1
            attempts += status.attempt
    assert set(ends) == set(TaskState) - {TaskState.PENDING, TaskState.ASSIGNED, TaskState.RUNNING}
    assert leaders > 35
    assert attempts > 1.2 * ends.total()


def test_a_failure_says_how_to_see_it_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise SimulationError("invariant 0: broken on purpose")

    monkeypatch.setattr("tests.scenarios.sim_books.Books.started", broken)
    with pytest.raises(SimulationError, match=r"--seed 7\Z") as failure:
        World(7).run()
    assert "leads with term 1" in str(failure.value)
    assert replay(["--seed", "7"]) == 1
    shown = capsys.readouterr().out
    assert "leads with term 1" in shown
    assert "invariant 0: broken on purpose" in shown
