"""Storage: the production store in memory behind the network, its books checked at each write."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar, cast

from tests.scenarios.sim_books import CLOCK_MS, Books, label
from tests.scenarios.sim_kernel import FASTEST, Kernel, SimulationError
from tests.scenarios.sim_network import Network, Server

from muster.domain.agent_lifecycle import AgentWish
from muster.domain.errors import StaleTerm
from muster.domain.ids import AgentId, TaskId, TenantId
from muster.domain.task import TaskSpec, TaskStatus
from muster.rpc.conversion import TASK_STATE_TO_PROTO
from muster_scheduler.core.tasks import Verdict
from muster_storage.memory_store import MemoryStore
from muster_storage.records import FIRST_ENDED, NO_WISH, Change, Creation, VerdictCode

T = TypeVar("T")
Row = tuple[TaskSpec, TaskStatus]
Answer = tuple[Verdict, TaskStatus | None]

_VERDICTS = {
    VerdictCode.OK: Verdict.OK,
    VerdictCode.STALE: Verdict.STALE,
    VerdictCode.NOT_FOUND: Verdict.GONE,
}
_WISHES = dict(enumerate(AgentWish, start=NO_WISH))
_WISH_NUMBERS = {wish: number for number, wish in _WISHES.items()}


def at_once(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that waits for nothing."""
    try:
        work.send(None)
    except StopIteration as done:
        return cast("T", done.value)
    raise AssertionError("the store in memory waited")


def _opaque(value: object) -> bytes:
    """The store never looks into specifications and statuses: here they stay what they are."""
    return cast("bytes", value)


