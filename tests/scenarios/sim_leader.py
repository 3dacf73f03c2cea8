"""The shell of a scheduler's leader in virtual time, around the production core, and the
invariants of that core."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import cache
from typing import cast

import numpy as np
from tests.scenarios.sim_kernel import Kernel, Link, Part, SimulationError, call
from tests.scenarios.sim_parts import Answer, Runtime, SimRegistry, SimStore, label

from muster.domain.agent import AgentRecord
from muster.domain.ids import AgentId, TaskId, TenantId
from muster.domain.resources import ResourceVector
from muster.domain.task import Outcome, TaskSpec, TaskStatus
from muster.domain.task_lifecycle import ENDED_STATES, HELD_STATES, TaskState
from muster_scheduler.core import agents, tasks
from muster_scheduler.core.commands import Push
from muster_scheduler.core.deadlines import Moment
from muster_scheduler.core.placing import place
from muster_scheduler.core.records import AttemptRef, Now, OpenTask, Write
from muster_scheduler.core.state import ClusterState
from muster_scheduler.placement.plan import Policy
from muster_scheduler.placement.snapshot import FIRST_COLUMNS

TICK_MS = 200
JUDGE_MS = 1_000
CONFIRM_MS = 400
# How long after a confirmation was asked for beats are answered.
ANSWERS_FOR_MS = 1_000
CONCURRENT_WRITES = 2
MAX_BATCH = 6
# Everybody's CLOCK_BOOTTIME began before the run.
BOOT_OFFSET_MS = 500_000
WALL_OFFSET_MS = 1_700_000_000_000


class SimLeader(Part):
    """One term, from its election to its loss."""

    def __init__(
        self,
        kernel: Kernel,
        name: str,
        store: SimStore,
        registry: SimRegistry,
        strategy: str,
        restart: Callable[[AgentId, int], None],
    ) -> None:
        super().__init__(kernel, name)
        self.store = store
        self.registry = registry
        self.registry_link = Link(kernel, self, self)
        self.state = ClusterState(
            Policy(strategy=strategy), np.random.default_rng(1), kernel.rng.random
        )
        self.term = 0
        self.ready = False
        self.links: dict[AgentId, Link] = {}
        self.runtimes: dict[AgentId, Runtime] = {}
        self._restart = restart
        self._clock = (0, 0)
        self._confirmed_ms = self._advanced_ms = kernel.now_ms
        self._flushing = False
        self._judged_ms = 0
        self._writes: deque[Write] = deque()
        self._writing = 0
        self._submitted: dict[TaskId, list[Callable[[], None]]] = {}
        call(self, store.acquire, self._took_term)

    def _took_term(self, answer: object) -> None:
        term, clock_ms = cast("tuple[int, int]", answer)
        self.term = term
        now_ms = self.kernel.now_ms
        self._clock = (clock_ms, now_ms)
        self._confirmed_ms = self._advanced_ms = now_ms
        self.say("leads with term", self.term)
        self.state.wishes.update(self.store.wishes)
        self.registry.watch(self)
        self._confirm()
        self._load(first=True)

    def now(self) -> Now:
        now_ms = self.kernel.now_ms
        base_ms, at_ms = self._clock
        clock_ms = base_ms + min(now_ms - at_ms, 10_000)
        return Now(BOOT_OFFSET_MS + now_ms, clock_ms, WALL_OFFSET_MS + now_ms)

    def depose(self) -> None:
        self.say("is deposed")
        self.end()

    # ---------------------------------------------------------------- term and time

    def _confirm(self) -> None:
        sent_ms = self.kernel.now_ms
        advance_ms = sent_ms - self._advanced_ms
        self._advanced_ms = sent_ms
        # Not repeated as it is: the next one counts from here.
        sent = [False]

        def serve() -> object:
            if sent[0]:
                return None
            sent[0] = True
            return self.store.confirm(self.term, advance_ms)

        def answered(answer: object) -> None:
            if answer is None:
                return
            current, clock_ms = cast("tuple[bool, int]", answer)
            if not current:
                self.depose()
                return
            self._clock = (clock_ms, sent_ms)
            self._confirmed_ms = max(self._confirmed_ms, sent_ms)

        call(self, serve, answered, timeout_ms=10**9)
        self.later(CONFIRM_MS, self._confirm)

    def _tick(self) -> None:
        now = self.now()
        tasks.due(self.state, now)
        tasks.flush_started(self.state, now)
        if self.kernel.now_ms - self._judged_ms >= JUDGE_MS and self._confirmed(3_000):
            self._judged_ms = self.kernel.now_ms
            agents.judge(self.state, now)
        self.later(TICK_MS, self._tick)

    def _confirmed(self, within_ms: int) -> bool:
        return self.kernel.now_ms - self._confirmed_ms < within_ms

    # ------------------------------------------------------------------------ tasks

    def _load(self, *, first: bool) -> None:
        def read() -> object:
            # As storage does it: the position first.
            position = len(self.store.by_gateways)
            rows = [r for r in self.store.tasks.values() if r[1].state not in ENDED_STATES]
            return rows, position

        def loaded(answer: object) -> None:
            rows, position = cast("tuple[list[tuple[TaskSpec, TaskStatus]], int]", answer)
            for start in range(0, len(rows), 4):
                page = rows[start : start + 4]
                # Pages come one after the other while tasks go on.
                self.later(start * 2, lambda page=page: self._take(page, first))  # type: ignore[misc]
            self.later(len(rows) * 2 + 1, lambda: self._loaded(first, position))

        call(self, read, loaded)

    def _loaded(self, first: bool, position: int) -> None:
        if first:
            self.say("has loaded", len(self.state.tasks), "tasks")
            self.ready = True
            self.store.followers.append(self.on_created)
            self._tick()
        for ident in self.store.by_gateways[position:]:
            self.on_created(ident)

    def load_again(self) -> None:
        """As after a gap in the events."""
        if self.ready:
            self._load(first=False)

    def _take(self, rows: Sequence[tuple[TaskSpec, TaskStatus]], held_too: bool) -> None:
        now = self.now()
        for spec, status in rows:
            tasks.load(self.state, spec, status, None, now, held_too=held_too)

    def on_created(self, ident: TaskId) -> None:
        self.later(self.kernel.delay_ms(), lambda: self._look_up(ident, held_too=False))

    def _look_up(self, ident: TaskId, *, held_too: bool) -> None:
        if ident not in self.state.tasks:
            call(
                self,
                lambda: self.store.tasks[ident],
                lambda row: self._take([row], held_too),  # type: ignore[list-item]
            )

    def submit(self, spec: TaskSpec, done: Callable[[], None]) -> bool:
        """False: ask another."""
        if not self.alive or self.frozen or not self.ready:
            return False
        known = self.state.tasks.get(spec.id)
        if known is None:
            tasks.admit(self.state, spec, None, self.now())
        elif known.stored is not None:
            done()
            return True
        self._submitted.setdefault(spec.id, []).append(done)
        self.after_each()
        return True

    def cancel(self, ident: TaskId) -> None:
        task = self.state.tasks.get(ident)
        if task is not None:
            tasks.cancel(self.state, task, self.now())

    # --------------------------------------------------------------------- sessions

    def on_hello(
        self, runtime: Runtime, held: Sequence[tuple[AttemptRef, bool, bool]], sent_ms: int
    ) -> None:
        link = runtime.link
        if link is None or runtime.leader is not self:
            return
        if runtime.term > self.term:
            link.cut("it has obeyed a newer leader")
            return
        ident, number, now = runtime.agent.id, runtime.incarnation, self.now()
        ended = [(ref, is_ended) for ref, _, is_ended in held]
        known = self.state.agents.get(ident)
        if known is not None and number < known.incarnation:
            link.cut("a newer incarnation is known")
            return
        older = self.links.get(ident)
        self.links[ident], self.runtimes[ident] = link, runtime
        link.send(runtime, lambda: runtime.on_welcome(self.term, sent_ms))
        agents.connected(self.state, ident, number, ended, now)
        self.state.agents[ident].supervised = True
        for ref, is_started, is_ended in held:
            if is_started and not is_ended:
                tasks.started_attempt(self.state, ident, number, ref, 0, now)
        if older is not None and older is not link:
            older.cut("a newer session is open")

    def on_cut(self, link: Link) -> None:
        if link is self.registry_link:
            self.registry_link = Link(self.kernel, self, self)
            self.registry.watch(self)
        for ident, known in list(self.links.items()):
            if known is link:
                runtime = self.runtimes.pop(ident)
                del self.links[ident]
                agents.disconnected(self.state, ident, runtime.incarnation, self.now())

    def on_beat(self, runtime: Runtime, seq: int) -> None:
        agents.heard(self.state, runtime.agent.id, runtime.incarnation, self.now())
        link = self.links.get(runtime.agent.id)
        if link is not None and runtime.link is link and self._confirmed(ANSWERS_FOR_MS):
            link.send(runtime, lambda: runtime.on_beat_answered(self.term, seq))

    def on_started(self, runtime: Runtime, ref: AttemptRef) -> None:
        tasks.started_attempt(self.state, runtime.agent.id, runtime.incarnation, ref, 0, self.now())

    def on_waiting(self, runtime: Runtime, ref: AttemptRef, waiting: bool) -> None:
        tasks.waiting_attempt(self.state, runtime.agent.id, runtime.incarnation, ref, waiting)

    def on_outcome(self, runtime: Runtime, ref: AttemptRef, outcome: Outcome) -> None:
        tasks.outcome(self.state, runtime.agent.id, runtime.incarnation, ref, outcome, self.now())

    def on_draining(self, runtime: Runtime) -> None:
        agents.draining(self.state, runtime.agent.id, runtime.incarnation)

    def on_runtime_died(
        self, ident: AgentId, incarnation: int, started: list[AttemptRef], known: bool
    ) -> None:
        agents.runtime_died(
            self.state, ident, incarnation, started, known, "it crashed", self.now()
        )

    def on_suspicion(self, ident: AgentId, suspected: bool) -> None:
        agents.suspicion(self.state, ident, 0, suspected, 9.0 * suspected, self.now())

    def ask_restart(self, ident: AgentId) -> None:
        agents.restart(self.state, ident, "asked", self.now())

    def on_registry(self, records: Sequence[AgentRecord]) -> None:
        agents.registry_snapshot(self.state, records, self.now())

    def on_registered(self, record: AgentRecord) -> None:
        agents.registered(self.state, record, self.now())

    def on_unregistered(self, ident: AgentId) -> None:
        agents.unregistered(self.state, ident, self.now())

    # ------------------------------------------------------------------------ flush

    def after_each(self) -> None:
        check_core(self.state, settled=False)
        if not self._flushing:
            self._flushing = True
            self.kernel.at(0, lambda: self._unless_over(self._flush))

    def _unless_over(self, act: Callable[[], None]) -> None:
        if not self.alive:
            return
        if self.frozen:
            self.kernel.at(
                self.frozen_until_ms - self.kernel.now_ms, lambda: self._unless_over(act)
            )
            return
        act()

    def _flush(self) -> None:
        self._flushing = False
        state = self.state
        if state.place_again and self.ready:
            before = {t.id: t.status.attempt for t in state.tasks.values()}
            place(state, self.now())
            check_places(state, before)
        commands = state.drain()
        self._writes.extend(commands.writes)
        for ident, push in commands.pushes.items():
            self._push(ident, push)
        for ident, incarnation, _ in commands.restarts:
            self.later(self.kernel.delay_ms(), lambda i=ident, n=incarnation: self._restart(i, n))  # type: ignore[misc]
        for change in commands.changed:
            self.say("sees", change.agent, "as", change.state.value, "-", change.why)
        for _, task in commands.reload:
            self._look_up(task, held_too=True)
        self._write()
        if commands.writes or commands.reload:
            check_core(state, settled=True)
        if state.place_again and self.ready:
            self.after_each()

    def _push(self, ident: AgentId, push: Push) -> None:
        for task in push.assign:
            if not self.store.is_durable(task.ref()) and self.term == self.store.term:
                raise SimulationError(f"{task!r} is pushed before it is durable")
        for ref, recorded in push.acks:
            if recorded and not self.store.is_settled(ref):
                raise SimulationError(f"{label(*_short(ref))} is acknowledged and not recorded")
        link, runtime, term = self.links.get(ident), self.runtimes.get(ident), self.term
        if link is None or runtime is None:
            return

        def deliver() -> None:
            for spec, ref, incarnation in assigned:
                runtime.on_assign(term, spec, ref, incarnation)
            for ref, wish in push.cancel:
                runtime.on_cancel(term, ref, wish)
            for ref, _ in push.acks:
                runtime.on_ack(term, ref)
            for ref in push.drop:
                runtime.on_drop(term, ref)
            if push.drain:
                runtime.return_unstarted()

        assigned = [(t.spec, t.ref(), t.status.incarnation) for t in push.assign]
        for _, ref, _ in assigned:
            self.say("gives", label(*_short(ref)), "to", runtime.name)
        link.send(runtime, deliver)

    def _write(self) -> None:
        while self._writes and self._writing < CONCURRENT_WRITES:
            count = min(MAX_BATCH, len(self._writes))
            batch = [self._writes.popleft() for _ in range(count)]
            self._writing += 1
            for new in (True, False):
                part = [w for w in batch if (w.expect is None) is new]
                if part:
                    self._call(part, batch)

    def _call(self, part: list[Write], batch: list[Write]) -> None:
        term = self.term
        if part[0].expect is None:
            rows = [(w.task.spec, w.status) for w in part]
            serve = lambda: self.store.create(term, rows)  # noqa: E731
        else:
            changes = [(w.task.id, w.expect, w.status) for w in part]
            serve = lambda: self.store.apply(term, changes)  # type: ignore[arg-type] # noqa: E731
        call(self, serve, lambda answer: self._written(part, batch, answer))

    def _written(self, part: list[Write], batch: list[Write], answer: object) -> None:
        answers = cast("list[Answer] | None", answer)
        if answers is None:
            self.depose()
            return
        for write, (verdict, standing) in zip(part, answers, strict=True):
            tasks.written(self.state, write, verdict, standing)
            batch.remove(write)
            if write.expect is None:
                for done in self._submitted.pop(write.task.id, ()):
                    done()
        if not batch:
            self._writing -= 1
        self._write()


def _short(ref: AttemptRef) -> tuple[TaskId, int]:
    return ref.task_id, ref.attempt


# -------------------------------------------------------------------------- invariants


def check_core(state: ClusterState, *, settled: bool) -> None:
    """What is true of a leader's books at any moment; `settled`: commands have been drained."""
    pausing = {e[3].id for e in state.deadlines._heap if e[2] is Moment.RETRY}
    queued = 0
    for task in state.tasks.values():
        _check_place(state, task, pausing, settled)
        queued += task.queued
    if queued != len(state.queue):
        raise SimulationError(f"{len(state.queue)} tasks are counted in the queue, not {queued}")
    held: dict[TenantId, int] = {}
    charged = state.table.view().used.tolist()
    for agent in state.agents.values():
        used = [0, 0, 0, 0]
        for task in agent.tasks.values():
            tenant = task.spec.tenant
            held[tenant] = held.get(tenant, 0) + 1
            if state.tasks.get(task.id) is not task or task.status.state not in HELD_STATES:
                raise SimulationError(f"{agent!r} holds {task!r}")
            if task.status.incarnation != agent.incarnation:
                raise SimulationError(f"{agent!r} holds {task!r} of another incarnation")
            for column, amount in enumerate(_demand(task.spec.resources, task.waiting)):
                used[column] += amount
        if agent.id in state.table and charged[state.table.row_of(agent.id)] != used:
            row = charged[state.table.row_of(agent.id)]
            raise SimulationError(f"{agent!r} is charged {row} of {FIRST_COLUMNS}, not {used}")
    if held != state.held:
        raise SimulationError(f"held by tenants: {dict(state.held)}, counted {held}")


