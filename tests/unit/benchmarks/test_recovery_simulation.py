"""The simulation behind the recovery figures: fair, repeatable, and independent of the planner."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import benchmarks.recovery_simulation as simulation
import muster_scheduler.recovery as planner
from benchmarks.recovery import point, summary, table
from benchmarks.recovery_simulation import Simulation, draw
from muster_scheduler.recovery import POLICIES, RecoverySettings

SETTINGS = RecoverySettings(restarts_per_hour=60, horizon_s=60, restart_deadline_s=30)


@pytest.mark.parametrize("policy", [None, *POLICIES])
def test_every_task_ends_once_and_a_tape_repeats(policy: str | None) -> None:
    tape = draw(7, 0.5, 0.5, 200.0, mtbf_s=150.0)
    first, again = (Simulation(tape, policy, SETTINGS) for _ in range(2))
    assert first.run() == again.run()
    assert all(task.done for task in first.tasks)
    assert not any(agent.held for agent in first.agents)
    assert min(first.response_s) > 0
    assert (first.outages > 5) == (policy is not None)


def test_without_load_a_task_takes_its_work() -> None:
    tape = draw(3, 0.5, 0.02, 2_000.0)
    alone = Simulation(tape, None, SETTINGS)
    alone.run()
    fastest = max(speed for _, _, speed in tape.agents)
    slowest = min(speed for _, _, speed in tape.agents)
    for response, (_, work, _, _) in zip(alone.response_s, tape.tasks, strict=True):
        assert work / fastest - 1e-9 <= response <= work / slowest + 1e-9


def test_policies_meet_the_same_arrivals_and_failures() -> None:
    assert draw(5, 0.5, 0.5, 100.0) == draw(5, 0.5, 0.5, 100.0)
    assert draw(5, 0.5, 0.5, 100.0) != draw(6, 0.5, 0.5, 100.0)


def test_the_simulation_sees_no_table_of_the_planner() -> None:
    """It uses what the leader would: nothing below the package's own names."""
    tree = ast.parse(Path(simulation.__file__).read_text())
    taken = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("muster")
        for alias in node.names
        if node.module == "muster_scheduler.recovery"
    }
    modules = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module}
    assert {m for m in modules if m.startswith("muster")} == {"muster_scheduler.recovery"}
    assert taken <= set(planner.__all__)


def test_the_report_compares_with_the_best_of_the_others() -> None:
    runs = [
        {"planned": 1.0, "fixed": 2.0, "always_migrate": 0.5}
        | {"always_restart": 4.0, "wait_until_cost": 3.0, "outages": 1.0, "tasks": 9.0}
        | {"response_s": 20.0}
    ] * 2
    row = point(0.5, 0.3, "default", [1, 2], runs)
    total = summary([row])
    assert total["better_than_fixed_mean"] == 0.5
    assert total["worse_than_best_beyond_noise"] == [[0.5, 0.3]]
    assert "`always_migrate`: +0.50 ± 0.00" in table([row])
