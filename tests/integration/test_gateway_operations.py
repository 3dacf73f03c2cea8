"""Agents, cluster, cancel, explain, health and the edge over HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from fastapi.openapi.models import OpenAPI
from tests.gateway_fakes import Cluster, running_cluster, until
from tests.polling import HANG_S

from muster.api.v1 import agent_pb2, monitor_pb2, scheduler_pb2
from muster.domain.errors import NotLeader
from muster_gateway.app import build_app
from muster_gateway.roles import ACCESS
from muster_gateway.routes import ROUTES


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with running_cluster() as running:
        yield running


def view(ident: str, **more: int) -> agent_pb2.AgentView:
    spec = agent_pb2.AgentSpec(
        id=ident,
        tenant="default",
        capacity={"cpu": 4000, "memory": 8 * 1024**3, "slots": 64},
        skills=[
            agent_pb2.SkillOffer(name="echo"),
            agent_pb2.SkillOffer(name="add", input_schema_json=b'{"type":"object"}'),
        ],
        labels={"zone": "a"},
        host="h",
        pid=7,
        version="0.1.0",
    )
    return agent_pb2.AgentView(
        record=agent_pb2.AgentRecord(spec=spec, incarnation=3, registered_at_ms=1),
        state=agent_pb2.AGENT_STATE_READY,
        wish=agent_pb2.AGENT_WISH_NONE,
        used={"cpu": 200, "slots": 2},
        health=1.0,
        evidence=[agent_pb2.AgentEvidence(at_ms=1, state=agent_pb2.AGENT_STATE_READY, why="w")],
    )


async def test_agents_are_shown_and_paged(cluster: Cluster) -> None:
    client = cluster.client()
    cluster.scheduler.agents = {ident: view(ident) for ident in ("b", "c", "a")}
    page = (await client.get("/v1/agents?limit=2")).json()
    assert [item["id"] for item in page["items"]] == ["a", "b"]
    page = (await client.get(f"/v1/agents?limit=2&cursor={page['next']}")).json()
    assert ([item["id"] for item in page["items"]], page["next"]) == (["c"], None)
    agent = page["items"][0]
    assert agent["state"] == "READY"
    assert agent["capacity"] == {"cpu": "4", "memory": "8Gi", "slots": "64"}
    assert agent["used"] == {"cpu": "200m", "slots": "2"}
    assert agent["skills"] == ["add", "echo"]
    assert (agent["incarnation"], agent["labels"]) == (3, {"zone": "a"})


async def test_an_agent_in_detail_has_schemas_evidence_and_metrics(cluster: Cluster) -> None:
    client = cluster.client()
    cluster.scheduler.agents = {"a": view("a")}
    assert (await client.get("/v1/agents/a")).json()["metrics"] is None
    sample = monitor_pb2.MetricSample(at_ms=1_700_000_000_000, values={"cpu_ratio": 0.5})
    cluster.monitor.samples = [
        monitor_pb2.AgentSamples(agent="a", phi=0.2, last_seen_at_ms=1, samples=[sample])
    ]
    agent = (await client.get("/v1/agents/a")).json()
    assert agent["metrics"]["values"] == {"cpu_ratio": 0.5}
    assert {o["name"]: o["input_schema"] for o in agent["offers"]} == {
        "echo": None,
        "add": {"type": "object"},
    }
    assert agent["evidence"][0]["why"] == "w"
    assert (await client.get("/v1/agents/nobody")).status_code == 404
    assert (await client.get("/v1/agents/UPPER")).status_code == 404
    await cluster.servers["monitor"].stop(0)
    assert (await client.get("/v1/agents/a")).json()["metrics"] is None


async def test_a_drain_may_have_a_deadline(cluster: Cluster) -> None:
    client = cluster.client_with(cluster.new_key("operator").text)
    cluster.scheduler.agents = {"a": view("a")}
    for body, deadline_ms in (({"deadline": "1m30s"}, 90_000), ({}, 0), ({"deadline": None}, 0)):
        response = await client.post("/v1/agents/a/drain", json=body)
        assert response.status_code == 200
        assert cluster.scheduler.deadlines[-1] == deadline_ms
    for bad, named in (
        ({"deadline": "soon"}, "deadline"),
        ({"deadline": 60}, "deadline"),
        ({"deadline": "25h"}, "deadline"),
        ({"deadlin": "60s"}, "deadlin"),
        ([], "body"),
    ):
        response = await client.post("/v1/agents/a/drain", json=bad)
        assert response.status_code == 422, response.text
        assert named in response.text
    assert len(cluster.scheduler.deadlines) == 3


async def test_operators_wishes_reach_the_leader_and_the_audit_log(
    cluster: Cluster, capfd: pytest.CaptureFixture[str]
) -> None:
    key = cluster.new_key("operator")
    client = cluster.client_with(key.text)
    cluster.scheduler.agents = {"a": view("a")}
    states = []
    for action in ("cordon", "uncordon", "drain", "restart"):
        response = await client.post(f"/v1/agents/a/{action}")
        assert response.status_code == 200
        states.append(response.json()["state"])
    assert states == ["CORDONED", "READY", "DRAINING", "DRAINING"]
    assert cluster.scheduler.acts == [
        ("a", scheduler_pb2.AGENT_ACTION_CORDON, key.id),
        ("a", scheduler_pb2.AGENT_ACTION_UNCORDON, key.id),
        ("a", scheduler_pb2.AGENT_ACTION_DRAIN, key.id),
        ("a", scheduler_pb2.AGENT_ACTION_RESTART, key.id),
    ]
    assert (await client.post("/v1/agents/b/cordon")).status_code == 404
    assert (await client.post("/v1/agents/a/explode")).status_code == 404
    out, err = capfd.readouterr()
    audit = [text for text in (out + err).splitlines() if "audit" in text]
    assert len(audit) == 4
    assert key.id in audit[0]
    assert key.secret not in out + err


async def test_the_cluster_with_and_without_a_leader(cluster: Cluster) -> None:
    client = cluster.client()
    await client.post("/v1/tasks", json={"skill": "echo"})
    shown = (await client.get("/v1/cluster")).json()
    assert (shown["leader"], shown["term"]) == ("127.0.0.1:1", 3)
    assert shown["tasks"] == {"PENDING": 1}
    assert shown["capacity"] == {"cpu": "4"}
    cluster.scheduler.broken = NotLeader("")
    shown = (await client.get("/v1/cluster")).json()
    assert shown == {"leader": None, "tasks": {"PENDING": 1}}
    response = await client.get("/v1/agents")
    assert response.status_code == 503
    assert "leader" in response.json()["detail"]


async def test_cancel(cluster: Cluster) -> None:
    client = cluster.client()
    ident = (await client.post("/v1/tasks", json={"skill": "echo"})).json()["id"]
    response = await client.post(f"/v1/tasks/{ident}/cancel")
    assert response.status_code == 202
    assert response.json() == {"id": ident, "state": "CANCELLED"}
    again = await client.post(f"/v1/tasks/{ident}/cancel")
    assert again.status_code == 409
    assert "CANCELLED" in again.json()["detail"]
    result = (await client.get(f"/v1/tasks/{ident}/result")).json()
    assert result["error"]["kind"] == "cancelled"


async def test_explain(cluster: Cluster) -> None:
    client = cluster.client()
    cluster.scheduler.excluded = {"skill nobody is not offered": 4}
    ident = (await client.post("/v1/tasks", json={"skill": "nobody"})).json()["id"]
    shown = (await client.get(f"/v1/tasks/{ident}/explain")).json()
    assert shown["summary"] == "no agent offers the skill nobody"
    assert shown["excluded"] == {"skill nobody is not offered": 4}
    assert shown["queue_position"] == 1
    assert (await client.get(f"/v1/tasks/{'0' * 26}/explain")).status_code == 404


async def test_a_waiting_task_says_why(cluster: Cluster) -> None:
    client = cluster.client()
    ident = (await client.post("/v1/tasks", json={"skill": "nobody"})).json()["id"]
    task = cluster.storage.tasks["default", ident]
    task.spec.submitted_at_ms -= 10_000
    shown = (await client.get(f"/v1/tasks/{ident}")).json()
    assert (shown["state"], shown["why"]) == ("PENDING", "no agent offers the skill nobody")
    cluster.scheduler.broken = NotLeader("")
    shown = (await client.get(f"/v1/tasks/{ident}")).json()
    assert (shown["state"], shown["why"]) == ("PENDING", "")
    task.status.why = "agent-1 failed it"
    cluster.scheduler.broken = None
    assert (await client.get(f"/v1/tasks/{ident}")).json()["why"] == "agent-1 failed it"


async def test_health_says_why_not() -> None:
    async with running_cluster(start_storage=False) as cluster:
        client = cluster.client_with(None)
        assert (await client.get("/healthz")).text == "ok\n"
        await until(lambda: "answer" not in (cluster.gateway.gateway.readiness.why_not or ""))
        response = await client.get("/readyz")
        assert response.status_code == 503
        assert "storage" in response.json()["detail"]


async def test_readiness_comes_by_itself(cluster: Cluster) -> None:
    client = cluster.client_with(None)
    # Asked every second, and within a second: a machine that stalls makes it unsure for a moment.
    async with asyncio.timeout(HANG_S):
        for ask in (client.get, client.head):
            while (response := await ask("/readyz")).status_code != 200:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            assert response.text == ("ready\n" if ask == client.get else "")


async def test_metrics_count_requests_by_route(cluster: Cluster) -> None:
    client = cluster.client()
    await client.post("/v1/tasks", json={"skill": "echo"})
    await client.get("/nowhere")
    text = (await client.get("/metrics")).text
    assert 'muster_http_requests_total{method="POST",route="/v1/tasks",status="202"}' in text
    assert 'muster_http_requests_total{method="other",route="other",status="404"}' in text
    assert 'muster_tasks_submitted_total{via="leader"}' in text


async def test_the_openapi_document_is_served(cluster: Cluster) -> None:
    response = await cluster.client().get("/openapi.json")
    assert response.headers["content-type"] == "application/json"
    OpenAPI.model_validate(response.json())
    assert {
        (method.upper(), path)
        for path, operations in response.json()["paths"].items()
        for method in operations
    } == set(ACCESS)
    assert (await cluster.client().get("/docs")).status_code == 404


async def test_every_route_of_the_router_is_documented(cluster: Cluster) -> None:
    served = set()
    router = build_app(cluster.gateway.gateway)._app.__self__  # type: ignore[attr-defined]
    for route in router.routes:
        served.add(route.path.replace(":path", ""))
    assert served == {route.path for route in ROUTES}


async def test_a_route_without_an_access_entry_stops_the_start(cluster: Cluster) -> None:
    without = {key: role for key, role in ACCESS.items() if key != ("GET", "/v1/kv")}
    with pytest.raises(LookupError, match="GET /v1/kv"):
        build_app(cluster.gateway.gateway, ROUTES, without)


async def test_headers_of_every_answer(cluster: Cluster) -> None:
    client = cluster.client()
    for path in ("/v1/tasks", "/nowhere", "/healthz", "/v1/tasks/x"):
        response = await client.get(path, headers={"Origin": "http://evil.example"})
        headers = response.headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["cache-control"] == "no-store"
        assert headers["x-request-id"]
        assert "access-control-allow-origin" not in headers
        assert "server" not in headers


async def test_request_ids_are_kept_or_made(cluster: Cluster) -> None:
    client = cluster.client()
    own = await client.get("/v1/tasks/x", headers={"X-Request-Id": "my-id.1"})
    assert own.headers["x-request-id"] == own.json()["request_id"] == "my-id.1"
    for bad in ("a b", "x" * 65, '"'):
        response = await client.get("/v1/tasks/x", headers={"X-Request-Id": bad})
        assert response.headers["x-request-id"] not in ("", bad)
    ids = {(await client.get("/healthz")).headers["x-request-id"] for _ in range(5)}
    assert len(ids) == 5


async def test_head_answers_like_get_without_a_body(cluster: Cluster) -> None:
    client = cluster.client()
    ident = (await client.post("/v1/tasks", json={"skill": "echo"})).json()["id"]
    for path in (f"/v1/tasks/{ident}", "/v1/tasks", "/v1/events", f"/v1/tasks/{ident}/events"):
        response = await client.head(path)
        assert (response.status_code, response.content) == (200, b""), path


async def test_requests_in_flight_are_bounded(cluster: Cluster) -> None:
    client = cluster.client()
    ident = (await client.post("/v1/tasks", json={"skill": "echo"})).json()["id"]
    edge = cluster.gateway._server.config.app
    edge._max_in_flight = 2  # type: ignore[union-attr]
    polls = [asyncio.create_task(client.get(f"/v1/tasks/{ident}?wait=10m")) for _ in range(2)]
    await until(lambda: len(cluster.gateway.gateway.board._watches.get(ident, ())) == 2, *polls)
    refused = await client.get("/v1/tasks")
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert json.loads(refused.text)["type"] == "urn:muster:problem:overloaded"
    assert (await client.get("/healthz")).status_code == 200
    await cluster.storage.end(ident)
    await asyncio.gather(*polls)
    assert (await client.get("/v1/tasks")).status_code == 200


async def test_a_client_that_hangs_up_frees_its_watch(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("muster_gateway.reading._CLIENT_CHECK_S", 0.05)
    client = cluster.client()
    ident = (await client.post("/v1/tasks", json={"skill": "echo"})).json()["id"]
    board = cluster.gateway.gateway.board
    poll = asyncio.create_task(client.get(f"/v1/tasks/{ident}?wait=10m"))
    await until(lambda: ident in board._watches, poll)
    poll.cancel()
    await until(lambda: ident not in board._watches)
