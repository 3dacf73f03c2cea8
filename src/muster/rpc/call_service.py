"""The answering side of CallService: calls out of a stream, each to the method that it names."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

import grpc
import structlog

from muster.api.v1 import calls_pb2, calls_pb2_grpc
from muster.domain.errors import MusterError, Unavailable
from muster.rpc.call_stream import FULL_MESSAGE_BYTES, MAX_CALL_BYTES
from muster.rpc.metrics import RPC_ERRORS, RPC_SECONDS
from muster.rpc.status import to_status

_LOG = structlog.get_logger("muster.rpc")

# Of one stream; further ones are not read before one of these is answered.
MAX_CALLS_AT_ONCE: Final = 1_024


class _Method:
    __slots__ = ("behaviour", "deserialize", "name", "seconds", "serialize")

    def __init__(self, handler: Any, service: str, name: str) -> None:
        self.behaviour = handler.unary_unary
        self.deserialize = handler.request_deserializer
        self.serialize = handler.response_serializer
        self.name = name
        self.seconds = RPC_SECONDS.labels(service, name)


class CallService(calls_pb2_grpc.CallServiceServicer):
    """Answers calls of the unary methods that were added to the server beside it."""

    def __init__(self, service: str) -> None:
        self._service = service
        self._methods: dict[str, _Method] = {}
        self._streams: set[_Answers] = set()
        self._closed = False

    def add(self, service_name: str, handlers: Mapping[str, Any]) -> None:
        """Makes the unary methods among the handlers of a gRPC service callable."""
        for name, handler in handlers.items():
            if handler.unary_unary is not None:
                path = f"/{service_name}/{name}"
                self._methods[path] = _Method(handler, self._service, name)

    def close(self) -> None:
        """Ends every stream once its calls under way are answered; later ones are refused."""
        self._closed = True
        for answers in self._streams:
            answers.end()

    # The contract names the method and gives it a context.
    async def Calls(
        self,
        request_iterator: AsyncIterator[calls_pb2.CallsRequest],
        context: Any,
    ) -> AsyncIterator[calls_pb2.CallsResponse]:
        if self._closed:
            raise Unavailable(self._service, "it is shutting down")
        answers = _Answers()
        self._streams.add(answers)
        reader = asyncio.create_task(self._read(request_iterator, answers), name="read calls")
        try:
            while (message := await answers.next()) is not None:
                yield message
            if self._closed:
                raise Unavailable(self._service, "it is shutting down")
            if reader.done():
                reader.result()
        finally:
            self._streams.discard(answers)
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    async def _read(
        self, requests: AsyncIterator[calls_pb2.CallsRequest], answers: _Answers
    ) -> None:
        working = answers.working
        try:
            async for message in requests:
                if answers.ending:
                    return
                for call in message.calls:
                    if len(working) >= MAX_CALLS_AT_ONCE:
                        await asyncio.wait(working, return_when=asyncio.FIRST_COMPLETED)
                    task = asyncio.create_task(self._answer(call, answers), name=call.method)
                    working.add(task)
                    task.add_done_callback(answers.worked)
        finally:
            # Who asked is gone, or waits for nothing any more.
            if not answers.ending:
                for task in working:
                    task.cancel()
            answers.end()
            await asyncio.gather(*working, return_exceptions=True)

    async def _answer(self, call: calls_pb2.Call, answers: _Answers) -> None:
        answer = calls_pb2.CallAnswer(id=call.id)
        await self._carry_out(call, answer)
        answers.add(answer)

    async def _carry_out(self, call: calls_pb2.Call, answer: calls_pb2.CallAnswer) -> None:
        method = self._methods.get(call.method)
        if method is None:
            _refuse(answer, grpc.StatusCode.UNIMPLEMENTED, f"there is no method {call.method[:80]}")
            return
        started = time.perf_counter()
        try:
            async with asyncio.timeout(call.timeout_ms / 1000):
                response = await method.behaviour(method.deserialize(call.request), None)
            answer.response = method.serialize(response)
        except MusterError as error:
            code, text, trailing = to_status(error)
            RPC_ERRORS.labels(self._service, method.name, error.code).inc()
            _refuse(answer, code, text, trailing[0][1] if trailing else b"")
        except TimeoutError:
            RPC_ERRORS.labels(self._service, method.name, "deadline_exceeded").inc()
            _refuse(answer, grpc.StatusCode.DEADLINE_EXCEEDED, "the caller's deadline has passed")
        except Exception as error:  # noqa: BLE001  counted, logged and told to the caller
            RPC_ERRORS.labels(self._service, method.name, "internal").inc()
            _LOG.error("an RPC failed unexpectedly", method=method.name, exc_info=error)
            _refuse(answer, grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}")
        finally:
            method.seconds.observe(time.perf_counter() - started)
        if len(answer.response) > MAX_CALL_BYTES:
            size = len(answer.response)
            answer.response = b""
            _refuse(
                answer,
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"the answer of {size} bytes is larger than {MAX_CALL_BYTES}",
            )


def _refuse(
    answer: calls_pb2.CallAnswer, code: grpc.StatusCode, message: str, packed: bytes = b""
) -> None:
    answer.error.code = code.value[0]
    answer.error.message = message
    answer.error.packed = packed


class _Answers:
    """What is to be said on one stream: answers that come together go together."""

    def __init__(self) -> None:
        self.ending = False
        self.working: set[asyncio.Task[None]] = set()
        self._ready: list[calls_pb2.CallAnswer] = []
        self._wake = asyncio.Event()

    def add(self, answer: calls_pb2.CallAnswer) -> None:
        self._ready.append(answer)
        self._wake.set()

    def worked(self, task: asyncio.Task[None]) -> None:
        """The task has ended, and has added its answer unless it was cancelled."""
        self.working.discard(task)
        if self.ending:
            self._wake.set()

    def end(self) -> None:
        self.ending = True
        self._wake.set()

    async def next(self) -> calls_pb2.CallsResponse | None:
        """The answers since the last call, as many as one message holds; None at the end."""
        while not self._ready:
            if self.ending and not self.working:
                return None
            self._wake.clear()
            await self._wake.wait()
        message = calls_pb2.CallsResponse()
        size = taken = 0
        for answer in self._ready:
            size += len(answer.response)
            if taken and size > FULL_MESSAGE_BYTES:
                break
            message.answers.append(answer)
            taken += 1
        del self._ready[:taken]
        return message
