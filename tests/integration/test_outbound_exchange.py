"""Outbound calls against a real server: where they connect, what they follow, when they stop."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from tests.polling import eventually
from tests.scripted_http import (
    Received,
    Script,
    ScriptedServer,
    answer,
    head,
    scripted,
    send,
)

from muster.domain.errors import DeadlineExceeded, TooLarge, Unavailable
from muster.outbound.addresses import AllowList
from muster.outbound.exchange import Limits, Outbound, resolve_name
from muster.outbound.requests import OutboundRefused, OutboundRequest, parse_url

LOOPBACK = AllowList.parse("127.0.0.0/8")
CERTIFICATE = Path(__file__).parents[1] / "certificates" / "service.test.pem"
PLENTY = Limits(timeout_s=30, max_bytes=1024 * 1024)


class Names:
    """A resolver that gives the n-th answer to the n-th question, and then the last again."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers, self.asked = list(answers), 0

    async def __call__(self, _host: str, _port: int) -> list[str]:
        self.asked += 1
        return self.answers[min(self.asked, len(self.answers)) - 1]


async def fetched(
    url: str,
    outbound: Outbound | None = None,
    limits: Limits = PLENTY,
    method: str = "GET",
) -> tuple[int, bytes]:
    made = outbound or Outbound(LOOPBACK)
    async with made.open(OutboundRequest(method, parse_url(url)), limits) as got:
        return got.status, await got.read()


@pytest.fixture
async def hello() -> AsyncIterator[ScriptedServer]:
    async with scripted(answer(body=b"hello")) as server:
        yield server


async def test_an_allowed_address_answers(hello: ScriptedServer) -> None:
    assert await fetched(f"{hello.url}/a%20b?c=d") == (200, b"hello")
    (request,) = hello.received
    assert (request.method, request.path) == ("GET", "/a%20b?c=d")
    assert request.headers["host"] == f"127.0.0.1:{hello.port}"
    assert request.headers["accept-encoding"] == "identity"
    assert request.headers["connection"] == "close"


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "127.1", "2130706433", "0x7f.0.0.1", "[::1]", "0.0.0.0"]
)
async def test_loopback_is_refused_however_it_is_written(hello: ScriptedServer, host: str) -> None:
    with pytest.raises((OutboundRefused, Unavailable)):
        await fetched(f"http://{host}:{hello.port}/", Outbound(AllowList()))
    assert hello.received == []


async def test_the_refusal_says_what_would_allow_it(hello: ScriptedServer) -> None:
    with pytest.raises(OutboundRefused, match=r"loopback address; MUSTER_OUTBOUND_ALLOW") as caught:
        await fetched(hello.url, Outbound(AllowList()))
    assert "127.0.0.1" in str(caught.value)


async def test_a_name_is_resolved_once_and_bound_to_what_was_checked(hello: ScriptedServer) -> None:
    """Rebinding: the name means a forbidden address when it is asked for again."""
    names = Names(["127.0.0.1"], ["127.0.0.99"])
    allow = AllowList.parse("127.0.0.1")
    url = f"http://rebind.test:{hello.port}/"
    assert await fetched(url, Outbound(allow, resolve=names)) == (200, b"hello")
    assert names.asked == 1
    assert hello.received[0].headers["host"] == f"rebind.test:{hello.port}"
    with pytest.raises(OutboundRefused, match=r"127\.0\.0\.99"):
        await fetched(url, Outbound(allow, resolve=names))
    assert len(hello.received) == 1


async def test_each_redirect_is_checked_again() -> None:
    async def script(request: Received, writer: asyncio.StreamWriter) -> None:
        await send(writer, 302, location="/next")

    async with scripted(script) as server:
        names = Names(["127.0.0.1"], ["10.0.0.1"])
        with pytest.raises(OutboundRefused, match=r"10\.0\.0\.1 is a private"):
            await fetched(
                f"http://rebind.test:{server.port}/",
                Outbound(AllowList.parse("127.0.0.1"), resolve=names),
            )
        assert [r.path for r in server.received] == ["/"]


async def test_of_several_addresses_only_the_allowed_are_tried(hello: ScriptedServer) -> None:
    """127.0.0.2 does not listen; 10.0.0.1 must not be asked; the third one answers."""
    outbound = Outbound(LOOPBACK, resolve=Names(["10.0.0.1", "127.0.0.2", "127.0.0.1", "nonsense"]))
    assert await fetched(f"http://many.test:{hello.port}/", outbound) == (200, b"hello")
    with pytest.raises(Unavailable, match="no usable address"):
        await fetched(f"http://none.test:{hello.port}/", Outbound(LOOPBACK, resolve=Names([])))


async def test_an_unknown_name_is_unavailable() -> None:
    with pytest.raises(Unavailable, match="cannot be resolved"):
        await resolve_name("no-such-host.invalid", 80)


