"""Random writes against a tiny model, in both stores; every index must agree with the records."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from tests.polling import eventually
from tests.real_servers import RedisServer
from tests.storage_records import (
    TENANT,
    changes,
    creations,
    ident,
    notices,
    progress,
    status,
    task,
    transition,
)

from muster.api.v1 import task_pb2
from muster.domain.errors import StaleTerm
from muster_storage.memory_store import MemoryStore
from muster_storage.records import Removal, TaskFilter, VerdictCode
from muster_storage.redis_store import RedisStore
from muster_storage.task_store import Store

T = TypeVar("T")

AGENTS = ("agent-1", "agent-2")
SKILLS = ("echo", "sleep")
ZONES = ("a", "b")

indexes = st.integers(0, 5)
states = st.integers(1, 8)
open_states = st.integers(1, 3)
attempts = st.integers(0, 3)
agents = st.sampled_from(["", *AGENTS])
offsets = st.sampled_from([0, 0, 0, 0, -1, 1])


@dataclass(frozen=True)
class Known:
    """What the model knows of one task."""

    state: int
    attempt: int
    agent: str
    skill: str
    zone: str
    status: task_pb2.TaskStatus
    outcome: task_pb2.Outcome
    fraction: float = 0.0


class StoreMachine(RuleBasedStateMachine):
    """The model is a dict; what a write does to it is written out in the plainest way."""

    open_store: ClassVar[Callable[[], Coroutine[Any, Any, Store]]]

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.model: dict[int, Known] = {}
        self.events = 0
        self.term = 0
        self.written = 0

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    @initialize()
    def open(self) -> None:
        self.store: Store = self.run(type(self).open_store())

    def teardown(self) -> None:
        self.runner.close()

    @rule()
    def new_term(self) -> None:
        self.term, _ = self.run(self.store.cluster.acquire_term("7:1:", b""))
        self.events += 1

    @rule(
        indexes=st.lists(indexes, min_size=1, max_size=4),
        skill=st.sampled_from(SKILLS),
        zone=st.sampled_from(ZONES),
    )
    def create(self, indexes: list[int], skill: str, zone: str) -> None:
        new = [task(n, skill=skill, labels={"zone": zone}) for n in indexes]
        created = self.run(self.store.tasks.create(0, creations(new)))
        for n, standing in zip(indexes, created.standing, strict=True):
            known = self.model.get(n)
            assert standing == (known.status.SerializeToString() if known else b"")
            if known is None:
                nothing = task_pb2.Outcome()
                self.model[n] = Known(1, 0, "", skill, zone, status(), nothing)
                self.events += 1

    @precondition(lambda self: self.term)
    @rule(index=indexes, agent=st.sampled_from(AGENTS), offset=offsets)
    def create_assigned(self, index: int, agent: str, offset: int) -> None:
        term = self.term + offset
        if term == 0:
            return
        new = task(index, state=2, attempt=1, agent=agent, labels={"zone": "a"})
        work = self.store.tasks.create(term, creations([new], term))
        if offset:
            with pytest.raises(StaleTerm):
                self.run(work)
            return
        (standing,) = self.run(work).standing
        assert bool(standing) == (index in self.model)
        if not standing:
            after = status(2, 1, agent)
            self.model[index] = Known(2, 1, agent, "echo", "a", after, task_pb2.Outcome())
            self.events += 1

    @precondition(lambda self: self.term)
    @rule(
        items=st.lists(
            st.tuples(indexes, open_states, attempts, states, st.integers(0, 1), agents),
            min_size=1,
            max_size=5,
        ),
        truthful=st.booleans(),
        with_outcome=st.booleans(),
        offset=offsets,
    )
    def apply(
        self,
        items: list[tuple[int, int, int, int, int, str]],
        truthful: bool,
        with_outcome: bool,
        offset: int,
    ) -> None:
        term = self.term + offset
        if term == 0:
            return
        model, transitions, expected, events = dict(self.model), [], [], 0
        for index, expect_state, expect_attempt, state, more, agent in items:
            known = model.get(index)
            expect = (expect_state, expect_attempt)
            if truthful and known is not None and known.state < 4:
                expect = (known.state, known.attempt)
            self.written += 1
            after = status(state, expect[1] + more, agent, why=str(self.written))
            outcome = task_pb2.Outcome(kind=task_pb2.OUTCOME_KIND_FAILED, error=str(self.written))
            given = outcome if with_outcome else None
            transitions.append(transition(index, expect, after, outcome=given))
            if known is None:
                expected.append((VerdictCode.NOT_FOUND, b""))
            elif (known.state, known.attempt) != expect:
                expected.append((VerdictCode.STALE, known.status.SerializeToString()))
            else:
                expected.append((VerdictCode.OK, b""))
                events += 1
                model[index] = replace(
                    known,
                    state=state,
                    attempt=after.attempt,
                    agent=agent,
                    status=after,
                    outcome=given or known.outcome,
                    fraction=known.fraction if after.attempt == known.attempt else 0.0,
                )
        work = self.store.tasks.apply(term, changes(transitions, term))
        if offset:
            with pytest.raises(StaleTerm):
                self.run(work)
            return
        assert [tuple(verdict) for verdict in self.run(work)] == expected
        self.model, self.events = model, self.events + events

    @rule(index=indexes, attempt=attempts, fraction=st.sampled_from([0.25, 0.5]))
    def publish(self, index: int, attempt: int, fraction: float) -> None:
        taken = self.run(self.store.tasks.publish(0, notices([progress(index, attempt, fraction)])))
        known = self.model.get(index)
        wanted = known is not None and known.state in (2, 3) and known.attempt == attempt
        assert taken == wanted
        if known is not None and wanted:
            self.model[index] = replace(known, fraction=fraction)
            self.events += 1

    @rule(index=indexes)
    def remove(self, index: int) -> None:
        known = self.model.get(index)
        labels = (f"zone={known.zone}",) if known else ()
        removal = Removal(TENANT, ident(index), known.skill if known else "echo", labels)
        removed = self.run(self.store.tasks.remove([removal]))
        assert removed == (known is not None and known.state >= 4)
        if removed:
            del self.model[index]

    @invariant()
    def records_are_those_of_the_model(self) -> None:
        rows = self.run(self.store.tasks.get(TENANT, [ident(n) for n in range(6)], 10**6))
        for n, row in enumerate(rows):
            known = self.model.get(n)
            assert (row is None) == (known is None)
            if row is not None and known is not None:
                assert task_pb2.TaskStatus.FromString(row.status) == known.status
                assert task_pb2.Outcome.FromString(row.outcome) == known.outcome
                fraction = task_pb2.TaskProgress.FromString(row.progress).fraction
                assert fraction == known.fraction

    @invariant()
    def indexes_agree_with_records(self) -> None:
        counts = self.run(self.store.tasks.count(TENANT))
        for state in range(1, 9):
            matching = self.matching(lambda known, state=state: known.state == state)
            assert self.listed(TaskFilter(state=state)) == matching
            assert counts[state] == len(matching)
        for agent in AGENTS:
            matching = self.matching(lambda known, agent=agent: known.agent == agent)
            assert self.listed(TaskFilter(agent=agent)) == matching
        for skill in SKILLS:
            matching = self.matching(lambda known, skill=skill: known.skill == skill)
            assert self.listed(TaskFilter(skill=skill)) == matching
        for zone in ZONES:
            matching = self.matching(lambda known, zone=zone: known.zone == zone)
            assert self.listed(TaskFilter(labels=(f"zone={zone}",))) == matching
        assert self.listed(TaskFilter()) == sorted(self.model)
        expired = self.run(self.store.tasks.expired(1, 100))
        ended = self.matching(lambda known: known.state >= 4)
        assert sorted(task.id for task in expired) == [ident(n) for n in ended]

    @invariant()
    def every_change_is_one_event(self) -> None:
        entries = self.run(self.store.events.after(0, 10**6))
        assert [entry.seq for entry in entries] == list(range(1, self.events + 1))

    def matching(self, wanted: Callable[..., bool]) -> list[int]:
        return sorted(n for n, known in self.model.items() if wanted(known))

    def listed(self, wanted: TaskFilter) -> list[int]:
        page = self.run(self.store.tasks.page(TENANT, wanted, "", 100, newest_first=False))
        ids = [ident(n) for n in range(6)]
        return [ids.index(task_pb2.TaskSpec.FromString(row.spec).id) for row in page.rows]


def run_machine(machine: type[StoreMachine], examples: int) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_memory_agrees_with_the_model() -> None:
    class MemoryMachine(StoreMachine):
        @staticmethod
        async def open_store() -> Store:
            return MemoryStore()

    run_machine(MemoryMachine, 40)


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    # What is tested here is no promise of durability, so no time is spent on it.
    with RedisServer(tmp_path, ("--appendfsync", "no")) as server:
        yield server


def test_redis_agrees_with_the_model(redis: RedisServer) -> None:
    class RedisMachine(StoreMachine):
        running: asyncio.Task[None]

        @staticmethod
        async def open_store() -> Store:
            store = RedisStore(redis.url, allow_weak=True, timeout_s=50.0)
            RedisMachine.running = asyncio.create_task(store.run())
            await eventually(lambda: store.why_not_ready() is None)
            await store._link.call("FLUSHALL")
            return store

        def teardown(self) -> None:
            async def stop() -> None:
                RedisMachine.running.cancel()
                await asyncio.wait([RedisMachine.running])

            self.run(stop())
            super().teardown()

    run_machine(RedisMachine, 25)


def test_a_model_that_errs_is_caught() -> None:
    """The invariants can fail: an index that misses a task is seen."""

    class Forgetful(MemoryStore):
        def __init__(self) -> None:
            super().__init__()
            page = self.tasks.page

            async def forgetful(tenant: str, wanted: TaskFilter, *args: Any, **kwargs: Any) -> Any:
                found = await page(tenant, wanted, *args, **kwargs)
                return found._replace(rows=[]) if wanted.agent else found

            self.tasks.page = forgetful  # type: ignore[method-assign]

    class ForgetfulMachine(StoreMachine):
        @staticmethod
        async def open_store() -> Store:
            return Forgetful()

    with pytest.raises(AssertionError):
        run_machine(ForgetfulMachine, 60)
