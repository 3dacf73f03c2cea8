"""Event streams and logs over HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from tests.gateway_fakes import Cluster, running_cluster, until
from tests.polling import HANG_S

from muster.api.v1 import agent_pb2, monitor_pb2, storage_pb2, task_pb2


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with running_cluster() as running:
        yield running


async def events_of(response: httpx.Response) -> AsyncIterator[tuple[str, str, Any]]:
    """(id, name, data) of each server-sent event."""
    ident = name = ""
    async for line in response.aiter_lines():
        if line.startswith("id: "):
            ident = line[4:]
        elif line.startswith("event: "):
            name = line[7:]
        elif line.startswith("data: "):
            yield ident, name, json.loads(line[6:])
            ident = name = ""


async def read(
    client: httpx.AsyncClient,
    path: str,
    count: int,
    begun: asyncio.Event | None = None,
    **headers: str,
) -> list[tuple[str, str, Any]]:
    """The first events of a stream, or all when it ends before."""
    found: list[tuple[str, str, Any]] = []
    async with (
        asyncio.timeout(HANG_S),
        client.stream(
            "GET", path, headers={k.replace("_", "-"): v for k, v in headers.items()}
        ) as r,
    ):
        assert r.status_code == 200, await r.aread()
        assert r.headers["content-type"].startswith("text/event-stream")
        async for event in events_of(r):
            found.append(event)
            if begun is not None:
                begun.set()
            if len(found) == count:
                break
    return found


async def submitted(client: httpx.AsyncClient, count: int = 1) -> list[str]:
    tasks = [{"skill": "echo", "input": n} for n in range(count)]
    ids: list[str] = (await client.post("/v1/tasks", json={"tasks": tasks})).json()["ids"]
    return ids


async def test_events_come_as_they_happen_and_can_be_resumed(cluster: Cluster) -> None:
    client = cluster.client()
    reading = asyncio.create_task(read(client, "/v1/events", 3))
    await until(lambda: cluster.gateway.gateway.feed._subscriptions, reading)
    ids = await submitted(client, 2)
    await cluster.storage.end(ids[0])
    live = await reading
    assert [(name, data["task"], data["state"]) for _, name, data in live] == [
        ("task.created", ids[0], "PENDING"),
        ("task.created", ids[1], "PENDING"),
        ("task.changed", ids[0], "SUCCEEDED"),
    ]
    assert [ident for ident, _, _ in live] == ["1", "2", "3"]
    await cluster.storage.end(ids[1])
    await until(lambda: cluster.gateway.gateway.feed.last_id == "4")
    resumed = await read(client, "/v1/events", 3, Last_Event_ID="1")
    assert [ident for ident, _, _ in resumed] == ["2", "3", "4"]
    by_query = await read(client, "/v1/events?after=2", 2)
    assert [ident for ident, _, _ in by_query] == ["3", "4"]


async def test_a_resumed_stream_goes_over_into_the_present_without_loss_or_repetition(
    cluster: Cluster,
) -> None:
    client = cluster.client()
    await submitted(client, 700)
    await until(lambda: cluster.gateway.gateway.feed.last_id == "700")
    reading = asyncio.create_task(read(client, "/v1/events", 1_300, Last_Event_ID="100"))
    for _ in range(7):
        await submitted(client, 100)
    found = await reading
    assert [int(ident) for ident, _, _ in found] == list(range(101, 1_401))


async def test_events_are_filtered_by_task_state_and_tenant(cluster: Cluster) -> None:
    client, other = cluster.client(), cluster.client(tenant="other")
    (one, two) = await submitted(client, 2)
    await submitted(other)
    await cluster.storage.end(one)
    await cluster.storage.end(two)
    await cluster.storage.emit(
        storage_pb2.Event(
            kind=storage_pb2.EVENT_KIND_AGENT_CHANGED,
            agent="agent-1",
            agent_state=agent_pb2.AGENT_STATE_DOWN,
            incarnation=2,
            why="it died",
        )
    )
    await until(lambda: cluster.gateway.gateway.feed.last_id == "6")
    of_task = await read(client, f"/v1/events?task={one}&after=0", 2)
    assert [ident for ident, _, _ in of_task] == ["1", "4"]
    of_state = await read(client, "/v1/events?state=SUCCEEDED&after=0", 2)
    assert [ident for ident, _, _ in of_state] == ["4", "5"]
    of_other = await read(other, "/v1/events?after=0", 2)
    assert [(ident, name) for ident, name, _ in of_other] == [
        ("3", "task.created"),
        ("6", "agent.changed"),
    ]
    assert of_other[1][2]["agent_state"] == "DOWN"


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/v1/events?task=x", "id"),
        ("/v1/events?state=x", "state"),
        ("/v1/events?after=x", "Last-Event-ID"),
        ("/v1/events?since=1", "since"),
    ],
)
async def test_a_bad_filter_is_named(cluster: Cluster, path: str, field: str) -> None:
    response = await cluster.client().get(path)
    assert (response.status_code, response.json()["field"]) == (422, field)


async def test_trimmed_events_are_told(cluster: Cluster) -> None:
    client = cluster.client()
    await submitted(client, 10)
    await until(lambda: cluster.gateway.gateway.feed.last_id == "10")
    cluster.storage.trimmed = 5
    del cluster.storage.events[:5]
    found = await read(client, "/v1/events", 6, Last_Event_ID="2")
    assert [name for _, name, _ in found] == ["missed"] + ["task.created"] * 5
    assert [ident for ident, _, _ in found][1:] == ["6", "7", "8", "9", "10"]


async def test_lost_events_end_a_stream_so_that_it_is_resumed(cluster: Cluster) -> None:
    client = cluster.client()
    await submitted(client)
    reading = asyncio.create_task(read(client, "/v1/events", 10))
    await until(lambda: cluster.gateway.gateway.feed._subscriptions, reading)
    cluster.storage.trimmed = 50
    cluster.storage.events.clear()
    cluster.storage.drop_tails()
    assert [name for _, name, _ in await reading] == ["gap"]


async def test_a_tasks_events_begin_with_it_and_end_with_it(cluster: Cluster) -> None:
    client = cluster.client()
    (ident, other) = await submitted(client, 2)
    begun = asyncio.Event()
    reading = asyncio.create_task(read(client, f"/v1/tasks/{ident}/events", 10, begun=begun))
    await begun.wait()
    await cluster.storage.emit(
        storage_pb2.Event(
            kind=storage_pb2.EVENT_KIND_TASK_PROGRESS,
            tenant="default",
            task_id=ident,
            attempt=1,
            fraction=0.25,
            note="a quarter",
            partial_json=b'{"text":"he"}',
        )
    )
    await cluster.storage.end(other)
    await cluster.storage.end(ident, b"1")
    found = await reading
    assert [name for _, name, _ in found] == ["task", "task.progress", "task.changed"]
    assert found[0][2]["id"] == ident
    assert found[1][2]["progress"] == {"fraction": 0.25, "note": "a quarter"}
    assert found[1][2]["partial"] == {"text": "he"}
    assert found[2][2]["state"] == "SUCCEEDED"
    ended = await read(client, f"/v1/tasks/{ident}/events", 10)
    assert [(name, data["state"]) for _, name, data in ended] == [("task", "SUCCEEDED")]
    resumed = await read(client, f"/v1/tasks/{ident}/events", 10, Last_Event_ID=found[1][0])
    assert [name for _, name, _ in resumed] == ["task.changed"]


async def test_streams_end_when_the_gateway_stops() -> None:
    async with running_cluster() as cluster:
        reading = asyncio.create_task(read(cluster.client(), "/v1/events", 10))
        await until(lambda: cluster.gateway.gateway.feed._subscriptions, reading)
        cluster.gateway.gateway.end_streams()
        assert [name for _, name, _ in await reading] == ["gap"]


def line(ident: str, index: int, text: str, attempt: int = 1) -> monitor_pb2.LogLine:
    return monitor_pb2.LogLine(
        tenant="default",
        task_id=ident,
        attempt=attempt,
        at_ms=1_700_000_000_000,
        stream=monitor_pb2.LOG_STREAM_STDERR,
        level="warning",
        text=text,
        index=index,
    )


async def test_logs_are_lines_by_attempt_and_index(cluster: Cluster) -> None:
    client = cluster.client()
    (ident,) = await submitted(client)
    cluster.monitor.lines = [line(ident, 1, "b"), line(ident, 0, "a"), line(ident, 0, "z", 2)]
    page = (await client.get(f"/v1/tasks/{ident}/logs")).json()
    assert [item["text"] for item in page["items"]] == ["a", "b", "z"]
    assert page["items"][0] == {
        "attempt": 1,
        "index": 0,
        "at": "2023-11-14T22:13:20.000Z",
        "stream": "stderr",
        "level": "warning",
        "text": "a",
    }
    assert (page["next"], page["truncated"]) == (None, False)
    page = (await client.get(f"/v1/tasks/{ident}/logs?attempt=2")).json()
    assert [item["text"] for item in page["items"]] == ["z"]
    for bad in ("attempt=x", "follow=2", "folow=1"):
        assert (await client.get(f"/v1/tasks/{ident}/logs?{bad}")).status_code == 422


async def test_logs_are_followed_until_the_monitor_ends_them(cluster: Cluster) -> None:
    client = cluster.client()
    (ident,) = await submitted(client)
    cluster.monitor.lines = [line(ident, 0, "first")]
    found: list[str] = []
    async with (
        asyncio.timeout(HANG_S),
        client.stream("GET", f"/v1/tasks/{ident}/logs?follow=1") as response,
    ):
        async for _, name, data in events_of(response):
            found.append(data["text"] if name == "line" else name)
            if len(found) == 1:
                cluster.monitor.lines.append(line(ident, 1, "second"))
                cluster.monitor.follow_until.set()
                cluster.monitor.more.set()
    assert found == ["first", "second", "end"]


async def test_following_ends_some_time_after_the_task(cluster: Cluster) -> None:
    client = cluster.client()
    (ident,) = await submitted(client)
    await cluster.storage.end(ident, b"", state=task_pb2.TASK_STATE_CANCELLED)
    found = await read(client, f"/v1/tasks/{ident}/logs?follow=1", 10)
    assert [name for _, name, _ in found] == ["end"]


async def test_without_a_monitor_logs_are_unavailable(cluster: Cluster) -> None:
    client = cluster.client()
    (ident,) = await submitted(client)
    await cluster.servers["monitor"].stop(0)
    response = await client.get(f"/v1/tasks/{ident}/logs")
    assert response.status_code == 503
    assert "monitor" in response.json()["detail"]
    found = await read(client, f"/v1/tasks/{ident}/logs?follow=1", 10)
    assert [name for _, name, _ in found] == ["gap"]
