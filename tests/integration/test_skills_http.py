"""The skill `http` against a real server: what it sends, what it gives back, how it fails."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import pytest
from tests.scripted_http import Received, answer, scripted, send

from muster.domain.errors import Unavailable
from muster.skill import InputRejected, PermanentFailure
from muster.skills.http_call import fetch


@pytest.fixture(autouse=True)
def allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUSTER_OUTBOUND_ALLOW", "127.0.0.1")


class Blobs:
    def __init__(self) -> None:
        self.stored: list[bytes] = []

    async def put(self, content: bytes) -> str:
        self.stored.append(content)
        return f"blob-{len(self.stored)}"


async def call(**value: Any) -> dict[str, Any]:
    return await fetch(value, Blobs().put)


async def test_what_is_sent_and_what_comes_back() -> None:
    async def script(request: Received, writer: asyncio.StreamWriter) -> None:
        await send(
            writer, 201, b'{"made": 1}', content_type="application/json", x_seen="a", X_Seen="b"
        )

    async with scripted(script) as server:
        result = await call(
            url=f"{server.url}/things?n=1",
            method="POST",
            headers={"X-Token": "t"},
            json={"name": "ü"},
        )
    (request,) = server.received
    assert (request.method, request.path) == ("POST", "/things?n=1")
    assert request.headers["x-token"] == "t"
    assert request.headers["content-type"] == "application/json"
    assert request.body == '{"name":"ü"}'.encode()
    assert result["status"] == 201
    assert result["url"] == f"{server.url}/things?n=1"
    assert result["headers"]["x-seen"] == "a, b"
    assert (result["text"], result["size"]) == ('{"made": 1}', 11)


@pytest.mark.parametrize(
    ("kind", "body", "shown"),
    [
        ("text/plain", b"caf\xc3\xa9", {"text": "café"}),
        ("text/html; charset=ISO-8859-1", b"caf\xe9", {"text": "café"}),
        ("application/problem+json", b"{}", {"text": "{}"}),
        ("text/plain; charset=no-such", b"abc", {"base64": "YWJj"}),
        ("text/plain", b"\xff\xfe", {"base64": base64.b64encode(b"\xff\xfe").decode()}),
        ("image/png", b"\x89PNG", {"base64": base64.b64encode(b"\x89PNG").decode()}),
        ("", b"abc", {"base64": "YWJj"}),
        ("image/png", b"", {"text": ""}),
    ],
)
async def test_a_body_is_text_or_base64(kind: str, body: bytes, shown: dict[str, str]) -> None:
    async with scripted(answer(body=body, content_type=kind)) as server:
        result = await call(url=server.url)
    assert {n: v for n, v in result.items() if n in ("text", "base64", "blob")} == shown


async def test_a_large_body_goes_to_the_blobs() -> None:
    blobs, body = Blobs(), b"x" * 100_000
    async with scripted(answer(body=body, content_type="text/plain")) as server:
        result = await fetch({"url": server.url}, blobs.put)
    assert (result["blob"], result["size"]) == ("blob-1", 100_000)
    assert "text" not in result
    assert blobs.stored == [body]


async def test_head_gives_no_body_however_large_it_would_be() -> None:
    async def script(_request: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n")
        await writer.drain()

    async with scripted(script) as server:
        result = await call(url=server.url, method="HEAD")
    assert (result["size"], result["headers"]["content-length"]) == (0, "99999999999")


async def test_an_error_status_is_a_result() -> None:
    async with scripted(answer(503, b"busy", content_type="text/plain")) as server:
        result = await call(url=server.url)
    assert (result["status"], result["text"]) == (503, "busy")


async def test_what_would_fail_again_fails_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    async with scripted(answer(302, b"x" * 50, location="http://other.test/")) as server:
        with pytest.raises(PermanentFailure, match="not followed"):
            await call(url=server.url)
        with pytest.raises(PermanentFailure, match="at most 49 bytes"):
            await call(url=server.url, max_bytes=49, redirects=0)
        with pytest.raises(InputRejected, match=r"input\.headers\.X"):
            await call(url=server.url, headers={"X": "a\nb"})
        monkeypatch.setenv("MUSTER_OUTBOUND_ALLOW", "")
        with pytest.raises(PermanentFailure, match="MUSTER_OUTBOUND_ALLOW"):
            await call(url=server.url)
    monkeypatch.setenv("MUSTER_OUTBOUND_ALLOW", "127.0.0.1")
    with pytest.raises(Unavailable):
        await call(url=server.url)
