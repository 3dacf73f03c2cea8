"""What leaders keep of agents in storage, and how the next one goes on with it."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.scheduler.core_bench import WALL_AT_BOOT_MS, A, B, Bench

from muster.api.v1 import storage_pb2
from muster.domain.agent_lifecycle import AgentState, AgentWish
from muster.domain.errors import Unavailable
from muster_scheduler.agent_book import KEPT_MS, AgentBook, joined
from muster_scheduler.core import agents
from muster_scheduler.core.health import Blame
from muster_scheduler.core.records import MAX_EVIDENCE, Evidence


class Values:
    """A storage service's values, without a wire."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.puts: list[str] = []
        self.away = False

    async def call(self, stub: Any, method: str, request: Any, **_: Any) -> Any:
        if self.away:
            raise Unavailable("storage")
        if method == "GetValue":
            value = self.values.get(request.key)
            return storage_pb2.GetValueResponse(found=value is not None, value=value or b"")
        if method == "PutValue":
            self.values[request.key] = request.value
            self.puts.append(request.key)
            return storage_pb2.PutValueResponse(written=True)
        if method == "ListValues":
            keys = [k for k in sorted(self.values) if k.startswith(request.prefix)]
            return storage_pb2.ListValuesResponse(keys=keys)
        assert method == "DeleteValue"
        del self.values[request.key]
        return storage_pb2.DeleteValueResponse(deleted=True, found=True)


def book_of(bench: Bench, values: Values) -> AgentBook:
    return AgentBook(values, bench.state, lambda: bench.now)  # type: ignore[arg-type]


def entry(number: int, why: str = "x") -> Evidence:
    return Evidence(number, AgentState.READY, why)


async def saved(book: AgentBook, bench: Bench) -> None:
    book.noted |= bench.state.drain(writes=False).noted
    await book.save_health()
    await book._save_timelines()


async def test_the_next_leader_continues_the_timeline_and_the_blame() -> None:
    values, first = Values(), Bench()
    book = book_of(first, values)
    await book.load_health()
    first.join(A)
    first.state.health.blame(A, Blame.DEATH, first.now.clock_ms)
    agents.set_wish(first.state, A, AgentWish.DRAIN, first.now, who="key-7", deadline_ms=60_000)
    await saved(book, first)

    second = Bench()
    second.boot_ms = first.boot_ms + 5_000
    heir = book_of(second, values)
    await heir.load_health()
    assert second.state.drains == first.state.drains
    assert second.state.health.points(A, second.now.clock_ms) == pytest.approx(0.35, abs=0.01)
    second.join(A)
    await saved(heir, second)
    timeline = second.state.agents[A].evidence
    assert [e.what for e in timeline] == ["JOINED", "WISH", "DRAIN", "JOINED"]
    assert timeline[1].who == "key-7"
    assert "within 60 s" in timeline[1].why


async def test_nothing_is_written_while_nothing_changes() -> None:
    values, bench = Values(), Bench()
    book = book_of(bench, values)
    bench.join(A)
    await saved(book, bench)
    assert values.puts == [f"timeline/{A}"]
    await saved(book, bench)
    assert values.puts == [f"timeline/{A}"]


async def test_what_could_not_be_saved_is_saved_later() -> None:
    values, bench = Values(), Bench()
    book = book_of(bench, values)
    bench.join(A)
    await saved(book, bench)
    values.puts.clear()
    agents.set_wish(bench.state, A, AgentWish.CORDON, bench.now, who="k")
    bench.state.health.blame(A, Blame.DEATH, bench.now.clock_ms)
    values.away = True
    with pytest.raises(Unavailable):
        await saved(book, bench)
    values.away = False
    await saved(book, bench)
    assert sorted(values.puts) == ["health", f"timeline/{A}"]


async def test_an_agent_that_was_forgotten_comes_back_to_its_timeline() -> None:
    values, bench = Values(), Bench()
    book = book_of(bench, values)
    bench.join(A)
    await saved(book, bench)
    del bench.state.agents[A]
    await saved(book, bench)
    bench.state.table.remove(A)
    bench.wait(1_000)
    bench.join(A)
    await saved(book, bench)
    assert [e.what for e in bench.state.agents[A].evidence] == ["JOINED", "JOINED"]


async def test_what_cannot_be_read_is_left_out() -> None:
    values, bench = Values(), Bench()
    values.values = {"health": b"{]", f"timeline/{A}": b"\xff"}
    book = book_of(bench, values)
    await book.load_health()
    bench.join(A)
    await saved(book, bench)
    assert len(bench.state.agents[A].evidence) == 1


async def test_timelines_of_agents_long_gone_are_thrown_away() -> None:
    values, bench = Values(), Bench()
    book = book_of(bench, values)
    for agent in (A, B):
        bench.join(agent)
    await saved(book, bench)
    del bench.state.agents[A]
    await book._sweep()
    assert len(values.values) == 2
    bench.wait(KEPT_MS + 1)
    await book._sweep()
    assert list(values.values) == [f"timeline/{B}"]
    assert bench.now.wall_ms > WALL_AT_BOOT_MS


def test_joining_bounds_and_doubles_nothing() -> None:
    older = [entry(n) for n in range(MAX_EVIDENCE)]
    newer = [*older[-3:], entry(100), entry(101)]
    both = joined(older, newer)
    assert len(both) == MAX_EVIDENCE
    assert both[-5:] == newer
    assert both.count(older[-1]) == 1
