"""`plan`: what is asked of the gateway, and what is shown of its answer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.unit.cli.conftest import Muster, answer, problem

PLAN = {
    "strategy": "search",
    "objective": "J",
    "seed": 7,
    "budget": "2s",
    "elapsed_s": 1.25,
    "T": 12.0,
    "U": 0.5,
    "B": 0.125,
    "J": 0.75,
    "unplaced": 2,
    "lower_bound": 0.5,
    "queued": 3,
    "placements": [
        {"agent": "agent-1", "devices": {"gpu": [1]}},
        {"agent": "agent-2"},
        {"agent": "agent-1", "devices": {"gpu": [0]}},
        {"agent": None, "reason": 0},
        {"agent": None, "reason": 0},
    ],
    "reasons": [
        {"text": "0 of 2 agents fit (skill: 2)", "tasks": 2, "agents": 2, "excluded": {"skill": 2}}
    ],
    "front": None,
}


@pytest.fixture
def tasks(tmp_path: Path) -> str:
    file = tmp_path / "tasks.jsonl"
    file.write_text('{"skill": "echo", "input": 1}\n\n{"skill": "vision", "priority": 9}\n')
    return str(file)


def test_a_plan_is_asked_for_and_shown(muster: Muster, tasks: str) -> None:
    muster.on("POST /v1/plans", answer(PLAN))
    ran = muster(
        *("plan", "--file", tasks, "--strategy", "search", "--budget", "2s", "--seed", "7"),
        *("--weight", "t=1", "--weight", "b=0.5", "--bound", "B=0.25", "--max-steps", "9"),
    )
    assert ran.code == 0
    assert json.loads(muster.requests[0].content) == {
        "tasks": [{"skill": "echo", "input": 1}, {"skill": "vision", "priority": 9}],
        "strategy": "search",
        "weights": {"t": 1.0, "b": 0.5},
        "bounds": {"B": 0.25},
        "budget": "2s",
        "seed": 7,
        "max_steps": 9,
    }
    lines = [line.split() for line in ran.out.splitlines()]
    assert ["placed", "3", "of", "5"] in lines
    assert ["bound", "J", "is", "at", "least", "0.5"] in lines
    assert ["waiting", "3", "other", "tasks"] in lines
    assert ["agent-1", "2", "gpu[0]", "gpu[1]"] in lines
    assert ["agent-2", "1"] in lines
    assert "2         0 of 2 agents fit (skill: 2)" in ran.out


def test_a_front_is_a_table_of_points(muster: Muster, tasks: str) -> None:
    point = {"T": 10.0, "U": 0.5, "B": 0.25, "J": 0.75, "unplaced": 0, "agents": ["agent-1"]}
    muster.on("POST /v1/plans", answer({**PLAN, "front": [point]}))
    ran = muster("plan", "--file", tasks, "--front")
    assert json.loads(muster.requests[0].content)["front"] is True
    assert ran.out.splitlines()[-1].split() == ["10", "0.5000", "0.2500", "0.75", "0"]


def test_the_json_is_the_gateways(muster: Muster, tasks: str) -> None:
    muster.on("POST /v1/plans", answer(PLAN))
    assert muster("plan", "--file", tasks, "--json").json == PLAN


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--weight", "t"), "--weight 't'"),
        (("--bound", "B=x"), "--bound 'B=x'"),
        (("--budget", "soon"), "--budget"),
    ],
)
def test_what_is_refused_here(
    muster: Muster, tasks: str, options: tuple[str, ...], said: str
) -> None:
    ran = muster("plan", "--file", tasks, *options)
    assert ran.code == 2
    assert said in ran.err
    assert not muster.requests


def test_what_the_gateway_refuses_is_told(muster: Muster, tasks: str) -> None:
    said = "strategy: 'best' is not accepted; must be one of annealing"
    muster.on("POST /v1/plans", problem(422, said, field="strategy"))
    ran = muster("plan", "--file", tasks, "--strategy", "best")
    assert ran.code != 0
    assert "must be one of" in ran.err


def test_a_file_is_needed_and_must_hold_tasks(muster: Muster, tmp_path: Path) -> None:
    assert muster("plan").code == 2
    empty = tmp_path / "none.jsonl"
    empty.write_text("\n")
    ran = muster("plan", "--file", str(empty))
    assert (ran.code, "holds no task" in ran.err) == (2, True)
