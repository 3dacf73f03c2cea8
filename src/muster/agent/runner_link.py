"""The runtime's end of one runner: its socket, its two output pipes, and whose attempt it has."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any, cast

import msgspec

from muster.agent import wire
from muster.agent.streams import PipeReader


class RunnerLink(asyncio.Protocol):
    """Collects what is sent within one turn of the loop into one frame, and decodes answers."""

    def __init__(
        self,
        ident: int,
        pid: int,
        on_messages: Callable[[RunnerLink, list[Any]], None],
        on_lost: Callable[[RunnerLink], None],
    ) -> None:
        self.ident, self.pid = ident, pid
        self._on_messages, self._on_lost = on_messages, on_lost
        self._loop = asyncio.get_running_loop()
        self._frames = wire.FrameBuffer()
        self._outbox: list[Any] = []
        self._transport: asyncio.WriteTransport | None = None
        self.stdout: PipeReader | None = None
        self.stderr: PipeReader | None = None
        self.lost = False
        self.exit: wire.Exited | None = None
        # Muster itself has ended or is ending this runner.
        self.killed = False

    async def open(
        self, fds: tuple[int, ...], on_text: Callable[[RunnerLink, str, str], None]
    ) -> None:
        """Takes over the descriptors (socket, stdout, stderr)."""
        connection = socket.socket(fileno=fds[0])
        connection.setblocking(False)
        self.stdout = PipeReader(fds[1], lambda text: on_text(self, "stdout", text))
        self.stderr = PipeReader(fds[2], lambda text: on_text(self, "stderr", text))
        await self._loop.create_unix_connection(lambda: self, sock=connection)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are not subclasses of asyncio's.
        self._transport = cast("asyncio.WriteTransport", transport)
        if self._outbox:
            self._flush()

    def send(self, message: Any) -> None:
        """Queues a message for the frame that leaves at the end of this turn of the loop."""
        if not self._outbox and self._transport is not None:
            self._loop.call_soon(self._flush)
        self._outbox.append(message)

    def _flush(self) -> None:
        messages, self._outbox = self._outbox, []
        if self._transport is not None and messages:
            self._transport.write(wire.frame(messages))

    def data_received(self, data: bytes) -> None:
        messages: list[Any] = []
        try:
            for body in self._frames.feed(data):
                messages += wire.from_runner.decode(body)
        except (wire.BrokenPeer, msgspec.MsgspecError):
            # User code has written to our socket: nothing that follows can be trusted.
            self.close()
        if messages:
            self._on_messages(self, messages)

    def connection_lost(self, _exc: Exception | None, /) -> None:
        self.lost = True
        self._transport = None
        self._on_lost(self)

    def drain_streams(self) -> None:
        """Takes what the attempt printed before it reported its end."""
        if self.stdout is not None:
            self.stdout.drain()
        if self.stderr is not None:
            self.stderr.drain()

    def close(self) -> None:
        """Closes the socket: an idle runner ends by that."""
        if self._transport is not None:
            self._transport.abort()

    def close_streams(self) -> None:
        """Closes the pipes."""
        for stream in (self.stdout, self.stderr):
            if stream is not None:
                stream.close()
