"""A small real HTTP server whose answers a test writes byte by byte, or cuts."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import orjson


@dataclass(frozen=True)
class Received:
    """A request as it came: names of headers in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


Script = Callable[[Received, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class ScriptedServer:
    """`script` answers each request; the connection is closed afterwards."""

    script: Script
    port: int = 0
    received: list[Received] = field(default_factory=list)
    # How many connections the other side has closed while the script still ran.
    hung_up: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = await _request(reader)
            self.received.append(request)
            answer = asyncio.ensure_future(self.script(request, writer))
            gone = asyncio.ensure_future(reader.read(1))
            await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
            still = not answer.done()
            for task in (answer, gone):
                task.cancel()
            ended, _ = await asyncio.gather(answer, gone, return_exceptions=True)
            self.hung_up += still or isinstance(ended, ConnectionError)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            with suppress(ConnectionError):
                writer.close()


async def _request(reader: asyncio.StreamReader) -> Received:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.rstrip("\r\n").split("\r\n")
    method, path, _ = first.split(" ")
    headers = {n.lower(): v.strip() for n, _, v in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Received(method, path, headers, body)


@asynccontextmanager
async def scripted(
    script: Script, tls: ssl.SSLContext | None = None
) -> AsyncIterator[ScriptedServer]:
    """The server on a free port of loopback."""
    made = ScriptedServer(script)
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0, ssl=tls)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
        # What still runs is the tests' own: nobody waits for it.
        await asyncio.sleep(0)


def answer(status: int = 200, body: bytes = b"", **headers: str) -> Script:
    """A whole answer; `content_type="…"` gives Content-Type."""

    async def script(_request: Received, writer: asyncio.StreamWriter) -> None:
        await send(writer, status, body, **headers)

    return script


async def send(
    writer: asyncio.StreamWriter, status: int = 200, body: bytes = b"", **headers: str
) -> None:
    """Head and body, with Content-Length."""
    await head(writer, status, **{"content_length": str(len(body)), **headers})
    writer.write(body)
    await writer.drain()


async def head(writer: asyncio.StreamWriter, status: int = 200, **headers: str) -> None:
    """The status line and headers; without Content-Length the body ends with the connection."""
    lines = [f"HTTP/1.1 {status} X", *(f"{n.replace('_', '-')}: {v}" for n, v in headers.items())]
    writer.write(("\r\n".join([*lines, "Connection: close"]) + "\r\n\r\n").encode("latin-1"))
    await writer.drain()


def chunk(**fields: object) -> bytes:
    """One chat completion chunk as an event."""
    return b"data: " + orjson.dumps(fields) + b"\n\n"


def said(text: str, finish_reason: str | None = None) -> bytes:
    """A chunk with this text."""
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish_reason}
    return chunk(id="c1", model="tiny-1", choices=[choice])


USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
DONE = b"data: [DONE]\n\n"


async def stream(writer: asyncio.StreamWriter, *pieces: bytes, **headers: str) -> None:
    """An event stream, framed by chunks, that ends as it should."""
    framing = {"content_type": "text/event-stream", "transfer_encoding": "chunked"}
    await head(writer, 200, **(framing | headers))
    for piece in pieces:
        await framed(writer, piece)
    writer.write(b"0\r\n\r\n")
    await writer.drain()


async def framed(writer: asyncio.StreamWriter, piece: bytes) -> None:
    """One chunk of a chunked body."""
    writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
    await writer.drain()
