"""Clients that go away in the middle of a submission: nothing half done, nothing kept."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
from collections.abc import AsyncIterator

import pytest
from tests.gateway_fakes import Cluster, running_cluster, until

from muster_gateway.metrics import IN_FLIGHT

TASKS = 10_000
BODY = b"".join(
    json.dumps({"skill": "echo", "input": {"number": number}}).encode() + b"\n"
    for number in range(TASKS)
)


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with running_cluster() as running:
        yield running


def head(key: str, *, chunked: bool, idempotency_key: str = "") -> bytes:
    length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(BODY)}"
    extra = f"Idempotency-Key: {idempotency_key}\r\n" if idempotency_key else ""
    return (
        f"POST /v1/tasks HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/x-ndjson\r\n{extra}{length}\r\n\r\n"
    ).encode()


def pieces(body: bytes, *, chunked: bool) -> list[bytes]:
    cut = [body[start : start + 16_384] for start in range(0, len(body), 16_384)]
    return [b"%x\r\n%s\r\n" % (len(p), p) for p in cut] if chunked else cut


async def send_and_go(cluster: Cluster, content: list[bytes], *, reset: bool) -> None:
    """Sends this much and closes the connection, with a FIN or with a RST."""
    host, _, port = cluster.url.removeprefix("http://").rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    for piece in content:
        writer.write(piece)
        await writer.drain()
    if reset:
        raw = writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.close()


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("chunked", [False, True])
async def test_half_of_ten_thousand_lines_makes_no_task(
    cluster: Cluster, chunked: bool, reset: bool
) -> None:
    client = cluster.client()
    text = cluster.new_key("admin").text
    assert (await client.post("/v1/tasks", json={"skill": "echo"})).status_code == 202
    whole = pieces(BODY, chunked=chunked)
    descriptors = len(os.listdir("/proc/self/fd"))
    for kept in (0, 1, len(whole) // 2, len(whole) - 1):
        content = [head(text, chunked=chunked, idempotency_key="one"), *whole[:kept]]
        await asyncio.gather(*(send_and_go(cluster, content, reset=reset) for _ in range(5)))
    # The gateway has seen them all go, and keeps nothing of them.
    await until(
        lambda: len(os.listdir("/proc/self/fd")) <= descriptors,
    )
    await until(
        lambda: IN_FLIGHT._value.get() == 0,
    )
    assert len(cluster.storage.tasks) == 1
    # The same key is free: nothing was reserved under it.
    answer = await client.post(
        "/v1/tasks",
        content=BODY,
        headers={"Content-Type": "application/x-ndjson", "Idempotency-Key": "one"},
    )
    assert answer.status_code == 202
    assert len(answer.json()["ids"]) == TASKS


async def test_a_client_that_goes_after_the_last_line_finds_its_tasks_by_their_key(
    cluster: Cluster,
) -> None:
    text = cluster.new_key("admin").text
    content = [head(text, chunked=False, idempotency_key="two"), BODY]
    await send_and_go(cluster, content, reset=False)
    await until(
        lambda: len(cluster.storage.tasks) == TASKS,
    )
    headers = {"Content-Type": "application/x-ndjson", "Idempotency-Key": "two"}
    client = cluster.client_with(text)
    answer = await client.post("/v1/tasks", content=BODY, headers=headers)
    assert answer.status_code == 202
    assert set(answer.json()["ids"]) == {ident for _, ident in cluster.storage.tasks}
    assert len(cluster.storage.tasks) == TASKS
