"""A task that mends its TaskGroup's failures still ends when it is told to."""

from __future__ import annotations

import asyncio

from tests.polling import HANG_S

from muster.cancellation import contained
from muster.domain.errors import Unavailable


class _Mender:
    """Runs a group for ever whose first child fails when the test says so."""

    def __init__(self) -> None:
        self.rounds = 0
        self.failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        while True:
            self.rounds += 1
            self.failure = asyncio.get_running_loop().create_future()
            try:
                await contained(self._group())
            except* Unavailable:
                pass

    async def _group(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._child())
            group.create_task(asyncio.Event().wait())

    async def _child(self) -> None:
        await self.failure

    async def until(self, rounds: int) -> None:
        async with asyncio.timeout(HANG_S):
            while self.rounds < rounds:  # noqa: ASYNC110  one pass of the loop after another
                await asyncio.sleep(0)
            await asyncio.sleep(0)


async def test_a_child_that_fails_alone_is_mended() -> None:
    mender = _Mender()
    work = asyncio.create_task(mender.run())
    for rounds in (1, 2, 3):
        await mender.until(rounds)
        mender.failure.set_exception(Unavailable("redis", "it broke"))
    await mender.until(4)
    work.cancel()
    await asyncio.wait([work], timeout=HANG_S)
    assert work.cancelled()


async def test_a_child_that_fails_as_the_task_is_cancelled_does_not_keep_it_alive() -> None:
    for passes in range(4):
        mender = _Mender()
        work = asyncio.create_task(mender.run())
        await mender.until(1)
        mender.failure.set_exception(Unavailable("redis", "it broke"))
        for _ in range(passes):
            await asyncio.sleep(0)
        work.cancel()
        await asyncio.wait([work], timeout=HANG_S)
        assert work.cancelled(), f"cancelled {passes} passes of the loop after the failure"