async def test_proxies_of_the_environment_are_not_asked(
    hello: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scripted(answer(418)) as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        assert httpx.AsyncClient()._mounts, "the environment names no proxy"
        assert await fetched(hello.url) == (200, b"hello")
        assert proxy.received == []


# --- redirects ----------------------------------------------------------------------------------


def counting_down(request: Received) -> Script:
    left = int(request.path.removeprefix("/"))
    return answer(302, location=f"/{left - 1}") if left else answer(body=b"arrived")


async def count_down(request: Received, writer: asyncio.StreamWriter) -> None:
    await counting_down(request)(request, writer)


async def test_three_redirects_are_followed_and_no_more() -> None:
    async with scripted(count_down) as server:
        assert await fetched(f"{server.url}/3") == (200, b"arrived")
        assert [r.path for r in server.received] == ["/3", "/2", "/1", "/0"]
        with pytest.raises(OutboundRefused, match="more than 3 times"):
            await fetched(f"{server.url}/4")
        assert await fetched(f"{server.url}/9", limits=Limits(30, 100, redirects=0)) == (302, b"")


async def test_a_redirect_to_another_host_is_not_followed(hello: ScriptedServer) -> None:
    for there in (hello.url, f"http://localhost:{hello.port}", "http://169.254.169.254/latest"):
        async with scripted(answer(302, location=there)) as server:
            with pytest.raises(OutboundRefused, match="are not followed"):
                await fetched(server.url)
    assert hello.received == []


# --- size and time ------------------------------------------------------------------------------


async def test_a_declared_size_is_refused_before_a_byte_is_read() -> None:
    async def script(_request: Received, writer: asyncio.StreamWriter) -> None:
        await head(writer, content_length=str(10**12))
        await asyncio.sleep(60)

    async with scripted(script) as server:
        with pytest.raises(TooLarge, match="at most 1048576"):
            await fetched(server.url)
        await eventually(lambda: server.hung_up == 1)


async def test_an_endless_body_is_cut_and_the_connection_closed() -> None:
    async def script(_request: Received, writer: asyncio.StreamWriter) -> None:
        await head(writer)
        while True:
            writer.write(b"x" * 65_536)
            await writer.drain()

    async with scripted(script) as server:
        with pytest.raises(TooLarge):
            await fetched(server.url)
        await eventually(lambda: server.hung_up == 1)


@pytest.mark.parametrize("begun", [False, True])
async def test_a_slow_server_meets_the_deadline(begun: bool) -> None:
    """A drip of bytes is no progress: the time is for all of it."""

    async def script(_request: Received, writer: asyncio.StreamWriter) -> None:
        if begun:
            await head(writer)
        while True:
            if begun:
                writer.write(b".")
                await writer.drain()
            await asyncio.sleep(0.02)

    async with scripted(script) as server:
        # On a slow machine the time may be up before the request has arrived.
        for seconds in (0.3, 3.5, 30.5):
            with pytest.raises(DeadlineExceeded, match=rf"within {seconds:g} s"):
                await fetched(server.url, limits=Limits(seconds, 10_000))
            if server.received:
                break
        assert server.received
        await eventually(lambda: server.hung_up == len(server.received))


async def test_a_cut_body_is_unavailable() -> None:
    async def script(_request: Received, writer: asyncio.StreamWriter) -> None:
        await head(writer, content_length="100")
        writer.write(b"half")
        await writer.drain()

    async with scripted(script) as server:
        with pytest.raises(Unavailable):
            await fetched(server.url)


async def test_what_is_no_http_and_what_does_not_listen_is_unavailable() -> None:
    async def script(_request: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH_9.6\r\n")
        await writer.drain()

    async with scripted(script) as server:
        with pytest.raises(Unavailable):
            await fetched(server.url)
        port = server.port
    with pytest.raises(Unavailable):
        await fetched(f"http://127.0.0.1:{port}/")


async def test_cancelling_closes_the_connection() -> None:
    async def script(_request: Received, writer: asyncio.StreamWriter) -> None:
        await head(writer)
        await asyncio.sleep(600)

    async with scripted(script) as server:
        call = asyncio.create_task(fetched(server.url))
        await eventually(lambda: len(server.received) == 1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await eventually(lambda: server.hung_up == 1)


# --- TLS ----------------------------------------------------------------------------------------


async def test_the_certificate_must_be_the_hosts_although_the_address_is_dialled() -> None:
    presented = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    presented.load_cert_chain(CERTIFICATE)
    asked: list[str | None] = []
    presented.sni_callback = lambda _socket, name, _context: asked.append(name)
    trusted = ssl.create_default_context(cafile=str(CERTIFICATE))
    outbound = Outbound(LOOPBACK, resolve=Names(["127.0.0.1"]), tls=trusted)
    async with scripted(answer(body=b"hello"), tls=presented) as server:
        url = f"https://service.test:{server.port}/"
        assert await fetched(url, outbound) == (200, b"hello")
        assert asked == ["service.test"]
        assert server.received[0].headers["host"] == f"service.test:{server.port}"
        for other in ("other.test", "127.0.0.1"):
            with pytest.raises(Unavailable, match=r"(?i)certificate"):
                await fetched(f"https://{other}:{server.port}/", outbound)
        with pytest.raises(Unavailable, match=r"(?i)certificate"):
            await fetched(url, Outbound(LOOPBACK, resolve=Names(["127.0.0.1"])))
        assert len(server.received) == 1
