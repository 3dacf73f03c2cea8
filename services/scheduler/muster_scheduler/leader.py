"""The shell around the core while this process leads: one term, from taking it to losing it.

Events come in from sessions, RPCs, streams and the clock; each wakes `_flush`, which runs once
per pass of the event loop: it places, drains the core's commands, and hands them on.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence

import msgspec
import numpy as np
import structlog

from muster.api.v1 import storage_pb2, storage_pb2_grpc, task_pb2
from muster.domain.agent_lifecycle import AgentWish
from muster.domain.alarms import MASS_FAILURE
from muster.domain.errors import (
    InvalidInput,
    MusterError,
    NotLeader,
    Overloaded,
    StaleTerm,
    Unavailable,
)
from muster.domain.ids import (
    AgentId,
    TaskId,
    parse_skill_name,
    parse_task_id,
    parse_tenant_id,
)
from muster.domain.task import TaskSpec
from muster.domain.task_lifecycle import ENDED_STATES, TaskState
from muster.rpc import conversion
from muster.rpc.channels import ServiceChannel, full_jitter
from muster.rpc.clock import boot_ms, wall_ms
from muster_scheduler import metrics
from muster_scheduler.agent_book import AgentBook
from muster_scheduler.alarms import Alarms
from muster_scheduler.core import agents, drains, recovering, tasks
from muster_scheduler.core.mass_failure import Alarm
from muster_scheduler.core.placing import place
from muster_scheduler.core.records import Now
from muster_scheduler.core.running import RunningObjective
from muster_scheduler.core.state import ClusterState
from muster_scheduler.core.suspects import resume
from muster_scheduler.errors import StoreChanged, passes
from muster_scheduler.improving import Improver
from muster_scheduler.loading import Loader
from muster_scheduler.placement.plan import Policy
from muster_scheduler.publisher import Publisher
from muster_scheduler.recovery_keeping import RecoveryKeeper
from muster_scheduler.sessions import Session
from muster_scheduler.stored_policy import StoredPolicy
from muster_scheduler.writer import Answer, Writer

_LOG = structlog.get_logger("muster.scheduler")
_Store = storage_pb2_grpc.StorageServiceStub

# What one leader keeps in memory; about 3 KiB each.
MAX_OPEN_TASKS = 1_000_000
# Submitted and not durable yet: some seconds' worth of writing, so that a storage that is away
# does not fill the memory with tasks of which their clients know nothing.
MAX_UNWRITTEN_TASKS = 50_000
MAX_UNWRITTEN_BYTES = 256 * 1024 * 1024
TICK_S = 0.1
JUDGE_EVERY_TICKS = 10
CONFIRM_EVERY_S = 0.4
CONFIRM_TIMEOUT_S = 1.0
# How long after a confirmation was asked for beats are answered. An agent kills a `stop` task
# within 12 s of the last answered beat, and the next leader gives it away after 13: so no beat may
# be answered more than 1 s after that leader took its term.
ANSWERS_FOR_MS = 1_000
# Without a confirmation for this long storage is taken to be away: nobody is judged or let in.
CONFIRMED_FOR_MS = 3_000
STORE_TIMEOUT_S = 5.0


class _Submission:
    """One call of `submit`: it is answered once all of its tasks are durable or one is refused."""

    __slots__ = ("done", "missing", "states")

    def __init__(self, count: int, done: asyncio.Future[None]) -> None:
        self.states: list[TaskState] = [TaskState.PENDING] * count
        self.missing = count
        self.done = done

    def settle(self, index: int, state: TaskState) -> None:
        self.states[index] = state
        self.missing -= 1
        if not self.missing and not self.done.done():
            self.done.set_result(None)

    def refuse(self, error: MusterError) -> None:
        if not self.done.done():
            self.done.set_exception(error)
            # Its RPC may have ended by its deadline; then nobody reads this.
            self.done.exception()


class _Creation(msgspec.Struct):
    """A submitted task that is being created, and the places where its state is awaited."""

    size_bytes: int
    waiters: list[tuple[_Submission, int]]


class Leader:
    """One term of leadership. `restricted` while etcd does not confirm the lead: nothing new is
    placed and no agent is judged, but outcomes are recorded and beats answered. `over` once it has
    ended: then nobody may be let in any more."""

    def __init__(
        self,
        storage: ServiceChannel,
        term: int,
        clock_ms: int,
        policies: StoredPolicy,
        address: str,
        store_run: str = "",
    ) -> None:
        self.storage = storage
        self.store_run = store_run
        self.term = term
        self.address = address
        self.restricted = False
        self.over = False
        self.policies = policies
        self.state = ClusterState(policies.policy, np.random.default_rng(), random.random)
        # A leader that is stopped before it judges for the first time has heard nobody, either.
        self.state.judged_boot_ms = boot_ms()
        self.sessions: dict[AgentId, Session] = {}
        self.supervisors: dict[AgentId, Session] = {}
        self.tasks_per_s = 0.0
        self.objective = RunningObjective()
        self._clock_base_ms = self._clock_shown_ms = clock_ms
        self._clock_boot_ms = boot_ms()
        self._advanced_boot_ms = self._clock_boot_ms
        self._confirmed_boot_ms = boot_ms()
        self._flush_due = False
        self._flush_error: Exception | None = None
        self._flush_failed = asyncio.Event()
        self._creating: dict[TaskId, _Creation] = {}
        self._unwritten_bytes = 0
        self._settling: dict[TaskId, list[asyncio.Future[None]]] = {}
        self.loader = Loader(storage, term, self.state, self.now, self.wake, policies.note_change)
        self.ready = self.loader.ready
        self._ended = {s: metrics.ENDED.labels(s.value) for s in ENDED_STATES}
        self.improver = Improver(
            self.state, self.now, self.wake, lambda: self.ready.is_set() and not self.restricted
        )
        self.writer = Writer(storage, term, self._on_written)
        self.publisher = Publisher(storage, term)
        self.book = AgentBook(storage, self.state, self.now)
        # Where it raises its alarms.
        self.alarms: Alarms | None = None
        self.recoveries = RecoveryKeeper(storage, term, self.state, self.publisher)

    # ------------------------------------------------------------------- time

    def now(self) -> Now:
        """The present moment on all clocks; cluster time runs on between confirmations.

        It never goes back: an advance that storage carries out late would make it jump by as much.
        """
        boot = boot_ms()
        clock = self._clock_base_ms + min(boot - self._clock_boot_ms, 10_000)
        self._clock_shown_ms = clock = max(clock, self._clock_shown_ms)
        return Now(boot, clock, wall_ms())

    @property
    def stored_clock_ms(self) -> int:
        """The cluster's clock as storage has confirmed it."""
        return self._clock_base_ms

    @property
    def confirmed(self) -> bool:
        """Whether storage has confirmed the term lately."""
        return boot_ms() - self._confirmed_boot_ms < CONFIRMED_FOR_MS

    @property
    def may_answer(self) -> bool:
        """Whether no other leader can have led for longer than ANSWERS_FOR_MS."""
        return boot_ms() - self._confirmed_boot_ms < ANSWERS_FOR_MS

    # -------------------------------------------------------------------- run

    async def run(self) -> None:
        """Leads until the term is lost (StaleTerm), the store may hold other things than this
        leader believes (StoreChanged), or the task is cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._confirm(), name="confirm term")
                group.create_task(self.writer.run(), name="writer")
                group.create_task(self.publisher.run(), name="publisher")
                group.create_task(self.loader.run(), name="loader")
                group.create_task(self.policies.follow(self._use), name="policy")
                group.create_task(self.improver.run(), name="improver")
                group.create_task(self.book.run(), name="agents' book")
                group.create_task(self.recoveries.run(), name="recoveries")
                group.create_task(self._tick(), name="tick")
                group.create_task(self._until_flush_fails(), name="flush")
        finally:
            self.over = True
            for session in (*self.sessions.values(), *self.supervisors.values()):
                session.close()
            self._give_up_waiters()

    def _give_up_waiters(self) -> None:
        error = Unavailable("the leader", "it has stepped down")
        for creation in self._creating.values():
            for submission, _ in creation.waiters:
                submission.refuse(error)
        for settling in self._settling.values():
            for waiter in settling:
                if not waiter.done():
                    waiter.set_exception(error)
                    # Its RPC may have ended by its deadline; then nobody reads this.
                    waiter.exception()

    async def _confirm(self) -> None:
        failures = 0
        while True:
            started, at = boot_ms(), self.storage.address
            # Only the time since the last try: one whose answer was lost may have counted, and the
            # clock may stand still at times but must never run ahead.
            request = storage_pb2.ConfirmTermRequest(
                term=self.term, advance_ms=max(0, started - self._advanced_boot_ms)
            )
            self._advanced_boot_ms = started
            try:
                answer = await self.storage.call(
                    _Store, "ConfirmTerm", request, timeout_s=CONFIRM_TIMEOUT_S
                )
            except MusterError as error:
                if not passes(error):
                    raise
                failures += 1
                self.storage.turn_from(at, error)
                await asyncio.sleep(full_jitter(failures, last_s=0.5))
                continue
            failures = 0
            if not answer.current:
                raise StaleTerm(self.term, self.term + 1)
            if answer.clock_ms < self._clock_base_ms or answer.run != self.store_run:
                raise StoreChanged("the store was started again or replaced under this leader")
            self._clock_base_ms, self._clock_boot_ms = answer.clock_ms, started
            self._confirmed_boot_ms = started
            await asyncio.sleep(CONFIRM_EVERY_S)

    async def _tick(self) -> None:
        await self.ready.wait()
        resume(self.state, self.now())
        ticks = 0
        last_ended = 0
        while True:
            await asyncio.sleep(TICK_S)
            ticks += 1
            now = self.now()
            tasks.due(self.state, now)
            tasks.flush_started(self.state, now)
            recovering.follow(self.state, now)
            # What turned out to be stored otherwise, and was found ended when it was looked up.
            for ident in list(self._settling):
                self._settle(ident)
            if ticks % JUDGE_EVERY_TICKS == 0:
                if not self.restricted and self.confirmed:
                    agents.judge(self.state, now)
                rate = (self.state.ended_count - last_ended) / (TICK_S * JUDGE_EVERY_TICKS)
                last_ended = self.state.ended_count
                self.tasks_per_s = 0.5 * self.tasks_per_s + 0.5 * rate
                self._measure()
                self.objective.begin(self.state)
            if self.objective.step(self.state, now):
                for gauge, value in zip(metrics.OBJECTIVE, self.objective.now, strict=True):
                    gauge.set(value)
                self.state.recoveries.open_response_s = self.objective.now[0]
            self.wake()

    def _measure(self) -> None:
        counts = self.state.counts()
        metrics.QUEUED.set(counts["queued"])
        metrics.ASSIGNED.set(counts["assigned"])
        metrics.RUNNING.set(counts["running"])
        metrics.AGENTS.clear()
        metrics.AGENT_HEALTH.clear()
        for agent in self.state.agents.values():
            metrics.AGENTS.labels(agent.state.value).inc()
            if agent.health < 1.0:
                metrics.AGENT_HEALTH.labels(agent.id).set(agent.health)
        # Clients can make up classes without end; what no open task needs is forgotten.
        if len(self.state.classes) > 2 * len(self.state.tasks) + 1000:
            used = {c for t in self.state.tasks.values() for c in (t.class_id, t.plain_class_id)}
            used.update(self.state.arrivals.classes())
            self.state.classes.forget_all_but(used)

    def _use(self, policy: Policy) -> None:
        """Places by another policy from now on."""
        self.state.policy = policy
        self.state.place_again = True
        self.wake()

    # ------------------------------------------------------------------ flush

    def wake(self) -> None:
        """Has the core's commands carried out once this pass of the loop is over."""
        if not self._flush_due:
            self._flush_due = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_due = False
        if self.over or self._flush_error is not None:
            return
        try:
            self._carry_out()
        except Exception as error:  # noqa: BLE001  raised by `run`, which the event loop would not
            self._flush_error = error
            self._flush_failed.set()

    async def _until_flush_fails(self) -> None:
        await self._flush_failed.wait()
        assert self._flush_error is not None
        raise self._flush_error

    def _carry_out(self) -> None:
        state = self.state
        # While a write is under way, decisions gather: its answer comes back here, and the next
        # write takes all of them. So batches grow with the load, and an idle leader writes at once.
        may_write = self.writer.idle
        if may_write and state.place_again and self.ready.is_set() and not self.restricted:
            with metrics.PLACE_SECONDS.time():
                metrics.PLACED.inc(place(state, self.now()))
        commands = state.drain(writes=may_write)
        if commands.writes:
            self.writer.add(commands.writes)
        clock_ms = self.now().clock_ms
        for ident, push in commands.pushes.items():
            session = self.sessions.get(ident)
            if session is not None:
                agent = state.agents.get(ident)
                # A draining agent leaves once its outcomes are acknowledged.
                leaves = agent is None or agent.draining or agent.wish is AgentWish.DRAIN
                session.push(push, clock_ms, prompt=leaves)
        for ident, incarnation, why in commands.restarts:
            supervisor = self.supervisors.get(ident)
            if supervisor is not None:
                supervisor.restart(incarnation, why)
        for change in commands.changed:
            _LOG.info("agent changed", agent=change.agent, state=change.state.value, why=change.why)
            self.publisher.agent_changed(change)
        for stuck in commands.stuck:
            metrics.STUCK.inc()
            self.publisher.stuck(stuck)
        if commands.alarms:
            self._raise_alarm(commands.alarms)
        self.book.noted |= commands.noted
        if commands.recoveries:
            self.recoveries.take(commands.recoveries)
        if commands.reload:
            self.loader.reload(commands.reload)

    def _raise_alarm(self, changes: Sequence[Alarm]) -> None:
        for change in changes:
            _LOG.warning("mass failure", zone=change.zone, active=change.active, why=change.why)
        standing = self.state.mass_failure.zones.values()
        if self.alarms is None:
            return
        if standing:
            self.alarms.start(MASS_FAILURE, "; ".join(standing))
        else:
            self.alarms.end(MASS_FAILURE)

    def _on_written(self, answers: Sequence[Answer]) -> None:
        ended: Counter[TaskState] = Counter()
        for write, verdict, standing in answers:
            if write.task.write is not write:
                continue
            tasks.written(self.state, write, verdict, standing)
            if write.expect is None:
                state = standing.state if standing is not None else write.status.state
                self._created(write.task.id, None if verdict is tasks.Verdict.GONE else state)
            if self._settling:
                self._settle(write.task.id)
            if verdict is tasks.Verdict.OK and write.status.state in ENDED_STATES:
                ended[write.status.state] += 1
        for state, count in ended.items():
            self._ended[state].inc(count)
        self.wake()

    def _settle(self, ident: TaskId) -> None:
        """Answers who waits for the task to be settled, if it is."""
        state = self.state
        if ident in state.dirty or ident in state.cancel_again:
            return
        task = state.tasks.get(ident)
        if task is not None and task.write is not None:
            return
        for done in self._settling.pop(ident, ()):
            if not done.done():
                done.set_result(None)

    def _created(self, ident: TaskId, state: TaskState | None) -> None:
        """None: storage refuses the task."""
        creation = self._creating.pop(ident, None)
        if creation is None:
            return
        self._unwritten_bytes -= creation.size_bytes
        for submission, index in creation.waiters:
            if state is not None:
                submission.settle(index, state)
            else:
                submission.refuse(InvalidInput("tasks", ident, "storage does not accept it"))

    # ------------------------------------------------------------------- RPCs

    async def submit(self, messages: Sequence[task_pb2.TaskSpec]) -> list[TaskState]:
        """Admits tasks; returns their states once all of them are durable.

        Raises Unavailable while storage does not confirm the term, and Overloaded at a bound.
        """
        if self.over:
            raise NotLeader
        if not self.confirmed:
            raise Unavailable("storage", "it has not confirmed the leader's term lately")
        if len(self.state.tasks) + len(messages) > MAX_OPEN_TASKS:
            raise Overloaded(f"{MAX_OPEN_TASKS} tasks are open already", retry_after_s=5.0)
        if (
            len(self._creating) + len(messages) > MAX_UNWRITTEN_TASKS
            or self._unwritten_bytes > MAX_UNWRITTEN_BYTES
        ):
            raise Overloaded(f"{len(self._creating)} tasks wait to be written already")
        specs = [_checked(m) for m in messages]
        now = self.now()
        submission = _Submission(len(specs), asyncio.get_running_loop().create_future())
        for index, (spec, message) in enumerate(zip(specs, messages, strict=True)):
            known = self.state.tasks.get(spec.id)
            if known is not None and known.stored is not None:
                submission.settle(index, known.status.state)
                continue
            if known is None:
                tasks.admit(self.state, spec, message, now)
            creation = self._creating.get(spec.id)
            if creation is None:
                creation = self._creating[spec.id] = _Creation(message.ByteSize(), [])
                self._unwritten_bytes += creation.size_bytes
            creation.waiters.append((submission, index))
        metrics.SUBMITTED.inc(len(specs))
        self.wake()
        if specs:
            await submission.done
        return submission.states

    async def settled(self, idents: Sequence[TaskId]) -> None:
        """Waits until what was decided about these tasks is durable."""
        if self.over:
            raise NotLeader
        waiting = []
        for ident in idents:
            task = self.state.tasks.get(ident)
            open_ = task is not None and (task.write is not None or ident in self.state.dirty)
            if open_ or ident in self.state.cancel_again:
                future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._settling.setdefault(ident, []).append(future)
                waiting.append(future)
        if waiting:
            await asyncio.gather(*waiting)

    async def set_wish(
        self, ident: AgentId, wish: AgentWish, who: str, deadline_ms: int = 0
    ) -> None:
        """Persists the operator's wish and a drain's deadline, then acts on it."""
        # Without the wish a deadline means nothing; so it is kept before.
        drains.set_deadline(self.state, ident, wish, deadline_ms, self.now())
        await self.book.save_health()
        await self.storage.call(
            _Store,
            "SetAgentWish",
            storage_pb2.SetAgentWishRequest(
                agent=ident, wish=conversion.agent_wish_to_proto(wish), who=who
            ),
            timeout_s=STORE_TIMEOUT_S,
            retry=True,
        )
        agents.set_wish(self.state, ident, wish, self.now(), who=who, deadline_ms=deadline_ms)
        self.wake()

    async def load_wishes(self) -> None:
        """Reads the operators' wishes, and what agents are blamed for; called before agents are
        met."""
        await self.book.load_health()
        answer = await self.storage.call(
            _Store,
            "ListAgentWishes",
            storage_pb2.ListAgentWishesRequest(),
            timeout_s=STORE_TIMEOUT_S,
            retry=True,
        )
        for ident, wish in answer.wishes.items():
            try:
                self.state.wishes[AgentId(ident)] = conversion.agent_wish_from_proto(wish)
            except InvalidInput as error:
                # Of a newer version: nothing new goes there until somebody wishes again.
                _LOG.error("an operator's wish is not understood", agent=ident, why=str(error))
                self.state.wishes[AgentId(ident)] = AgentWish.CORDON


def _checked(message: task_pb2.TaskSpec) -> TaskSpec:
    """Whatever storage compares, indexes or builds names from; raises InvalidInput."""
    parse_task_id(message.id)
    parse_tenant_id(message.tenant)
    parse_skill_name(message.skill)
    if message.version > conversion.VERSION:
        raise InvalidInput("version", message.version, f"at most {conversion.VERSION} is known")
    return conversion.spec_from_proto(message)
