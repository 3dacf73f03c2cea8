"""One bidirectional call on a connection of its own, with its failures as one exception."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self

import grpc

from muster.etcd.wire import Message

# A message that cannot even be handed to the connection within this time meets a hung peer.
_WRITE_WITHIN_S = 2.0


class StreamLostError(Exception):
    """The stream ended, whoever ended it; the text says how."""


class Stream:
    """Closing it closes the connection, so that the next one does not inherit a dead one."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        start: Callable[[grpc.aio.Channel], grpc.aio.StreamStreamCall[Message, Message]],
    ) -> None:
        self._channel = channel
        self._call = start(channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._call.cancel()
        await self._channel.close()

    async def write(self, message: Message) -> None:
        try:
            async with asyncio.timeout(_WRITE_WITHIN_S):
                await self._call.write(message)
        except TimeoutError as exc:
            raise StreamLostError(f"no message could be sent for {_WRITE_WITHIN_S:g} s") from exc
        except asyncio.InvalidStateError as exc:
            raise StreamLostError("the stream had ended") from exc
        except grpc.aio.AioRpcError as exc:
            raise _lost(exc) from exc
        except asyncio.CancelledError:
            _raise_if_asked_to_stop()
            raise StreamLostError("the stream was cancelled") from None

    async def read(self) -> Message:
        """The next message. Cancelling a read ends the stream."""
        try:
            message = await self._call.read()
        except grpc.aio.AioRpcError as exc:
            raise _lost(exc) from exc
        except asyncio.CancelledError:
            _raise_if_asked_to_stop()
            raise StreamLostError("the stream was cancelled") from None
        if message is grpc.aio.EOF:
            raise StreamLostError("etcd ended the stream")
        return message


def _lost(exc: grpc.aio.AioRpcError) -> StreamLostError:
    return StreamLostError(f"{exc.code().name} {exc.details() or ''}".strip())


def _raise_if_asked_to_stop() -> None:
    # grpc raises CancelledError also when only its call was cancelled, not the task.
    task = asyncio.current_task()
    if task is None or task.cancelling() > 0:
        raise asyncio.CancelledError
