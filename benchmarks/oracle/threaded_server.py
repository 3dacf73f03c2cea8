"""A TCP server in a thread of its own, for proxies that stand between real processes."""

from __future__ import annotations

import asyncio
import threading
from abc import ABC, abstractmethod
from collections.abc import Coroutine
from typing import Any

_WITHIN_S = 10.0


class ThreadedServer(ABC):
    """Listens on a free port of loopback, `address`, from `start` to `stop`.

    `target` is host:port, set once it is known. Subclasses answer connections in `_accept` and run
    what lives as long as the server by `_spawn`; both in the loop `_loop`.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.address = self.target = ""
        self._loop = asyncio.new_event_loop()
        self._listening = threading.Event()
        self._closing: asyncio.Event | None = None
        self._work: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()
        if not self._listening.wait(_WITHIN_S):
            raise TimeoutError(f"the {self.name} does not listen")

    def stop(self) -> None:
        if self._closing is not None:
            self._loop.call_soon_threadsafe(self._closing.set)
            self._thread.join(_WITHIN_S)

    @abstractmethod
    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None: ...

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)

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
        for task in self._work:
            task.cancel()
        await asyncio.gather(*self._work, return_exceptions=True)
