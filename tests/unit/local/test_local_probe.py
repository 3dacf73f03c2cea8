"""Asking processes whether they are ready."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from tests.real_servers import free_port

from muster.local.probe import agents_not_ready, get, parse_answer, reason_in, why_not_ready


@asynccontextmanager
async def answering(answer: Callable[[bytes], bytes]) -> AsyncIterator[int]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(await reader.readuntil(b"\r\n\r\n")))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


def http(status: int, body: str) -> bytes:
    return f"HTTP/1.1 {status} Whatever\r\nX: y\r\n\r\n{body}".encode()


async def test_ready_is_200() -> None:
    async with answering(lambda _: http(200, "ok")) as port:
        assert await why_not_ready(port) is None


@pytest.mark.parametrize(
    ("body", "why"),
    [("etcd does not answer", "etcd does not answer"), ("", "it answers 503")],
)
async def test_not_ready_says_why(body: str, why: str) -> None:
    async with answering(lambda _: http(503, body)) as port:
        assert await why_not_ready(port) == why


async def test_nobody_there_is_not_ready() -> None:
    assert await why_not_ready(free_port()) == "it does not answer"


async def test_the_key_is_sent() -> None:
    heads = []

    def answer(head: bytes) -> bytes:
        heads.append(head)
        return http(200, "{}")

    async with answering(answer) as port:
        assert await get(port, "/v1/agents", "mst_x_y") == (200, b"{}")
    assert b"Authorization: Bearer mst_x_y\r\n" in heads[0]
    assert heads[0].startswith(b"GET /v1/agents HTTP/1.1\r\n")


async def test_only_ready_agents_count() -> None:
    items = [{"id": "a", "state": "READY"}, {"id": "b", "state": "JOINING"}]
    async with answering(lambda _: http(200, json.dumps({"items": items}))) as port:
        assert await agents_not_ready(port, "k", ["a"]) == {}
        assert await agents_not_ready(port, "k", ["a", "b", "c"]) == {
            "b": "it is JOINING",
            "c": "it has not registered",
        }


@pytest.mark.parametrize("answer", [http(200, "[]"), http(200, "no"), http(401, "no key")])
async def test_an_answer_of_no_use_makes_no_agent_ready(answer: bytes) -> None:
    async with answering(lambda _: answer) as port:
        assert set(await agents_not_ready(port, "k", ["a", "b"])) == {"a", "b"}


@pytest.mark.parametrize(
    ("answer", "parsed"),
    [
        (b"", (0, b"")),
        (b"garbage", (0, b"")),
        (b"HTTP/1.1 200 OK\r\n\r\nbody", (200, b"body")),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n",
            (200, b"abcd"),
        ),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\nZ", (200, b"abc")),
    ],
)
def test_parsing_answers(answer: bytes, parsed: tuple[int, bytes]) -> None:
    assert parse_answer(answer) == parsed


def test_problem_documents_give_their_detail() -> None:
    assert reason_in(b'{"title": "t", "detail": "no leader"}') == "no leader"
    assert reason_in(b'{"title": "t"}') == "t"
    assert reason_in(b"{oops") == "{oops"
