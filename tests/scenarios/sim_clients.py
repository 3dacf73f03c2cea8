"""Clients behind a gateway: they submit, repeat what was not answered, and cancel."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tests.scenarios.sim_books import label
from tests.scenarios.sim_executor import Habits
from tests.scenarios.sim_kernel import Part, SimulationError
from tests.scenarios.sim_network import call

from muster.agent.error_kinds import PERMANENT
from muster.domain.ids import TaskId, TenantId, request_prefix, task_id
from muster.domain.resources import ResourceVector
from muster.domain.task import (
    Lifetime,
    OnDisconnect,
    OutcomeKind,
    TaskSpec,
    TaskStatus,
    Wish,
)
from muster.domain.task_lifecycle import ENDED_STATES

if TYPE_CHECKING:
    from tests.scenarios.sim_leader import SimLeader
    from tests.scenarios.sim_world import World

# The gateway gives a leader this long before it turns to storage.
LEADER_MS = 2_500
CANCEL_AGAIN_MS = 4_000
# Of the requests so many come when faults have stopped: for what recovers.
LATE_REQUESTS = 2
# Long enough that an agent is given up meanwhile: only in one attempt, to spare steps.
LONG_MS = 3_000
S, F, R, T = (
    OutcomeKind.SUCCEEDED,
    OutcomeKind.FAILED,
    OutcomeKind.RETURNED,
    OutcomeKind.TIMED_OUT,
)
KINDS = ((S,), (S,), (S,), (F, S), (R, S), (F,), (F, F, S))
ON_DISCONNECT = (OnDisconnect.KEEP, OnDisconnect.STOP, OnDisconnect.STOP)
DEMANDS = (
    ResourceVector(),
    ResourceVector.of({"cpu": 500}),
    ResourceVector.of({"cpu": 2_500, "memory": 1 << 28}),
)


class Gateway(Part):
    """All clients, and the stateless gateway that they use."""

    def __init__(self, world: World) -> None:
        super().__init__(world.kernel, "gateway")
        self.world = world
        self.rng = world.rng
        # Requests that were sent and not answered yet.
        self.unanswered: set[str] = set()
        self._ids: dict[str, TaskId] = {}
        self._specs: dict[TaskId, TaskSpec] = {}

    def plan(self, requests: int, until_ms: int) -> None:
        """Spreads requests over the time until faults stop."""
        for number in range(requests):
            key = f"request-{number}"
            self.unanswered.add(key)
            tenant = TenantId(self.rng.choice(("default", "other")))
            count = self.rng.choice((1, 1, 1, 3))
            at_ms = self.rng.random() * until_ms * 0.8
            if number < LATE_REQUESTS:
                at_ms += until_ms
            self.kernel.at(
                at_ms,
                lambda k=key, t=tenant, c=count: self._request(k, t, c),  # type: ignore[misc]
            )

    def draw_kind(self) -> OutcomeKind:
        return self.rng.choice((S, S, F))

    # ------------------------------------------------------------------- submissions

    def _request(self, key: str, tenant: TenantId, count: int) -> None:
        """One request of a client, which repeats it when it hears nothing."""

        def reserved(first_ms: object) -> None:
            assert isinstance(first_ms, int)
            prefix = request_prefix(tenant, key, first_ms)
            idents = [task_id(prefix, index) for index in range(count)]
            if self._ids.setdefault(key, idents[0]) != idents[0]:
                raise SimulationError(f"invariant 8: {key} is given {idents[0]} the second time")
            open_ids = set(idents)
            for ident in idents:
                done = lambda ident=ident: accepted(ident)  # noqa: E731
                self.submit(self, self._spec(ident, tenant), done)

            def accepted(ident: TaskId) -> None:
                open_ids.discard(ident)
                if not open_ids:
                    self._answered(key, tenant, count)

        wall_ms = self.wall_ms()
        store = self.world.store
        call(self, store, lambda: store.reserve(tenant, key, wall_ms), reserved)

    def _answered(self, key: str, tenant: TenantId, count: int) -> None:
        if self.rng.random() < 0.1 and not self.world.calm:
            # The client never hears of it, and asks again.
            self.later(500, lambda: self._request(key, tenant, count))
        else:
            self.unanswered.discard(key)

    def submit(self, client: Part, spec: TaskSpec, done: Callable[[], None]) -> None:
        """To the leader, or to storage when that does not answer in time."""
        store = self.world.store
        self.world.books.asked_ms.setdefault(spec.id, self.kernel.now_ms)
        over = False

        def accept(_: object) -> None:
            nonlocal over
            if over:
                return
            over = True
            if spec.id not in self.world.books.specs:
                raise SimulationError(f"invariant 1: {spec.id} is accepted and not durable")
            self.world.books.accepted.add(spec.id)
            done()

        def create() -> object:
            return store.create(0, [(spec, TaskStatus(created_clock_ms=store.clock_ms))])

        def ask_storage() -> None:
            if not over:
                call(client, store, create, accept)

        if self.rng.random() < 0.2:
            ask_storage()
            return
        self._ask_leader(client, lambda leader, answer: leader.submit(spec, answer), accept)
        client.later(LEADER_MS, ask_storage)

    def _ask_leader(
        self,
        client: Part,
        ask: Callable[[SimLeader, Callable[[], None]], None],
        answered: Callable[[object], None],
    ) -> None:
        kernel, network, leader = self.kernel, self.world.network, self.world.leader
        if leader is None or kernel.is_lost() or not network.passes(client, leader):
            return

        def answer() -> None:
            if not kernel.is_lost() and network.passes(leader, client):
                client.later(kernel.delay_ms(), lambda: answered(None))

        kernel.at(kernel.delay_ms(), lambda: leader.do(lambda: ask(leader, answer)))

    def _spec(self, ident: TaskId, tenant: TenantId) -> TaskSpec:
        known = self.world.habits.get(ident)
        rng = self.rng
        if known is None:
            # Of one request that is repeated the first body counts.
            runs_ms = rng.choice((5, 40, 200, 200, 1_000, 3_000, 20_000))
            self.world.habits[ident] = Habits(
                runs_ms=runs_ms,
                kinds=rng.choice(KINDS) if runs_ms < LONG_MS else (S,),
                error_kind=rng.choice(("", "", PERMANENT)),
                poison=rng.random() < 0.04,
                stubborn=rng.random() < 0.35,
                child=rng.random() < 0.12,
                reports=rng.random() < 0.5,
            )
            if rng.random() < 0.15:
                self.kernel.at(rng.random() * 8_000, lambda: self.cancel(ident))
        is_long = self.world.habits[ident].runs_ms > LONG_MS
        service = rng.random() < 0.05 and not self.world.calm
        return self._specs.setdefault(
            ident,
            TaskSpec(
                ident,
                "echo",
                tenant=tenant,
                resources=rng.choice(DEMANDS),
                priority=rng.choice((10, 50, 50, 90)),
                timeout_ms=rng.choice((0, 0, 0, 600)),
                progress_timeout_ms=rng.choice((0, 0, 0, 2_500)),
                start_deadline_ms=rng.choice((0, 0, 0, 0, 5_000)),
                total_deadline_ms=rng.choice((0, 0, 0, 0, 9_000)),
                on_disconnect=rng.choice(ON_DISCONNECT[: 3 if is_long else 2]),
                lifetime=Lifetime.SERVICE if service else Lifetime.FINITE,
            ),
        )

    # ----------------------------------------------------------------- cancellations

    def cancel(self, ident: TaskId) -> None:
        """Again and again until it has ended: a leader may die with the wish."""
        row = self.world.store.row(ident)
        if row is not None and row[1].state in ENDED_STATES:
            return
        books = self.world.books
        books.cancel_asked.add(ident)

        def ask(leader: SimLeader, answer: Callable[[], None]) -> None:
            def durable() -> None:
                self._acknowledge(ident)
                answer()

            leader.cancel(ident, durable)

        self._ask_leader(self, ask, lambda _: None)
        self.later(CANCEL_AGAIN_MS, lambda: self.cancel(ident))

    def _acknowledge(self, ident: TaskId) -> None:
        row = self.world.store.row(ident)
        if row is None or not (row[1].state in ENDED_STATES or row[1].wish is Wish.CANCEL):
            raise SimulationError(f"invariant 1: {label(ident, 0)} is not cancelled: {row}")
        self.kernel.tally["cancellation acknowledged"] += 1
        if row[1].state not in ENDED_STATES:
            self.world.books.cancelled.setdefault(ident, row[1].attempt)

    def end_services(self) -> None:
        """What runs until it is cancelled is cancelled now."""
        for ident, spec in self._specs.items():
            if spec.lifetime is Lifetime.SERVICE:
                self.cancel(ident)
