"""Who waits for which task's end: wakes them as events come in.

A watch says which tasks *may* have ended; its owner then reads them from storage. `standing`
spares a first read where the events seen so far already say that a task is open: any later end
will come as an event, because the stream is ordered and complete between two `invalidate`s.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from itertools import islice
from types import TracebackType
from typing import Final

from muster.api.v1 import storage_pb2
from muster.domain.errors import Overloaded
from muster_gateway.metrics import WATCHED_TASKS

# Twenty gatherings of a full batch each; about 200 bytes are held per watched task.
MAX_WATCHED: Final = 200_000
# Two generations of this many tasks are remembered: a full batch, and what goes on beside it.
KNOWN_TASKS: Final = 16_384


class Watch:
    """The tasks that one request waits for. Used in a `with` block, by one caller."""

    __slots__ = ("_board", "_ids", "_maybe_ended", "_waiter")

    def __init__(self, board: WatchBoard, ids: Iterable[str]) -> None:
        self._board = board
        self._ids = set(ids)
        # Task → the event of its end, when it holds the outcome.
        self._maybe_ended: dict[str, storage_pb2.Event | None] = {}
        self._waiter: asyncio.Future[None] | None = None

    def __enter__(self) -> Watch:
        self._board.add(self, self._ids)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._board.remove(self, self._ids)

    def forget(self, ident: str) -> None:
        """This task is done with."""
        if ident in self._ids:
            self._ids.discard(ident)
            self._board.remove(self, (ident,))
            self._maybe_ended.pop(ident, None)

    def take(self, most: int) -> list[str]:
        """Up to `most` tasks that may have ended since they were last taken."""
        return [ident for ident, _ in self.take_ended(most)]

    def take_ended(self, most: int) -> list[tuple[str, storage_pb2.Event | None]]:
        """The same, each with the event of its end when that holds the outcome."""
        taken = list(islice(self._maybe_ended.items(), most))
        for ident, _ in taken:
            del self._maybe_ended[ident]
        return taken

    def wake(self, ident: str, event: storage_pb2.Event | None = None) -> None:
        """This task may have ended; with `event` it surely has."""
        self._maybe_ended[ident] = event
        self._release()

    def wake_all(self) -> None:
        """Any of them may have ended."""
        self._maybe_ended.update(dict.fromkeys(self._ids))
        self._release()

    def _release(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait(self, timeout_s: float) -> None:
        """Until a task may have ended, or the time has passed."""
        if self._maybe_ended or timeout_s <= 0:
            return
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        # Cheaper than asyncio.timeout, which costs as much as the rest of a short wait.
        timer = loop.call_later(timeout_s, self._release)
        try:
            await self._waiter
        finally:
            timer.cancel()
            self._waiter = None


class WatchBoard:
    """All watches, and what the latest events said of each task."""

    def __init__(self, max_watched: int = MAX_WATCHED, known_tasks: int = KNOWN_TASKS) -> None:
        self._max_watched = max_watched
        self._known_tasks = known_tasks
        self._watched = 0
        self._watches: dict[str, list[Watch]] = {}
        # Task → (tenant, ended); the older generation is dropped when the younger is full.
        self._young: dict[str, tuple[str, bool]] = {}
        self._old: dict[str, tuple[str, bool]] = {}

    def watch(self, ids: Iterable[str]) -> Watch:
        """A watch over these tasks, to be entered. Entering raises Overloaded at the bound."""
        return Watch(self, ids)

    def add(self, watch: Watch, ids: Iterable[str]) -> None:
        ids = tuple(ids)
        if self._watched + len(ids) > self._max_watched:
            raise Overloaded(f"{self._max_watched} tasks are waited for already")
        self._watched += len(ids)
        WATCHED_TASKS.set(self._watched)
        for ident in ids:
            self._watches.setdefault(ident, []).append(watch)

    def remove(self, watch: Watch, ids: Iterable[str]) -> None:
        for ident in ids:
            waiting = self._watches.get(ident)
            if waiting is None or watch not in waiting:
                continue
            waiting.remove(watch)
            self._watched -= 1
            if not waiting:
                del self._watches[ident]
        WATCHED_TASKS.set(self._watched)

    def note(
        self,
        tenant: str,
        ident: str,
        *,
        ended: bool,
        event: storage_pb2.Event | None = None,
    ) -> None:
        """An event said so; it is given along when it holds the outcome."""
        self._remember(ident, (tenant, ended))
        if ended:
            for watch in self._watches.get(ident, ()):
                watch.wake(ident, event)

    def note_new(self, tenant: str, ids: Iterable[str]) -> None:
        """These are about to be created under ids that were never used before."""
        for ident in ids:
            if self._lookup(ident) is None:
                self._remember(ident, (tenant, False))

    def standing(self, tenant: str, ident: str) -> bool | None:
        """True: it has ended. False: it is open. None: only storage can tell."""
        known = self._lookup(ident)
        return known[1] if known is not None and known[0] == tenant else None

    def invalidate(self) -> None:
        """Events may have been missed: all that was known is void, everybody reads again."""
        self._young, self._old = {}, {}
        for watch in {watch for waiting in self._watches.values() for watch in waiting}:
            watch.wake_all()

    def _lookup(self, ident: str) -> tuple[str, bool] | None:
        return self._young.get(ident) or self._old.get(ident)

    def _remember(self, ident: str, known: tuple[str, bool]) -> None:
        if len(self._young) >= self._known_tasks:
            self._old, self._young = self._young, {}
        self._young[ident] = known
