"""Calls over one stream: answered in any order, together, bounded, and never left hanging."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.polling import HANG_S, eventually

from muster.api.v1 import storage_pb2, storage_pb2_grpc
from muster.domain.errors import DeadlineExceeded, MusterError, TooLarge, Unavailable
from muster.rpc import call_service, call_stream
from muster.rpc.channels import ServiceChannel
from muster.rpc.server import RpcServer

SECRET = "a secret of the tests"
Stub = storage_pb2_grpc.StorageServiceStub


class _Storage(storage_pb2_grpc.StorageServiceServicer):
    """`GetApiKey` waits for its gate; `Reserve` answers at once."""

    def __init__(self) -> None:
        self.gates: dict[str, asyncio.Event] = {}
        self.arrived: list[str] = []
        self.cancelled: list[str] = []

    async def GetApiKey(self, request: Any, context: Any) -> storage_pb2.GetApiKeyResponse:
        self.arrived.append(request.id)
        try:
            await self.gates.setdefault(request.id, asyncio.Event()).wait()
        except asyncio.CancelledError:
            self.cancelled.append(request.id)
            raise
        return storage_pb2.GetApiKeyResponse()

    async def Reserve(self, request: Any, context: Any) -> storage_pb2.ReserveResponse:
        return storage_pb2.ReserveResponse(first_ms=request.now_ms)

    async def GetPolicy(self, request: Any, context: Any) -> storage_pb2.GetPolicyResponse:
        return storage_pb2.GetPolicyResponse(policy_json=b"x" * (call_stream.MAX_CALL_BYTES + 1))


Served = tuple[_Storage, ServiceChannel, RpcServer]


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    storage = _Storage()  # type: ignore[abstract]  # the rest answers UNIMPLEMENTED
    server = RpcServer("127.0.0.1:0", secret=SECRET, service="test")
    server.add(storage_pb2_grpc.add_StorageServiceServicer_to_server, storage)
    port = await server.start()
    channel = ServiceChannel([f"127.0.0.1:{port}"], secret=SECRET, what="storage")
    yield storage, channel, server
    await channel.close()
    await server.stop(0)


async def _reserve(channel: ServiceChannel, number: int, size: int = 0) -> int:
    request = storage_pb2.ReserveRequest(now_ms=number, body_hash=b"x" * size)
    answer = await channel.call(Stub, "Reserve", request, timeout_s=HANG_S, streamed=True)
    assert isinstance(answer, storage_pb2.ReserveResponse)
    return answer.first_ms


async def _wait(channel: ServiceChannel, gate: str, timeout_s: float = HANG_S) -> Any:
    request = storage_pb2.GetApiKeyRequest(id=gate)
    return await channel.call(Stub, "GetApiKey", request, timeout_s=timeout_s, streamed=True)


async def test_each_call_gets_its_own_answer_whatever_the_order(served: Served) -> None:
    storage, channel, _ = served
    slow = asyncio.create_task(_wait(channel, "slow"))
    await eventually(lambda: bool(storage.arrived))
    numbers = await asyncio.gather(*[_reserve(channel, n) for n in range(1, 500)])
    assert numbers == list(range(1, 500))
    assert not slow.done()
    storage.gates["slow"].set()
    await slow


async def test_calls_larger_than_a_message_are_split(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, channel, _ = served
    monkeypatch.setattr(call_stream, "FULL_MESSAGE_BYTES", 1_000)
    monkeypatch.setattr(call_service, "FULL_MESSAGE_BYTES", 1_000)
    numbers = await asyncio.gather(*[_reserve(channel, n, size=700) for n in range(1, 20)])
    assert numbers == list(range(1, 20))


async def test_what_no_message_holds_is_refused_and_harms_nobody_else(served: Served) -> None:
    storage, channel, _ = served
    slow = asyncio.create_task(_wait(channel, "slow"))
    with pytest.raises(TooLarge, match="the request of"):
        await _reserve(channel, 1, size=call_stream.MAX_CALL_BYTES)
    request = storage_pb2.GetPolicyRequest()
    with pytest.raises(MusterError, match="larger than"):
        await channel.call(Stub, "GetPolicy", request, timeout_s=HANG_S, streamed=True)
    await eventually(lambda: bool(storage.arrived))
    storage.gates["slow"].set()
    await slow


async def test_a_method_that_is_not_there_is_an_error(served: Served) -> None:
    _, channel, _ = served
    request = storage_pb2.TailRequest()
    with pytest.raises(TypeError):
        # A stream has a call of its own.
        await channel.call(Stub, "Tail", request, timeout_s=HANG_S, streamed=True)
    stream = call_stream.CallStream(channel._channel(), channel._metadata, "storage")
    missing = stream.unary_unary("/muster.api.v1.NoService/No", lambda _: b"", bytes)
    with pytest.raises(MusterError, match="there is no method /muster"):
        await missing(None, timeout_s=HANG_S)
    await stream.close()


async def test_a_deadline_ends_the_work_on_both_sides(served: Served) -> None:
    storage, channel, _ = served
    # On a slow machine the time may be up before the call has arrived.
    for seconds in (0.05, 0.5, 5.0):
        with pytest.raises(DeadlineExceeded):
            await _wait(channel, "never", timeout_s=seconds)
        if storage.arrived:
            break
    assert storage.arrived
    await eventually(lambda: storage.cancelled == ["never"] * len(storage.arrived))
    assert await _reserve(channel, 3) == 3


async def test_a_broken_stream_fails_its_calls_at_once_and_the_next_opens_another(
    served: Served,
) -> None:
    storage, channel, _ = served
    waiting = asyncio.create_task(_wait(channel, "broken"))
    await eventually(lambda: bool(storage.arrived))
    (stream,) = channel._call_streams.values()
    await stream.close()
    with pytest.raises(Unavailable):
        await waiting
    await eventually(lambda: storage.cancelled == ["broken"])
    assert await _reserve(channel, 4) == 4


async def test_a_server_that_stops_answers_what_it_has_begun(served: Served) -> None:
    storage, channel, server = served
    waiting = asyncio.create_task(_wait(channel, "last"))
    await eventually(lambda: bool(storage.arrived))
    stopping = asyncio.create_task(server.stop(HANG_S))
    await asyncio.sleep(0.05)
    storage.gates["last"].set()
    await waiting
    await stopping
    with pytest.raises(Unavailable):
        await _reserve(channel, 5)


async def test_a_dead_peer_is_told_at_once(served: Served) -> None:
    channel = ServiceChannel(["127.0.0.1:1"], secret=SECRET, what="storage")
    with pytest.raises(Unavailable):
        await _reserve(channel, 1)
    await channel.close()


async def test_calls_beyond_the_bound_wait_for_earlier_ones(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, channel, _ = served
    monkeypatch.setattr(call_service, "MAX_CALLS_AT_ONCE", 2)
    waiting = [asyncio.create_task(_wait(channel, f"g{n}")) for n in range(3)]
    await eventually(lambda: len(storage.arrived) == 2)
    later = asyncio.create_task(_reserve(channel, 9))
    await asyncio.sleep(0.05)
    assert len(storage.arrived) == 2
    assert not later.done()
    for n in range(3):
        storage.gates.setdefault(f"g{n}", asyncio.Event()).set()
    await asyncio.gather(*waiting)
    assert await later == 9


async def test_a_failed_call_leaves_no_ring_behind(served: Served) -> None:
    """The error's frames hold the request; services let the collector run rarely."""
    _, channel, _ = served
    await _reserve(channel, 1)
    request = storage_pb2.GetPolicyRequest()
    gc.collect()
    gc.disable()
    try:
        with pytest.raises(MusterError) as caught:
            await channel.call(Stub, "GetPolicy", request, timeout_s=HANG_S, streamed=True)
        gone = weakref.ref(caught.value)
        del caught
        # A ring would keep it for ever; what grpc holds for a moment is none.
        await eventually(lambda: gone() is None)
    finally:
        gc.enable()
