"""Plans and explanations against a real cluster: what is said would happen does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from tests.e2e.test_up_cli import Cli, eventually

HELD = ("--memory", "400Mi", "--estimate", "1h")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    cli = Cli(tmp_path_factory.mktemp("plans"))
    try:
        cli.up("--agents", "2", "--agent-memory", "512Mi")
        yield cli
    finally:
        cli.run("down", "--state-dir", str(cli.state))


def planned(cluster: Cli, *options: str) -> dict[str, Any]:
    tasks = [{"skill": "echo", "input": n, "resources": {"memory": "200Mi"}} for n in range(3)]
    (cluster.folder / "plan.jsonl").write_text("\n".join(json.dumps(task) for task in tasks))
    answer: dict[str, Any] = cluster.json("plan", "--file", "plan.jsonl", *options)
    return answer


def states(cluster: Cli, *idents: str) -> set[str]:
    return {cluster.json("task", ident)["state"] for ident in idents}


def test_a_plan_before_and_after_and_the_change_that_helps(cluster: Cli) -> None:
    stored = cluster.json("tasks", "--all")
    before = planned(cluster)
    assert {one["agent"] for one in before["placements"]} == {"agent-1", "agent-2"}
    assert (before["unplaced"], before["strategy"]) == (0, "worst_fit")
    assert cluster.json("tasks", "--all") == stored, "a plan stores nothing"
    front = planned(cluster, "--front", "--max-steps", "5", "--budget", "60s")["front"]
    assert front
    assert all(len(point["agents"]) == 3 for point in front)

    task_input = '{"seconds": 3600}'
    held = [cluster.ok("submit", "sleep", "-i", task_input, *HELD).strip() for _ in range(2)]
    eventually(lambda: states(cluster, *held) == {"RUNNING"})
    after = planned(cluster)
    assert after["unplaced"] == 3
    assert "memory short by 88Mi" in after["reasons"][0]["text"]
    shown = cluster.ok("plan", "--file", "plan.jsonl")
    assert "placed" in shown
    assert "0 of 3" in shown

    waiting = cluster.ok("submit", "echo", "-i", "1", "--memory", "200Mi").strip()
    eventually(lambda: cluster.json("explain", waiting)["change"] is not None)
    why = cluster.json("explain", waiting)
    cut = {"kind": "cut", "resource": "memory", "from": "200Mi", "to": "112Mi"}
    assert (why["change"], why["smallest_change"]) == (cut, "memory 200Mi → 112Mi")
    # The holders said that they take an hour.
    assert why["expected_start"] is not None
    assert {one["agent"] for one in why["candidates"]} == {"agent-1", "agent-2"}
    assert "should start" in cluster.ok("explain", waiting)
    assert cluster.ok("submit", "echo", "-i", "1", "--memory", cut["to"], "--wait").strip() == "1"
    assert states(cluster, waiting) == {"PENDING"}

    running = cluster.json("explain", held[0])
    (own,) = (one for one in running["candidates"] if running["summary"].endswith(one["agent"]))
    assert own["fits"]
    for ident in held:
        cluster.ok("cancel", ident)
    eventually(lambda: states(cluster, waiting) == {"SUCCEEDED"})


def test_uncordoning_the_agent_that_is_named_places_the_task(cluster: Cli) -> None:
    agents = ("agent-1", "agent-2")
    try:
        for agent in agents:
            cluster.ok("cordon", agent)
        waiting = cluster.ok("submit", "echo", "-i", "2").strip()
        eventually(lambda: cluster.json("explain", waiting)["change"] is not None)
        change = cluster.json("explain", waiting)["change"]
        # The one that has registered first.
        assert change in [{"kind": "uncordon", "agent": agent} for agent in agents]
        cluster.ok("uncordon", change["agent"])
        assert json.loads(cluster.ok("result", waiting, "--wait")) == 2
    finally:
        for agent in agents:
            cluster.ok("uncordon", agent)


def test_a_plan_that_is_refused_is_one_sentence(cluster: Cli) -> None:
    planned(cluster)
    for options in (("--strategy", "best"), ("--weight", "t=-1"), ("--budget", "1y")):
        done = cluster.run("plan", "--file", "plan.jsonl", *options)
        assert done.returncode == 2, done.stderr
        assert done.stderr.startswith("muster: "), done.stderr
        assert done.stderr.count("\n") == 1, done.stderr
