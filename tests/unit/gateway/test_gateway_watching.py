"""Who is woken when."""

from __future__ import annotations

import asyncio

import pytest
from tests.polling import HANG_S

from muster.domain.errors import Overloaded
from muster_gateway.watching import WatchBoard


async def test_an_end_wakes_its_watchers_alone() -> None:
    board = WatchBoard()
    with board.watch(("a", "b")) as one, board.watch(("b",)) as two:
        board.note("t", "a", ended=True)
        board.note("t", "c", ended=True)
        assert one.take(10) == ["a"]
        assert two.take(10) == []
        board.note("t", "b", ended=True)
        assert (one.take(10), two.take(10)) == (["b"], ["b"])


async def test_a_change_that_is_no_end_wakes_nobody() -> None:
    board = WatchBoard()
    with board.watch(("a",)) as watch:
        board.note("t", "a", ended=False)
        assert watch.take(1) == []


async def test_waiting_ends_with_the_event_and_not_before() -> None:
    board = WatchBoard()
    with board.watch(("a",)) as watch:
        waiting = asyncio.ensure_future(watch.wait(60))
        await asyncio.sleep(0)
        assert not waiting.done()
        board.note("t", "a", ended=True)
        await asyncio.wait_for(waiting, HANG_S)
        assert watch.take(1) == ["a"]


async def test_waiting_ends_with_the_time() -> None:
    board = WatchBoard()
    with board.watch(("a",)) as watch:
        await watch.wait(0.001)
        await watch.wait(-1)
        assert watch.take(1) == []


async def test_what_has_come_before_the_wait_ends_it_at_once() -> None:
    board = WatchBoard()
    with board.watch(("a",)) as watch:
        board.note("t", "a", ended=True)
        await asyncio.wait_for(watch.wait(60), HANG_S)


async def test_standing_follows_the_events_and_the_tenant() -> None:
    board = WatchBoard()
    assert board.standing("t", "a") is None
    board.note_new("t", ["a"])
    assert board.standing("t", "a") is False
    assert board.standing("other", "a") is None
    board.note("t", "a", ended=True)
    assert board.standing("t", "a") is True
    board.note_new("t", ["a"])
    assert board.standing("t", "a") is True


async def test_lost_events_void_what_was_known_and_wake_everybody() -> None:
    board = WatchBoard()
    board.note_new("t", ["a", "b"])
    with board.watch(("a", "b")) as watch:
        watch.forget("b")
        board.invalidate()
        assert board.standing("t", "a") is None
        assert watch.take(10) == ["a"]


async def test_watches_are_bounded_and_given_back() -> None:
    board = WatchBoard(max_watched=3)
    with board.watch(("a", "b")) as watch:
        with pytest.raises(Overloaded), board.watch(("c", "d")):
            pass
        watch.forget("a")
        with board.watch(("c", "d")):
            pass
    with board.watch(("a", "b", "c")):
        pass


async def test_memory_of_tasks_is_bounded_and_keeps_the_newest() -> None:
    board = WatchBoard(known_tasks=10)
    for number in range(1_000):
        board.note("t", str(number), ended=True)
    known = [n for n in range(1_000) if board.standing("t", str(n)) is not None]
    assert 10 <= len(known) <= 20
    assert known[-1] == 999
