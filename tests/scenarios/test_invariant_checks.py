"""Each check of the simulation can fail: what it guards is broken on purpose, and it says so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.scenarios.sim_breakages import BREAKAGES, Breakage
from tests.scenarios.sim_kernel import SimulationError
from tests.scenarios.sim_world import World

ROOT = Path(__file__).parents[2]
DECISION = ROOT / "docs" / "adr" / "0025-simulation.md"
# Nothing in the simulation could break these: see the decision's table for where they are tested.
ELSEWHERE = {15, 16, 20}
# All are found within far fewer; the numbers move whenever a core changes.
MOST_SEEDS = 120


@pytest.mark.parametrize("breakage", BREAKAGES, ids=str)
def test_a_broken_core_is_found_out(breakage: Breakage, monkeypatch: pytest.MonkeyPatch) -> None:
    breakage.apply(monkeypatch)
    said: list[str] = []
    for seed in range(MOST_SEEDS):
        try:
            World(seed, storm=breakage.storm).run()
        except SimulationError as error:
            said.append(str(error).split("\n", 1)[0])
            if breakage.says in said[-1]:
                return
    pytest.fail(f"{breakage.what}, and nobody says {breakage.says!r}: {said[:5]}")


def test_every_invariant_of_the_architecture_is_checked_or_said_to_be_checked_elsewhere() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    section = text.split("## Invariants", 1)[1].split("\n## ", 1)[0]
    numbered = {int(found) for found in re.findall(r"^(\d+)\. \*\*", section, re.MULTILINE)}
    broken = {one.number for one in BREAKAGES} - {0}
    assert broken | ELSEWHERE == numbered
    assert not broken & ELSEWHERE
    rows = re.findall(r"^\| (\d+) \|", DECISION.read_text(), re.MULTILINE)
    assert sorted(map(int, rows)) == sorted(numbered)