@cache
def _demand(resources: ResourceVector, waiting: bool) -> tuple[int, ...]:
    whole = resources.with_slot()
    lent = ("cpu", "slots") if waiting else ()
    return tuple(0 if name in lent else whole.get(name) for name in FIRST_COLUMNS)


def _check_place(state: ClusterState, task: OpenTask, pausing: set[TaskId], settled: bool) -> None:
    status = task.status
    pending, ended = status.state is TaskState.PENDING, status.state in ENDED_STATES
    agent = state.agents.get(status.agent)
    where = (
        task.queued,
        pending and not task.queued and task.id in pausing,
        agent is not None and agent.tasks.get(task.id) is task,
        ended and (task.write is not None or task.id in state.dirty),
    )
    if sum(where) != 1:
        raise SimulationError(f"{task!r} is queued, pausing, held, being recorded: {where}")
    if settled and task.write is None and (status.state, status.attempt) != task.stored:
        raise SimulationError(f"{task!r} is stored as {task.stored} and nobody writes it")


def check_places(state: ClusterState, before: dict[TaskId, int]) -> None:
    """Nothing was placed where there was no room. What a task does not ask for may be overdrawn
    by a parent that has gone on after it waited."""
    view = state.table.view()
    for task in state.tasks.values():
        if task.row < 0 or task.status.attempt <= before.get(task.id, 0):
            continue
        for column, amount in enumerate(_demand(task.spec.resources, False)):
            if amount and int(view.free[task.row, column]) < 0:
                raise SimulationError(f"{task!r} was placed where there is no room")