class SimStore(Server):
    """What the storage service does with terms, attempts and compare-and-set."""

    def __init__(self, kernel: Kernel, network: Network, books: Books) -> None:
        super().__init__(kernel, network, "storage")
        self.books = books
        self.disk = MemoryStore(events_kept=100)
        self.disk.memory.clock_ms = CLOCK_MS
        # Ids that gateways created on their own, in order; `followers` hear of each.
        self.by_gateways: list[TaskId] = []
        self.followers: list[Callable[[TaskId], None]] = []
        self.open: dict[TaskId, None] = {}
        # What leaders have learned of recoveries, and what they know of agents' health.
        self.kept = b"", b""

    @property
    def term(self) -> int:
        return self.disk.memory.term

    @property
    def clock_ms(self) -> int:
        return self.disk.memory.clock_ms

    def ceiling_clock_ms(self) -> int:
        """The most that the cluster's clock can be: it runs no faster than a machine's clock."""
        return CLOCK_MS + int(self.kernel.now_ms * FASTEST)

    # ----------------------------------------------------------------------- cluster

    def acquire(self) -> tuple[int, int]:
        before = self.term
        term, clock_ms = at_once(self.disk.cluster.acquire_term("", b""))
        if term <= before:
            raise SimulationError(f"invariant 4: term {term} follows {before}")
        return term, clock_ms

    def confirm(self, term: int, advance_ms: int) -> tuple[bool, int]:
        answer = at_once(self.disk.cluster.confirm_term(term, advance_ms))
        if self.clock_ms > self.ceiling_clock_ms():
            raise SimulationError(f"invariant 12: the cluster's clock runs ahead: {self.clock_ms}")
        return answer

    def next_incarnation(self, agent: AgentId) -> int:
        return at_once(self.disk.cluster.next_incarnation(agent))

    def set_wish(self, agent: AgentId, wish: AgentWish) -> None:
        at_once(self.disk.cluster.set_wish(agent, _WISH_NUMBERS[wish], "", "", b""))

    def wishes(self) -> dict[AgentId, AgentWish]:
        stored = at_once(self.disk.cluster.wishes())
        return {AgentId(agent): _WISHES[number] for agent, number in stored.items()}

    def keep_learned(self, learned: bytes) -> bool:
        """In place of what was kept before."""
        self.kept = learned, self.kept[1]
        return True

    def keep_health(self, health: bytes) -> bool:
        """In place of what was kept before."""
        self.kept = self.kept[0], health
        return True

    def reserve(self, tenant: TenantId, key: str, now_ms: int) -> int:
        """When the request was first seen, which fixes its ids."""
        return at_once(self.disk.tasks.reserve(tenant, key, b"", now_ms)).first_ms

    # ------------------------------------------------------------------------- tasks

    def status(self, tenant: TenantId, task: TaskId) -> TaskStatus | None:
        found = self.disk.memory.task(tenant, task)
        return cast("TaskStatus", found.status) if found is not None else None

    def row(self, task: TaskId) -> Row | None:
        spec = self.books.specs.get(task)
        status = self.status(spec.tenant, task) if spec is not None else None
        return (spec, status) if spec is not None and status is not None else None

    def rows(self) -> list[Row]:
        """Everything."""
        return [row for row in map(self.row, self.books.specs) if row is not None]

    def load_open(self) -> tuple[list[Row], int]:
        """All open tasks; the position in `by_gateways` is taken first."""
        position = len(self.by_gateways)
        return [row for row in map(self.row, self.open) if row is not None], position

    def create(self, term: int, rows: Sequence[Row]) -> list[Answer] | None:
        """None: the term is stale."""
        new = [_creation(spec, status) for spec, status in rows]
        current, seq = self.term, self.disk.memory.seq
        try:
            created = at_once(self.disk.tasks.create(term, new))
        except StaleTerm:
            return None
        if term not in (0, current):
            raise SimulationError(f"invariant 4: term {term} creates under term {current}")
        answers: list[Answer] = []
        for (spec, status), standing in zip(rows, created.standing, strict=True):
            if standing:
                answers.append((Verdict.STALE, cast("TaskStatus", standing)))
                continue
            self.books.created(spec, status)
            self.open[spec.id] = None
            self.say("creates", label(spec.id, status.attempt), status.state.value, status.agent)
            if not term:
                self.by_gateways.append(spec.id)
                for follow in self.followers:
                    follow(spec.id)
            answers.append((Verdict.OK, None))
        self._check_events(seq, sum(verdict is Verdict.OK for verdict, _ in answers))
        return answers

    def apply(
        self, term: int, items: Sequence[tuple[TaskSpec, tuple[object, int], TaskStatus]]
    ) -> list[Answer] | None:
        """None: the term is stale."""
        before = [self.status(spec.tenant, spec.id) for spec, _, _ in items]
        current, seq = self.term, self.disk.memory.seq
        try:
            verdicts = at_once(self.disk.tasks.apply(term, [_change(*item) for item in items]))
        except StaleTerm:
            if term == current:
                raise
            return None
        if term != current:
            raise SimulationError(f"invariant 4: term {term} writes under term {current}")
        answers: list[Answer] = []
        written = 0
        for (spec, expect, status), old, verdict in zip(items, before, verdicts, strict=True):
            now = self.status(spec.tenant, spec.id)
            assert old is not None
            hit = (old.state, old.attempt) == expect
            written += hit
            if now is not (status if hit else old):
                raise SimulationError(f"invariant 3: {label(spec.id, old.attempt)} was {old}")
            if hit and old is not status:
                self._say_change(spec, old, status)
                self.books.changed(spec, old, status)
                if TASK_STATE_TO_PROTO[status.state] >= FIRST_ENDED:
                    self.open.pop(spec.id, None)
            standing = cast("TaskStatus", verdict.standing) if verdict.standing else None
            answers.append((_VERDICTS[verdict.code], standing))
        self._check_events(seq, written)
        return answers

    def _check_events(self, seq_before: int, written: int) -> None:
        events = self.disk.memory.seq - seq_before
        if events != written:
            raise SimulationError(f"invariant 3: {written} records changed with {events} events")

    def _say_change(self, spec: TaskSpec, old: TaskStatus, new: TaskStatus) -> None:
        self.say(
            label(spec.id, old.attempt), old.state.value, "becomes", label(spec.id, new.attempt),
            new.state.value, new.agent, f"wish {new.wish}" if new.wish != old.wish else "", new.why,
        )  # fmt: skip


def _creation(spec: TaskSpec, status: TaskStatus) -> Creation:
    return Creation(
        spec.tenant,
        spec.id,
        spec.skill,
        TASK_STATE_TO_PROTO[status.state],
        status.attempt,
        status.agent,
        _opaque(spec),
        _opaque(status),
        0,
        "",
        b"",
        (),
    )


def _change(spec: TaskSpec, expect: tuple[object, int], status: TaskStatus) -> Change:
    state, attempt = expect
    return Change(
        spec.tenant,
        spec.id,
        TASK_STATE_TO_PROTO[state],  # type: ignore[index]
        attempt,
        TASK_STATE_TO_PROTO[status.state],
        status.attempt,
        status.agent,
        _opaque(status),
        b"",
        "",
        "",
        b"",
    )
