"""A TCP proxy that loses replies (what was asked for is done, and whoever asked is not told) or
carries nothing at all while its connections stay open."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from benchmarks.oracle.threaded_server import ThreadedServer

_READ_BYTES = 65_536
_CONNECT_S = 2.0


class ReplyCutter(ThreadedServer):
    """Forwards to `target`; may be told before it listens. Without a target yet, connections are
    closed at once."""

    def __init__(self, name: str) -> None:
        super().__init__(f"proxy of {name}")
        self.dropped_bytes = 0
        self._muted = False
        self._flow = asyncio.Event()
        self._flow.set()
        self._writers: set[asyncio.StreamWriter] = set()

    def mute(self) -> None:
        """From now on requests go through and replies are lost."""
        self._muted = True

    def cut(self) -> None:
        """Closes all connections, and lets replies of new ones through again."""
        self._loop.call_soon_threadsafe(self._cut)

    def part(self) -> None:
        """From now on connections are open, new ones too, and carry nothing."""
        self._loop.call_soon_threadsafe(self._flow.clear)

    def heal(self) -> None:
        """What was held back arrives, late."""
        self._loop.call_soon_threadsafe(self._flow.set)

    def _cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()
        self._muted = False

    async def _serve(self) -> None:
        await super()._serve()
        self._cut()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        await self._flow.wait()
        host, _, port = self.target.rpartition(":")
        try:
            if not host:
                raise ConnectionRefusedError
            async with asyncio.timeout(_CONNECT_S):
                far_reader, far_writer = await asyncio.open_connection(host, int(port))
        except (OSError, TimeoutError):
            writer.transport.abort()
            self._writers.discard(writer)
            return
        self._writers.add(far_writer)
        for source, sink, replies in (
            (reader, far_writer, False),
            (far_reader, writer, True),
        ):
            self._spawn(self._pump(source, sink, replies))

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, replies: bool
    ) -> None:
        with suppress(OSError):
            while chunk := await source.read(_READ_BYTES):
                await self._flow.wait()
                if replies and self._muted:
                    self.dropped_bytes += len(chunk)
                    continue
                sink.write(chunk)
                await sink.drain()
        sink.close()
        self._writers.discard(sink)
