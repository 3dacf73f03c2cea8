"""The shell around the core while this process leads: one term, from taking it to losing it.

Events come in from sessions, RPCs, streams and the clock; each wakes `_flush`, which runs once
per pass of the event loop: it places, drains the core's commands, and hands them on.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import structlog

from muster.api.v1 import storage_pb2, storage_pb2_grpc, task_pb2
from muster.domain.agent_lifecycle import AgentWish
from muster.domain.errors import InvalidInput, MusterError, Overloaded, StaleTerm, Unavailable
from muster.domain.ids import AgentId, TaskId, TenantId
from muster.domain.task_lifecycle import ENDED_STATES, TaskState
from muster.rpc import conversion
from muster.rpc.channels import ServiceChannel, full_jitter
from muster.rpc.clock import boot_ms, wall_ms
from muster.rpc.status import rpc_errors
from muster_scheduler import metrics
from muster_scheduler.core import agents, tasks
from muster_scheduler.core.placing import place
from muster_scheduler.core.records import Now
from muster_scheduler.core.state import ClusterState
from muster_scheduler.placement.plan import Policy
from muster_scheduler.publisher import Publisher
from muster_scheduler.sessions import Session
from muster_scheduler.writer import Answer, Writer

_LOG = structlog.get_logger("muster.scheduler")
_Store = storage_pb2_grpc.StorageServiceStub

# What one leader keeps in memory; about 3 KiB each.
MAX_OPEN_TASKS = 1_000_000
TICK_S = 0.1
JUDGE_EVERY_TICKS = 10
CONFIRM_S = 1.0
# Without a confirmation for this long another leader may exist: beats go unanswered.
CONFIRMED_FOR_MS = 3_000
STORE_TIMEOUT_S = 5.0


class Leader:
    """One term of leadership. `restricted` while etcd does not confirm the lead: nothing new is
    placed and no agent is judged, but outcomes are recorded and beats answered."""

    def __init__(
        self, storage: ServiceChannel, term: int, clock_ms: int, policy: Policy, address: str
    ) -> None:
        self.storage = storage
        self.term = term
        self.address = address
        self.restricted = False
        self.state = ClusterState(policy, np.random.default_rng(), random.random)
        self.sessions: dict[AgentId, Session] = {}
        self.supervisors: dict[AgentId, Session] = {}
        self.ready = asyncio.Event()
        self.tasks_per_s = 0.0
        self._clock_base_ms = clock_ms
        self._clock_boot_ms = boot_ms()
        self._confirmed_boot_ms = boot_ms()
        self._flush_due = False
        self._created: dict[TaskId, list[asyncio.Future[TaskState]]] = {}
        self._settling: dict[TaskId, list[asyncio.Future[None]]] = {}
        self._reload: deque[tuple[TenantId, TaskId]] = deque()
        self._reload_wake = asyncio.Event()
        self.writer = Writer(storage, term, self._on_written)
        self.publisher = Publisher(storage, term)

    # ------------------------------------------------------------------- time

    def now(self) -> Now:
        """The present moment on all clocks; cluster time runs on between confirmations."""
        boot = boot_ms()
        clock = self._clock_base_ms + min(boot - self._clock_boot_ms, 10_000)
        return Now(boot, clock, wall_ms())

    @property
    def confirmed(self) -> bool:
        """Whether storage has confirmed the term lately."""
        return boot_ms() - self._confirmed_boot_ms < CONFIRMED_FOR_MS

    # -------------------------------------------------------------------- run

    async def run(self) -> None:
        """Leads until the term is lost (StaleTerm) or the task is cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._confirm(), name="confirm term")
                group.create_task(self.writer.run(), name="writer")
                group.create_task(self.publisher.run(), name="publisher")
                group.create_task(self._load_and_tail(), name="load and tail")
                group.create_task(self._tick(), name="tick")
                group.create_task(self._reload_tasks(), name="reload")
        finally:
            for session in (*self.sessions.values(), *self.supervisors.values()):
                session.close()
            self._give_up_waiters()

    def _give_up_waiters(self) -> None:
        waiters: list[asyncio.Future[Any]] = []
        for created in self._created.values():
            waiters.extend(created)
        for settling in self._settling.values():
            waiters.extend(settling)
        for waiter in waiters:
            if not waiter.done():
                waiter.set_exception(Unavailable("the leader", "it has stepped down"))
                # Its RPC may have ended by its deadline; then nobody reads this.
                waiter.exception()

    async def _confirm(self) -> None:
        failures = 0
        while True:
            started = boot_ms()
            request = storage_pb2.ConfirmTermRequest(
                term=self.term, advance_ms=max(0, started - self._clock_boot_ms)
            )
            try:
                answer = await self.storage.call(
                    _Store, "ConfirmTerm", request, timeout_s=CONFIRM_S
                )
            except MusterError as error:
                if not isinstance(error, Unavailable) and error.code != "deadline_exceeded":
                    raise
                failures += 1
                self.storage.rotate()
                await asyncio.sleep(full_jitter(failures, last_s=0.5))
                continue
            failures = 0
            if not answer.current:
                raise StaleTerm(self.term, self.term + 1)
            self._clock_base_ms, self._clock_boot_ms = answer.clock_ms, started
            self._confirmed_boot_ms = started
            await asyncio.sleep(CONFIRM_S)

    async def _load_and_tail(self) -> None:
        """Loads all open tasks, then follows those that gateways create on their own."""
        failures = 0
        position = ""
        while True:
            try:
                if not position:
                    position = await self._load()
                    self.ready.set()
                    self.wake()
                call = self.storage.stream(
                    _Store,
                    "Tail",
                    storage_pb2.TailRequest(
                        from_id=position,
                        kinds=[storage_pb2.EVENT_KIND_TASK_CREATED],
                        only_term_zero=True,
                    ),
                )
                with rpc_errors("storage"):
                    async for message in call:
                        failures = 0
                        position = message.last_id or position
                        if message.gap:
                            position = ""
                            break
                        self._look_up(
                            [(TenantId(e.tenant), TaskId(e.task_id)) for e in message.events]
                        )
            except MusterError as error:
                failures += 1
                if failures == 1:
                    _LOG.warning("reading from storage was interrupted", reason=str(error))
                self.storage.rotate()
            await asyncio.sleep(full_jitter(failures))

    async def _load(self) -> str:
        position = ""
        count = 0
        call = self.storage.stream(
            _Store, "LoadOpen", storage_pb2.LoadOpenRequest(term=self.term), timeout_s=120.0
        )
        with rpc_errors("storage", 120.0):
            async for message in call:
                position = message.tail_from or position
                self._take_over(message.tasks)
                count += len(message.tasks)
        _LOG.info("open tasks are loaded", tasks=count, term=self.term)
        return position or "0"

    def _take_over(self, messages: Sequence[task_pb2.Task]) -> None:
        now = self.now()
        for message in messages:
            if not message.HasField("spec"):
                continue
            try:
                task = conversion.task_from_proto(message)
            except InvalidInput as error:
                # Written by a newer version: left alone for a leader that understands it.
                _LOG.error("a stored task is not understood", task=message.spec.id, why=str(error))
                continue
            tasks.load(self.state, task.spec, task.status, message.spec, now)
        self.wake()

    def _look_up(self, idents: Sequence[tuple[TenantId, TaskId]]) -> None:
        wanted = [pair for pair in idents if pair[1] not in self.state.tasks]
        if wanted:
            self._reload.extend(wanted)
            self._reload_wake.set()

    async def _reload_tasks(self) -> None:
        failures = 0
        while True:
            await self._reload_wake.wait()
            self._reload_wake.clear()
            while self._reload:
                by_tenant: dict[TenantId, list[TaskId]] = {}
                batch = [self._reload.popleft() for _ in range(min(500, len(self._reload)))]
                for tenant, ident in batch:
                    by_tenant.setdefault(tenant, []).append(ident)
                try:
                    for tenant, idents in by_tenant.items():
                        answer = await self.storage.call(
                            _Store,
                            "GetTasks",
                            storage_pb2.GetTasksRequest(tenant=tenant, ids=idents),
                            timeout_s=STORE_TIMEOUT_S,
                            retry=True,
                        )
                        self._take_over(answer.tasks)
                    failures = 0
                except MusterError as error:
                    failures += 1
                    _LOG.warning("tasks could not be looked up yet", reason=str(error))
                    self._reload.extendleft(reversed(batch))
                    await asyncio.sleep(full_jitter(failures))

    async def _tick(self) -> None:
        await self.ready.wait()
        ticks = 0
        last_ended = 0
        while True:
            await asyncio.sleep(TICK_S)
            ticks += 1
            now = self.now()
            tasks.due(self.state, now)
            tasks.flush_started(self.state, now)
            if ticks % JUDGE_EVERY_TICKS == 0:
                if not self.restricted and self.confirmed:
                    agents.judge(self.state, now)
                rate = (self.state.ended_count - last_ended) / (TICK_S * JUDGE_EVERY_TICKS)
                last_ended = self.state.ended_count
                self.tasks_per_s = 0.5 * self.tasks_per_s + 0.5 * rate
                self._measure()
            self.wake()

    def _measure(self) -> None:
        counts = self.state.counts()
        metrics.QUEUED.set(counts["queued"])
        metrics.ASSIGNED.set(counts["assigned"])
        metrics.RUNNING.set(counts["running"])
        metrics.AGENTS.clear()
        for agent in self.state.agents.values():
            metrics.AGENTS.labels(agent.state.value).inc()
        # Clients can make up classes without end; what no open task needs is forgotten.
        if len(self.state.classes) > 2 * len(self.state.tasks) + 1000:
            used = {c for t in self.state.tasks.values() for c in (t.class_id, t.plain_class_id)}
            self.state.classes.forget_all_but(used)

    # ------------------------------------------------------------------ flush

    def wake(self) -> None:
        """Has the core's commands carried out once this pass of the loop is over."""
        if not self._flush_due:
            self._flush_due = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_due = False
        state = self.state
        if state.place_again and self.ready.is_set() and not self.restricted:
            with metrics.PLACE_SECONDS.time():
                metrics.PLACED.inc(place(state, self.now()))
            if state.place_again:
                self.wake()
        commands = state.drain()
        if commands.writes:
            self.writer.add(commands.writes)
        clock_ms = self._clock_base_ms + boot_ms() - self._clock_boot_ms
        for ident, push in commands.pushes.items():
            session = self.sessions.get(ident)
            if session is not None:
                session.push(push, clock_ms)
        for ident, incarnation, why in commands.restarts:
            supervisor = self.supervisors.get(ident)
            if supervisor is not None:
                supervisor.restart(incarnation, why)
        for change in commands.changed:
            _LOG.info("agent changed", agent=change.agent, state=change.state.value, why=change.why)
            self.publisher.agent_changed(change)
        if commands.reload:
            self._look_up(commands.reload)

    def _on_written(self, answers: Sequence[Answer]) -> None:
        for write, verdict, standing in answers:
            if write.task.write is not write:
                continue
            before = write.expect
            tasks.written(self.state, write, verdict, standing)
            if before is None:
                state = standing.state if standing is not None else write.status.state
                for future in self._created.pop(write.task.id, ()):
                    if not future.done():
                        future.set_result(state)
            if self._settling and write.task.id not in self.state.dirty:
                for done in self._settling.pop(write.task.id, ()):
                    if not done.done():
                        done.set_result(None)
            if verdict is tasks.Verdict.OK and write.status.state in ENDED_STATES:
                metrics.ENDED.labels(write.status.state.value).inc()
        self.wake()

    # ------------------------------------------------------------------- RPCs

    async def submit(self, messages: Sequence[task_pb2.TaskSpec]) -> list[TaskState]:
        """Admits tasks; returns their states once all of them are durable."""
        await self.ready.wait()
        if len(self.state.tasks) + len(messages) > MAX_OPEN_TASKS:
            raise Overloaded(f"{MAX_OPEN_TASKS} tasks are open already", retry_after_s=5.0)
        specs = [conversion.spec_from_proto(m) for m in messages]
        now = self.now()
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[TaskState]] = []
        for spec, message in zip(specs, messages, strict=True):
            known = self.state.tasks.get(spec.id)
            future: asyncio.Future[TaskState] = loop.create_future()
            futures.append(future)
            if known is not None and known.stored is not None:
                future.set_result(known.status.state)
                continue
            if known is None:
                tasks.admit(self.state, spec, message, now)
            self._created.setdefault(spec.id, []).append(future)
        metrics.SUBMITTED.inc(len(specs))
        self.wake()
        return list(await asyncio.gather(*futures))

    async def settled(self, idents: Sequence[TaskId]) -> None:
        """Waits until what was decided about these tasks is durable."""
        waiting = []
        for ident in idents:
            task = self.state.tasks.get(ident)
            if task is not None and (task.write is not None or ident in self.state.dirty):
                future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._settling.setdefault(ident, []).append(future)
                waiting.append(future)
        if waiting:
            await asyncio.gather(*waiting)

    async def set_wish(self, ident: AgentId, wish: AgentWish, who: str) -> None:
        """Persists the operator's wish, then acts on it."""
        await self.storage.call(
            _Store,
            "SetAgentWish",
            storage_pb2.SetAgentWishRequest(
                agent=ident, wish=conversion.agent_wish_to_proto(wish), who=who
            ),
            timeout_s=STORE_TIMEOUT_S,
            retry=True,
        )
        agents.set_wish(self.state, ident, wish, self.now())
        self.wake()

    async def load_wishes(self) -> None:
        """Reads the operators' wishes; called before agents are met."""
        answer = await self.storage.call(
            _Store,
            "ListAgentWishes",
            storage_pb2.ListAgentWishesRequest(),
            timeout_s=STORE_TIMEOUT_S,
            retry=True,
        )
        for ident, wish in answer.wishes.items():
            self.state.wishes[AgentId(ident)] = conversion.agent_wish_from_proto(wish)
