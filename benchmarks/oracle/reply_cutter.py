"""A TCP proxy that loses replies (what was asked for is done, and whoever asked is not told) or
carries nothing at all while its connections stay open."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress

_READ_BYTES = 65_536
_CONNECT_S = 2.0
_STOP_S = 10.0


class ReplyCutter:
    """Forwards to host:port `target` from a thread of its own; may be told before it listens."""

    def __init__(self, name: str) -> None:
        self.name = name
        # Set once the port is known; until then connections are closed at once.
        self.target = ""
        self.address = ""
        self.dropped_bytes = 0
        self._muted = False
        self._flow = asyncio.Event()
        self._flow.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._pipes: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._listening = threading.Event()
        self._closing: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._run, name=f"proxy {name}", daemon=True)

    def start(self) -> None:
        self._thread.start()
        if not self._listening.wait(_STOP_S):
            raise TimeoutError(f"the proxy of {self.name} does not listen")

    def stop(self) -> None:
        if self._closing is not None:
            self._loop.call_soon_threadsafe(self._closing.set)
            self._thread.join(_STOP_S)

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

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        self._closing = asyncio.Event()
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._listening.set()
        await self._closing.wait()
        server.close()
        for pipe in self._pipes:
            pipe.cancel()
        await asyncio.gather(*self._pipes, return_exceptions=True)
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
            pipe = asyncio.create_task(self._pump(source, sink, replies))
            self._pipes.add(pipe)
            pipe.add_done_callback(self._pipes.discard)

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
