"""Services' figures from their pages: what is read, how replicas are joined, what is refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.polling import eventually
from tests.unit.monitor.finding_list import FindingList

from muster.domain.errors import InvalidInput
from muster_monitor import scrape
from muster_monitor.rules.figures import FigureJudge
from muster_monitor.rules.reading import read_rules
from muster_monitor.rules.schema import Source
from muster_monitor.senses import Senses
from muster_monitor.service_figures import MAX_SERIES, Series, ServiceFigures, Target, parse_page

PAGE = """\
# HELP muster_tasks_queued Tasks that wait.
# TYPE muster_tasks_queued gauge
muster_tasks_queued 17.0
# TYPE ended_total counter
ended_total{state="DEAD",why="a \\"b\\""} 3.0
ended_total{state="DONE"} 5e3
other{x="y"} 1
not_a_number NaN
"""
ONE, TWO = Target("scheduler", "10.0.0.1:1"), Target("scheduler", "10.0.0.2:1")

RULES = b"""\
builtin: false
rules:
  - {name: down, source: service, metric: up, below: 1}
  - {name: leader, source: service, metric: leads, across: sum, below: 1}
  - {name: deaths, source: service, metric: ended_total, across: sum, rate: true, above: 1,
     where: {state: DEAD}}
  - {name: slow, source: service, metric: lag, above: 5, where: {service: scheduler}}
"""


def test_only_what_is_wanted_is_read() -> None:
    wanted = frozenset({"muster_tasks_queued", "ended_total", "not_a_number"})
    series = parse_page(PAGE, wanted)
    assert Series("muster_tasks_queued", (), 17.0) in series
    assert Series("ended_total", (("state", "DEAD"), ("why", 'a "b"')), 3.0) in series
    assert len(series) == 3


def test_a_page_is_cut_at_its_bound() -> None:
    page = "".join(f'm{{i="{i}"}} 1\n' for i in range(MAX_SERIES + 50))
    assert len(parse_page(page, frozenset({"m"}))) == MAX_SERIES


@settings(max_examples=100)
@given(st.text(max_size=200) | st.text(max_size=60).map(lambda text: f"m{{{text}}} {text}"))
def test_no_page_is_more_than_refused(page: str) -> None:
    try:
        series = parse_page(page, frozenset({"m", ""}))
    except InvalidInput:
        return
    assert all(one.value - one.value == 0 for one in series)


class World:
    """Rounds each five seconds, judged by RULES."""

    def __init__(self) -> None:
        rules, mistakes = read_rules(RULES)
        assert mistakes == []
        self.judge = FigureJudge(Source.SERVICE, rules.figures)
        self.figures = ServiceFigures([ONE, TWO])
        self.now_ms = 0

    def round(self, one: str | None, two: str | None) -> list[tuple[str, bool, str]]:
        self.now_ms += 5_000
        readings = {
            target: None if page is None else parse_page(page, self.judge.metrics)
            for target, page in ((ONE, one), (TWO, two))
        }
        found = []
        for subject, figures in self.figures.round(readings, self.judge.rules, self.now_ms):
            found += self.judge.observe(subject, figures, self.now_ms, 1)
        return [(f.rule, f.active, f.labels.get("instance", "")) for f in found]


def test_a_replica_that_does_not_answer_is_told_by_its_address() -> None:
    world = World()
    assert world.round("leads 1\n", "leads 0\n") == []
    assert world.round("leads 1\n", None) == [("down", True, TWO.address)]
    assert world.round("leads 1\n", "leads 0\n") == [("down", False, TWO.address)]


def test_replicas_are_joined_where_a_rule_asks_for_it() -> None:
    world = World()
    assert world.round("leads 0\n", "leads 1\n") == []
    assert world.round("leads 0\n", "leads 0\n") == [("leader", True, "")]
    assert world.round("leads 1\n", "leads 0\n") == [("leader", False, "")]
    assert world.round("lag 9\n", "lag 1\n") == [("slow", True, ONE.address)]


def test_counters_are_joined_by_their_growth_and_a_restart_is_none() -> None:
    world = World()
    dead = 'ended_total{{state="DEAD"}} {}\n'
    assert world.round(dead.format(1000), dead.format(5)) == []
    assert world.round(dead.format(1003), dead.format(7)) == []
    # The first one began anew: it has not lost a thousand tasks, and it has not gained them.
    assert world.round(dead.format(2), dead.format(7)) == []
    assert world.round(dead.format(5), dead.format(9)) == []
    assert world.round(dead.format(9), dead.format(11)) == [("deaths", True, "")]
    # Other states are none of its business.
    assert world.round('ended_total{state="DONE"} 100000\n', "") == []


def test_a_counter_that_comes_into_being_has_grown_from_nothing() -> None:
    world = World()
    world.round("lag 0\n", "lag 0\n")
    assert world.round('lag 0\nended_total{state="DEAD"} 50\n', "lag 0\n") == [("deaths", True, "")]


Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]


@asynccontextmanager
async def serving(answer: Answer) -> AsyncIterator[str]:
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


def saying(reply: bytes) -> Answer:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(reply)
        writer.close()

    return answer


async def test_a_page_is_fetched() -> None:
    async with serving(saying(b"HTTP/1.1 200 OK\r\nX: y\r\n\r\nm 1\n")) as address:
        assert await scrape.fetch_page(address) == "m 1\n"


@pytest.mark.parametrize("reply", [b"HTTP/1.1 404 no\r\n\r\nm 1\n", b"hello", b"", b"\xff" * 99])
async def test_what_is_no_page_is_refused(reply: bytes) -> None:
    async with serving(saying(reply)) as address:
        with pytest.raises(InvalidInput):
            await scrape.fetch_page(address)


async def test_a_page_without_an_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrape, "MAX_PAGE_BYTES", 100_000)

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        try:
            while True:
                writer.write(b"m 1\n" * 1000)
                await writer.drain()
        except OSError:
            return
        finally:
            writer.close()

    async with serving(endless) as address:
        with pytest.raises(InvalidInput, match="at most 100000 bytes"):
            await scrape.fetch_page(address)


async def test_services_that_hang_or_are_away_are_told_and_hold_up_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scrape, "SCRAPE_EVERY_S", 0.01)
    monkeypatch.setattr(scrape, "SCRAPE_TIMEOUT_S", 0.3)

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Until the reader has given up.
        await reader.read()
        writer.close()

    sink = FindingList()
    async with serving(hang) as hung, serving(saying(b"HTTP/1.1 200 OK\r\n\r\nm 1\n")) as well:
        gone = Target("gateway", "127.0.0.1:1")
        targets = [Target("storage", hung), gone, Target("registry", well)]
        senses = Senses(sink, targets)
        work = asyncio.create_task(scrape.watch_services(targets, senses, lambda: 1, lambda: 1))
        try:
            await eventually(lambda: len(sink.newest) >= 2, work)
        finally:
            work.cancel()
    down = {(f.rule, f.labels["instance"]) for f in sink.newest}
    assert {("service_down", hung), ("service_down", gone.address)} <= down
    # The well one may be told on a machine that stalls, and then is taken back.
