"""A TCP proxy that breaks connections in the ways networks do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

from muster.rpc.clock import boot_ms


class TcpProxy:
    """Forwards to `target` (host:port) until told otherwise; bytes held back are not lost."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._server: asyncio.Server | None = None
        self._pipes: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._flows: dict[int, asyncio.Event] = {}
        self._refusing = False
        self.connections = 0
        # When something was last passed on to the target.
        self.passed_on_boot_ms = 0

    @property
    def endpoint(self) -> str:
        assert self._server is not None
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.close()
        for pipe in self._pipes:
            pipe.cancel()
        await asyncio.gather(*self._pipes, return_exceptions=True)
        self.cut()

    def cut(self) -> None:
        """Closes all present connections."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    def refuse(self, refusing: bool) -> None:
        """Closes new connections at once, while it holds."""
        self._refusing = refusing

    def blackhole(self) -> None:
        """Present connections stay open and carry nothing any more; new ones work."""
        for flow in self._flows.values():
            flow.clear()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        if self._refusing:
            writer.transport.abort()
            return
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        self.connections += 1
        self._writers.add(far_writer)
        flow = self._flows[self.connections] = asyncio.Event()
        flow.set()
        for source, sink in ((reader, far_writer), (far_reader, writer)):
            heard = self._heard if source is reader else None
            pipe = asyncio.create_task(_pump(source, sink, flow, heard))
            self._pipes.add(pipe)
            pipe.add_done_callback(self._pipes.discard)

    def _heard(self) -> None:
        self.passed_on_boot_ms = boot_ms()


async def _pump(
    source: asyncio.StreamReader,
    sink: asyncio.StreamWriter,
    flow: asyncio.Event,
    heard: Callable[[], None] | None,
) -> None:
    with suppress(OSError):
        while chunk := await source.read(65536):
            await flow.wait()
            if heard is not None:
                heard()
            sink.write(chunk)
            await sink.drain()
    sink.close()
