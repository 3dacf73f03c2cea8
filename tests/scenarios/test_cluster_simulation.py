"""The production cores through a thousand seeded storms; a failing seed shows what happened."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import subprocess
import sys

import pytest
from tests.scenarios.replay import main as replay
from tests.scenarios.sim_kernel import SimulationError
from tests.scenarios.sim_tally import LEAST_PER_1000, Coverage
from tests.scenarios.sim_world import World

SEEDS = 1_000
# Small enough that two workers share them evenly, large enough that each kind of fault happens.
AT_ONCE = 125
MOST_SEEDS = 60
# What the page of `make chaos` keeps of the end, see benchmarks/oracle/schedules.py.
PAGE_LINES = 40
TRACE_LINES = 20
# What is rare in mixed storms, and what brings it about.
RARE = {
    "runtime killed": ("agent QUARANTINED", "agent PAROLE"),
    "many agents cut off": ("mass failure of the cluster", "mass failure over"),
    "operator's restart": ("agent RESTARTING",),
    "agent hung": ("task taken back unstarted",),
}


@pytest.mark.parametrize("first", range(0, SEEDS, AT_ONCE))
def test_everything_that_was_submitted_ends_whatever_happens(first: int) -> None:
    """And the storms are storms: what they are to meet, they meet."""
    covered = Coverage()
    for seed in range(first, first + AT_ONCE):
        world = World(seed)
        world.run()
        covered.add(world.kernel.tally, world.kernel.steps)
    print(covered.table())
    assert not covered.missing()


@pytest.mark.parametrize("storm", RARE)
def test_what_is_rare_happens_where_nothing_else_does(storm: str) -> None:
    covered = Coverage()
    for seed in range(MOST_SEEDS):
        world = World(seed, storm=storm)
        world.run()
        covered.add(world.kernel.tally, world.kernel.steps)
        if all(covered.within[kind] for kind in RARE[storm]):
            return
    pytest.fail(covered.table())


def test_a_kind_that_does_not_happen_is_noticed() -> None:
    world = World(3)
    world.run()
    covered = Coverage()
    for _ in range(1_000):
        covered.add(world.kernel.tally, world.kernel.steps)
    missing = covered.missing()
    assert "task SUCCEEDED" not in missing
    assert set(missing) == LEAST_PER_1000.keys() - covered.within.keys() != set()
    assert all(kind in world.kernel.tally for kind in LEAST_PER_1000.keys() - missing.keys())


def test_a_seed_is_the_same_run_in_another_process() -> None:
    """Nothing but the seed decides: no clock, no order of a set, no address."""
    seen = set()
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-m", "tests.scenarios.replay", "11"],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            check=True,
            timeout=100,
        )
        seen.add(hashlib.sha256(done.stdout).hexdigest())
    assert len(seen) == 1


def test_a_failure_says_how_to_see_it_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise SimulationError("invariant 0: broken on purpose")

    monkeypatch.setattr("tests.scenarios.sim_books.Books.started", broken)
    with pytest.raises(SimulationError, match=r"replay 7\Z") as failure:
        World(7).run()
    assert "leads with term 1" in str(failure.value)
    assert replay(["7"]) == 1
    shown = capsys.readouterr().out
    assert "leads with term 1" in shown
    assert "invariant 0: broken on purpose" in shown
    assert replay(["--schedules", "3", "--first-seed", "6"]) == 1
    shown = capsys.readouterr().out
    assert "invariant 0: broken on purpose" in shown
    assert "3 schedules" in shown
    assert "failed: 6 7 8" in shown
    kept = shown.splitlines()[-PAGE_LINES:]
    assert sum(bool(re.match(r" *\d+\.\d{3} \S", line)) for line in kept) >= TRACE_LINES
    assert any(line.endswith("replay 6") for line in kept)


def test_a_failure_in_a_storm_says_how_to_see_that_storm_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise SimulationError("invariant 0: broken on purpose")

    monkeypatch.setattr("tests.scenarios.sim_books.Books.started", broken)
    world = World(7, storm="operator's restart", requests=9)
    with pytest.raises(SimulationError) as failure:
        world.run()
    command = shlex.split(str(failure.value).rsplit("all of it: ", 1)[1])
    assert command[:3] == ["python", "-m", "tests.scenarios.replay"]
    assert replay(command[3:]) == 1
    assert capsys.readouterr().out.startswith(world.kernel.trace(None) + "\n")
    assert replay(["7"]) == 1
    assert not capsys.readouterr().out.startswith(world.kernel.trace(None) + "\n")


def test_an_unknown_storm_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        replay(["7", "--storm", "locusts"])
    assert "storm 'locusts': must be one of ['scheduler killed'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        replay(["--schedules", "2", "--storm", "agent hung"])
    assert "--storm and --requests are of one schedule" in capsys.readouterr().err
