"""Bad requests over HTTP: each a problem document, and nothing half done."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from tests.gateway_fakes import Cluster, running_cluster
from tests.polling import HANG_S

MIB = 1024 * 1024


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with running_cluster() as running:
        yield running
        assert not running.storage.tasks, "a refused request left something behind"
        assert not running.scheduler.submits


def problem_of(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert problem["status"] == status
    for field in ("type", "title", "detail", "request_id"):
        assert problem[field], field
    return problem


@pytest.mark.parametrize(
    ("task", "field"),
    [
        ({"skill": "a", "resources": {"cpu": "-1"}}, "resources.cpu"),
        ({"skill": "a", "resources": {"cpu": "NaN"}}, "resources.cpu"),
        ({"skill": "a", "resources": {"memory": "99999999999Ei"}}, "resources.memory"),
        ({"skill": "a", "resources": {"memory": "lots"}}, "resources.memory"),
        ({"skill": "a", "colour": "red"}, "colour"),
        ({"skill": "a", "priority": 101}, "priority"),
        ({"skill": "a", "timeout": "soon"}, "timeout"),
        ({"skill": "a", "constraints": [{"key": "z", "op": "~="}]}, "constraints[0].op"),
        ({"skill": 1}, "skill"),
    ],
)
async def test_a_bad_value_is_named_and_the_batch_is_refused_whole(
    cluster: Cluster, task: dict[str, Any], field: str
) -> None:
    client = cluster.client()
    assert problem_of(await client.post("/v1/tasks", json=task), 422)["field"] == field
    tasks = [{"skill": "echo"}] * 600 + [task]
    problem = problem_of(await client.post("/v1/tasks", json={"tasks": tasks}), 422)
    assert problem["field"] == f"tasks[600].{field}"
    assert problem["limit"]


async def test_ten_thousand_and_one_tasks(cluster: Cluster) -> None:
    tasks = {"tasks": [{"skill": "echo"}] * 10_001}
    problem = problem_of(await cluster.client().post("/v1/tasks", json=tasks), 422)
    assert problem["field"] == "tasks"
    assert "10000" in problem["limit"]


async def test_eleven_mebibytes_declared_and_chunked(cluster: Cluster) -> None:
    client = cluster.client()
    body = json.dumps({"skill": "echo", "input": "x" * (11 * MIB)}).encode()

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 65_536):
            yield body[start : start + 65_536]

    for content in (body, pieces()):
        problem = problem_of(await client.post("/v1/tasks", content=content), 413)
        assert problem["field"] == "body"
        assert str(10 * MIB) in problem["limit"]


async def test_a_body_announced_too_large_is_refused_before_it_is_sent(cluster: Cluster) -> None:
    key = cluster.new_key("admin").text
    reader, writer = await asyncio.open_connection("127.0.0.1", int(cluster.url.rpartition(":")[2]))
    writer.write(
        f"POST /v1/tasks HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Length: {11 * MIB}\r\nExpect: 100-continue\r\n\r\n".encode()
    )
    async with asyncio.timeout(HANG_S):
        assert (await reader.readline()).startswith(b"HTTP/1.1 413 ")
    writer.close()


@pytest.mark.parametrize("levels", [65, 1_000, 100_000])
async def test_deep_json(cluster: Cluster, levels: int) -> None:
    body = b'{"skill":"echo","input":' + b"[" * levels + b"]" * levels + b"}"
    client = cluster.client()
    for content, headers in (
        (body, {}),
        (b'{"tasks":[' + body + b"]}", {}),
        (body + b"\n" + body, {"Content-Type": "application/x-ndjson"}),
    ):
        response = await client.post("/v1/tasks", content=content, headers=headers)
        assert "64" in problem_of(response, 400)["limit"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"skill":"\xff\xfe"}',
        b'{"skill":"echo","input":NaN}',
        b'{"skill":"echo","input":[Infinity]}',
        b'{"skill":"echo"}{"skill":"echo"}',
        b'{"skill":"echo","input":"\\ud800"}',
    ],
)
async def test_what_is_no_json(cluster: Cluster, body: bytes) -> None:
    problem_of(await cluster.client().post("/v1/tasks", content=body), 400)


async def test_another_media_type(cluster: Cluster) -> None:
    response = await cluster.client().post(
        "/v1/tasks", content=b"skill=echo", headers={"Content-Type": "text/plain"}
    )
    assert problem_of(response, 415)["field"] == "Content-Type"


@pytest.mark.parametrize("key", ["", "a b", "x" * 201, "caf\u00e9"])
async def test_a_bad_idempotency_key(cluster: Cluster, key: str) -> None:
    response = await cluster.client().post(
        "/v1/tasks", content=b'{"skill":"echo"}', headers={b"Idempotency-Key": key.encode()}
    )
    assert problem_of(response, 422)["field"] == "Idempotency-Key"


@pytest.mark.parametrize("ident", ["x", "0" * 26, "0" * 27, "%2e%2e", "%00", "%ff", "é" * 26])
async def test_an_unknown_task(cluster: Cluster, ident: str) -> None:
    client = cluster.client()
    for path in ("", "/result", "/logs", "/events"):
        problem_of(await client.get(f"/v1/tasks/{ident}{path}"), 404)
    problem_of(await client.post(f"/v1/tasks/{ident}/cancel"), 404)


@pytest.mark.parametrize(
    "wait", ["", "x", "-1s", "11m", "1", "1h", "99999999999999999999999999999999999999s"]
)
async def test_a_bad_wait(cluster: Cluster, wait: str) -> None:
    response = await cluster.client().get(f"/v1/tasks/{'0' * 26}", params={"wait": wait})
    assert problem_of(response, 422)["field"] == "wait"


@pytest.mark.parametrize(
    ("body", "field", "status"),
    [
        ({"ids": []}, "ids", 422),
        ({"ids": ["0" * 26] * 10_001}, "ids", 422),
        ({"ids": ["x"]}, "ids[0]", 422),
        ({"ids": [1]}, "ids[0]", 422),
        ({"ids": ["0" * 26], "wait": 5}, "wait", 422),
        ({"ids": ["0" * 26], "wait": "1d"}, "wait", 422),
        ({"idz": []}, "ids", 422),
        ([], "body", 422),
    ],
)
async def test_a_bad_gathering(cluster: Cluster, body: Any, field: str, status: int) -> None:
    response = await cluster.client().post("/v1/results", json=body)
    problem = problem_of(response, status)
    assert problem["field"] in (field, "idz")


async def test_deep_json_in_other_bodies(cluster: Cluster) -> None:
    nested = b"[" * 100_000
    for path in ("/v1/results", "/v1/keys"):
        response = await cluster.client().post(path, content=nested[: 60 * 1024])
        assert "64" in problem_of(response, 400)["limit"]


async def test_what_is_not_there_and_what_cannot_be_done(cluster: Cluster) -> None:
    client = cluster.client()
    problem_of(await client.get("/v2/tasks"), 404)
    problem_of(await client.get("/v1/tasks/"), 404)
    for method, path, allowed in (
        ("DELETE", "/v1/tasks", "GET, HEAD, POST"),
        ("PUT", "/v1/events", "GET, HEAD"),
        ("PATCH", "/v1/kv/a", "DELETE, GET, HEAD, PUT"),
        ("GET", "/v1/results", "POST"),
        ("OPTIONS", "/v1/cluster", "GET, HEAD"),
    ):
        response = await client.request(method, path)
        problem_of(response, 405)
        assert response.headers["allow"] == allowed


async def test_an_unexpected_error_tells_its_request_id_alone(
    cluster: Cluster, capfd: pytest.CaptureFixture[str]
) -> None:
    cluster.storage.broken = ZeroDivisionError("a wall has fallen")
    response = await cluster.client_with(cluster.new_key("viewer").text).get("/v1/tasks")
    problem = problem_of(response, 500)
    assert "wall" not in response.text
    assert "Zero" not in response.text
    assert problem["request_id"] == response.headers["x-request-id"]
