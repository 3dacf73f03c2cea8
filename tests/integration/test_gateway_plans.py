"""Plans over HTTP: what is asked reaches the leader, what is wrong is told."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from tests.gateway_fakes import Cluster, running_cluster

from muster.domain.errors import NotLeader, Overloaded
from muster.domain.task import MAX_BODY_BYTES


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with running_cluster() as running:
        yield running


async def test_a_plan_there_and_back(cluster: Cluster) -> None:
    tasks = [
        {"skill": "echo", "input": 1, "resources": {"cpu": "2"}},
        {"skill": "echo", "input": 2, "resources": {"cpu": "2"}},
        {"skill": "vision", "resources": {"cpu": "2"}, "priority": 9},
    ]
    asked = {
        "tasks": tasks,
        "strategy": "search",
        "weights": {"t": 1, "b": 2},
        "bounds": {"B": 0.5},
        "budget": "2s",
        "seed": 7,
        "max_steps": 9,
        "front": True,
    }
    response = await cluster.client().post("/v1/plans", json=asked)
    assert response.status_code == 200
    (sent,) = cluster.scheduler.plans
    assert list(sent.shape_of) == [0, 0, 1]
    assert [(s.skill, s.tenant, s.priority) for s in sent.shapes] == [
        ("echo", "default", 50),
        ("vision", "default", 9),
    ]
    assert (sent.shapes[0].resources["cpu"], sent.shapes[0].input_json) == (2_000, b"")
    assert msgspec.json.decode(sent.policy_json) == {
        name: asked[name] for name in ("strategy", "weights", "bounds", "budget")
    }
    assert (sent.seed, sent.max_steps, sent.front) == (7, 9, True)
    assert response.json() == {
        "strategy": "worst_fit",
        "objective": "J",
        "seed": 7,
        "budget": "5s",
        "elapsed_s": 0.5,
        "T": 1.0,
        "U": 0.5,
        "B": 0.25,
        "J": 0.125,
        "unplaced": 2,
        "lower_bound": None,
        "run_times": "declared",
        "queued": 3,
        "placements": [
            {"agent": "a", "devices": {"gpu": [1]}},
            {"agent": None, "reason": 0},
            {"agent": None, "reason": 0},
        ],
        "reasons": [{"text": "full", "tasks": 2, "agents": 1, "excluded": {"full": 1}}],
        "front": [
            {"T": 0.0, "U": 0.0, "B": 0.0, "J": 0.0, "unplaced": 0, "agents": ["a", None, None]}
        ],
    }
    assert cluster.scheduler.submits == []


async def test_many_tasks_of_one_kind_are_one_shape(cluster: Cluster) -> None:
    tasks = [{"skill": "echo", "input": n} for n in range(20_000)]
    response = await cluster.client().post("/v1/plans", json={"tasks": tasks})
    assert response.status_code == 200
    (sent,) = cluster.scheduler.plans
    assert (len(sent.shapes), len(sent.shape_of), sent.front) == (1, 20_000, False)
    assert len(response.json()["placements"]) == 20_000
    assert response.json()["front"] is None


ECHO = {"skill": "echo"}


@pytest.mark.parametrize(
    ("asked", "field", "said"),
    [
        ({"tasks": []}, "tasks", "a plan has 1 to 100000 tasks"),
        ({"tasks": [ECHO] * 200_000}, "tasks", "a plan has 1 to 100000 tasks"),
        ({"tasks": [ECHO] * 10_001, "front": True}, "front", "at most 10000 tasks"),
        ({}, "tasks", "needed"),
        ({"tasks": [ECHO], "strategy": "best"}, "strategy", "worst_fit"),
        ({"tasks": [ECHO], "strategy": 5}, "strategy", "worst_fit"),
        ({"tasks": [ECHO], "weights": {"t": -1}}, "weights.t", "from 0"),
        ({"tasks": [ECHO], "weights": {"t": 0, "u": 0}}, "weights", "above 0"),
        ({"tasks": [ECHO], "bounds": {"B": -1}}, "bounds.B", "from 0"),
        ({"tasks": [ECHO], "bounds": {"J": 0.1}}, "bounds.J", "contradicts"),
        ({"tasks": [ECHO], "budget": "0s"}, "budget", "1ms"),
        ({"tasks": [ECHO], "budget": "11m"}, "budget", "10m"),
        ({"tasks": [ECHO], "budget": 3}, "budget", "duration"),
        ({"tasks": [ECHO], "seed": -1}, "seed", "from 0"),
        ({"tasks": [ECHO], "stratergy": "search"}, "stratergy", "no such field"),
        ({"tasks": [ECHO] * 1_500 + [{"skill": "No"}]}, "tasks[1500].skill", ""),
        ({"tasks": [ECHO, {"skill": "echo", "priority": 101}]}, "tasks[1].priority", "0 to 100"),
    ],
    ids=lambda value: None if isinstance(value, dict) else str(value)[:30],
)
async def test_what_is_refused(cluster: Cluster, asked: Any, field: str, said: str) -> None:
    response = await cluster.client().post("/v1/plans", json=asked)
    assert response.status_code == 422
    error = response.json()
    assert error["field"] == field
    assert said in error["limit"]
    assert cluster.scheduler.plans == []


async def test_what_is_no_json_and_what_is_too_large(cluster: Cluster) -> None:
    client = cluster.client()
    assert (await client.post("/v1/plans", content=b"{")).status_code == 400
    large = b'{"tasks":["' + b"x" * MAX_BODY_BYTES + b'"]}'
    assert (await client.post("/v1/plans", content=large)).status_code == 413
    nested: Any = []
    for _ in range(70):
        nested = [nested]
    response = await client.post("/v1/plans", json={"tasks": [{"skill": "a", "input": nested}]})
    assert response.status_code == 400


async def test_without_a_leader_and_with_a_busy_one(cluster: Cluster) -> None:
    client = cluster.client()
    cluster.scheduler.broken = NotLeader("")
    response = await client.post("/v1/plans", json={"tasks": [ECHO]})
    assert response.status_code == 503
    cluster.scheduler.broken = Overloaded("2 plans are being made already")
    # A busy planner is no reason to turn submissions away.
    response = await client.post("/v1/plans", json={"tasks": [ECHO]})
    assert response.status_code == 429
    assert "2 plans" in response.json()["detail"]
    cluster.scheduler.broken = None
    batch = {"tasks": [{"skill": "echo", "input": "x" * 1_000}] * 100}
    assert (await client.post("/v1/tasks", json=batch)).status_code == 202
