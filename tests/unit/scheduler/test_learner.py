"""The learner beside a leader: what it is given it keeps, and what fails never fails the leader."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs
from tests.polling import eventually
from tests.unit.scheduler.core_bench import A, B, Bench
from tests.unit.scheduler.test_keeping import Storage, archive

from muster.domain.errors import Unavailable
from muster.domain.task import Outcome, OutcomeKind
from muster_scheduler import learner as under_test
from muster_scheduler.core.notes import NOTED_PER_S
from muster_scheduler.core.stragglers import Stragglers
from muster_scheduler.learner import Learner
from muster_scheduler.learning.records import CorruptChunk, from_chunk
from muster_scheduler.learning.training import Training


class Published:
    def __init__(self) -> None:
        self.whys: list[str] = []

    def straggler(self, late: object, why: str) -> None:
        self.whys.append(why)


@pytest.fixture(autouse=True)
def brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(under_test, "_TURN_S", 0.001)
    monkeypatch.setattr(under_test, "_WRITE_EVERY_S", 0.001)


def bench_of_two() -> Bench:
    bench = Bench()
    bench.join(A, slots=64, cpu=64_000)
    bench.join(B, slots=64, cpu=64_000)
    return bench


def leader_of(bench: Bench, storage: Storage) -> Any:
    ready = asyncio.Event()
    ready.set()
    return SimpleNamespace(
        state=bench.state,
        storage=storage,
        term=1,
        ready=ready,
        now=lambda: bench.now,
        wake=lambda: None,
        publisher=Published(),
    )


def work(bench: Bench, count: int) -> None:
    """Tasks that take as many seconds as they say."""
    for number in range(count):
        size = 1 + number % 7
        task = bench.run(input_json=f'{{"n":{size}}}'.encode())
        bench.end(
            task,
            Outcome(OutcomeKind.SUCCEEDED, started_at_ms=1_000, ended_at_ms=1_000 + 1_000 * size),
        )
        bench.settle()


def stored(storage: Storage) -> int:
    chunks = [from_chunk(storage.values[key]) for key in storage.chunks()]
    return sum(len(chunk) for chunk in chunks if not isinstance(chunk, CorruptChunk))


async def test_what_was_noted_is_kept_and_expected() -> None:
    bench, storage = bench_of_two(), Storage()
    learning = asyncio.create_task(Learner(leader_of(bench, storage), 0.001).run())
    await eventually(lambda: bench.state.notes.per_s == NOTED_PER_S)
    bench.wait(1_000)
    work(bench, 60)
    await eventually(lambda: bench.state.foresight.model is not None)
    bench.wait(1_000)
    work(bench, 7)
    await eventually(lambda: stored(storage) == 67)
    learning.cancel()
    await asyncio.gather(learning, return_exceptions=True)
    kept = await archive(storage, 2).load_attempts(1_000)
    assert [round(r.run_s) for r in kept[:7]] == [1, 2, 3, 4, 5, 6, 7]
    assert kept[0].predicted_s == 0.0
    assert kept[0].task.fields == (("n", 1.0),)
    assert kept[0].agent.labels == ()
    assert kept[-1].predicted_s > 0.0


async def test_a_failed_training_is_said_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = 0

    async def fails(*args: object, **kwargs: object) -> Training:
        nonlocal tried
        tried += 1
        raise Unavailable("training", "no memory")

    monkeypatch.setattr(under_test, "train_elsewhere", fails)
    bench = bench_of_two()
    with capture_logs() as said:
        learning = asyncio.create_task(Learner(leader_of(bench, Storage()), 0.001).run())
        await eventually(lambda: bench.state.notes.per_s == NOTED_PER_S)
        for _ in range(3):
            bench.wait(1_000)
            work(bench, 80)
        await eventually(lambda: tried == 1)
        before = bench.state.foresight.history.seen
        bench.wait(1_000)
        work(bench, 1)
        await eventually(lambda: bench.state.foresight.history.seen > before)
        assert not learning.done()
        learning.cancel()
        await asyncio.gather(learning, return_exceptions=True)
    (line,) = [line for line in said if line["log_level"] == "error"]
    assert line["event"] == "a training failed"
    assert "no memory" in line["reason"]
    assert line["do"]


async def test_a_defect_ends_the_learning_and_not_the_leader(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*args: object) -> None:
        raise ValueError("a defect")

    monkeypatch.setattr(Stragglers, "look", broken)
    bench = bench_of_two()
    with capture_logs() as said:
        await asyncio.wait_for(Learner(leader_of(bench, Storage()), 0.001).run(), 60.0)
    (line,) = [line for line in said if line["log_level"] == "error"]
    assert line["event"].startswith("learning has stopped")
    assert bench.state.notes.per_s == 0


async def test_a_straggler_is_published() -> None:
    bench, storage = bench_of_two(), Storage()
    leader = leader_of(bench, storage)
    bench.run(estimate_ms=1_000)
    bench.wait(10_000)
    learning = asyncio.create_task(Learner(leader, 0.001).run())
    await eventually(lambda: bool(leader.publisher.whys))
    learning.cancel()
    await asyncio.gather(learning, return_exceptions=True)
    assert leader.publisher.whys == [
        "it has run 10.0 s on agent a; 1.0 s were expected, 3.0 s are the bound"
    ]
