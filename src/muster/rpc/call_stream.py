"""The calling side of CallService: unary calls that travel as messages of one stream."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Any, Final

import grpc

from muster.api.v1 import calls_pb2, calls_pb2_grpc
from muster.domain.errors import DeadlineExceeded, MusterError, Overloaded, TooLarge, Unavailable
from muster.rpc.status import from_parts, from_rpc_error

# Of one message in either direction; gRPC's bound is 16 MiB, and one call alone may pass this.
FULL_MESSAGE_BYTES: Final = 4 * 1024 * 1024
# Of one call or answer: gRPC's bound less what is around it.
MAX_CALL_BYTES: Final = 16 * 1024 * 1024 - 64 * 1024
# A caller with more unanswered calls than this is far beyond what its peer can answer in time.
MAX_OPEN_CALLS: Final = 10_000
# When writing fails first, the stream's status, which says why, follows at once.
_STATUS_WAIT_S: Final = 0.2


class CallStream:
    """Stands where a stub expects a channel. The stream is opened by the first call and anew by
    the next one after it broke; the calls that were open then raise Unavailable."""

    def __init__(
        self, channel: grpc.aio.Channel, metadata: tuple[tuple[str, str], ...], what: str
    ) -> None:
        self._stub = calls_pb2_grpc.CallServiceStub(channel)
        self._metadata = metadata
        self._what = what
        self._ids = itertools.count(1)
        self._open: dict[int, asyncio.Future[bytes]] = {}
        self._unsent: list[calls_pb2.Call] = []
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def unary_unary(
        self,
        method: str,
        request_serializer: Callable[[Any], bytes],
        response_deserializer: Callable[[bytes], Any],
        **_registered: bool,
    ) -> Callable[..., Awaitable[Any]]:
        """What a generated stub asks of a channel for each of its unary methods."""

        async def call(request: Any, *, timeout_s: float) -> Any:
            answer = await self._call(method, request_serializer(request), timeout_s)
            return response_deserializer(answer)

        return call

    def unary_stream(self, method: str, **_: object) -> None:
        """Streams have a call of their own."""

    stream_unary = stream_stream = unary_stream

    async def close(self) -> None:
        """Ends the stream; open calls raise Unavailable."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _call(self, method: str, request: bytes, timeout_s: float) -> bytes:
        if len(request) > MAX_CALL_BYTES:
            raise TooLarge(f"the request of {method}", len(request), f"{MAX_CALL_BYTES} bytes")
        if len(self._open) >= MAX_OPEN_CALLS:
            raise Overloaded(f"{self._what}: {MAX_OPEN_CALLS} calls wait for an answer already")
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name=f"calls to {self._what}")
        ident = next(self._ids)
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._open[ident] = answer
        self._unsent.append(
            calls_pb2.Call(
                id=ident, method=method, request=request, timeout_ms=int(timeout_s * 1000) + 1
            )
        )
        self._wake.set()
        try:
            async with asyncio.timeout(timeout_s):
                return await answer
        except TimeoutError:
            raise DeadlineExceeded(self._what, timeout_s) from None
        finally:
            self._open.pop(ident, None)
            # An error's traceback holds this frame, and the future the error: a ring that would
            # keep the request until the collector comes.
            del answer

    async def _run(self) -> None:
        failure: MusterError = Unavailable(self._what, "the connection was closed")
        stream = self._stub.Calls(metadata=self._metadata)
        reader = asyncio.create_task(self._read(stream))
        writer = asyncio.create_task(self._write(stream))
        try:
            await asyncio.wait((reader, writer), return_when=asyncio.FIRST_COMPLETED)
            if not reader.done():
                await asyncio.wait((reader,), timeout=_STATUS_WAIT_S)
            failure = self._reason(reader if reader.done() else writer)
        finally:
            reader.cancel()
            writer.cancel()
            stream.cancel()
            await asyncio.gather(reader, writer, return_exceptions=True)
            self._give_up(failure)

    def _reason(self, ended: asyncio.Task[None]) -> MusterError:
        error = ended.exception() if not ended.cancelled() else None
        if isinstance(error, grpc.aio.AioRpcError):
            return from_rpc_error(error, self._what)
        if isinstance(error, MusterError):
            return error
        return Unavailable(self._what, f"it ended the calls ({error})" if error else "it ended")

    def _give_up(self, failure: MusterError) -> None:
        self._unsent.clear()
        self._wake.clear()
        for answer in self._open.values():
            if not answer.done():
                answer.set_exception(failure)
                # Its caller may have given up meanwhile; then nobody reads this.
                answer.exception()
        # What is asked from now on belongs to the next stream.
        self._open = {}
        self._task = None

    async def _write(self, stream: Any) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            unsent, self._unsent = self._unsent, []
            message = calls_pb2.CallsRequest()
            size = 0
            for call in unsent:
                if call.id not in self._open:
                    continue
                if size and size + len(call.request) > FULL_MESSAGE_BYTES:
                    await stream.write(message)
                    message, size = calls_pb2.CallsRequest(), 0
                message.calls.append(call)
                size += len(call.request) + len(call.method)
            if size:
                await stream.write(message)

    async def _read(self, stream: Any) -> None:
        async for message in stream:
            self._take(message)

    def _take(self, message: calls_pb2.CallsResponse) -> None:
        for item in message.answers:
            answer = self._open.get(item.id)
            if answer is None or answer.done():
                continue
            if item.HasField("error"):
                error = item.error
                failure = from_parts(error.code, error.message, error.packed, self._what)
                answer.set_exception(failure)
            else:
                answer.set_result(item.response)
