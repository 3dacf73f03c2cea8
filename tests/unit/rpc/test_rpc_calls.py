"""A real server and channel on loopback: errors arrive as they were raised, secrets are asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.polling import HANG_S

from muster.api.v1 import registry_pb2, registry_pb2_grpc
from muster.domain.errors import (
    ConfigurationError,
    Conflict,
    DeadlineExceeded,
    InvalidInput,
    MusterError,
    NotFound,
    NotLeader,
    Overloaded,
    StaleTerm,
    TooLarge,
    Unauthenticated,
    Unavailable,
)
from muster.rpc.channels import ServiceChannel
from muster.rpc.metrics_http import serve_metrics
from muster.rpc.server import RpcServer, is_loopback
from muster.rpc.status import rpc_errors

SECRET = "a secret of the tests"
Stub = registry_pb2_grpc.RegistryServiceStub


class _Registry(registry_pb2_grpc.RegistryServiceServicer):
    error: Exception | None = None
    pause_s = 0.0

    async def ListAgents(self, request: Any, context: Any) -> registry_pb2.ListAgentsResponse:
        if self.pause_s:
            await asyncio.sleep(self.pause_s)
        if self.error is not None:
            raise self.error
        return registry_pb2.ListAgentsResponse(revision=7)

    async def WatchAgents(
        self, request: Any, context: Any
    ) -> AsyncIterator[registry_pb2.WatchAgentsResponse]:
        yield registry_pb2.WatchAgentsResponse(revision=1)
        if self.error is not None:
            raise self.error


@pytest.fixture
async def served() -> AsyncIterator[tuple[_Registry, ServiceChannel]]:
    registry = _Registry()  # type: ignore[abstract]  # the rest answers UNIMPLEMENTED
    server = RpcServer("127.0.0.1:0", secret=SECRET, service="test")
    server.add(registry_pb2_grpc.add_RegistryServiceServicer_to_server, registry)
    port = await server.start()
    channel = ServiceChannel([f"127.0.0.1:{port}"], secret=SECRET, what="registry")
    yield registry, channel
    await channel.close()
    await server.stop(0)


async def _list(
    channel: ServiceChannel, streamed: bool, timeout_s: float = HANG_S, retry: bool = False
) -> Any:
    request = registry_pb2.ListAgentsRequest()
    return await channel.call(
        Stub, "ListAgents", request, timeout_s=timeout_s, retry=retry, streamed=streamed
    )


# Calls by themselves, and as messages of one stream: the caller must not see a difference.
both_ways = pytest.mark.parametrize("streamed", [False, True])


@pytest.mark.parametrize(
    "error",
    [
        InvalidInput("tasks[3].resources.cpu", "-1", "at least 0"),
        TooLarge("body", 11_000_000, "at most 10 MiB"),
        NotFound("task", "x"),
        Conflict("agent a1 lives with another key"),
        NotLeader("127.0.0.1:99"),
        StaleTerm(3, 4),
        Overloaded("full"),
        Unavailable("redis", "refused"),
        DeadlineExceeded("redis", 2.0),
    ],
)
@both_ways
async def test_an_error_arrives_as_it_was_raised(
    served: tuple[_Registry, ServiceChannel], error: MusterError, streamed: bool
) -> None:
    registry, channel = served
    registry.error = error
    with pytest.raises(type(error)) as caught:
        await _list(channel, streamed)
    assert str(caught.value) == str(error)
    if isinstance(error, NotLeader):
        assert isinstance(caught.value, NotLeader)
        assert caught.value.leader == error.leader


async def test_an_error_in_the_middle_of_a_stream_arrives(
    served: tuple[_Registry, ServiceChannel],
) -> None:
    registry, channel = served
    registry.error = StaleTerm(1, 2)
    call = channel.stream(Stub, "WatchAgents", registry_pb2.WatchAgentsRequest())
    seen = []
    with pytest.raises(StaleTerm), rpc_errors("registry"):
        seen.extend([message.revision async for message in call])


@both_ways
async def test_an_unexpected_error_is_no_crash(
    served: tuple[_Registry, ServiceChannel], streamed: bool
) -> None:
    registry, channel = served
    registry.error = ZeroDivisionError("oops")
    with pytest.raises(MusterError, match="ZeroDivisionError"):
        await _list(channel, streamed)
    registry.error = None
    assert (await _list(channel, streamed)).revision == 7


@both_ways
async def test_a_wrong_secret_is_refused_for_calls_and_streams(
    served: tuple[_Registry, ServiceChannel], streamed: bool
) -> None:
    _, good = served
    channel = ServiceChannel(good.addresses, secret="another secret", what="registry")
    with pytest.raises(Unauthenticated):
        await _list(channel, streamed)
    call = channel.stream(Stub, "WatchAgents", registry_pb2.WatchAgentsRequest())
    with pytest.raises(Unauthenticated), rpc_errors("registry"):
        await call.read()
    await channel.close()


@both_ways
async def test_a_deadline_ends_the_call(
    served: tuple[_Registry, ServiceChannel], streamed: bool
) -> None:
    registry, channel = served
    registry.pause_s = 30.0
    with pytest.raises(DeadlineExceeded, match="registry did not answer within"):
        await _list(channel, streamed, timeout_s=0.05)


@both_ways
async def test_a_repeat_turns_to_the_address_that_lives(
    served: tuple[_Registry, ServiceChannel], streamed: bool
) -> None:
    _, good = served
    channel = ServiceChannel(["127.0.0.1:1", *good.addresses], secret=SECRET, what="registry")
    assert (await _list(channel, streamed, retry=True)).revision == 7
    assert channel.address == good.address
    await channel.close()


@pytest.fixture
async def frozen() -> AsyncIterator[str]:
    """An address that takes connections and never says a word, as a stopped process does."""

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()


@both_ways
async def test_the_call_after_one_that_failed_goes_elsewhere(
    served: tuple[_Registry, ServiceChannel], frozen: str, streamed: bool
) -> None:
    _, good = served
    for address in ("127.0.0.1:1", frozen):
        channel = ServiceChannel([address, *good.addresses], secret=SECRET, what="registry")
        with pytest.raises((Unavailable, DeadlineExceeded)):
            await _list(channel, streamed, timeout_s=0.2)
        assert (await _list(channel, streamed)).revision == 7
        await channel.close()


@both_ways
async def test_a_repeat_leaves_a_silent_address_with_time_to_spare(
    served: tuple[_Registry, ServiceChannel], frozen: str, streamed: bool
) -> None:
    _, good = served
    channel = ServiceChannel([frozen, *good.addresses], secret=SECRET, what="registry")
    assert (await _list(channel, streamed, retry=True)).revision == 7
    await channel.close()


async def test_a_slow_answer_does_not_lead_back_to_the_address_that_just_failed(
    served: tuple[_Registry, ServiceChannel], frozen: str
) -> None:
    registry, good = served
    channel = ServiceChannel([frozen, *good.addresses], secret=SECRET, what="registry", brisk=False)
    channel.turn_from(frozen, DeadlineExceeded("registry", 0.2))
    assert channel.address == good.address
    registry.pause_s = 30.0
    with pytest.raises(DeadlineExceeded) as caught:
        await _list(channel, False, timeout_s=0.1)
    # What the caller says of the same failure turns nothing either.
    channel.turn_from(good.address, caught.value)
    assert channel.address == good.address
    channel.turn_from(good.address, Unavailable("registry", "it went away"))
    assert channel.address == frozen
    await channel.close()


async def test_a_stream_that_fails_turns_the_channel_and_one_that_is_refused_does_not(
    served: tuple[_Registry, ServiceChannel],
) -> None:
    registry, good = served
    channel = ServiceChannel([*good.addresses, "127.0.0.1:1"], secret=SECRET, what="registry")
    request = registry_pb2.WatchAgentsRequest()
    for error, turned in ((NotLeader("127.0.0.1:2"), False), (Unavailable("x", "y"), True)):
        registry.error = error
        with pytest.raises(type(error)), channel.errors():
            async for _ in channel.stream(Stub, "WatchAgents", request):
                pass
        assert (channel.address != good.address) == turned
    await channel.close()


async def test_a_peer_that_is_slow_to_answer_a_connection_is_not_absent(
    served: tuple[_Registry, ServiceChannel],
) -> None:
    _, good = served
    host, _, port = good.address.rpartition(":")
    answers: list[asyncio.Task[None]] = []

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while chunk := await source.read(65_536):
            sink.write(chunk)

    async def slowly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.25)
        far_reader, far_writer = await asyncio.open_connection(host, int(port))
        both = ((reader, far_writer), (far_reader, writer))
        answers.extend(asyncio.create_task(pump(*ends)) for ends in both)

    server = await asyncio.start_server(slowly, "127.0.0.1", 0)
    address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with asyncio.timeout(HANG_S):
        while True:
            # Each time the first attempt of a channel; a machine that stalls may need several.
            channel = ServiceChannel([address], secret=SECRET, what="registry")
            try:
                assert (await _list(channel, streamed=False)).revision == 7
                break
            except Unavailable:
                continue
            finally:
                await channel.close()
    server.close()
    for answer in answers:
        answer.cancel()
    await asyncio.gather(*answers, return_exceptions=True)


def test_a_service_listens_on_loopback_only_without_mtls() -> None:
    with pytest.raises(ConfigurationError, match="MUSTER_LISTEN="):
        RpcServer("0.0.0.0:1", secret=SECRET, service="test")
    with pytest.raises(ConfigurationError, match="at least 16"):
        RpcServer("127.0.0.1:0", secret="short", service="test")
    assert [is_loopback(x) for x in ("127.0.0.1:1", "[::1]:1", "localhost:1", "10.0.0.1:1")] == [
        True,
        True,
        True,
        False,
    ]


async def test_readiness_says_why_not() -> None:
    why: list[str | None] = ["etcd does not answer"]
    server = serve_metrics("127.0.0.1:0", lambda: why[0])
    port = await server.start()

    async def get(path: str) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        answer = await reader.read()
        writer.close()
        return answer

    assert b"503" in await get("/readyz")
    assert b"etcd does not answer" in await get("/readyz")
    why[0] = None
    assert (await get("/readyz")).startswith(b"HTTP/1.1 200")
    assert b"muster_rpc_duration_seconds" in await get("/metrics")
    assert b"404" in await get("/secret")
    await server.stop()
