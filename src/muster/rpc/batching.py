"""Collects items while a call is under way and sends them with the next one.

An idle system adds no wait (the first item goes at once), a busy one batches by itself: there
is no timer. One call is in flight at a time, or `concurrency` of them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from muster.domain.errors import Overloaded, Unavailable

T = TypeVar("T")
R = TypeVar("R")


class Batcher(Generic[T, R]):
    """`apply` gets a list of at most `max_batch` items and gives one result for each, in order.

    An error of `apply` reaches every caller whose item was in that batch. More than
    `max_pending` waiting items raise Overloaded for the newcomer; nothing of it is sent.
    """

    def __init__(
        self,
        apply: Callable[[list[T]], Awaitable[Sequence[R]]],
        *,
        max_batch: int,
        max_pending: int,
        what: str,
        concurrency: int = 1,
    ) -> None:
        self._apply = apply
        self._max_batch = max_batch
        self._max_pending = max_pending
        self._what = what
        self._concurrency = concurrency
        self._pending: deque[tuple[T, asyncio.Future[R]]] = deque()
        self._workers: set[asyncio.Task[None]] = set()
        self._closed = False

    def __len__(self) -> int:
        """How many items wait."""
        return len(self._pending)

    def submit_nowait(self, item: T) -> asyncio.Future[R]:
        """Adds an item; the future holds its result."""
        if self._closed:
            raise Unavailable(self._what, "it is shutting down")
        if len(self._pending) >= self._max_pending:
            raise Overloaded(f"{self._what}: {self._max_pending} requests are waiting already")
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._pending.append((item, future))
        if len(self._workers) < self._concurrency:
            worker = asyncio.create_task(self._work(), name=f"batch {self._what}")
            self._workers.add(worker)
            worker.add_done_callback(self._workers.discard)
        return future

    async def submit(self, item: T) -> R:
        """The result of `item`."""
        return await self.submit_nowait(item)

    async def submit_many(self, items: Sequence[T]) -> list[R]:
        """The results of `items`, in order; all or nothing is accepted."""
        if len(self._pending) + len(items) > self._max_pending:
            raise Overloaded(f"{self._what}: {self._max_pending} requests are waiting already")
        futures = [self.submit_nowait(item) for item in items]
        return list(await asyncio.gather(*futures))

    async def close(self) -> None:
        """Takes nothing more, and waits for what was taken."""
        self._closed = True
        while self._workers:
            await asyncio.wait(self._workers)

    async def _work(self) -> None:
        while self._pending:
            size = min(self._max_batch, len(self._pending))
            batch = [self._pending.popleft() for _ in range(size)]
            # A caller that has gone away still had its item accepted: it is sent like the rest.
            try:
                results = await self._apply([item for item, _ in batch])
            except asyncio.CancelledError:
                for _, future in batch:
                    future.cancel()
                raise
            except Exception as error:  # noqa: BLE001  handed on to every caller of the batch
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                        # A caller may have gone away; its error is then nobody's to read.
                        future.exception()
                continue
            assert len(results) == len(batch), f"{self._what}: {len(results)} for {len(batch)}"
            for (_, future), result in zip(batch, results, strict=True):
                if not future.done():
                    future.set_result(result)
