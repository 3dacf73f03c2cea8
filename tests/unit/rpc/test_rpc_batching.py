"""Batcher: order, bounds, errors, and that a busy call makes the next batch large."""

from __future__ import annotations

import asyncio

import pytest

from muster.domain.errors import Overloaded, Unavailable
from muster.rpc.batching import Batcher


async def test_items_that_come_during_a_call_go_together() -> None:
    batches: list[list[int]] = []
    gate = asyncio.Event()

    async def apply(items: list[int]) -> list[int]:
        batches.append(items)
        await gate.wait()
        return [i * 10 for i in items]

    batcher = Batcher(apply, max_batch=3, max_pending=100, what="test")
    futures = [batcher.submit_nowait(0)]
    await asyncio.sleep(0)
    futures += [batcher.submit_nowait(i) for i in range(1, 6)]
    gate.set()
    assert await asyncio.gather(*futures) == [0, 10, 20, 30, 40, 50]
    assert batches == [[0], [1, 2, 3], [4, 5]]


async def test_a_full_queue_refuses_the_newcomer_only() -> None:
    gate = asyncio.Event()

    async def apply(items: list[int]) -> list[int]:
        await gate.wait()
        return items

    batcher = Batcher(apply, max_batch=1, max_pending=2, what="queue")
    first = batcher.submit_nowait(1)
    await asyncio.sleep(0)
    waiting = [batcher.submit_nowait(2), batcher.submit_nowait(3)]
    with pytest.raises(Overloaded, match="queue: 2 requests"):
        batcher.submit_nowait(4)
    with pytest.raises(Overloaded):
        await batcher.submit_many([5])
    gate.set()
    assert await asyncio.gather(first, *waiting) == [1, 2, 3]


async def test_an_error_reaches_every_caller_of_its_batch_and_no_other() -> None:
    async def apply(items: list[int]) -> list[int]:
        if 1 in items:
            raise Unavailable("store")
        return items

    batcher = Batcher(apply, max_batch=2, max_pending=10, what="test")
    results = await asyncio.gather(*(batcher.submit(i) for i in range(4)), return_exceptions=True)
    assert [type(r) for r in results] == [Unavailable, Unavailable, int, int]


async def test_close_finishes_what_was_taken() -> None:
    async def apply(items: list[int]) -> list[int]:
        await asyncio.sleep(0)
        return items

    batcher = Batcher(apply, max_batch=1, max_pending=10, what="test")
    futures = [batcher.submit_nowait(i) for i in range(3)]
    await batcher.close()
    assert [f.result() for f in futures] == [0, 1, 2]
    with pytest.raises(Unavailable):
        batcher.submit_nowait(9)
