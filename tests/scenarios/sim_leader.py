"""The shell of a scheduler's leader in virtual time, around the production core."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
from tests.scenarios.sim_checks import (
    WatchedState,
    check_all,
    check_drained,
    check_placed,
    check_touched,
)
from tests.scenarios.sim_kernel import Part
from tests.scenarios.sim_loader import SimLoader
from tests.scenarios.sim_network import Link, call
from tests.scenarios.sim_recoveries import SimKeeper
from tests.scenarios.sim_session import SimSession
from tests.scenarios.sim_witness import Witness
from tests.scenarios.sim_writer import SimWriter

from muster.agent.events import AttemptKey, HeldRef, HeldState
from muster.agent.supervisor_core import Death
from muster.domain.agent import AgentRecord
from muster.domain.agent_lifecycle import AgentState
from muster.domain.ids import AgentId, TaskId, TenantId
from muster.domain.task import Outcome, OutcomeKind, TaskSpec
from muster.domain.task_lifecycle import ENDED_STATES, HELD_STATES
from muster_monitor.failure_detector import Verdict as Suspicion
from muster_scheduler.core import agents, progress, recovering, tasks
from muster_scheduler.core.placing import place
from muster_scheduler.core.records import AttemptRef, Now, Write
from muster_scheduler.core.suspects import resume
from muster_scheduler.leader import (
    ANSWERS_FOR_MS,
    CONFIRM_TIMEOUT_S,
    CONFIRMED_FOR_MS,
)
from muster_scheduler.placement.plan import Policy

if TYPE_CHECKING:
    from tests.scenarios.sim_agent import Runtime, Supervisor
    from tests.scenarios.sim_scheduler import SimScheduler
    from tests.scenarios.sim_store import Answer
    from tests.scenarios.sim_world import World

# More rarely than in production, to spare steps.
TICK_MS = 250
JUDGE_TICKS = 4
CONFIRM_MS = 600
CONFIRM_TIMEOUT_MS = int(CONFIRM_TIMEOUT_S * 1_000)
# After so many steps everything is looked at, not only what has changed.
LOOK_AT_ALL_STEPS = 50


class SimLeader(Part):
    """One term, from its election to its loss."""

    def __init__(self, world: World, scheduler: SimScheduler) -> None:
        name = f"{scheduler.name}.{len(world.leaders) + 1}"
        super().__init__(world.kernel, name, scheduler.name)
        self.world = world
        self.scheduler = scheduler
        self.store = world.store
        self.registry_link: Link | None = None
        self.monitor_link: Link | None = None
        self.state = WatchedState(
            Policy(strategy=world.strategy, recovery=world.recovery),
            np.random.default_rng(1),
            world.rng.random,
        )
        self.state.judged_boot_ms = self.boot_ms()
        self.state.quarantines = world.quarantines
        self.term = 0
        self.ready = False
        self.restricted = False
        self.sessions: dict[AgentId, SimSession] = {}
        self.supervisors: dict[AgentId, tuple[Supervisor, Link]] = {}
        self._clock = (0, 0)
        self._shown_ms = 0
        self._confirmed_ms = self._advanced_ms = 0
        self._flushing = False
        self._ticks = self._steps = 0
        self._writer = SimWriter(self, self._written)
        self.loader = SimLoader(self)
        self.recoveries = SimKeeper(self)
        self._creating: dict[TaskId, list[Callable[[], None]]] = {}
        self._settling: dict[TaskId, list[Callable[[], None]]] = {}
        self._suspected: set[AgentId] = set()
        self.witness = Witness(self)
        self.state.on_decide = self.witness.check_decision
        call(self, self.store, self.store.acquire, self._took_term)

    # ---------------------------------------------------------------- term and time

    def _took_term(self, answer: object) -> None:
        self.term, clock_ms = cast("tuple[int, int]", answer)
        now_ms = self.boot_ms()
        self._clock = (clock_ms, now_ms)
        self._confirmed_ms = self._advanced_ms = now_ms
        others = [one for one in self.world.leaders if one is not self and one.alive]
        self.kernel.tally["two leaders at once"] += bool(others)
        self.witness.begin()
        self.say("leads with term", self.term)
        self._confirm()
        call(self, self.store, self.store.wishes, self._took_wishes)

    def _took_wishes(self, answer: object) -> None:
        self.state.wishes.update(cast("dict[AgentId, object]", answer))  # type: ignore[arg-type]
        self.world.registry.watch(self)
        self._watch_monitor()
        self.loader.load()
        self.recoveries.load()

    def _watch_monitor(self) -> None:
        if self.world.monitor.alive:
            self.world.monitor.watch(self)
        else:
            self.later(200, self._watch_monitor)

    def now(self) -> Now:
        base_ms, at_ms = self._clock
        clock_ms = base_ms + min(self.boot_ms() - at_ms, 10_000)
        self._shown_ms = clock_ms = max(clock_ms, self._shown_ms)
        return Now(self.boot_ms(), clock_ms, self.wall_ms())

    def depose(self) -> None:
        if self.alive:
            self.say("is deposed")
            self.kernel.tally["leader deposed by a newer term"] += 1
            self.end()

    def freeze(self, ms: int) -> None:
        super().freeze(ms)
        self.witness.stand_still(ms)

    def end(self) -> None:
        super().end()
        self._creating.clear()
        self._settling.clear()
        self.scheduler.on_leader_ended(self)

    def _confirm(self) -> None:
        sent_ms = self.boot_ms()
        advance_ms = max(0, sent_ms - self._advanced_ms)
        self._advanced_ms = sent_ms

        def answered(answer: object) -> None:
            current, clock_ms = cast("tuple[bool, int]", answer)
            if not current:
                self.depose()
                return
            if sent_ms >= self._confirmed_ms:
                self._clock = (clock_ms, sent_ms)
                self._confirmed_ms = sent_ms

        # Not repeated as it is: the next one counts from here.
        call(
            self,
            self.store,
            lambda: self.store.confirm(self.term, advance_ms),
            answered,
            timeout_ms=CONFIRM_TIMEOUT_MS,
            repeat=False,
        )
        self.later(CONFIRM_MS, self._confirm)

    def _tick(self) -> None:
        now = self.now()
        tasks.due(self.state, now)
        tasks.flush_started(self.state, now)
        recovering.follow(self.state, now)
        self._ticks += 1
        judges = self._ticks % JUDGE_TICKS == 0 and not self.restricted
        if judges and self._confirmed(CONFIRMED_FOR_MS):
            agents.judge(self.state, now)
            self.recoveries.check()
            self.witness.check_foreign()
            self.witness.check_told()
            self.witness.check_wishes()
        self.later(TICK_MS, self._tick)

    def _confirmed(self, within_ms: int) -> bool:
        return self.boot_ms() - self._confirmed_ms < within_ms

    # ------------------------------------------------------------------------ tasks

    def begin(self) -> None:
        """All open tasks are loaded."""
        self.say("has loaded", len(self.state.tasks), "tasks")
        self.ready = True
        resume(self.state, self.now())
        self._tick()

    def submit(self, spec: TaskSpec, done: Callable[[], None]) -> None:
        """`done` is called once the task is durable."""
        if not self.ready or not self._confirmed(CONFIRMED_FOR_MS):
            return
        known = self.state.tasks.get(spec.id)
        if known is not None and known.stored is not None:
            done()
            return
        if known is None:
            tasks.admit(self.state, spec, None, self.now())
        self._creating.setdefault(spec.id, []).append(done)

    def cancel(self, ident: TaskId, done: Callable[[], None]) -> None:
        """`done` is called once the wish is durable; not when the task is not known."""
        task = self.state.tasks.get(ident)
        if task is None or not self.ready:
            return
        was_over = task.status.state in ENDED_STATES
        tasks.cancel(self.state, task, self.now())
        if was_over:
            return
        if task.write is not None or ident in self.state.dirty:
            self._settling.setdefault(ident, []).append(done)
        else:
            done()

    # --------------------------------------------------------------------- sessions

    def on_hello(self, runtime: Runtime, link: Link, held: Sequence[HeldRef], term: int) -> None:
        if term > self.term or not self.ready or not self._confirmed(ANSWERS_FOR_MS):
            link.cut(f"{self.name} is not its leader", by=self)
            return
        ident, number, now = runtime.machine.id, runtime.core.incarnation, self.now()
        known = self.state.agents.get(ident)
        if known is not None and number < known.incarnation:
            # Its process must end: a newer one runs.
            link.send(runtime, lambda: runtime.exit(78))
            return
        older = self.sessions.get(ident)
        session = self.sessions[ident] = SimSession(self, runtime, link)
        session.welcome()
        self.witness.leaving.pop(ident, None)
        self.witness.hear(ident, number)
        self.witness.answered(ident, number)
        self.witness.excuse(ident)
        refs = [(_ref(h), h.state is HeldState.ENDED) for h in held]
        agents.connected(self.state, ident, number, refs, now)
        for line in held:
            if line.state is HeldState.RUNNING:
                tasks.started_attempt(self.state, ident, number, _ref(line), 0, now)
        if older is not None and older.link is not link:
            older.link.cut("a newer session is open", by=self)

    def on_cut(self, link: Link) -> None:
        if link is self.registry_link:
            self.later(200, lambda: self.world.registry.watch(self))
        if link is self.monitor_link:
            now = self.now()
            for ident in self._suspected:
                agents.suspicion(self.state, ident, 0, False, 0.0, now)
            self._suspected.clear()
            self.witness.trust()
            self.later(200, self._watch_monitor)
        for ident, session in list(self.sessions.items()):
            if session.link is link:
                del self.sessions[ident]
                agents.disconnected(self.state, ident, session.incarnation, self.now())
        for ident, (_, supervised) in list(self.supervisors.items()):
            if supervised is link:
                del self.supervisors[ident]
                agent = self.state.agents.get(ident)
                if agent is not None:
                    agent.supervised = False

    def _from(self, runtime: Runtime) -> SimSession | None:
        """The session on which it speaks, when that is the present one."""
        session = self.sessions.get(runtime.machine.id)
        if session is None or session.runtime is not runtime:
            return None
        if runtime.core.term > self.term:
            session.link.cut("it has obeyed a newer leader", by=self)
            return None
        self.witness.hear(runtime.machine.id, session.incarnation)
        agents.heard(self.state, runtime.machine.id, session.incarnation, self.now())
        return session

    def on_beat(self, runtime: Runtime, seq: int) -> None:
        session = self._from(runtime)
        if session is not None and self._confirmed(ANSWERS_FOR_MS):
            self.witness.answered(runtime.machine.id, session.incarnation)
            session.answer_beat(seq)

    def on_started(self, runtime: Runtime, key: AttemptKey, at_ms: int) -> None:
        if (session := self._from(runtime)) is not None:
            ref = AttemptRef(key.task_id, key.attempt, self._tenant(key.task_id))
            ident, number = runtime.machine.id, session.incarnation
            tasks.started_attempt(self.state, ident, number, ref, at_ms, self.now())

    def on_waiting(self, runtime: Runtime, key: AttemptKey, waiting: bool) -> None:
        if (session := self._from(runtime)) is not None:
            ref = AttemptRef(key.task_id, key.attempt, self._tenant(key.task_id))
            tasks.waiting_attempt(self.state, runtime.machine.id, session.incarnation, ref, waiting)

    def on_outcome(self, runtime: Runtime, key: AttemptKey, outcome: Outcome) -> None:
        if (session := self._from(runtime)) is not None:
            ref = AttemptRef(key.task_id, key.attempt, self._tenant(key.task_id))
            ident, number = runtime.machine.id, session.incarnation
            current = tasks.outcome(self.state, ident, number, ref, outcome, self.now())
            self.kernel.tally["outcome was stale"] += not current

    def on_progress(self, runtime: Runtime, key: AttemptKey) -> None:
        if self._from(runtime) is None:
            return
        task = self.state.tasks.get(key.task_id)
        if task is None or task.status.attempt != key.attempt:
            return
        held = task.status.state in HELD_STATES and task.status.agent == runtime.machine.id
        if held and task.spec.progress_timeout_ms:
            self.witness.progress_ms[key] = self.boot_ms()
            progress.told(task, self.now())

    def _tenant(self, task: TaskId) -> TenantId:  # the wire carries it
        return self.world.books.specs[task].tenant

    def on_draining(self, runtime: Runtime) -> None:
        if (session := self._from(runtime)) is not None:
            agents.draining(self.state, runtime.machine.id, session.incarnation)
            self.witness.excuse(runtime.machine.id)
            self.witness.leaving[runtime.machine.id] = session.incarnation

    def on_supervisor(self, supervisor: Supervisor, link: Link) -> None:
        if not self.ready:
            link.cut(f"{self.name} is not its leader", by=self)
            return
        ident = supervisor.machine.id
        older = self.supervisors.get(ident)
        self.supervisors[ident] = (supervisor, link)
        self.state.entry(ident, self.now()).supervised = True
        if older is not None and older[1] is not link:
            older[1].cut("a newer session is open", by=self)

    def on_supervisor_beat(
        self, supervisor: Supervisor, link: Link, seq: int, death: Death | None
    ) -> None:
        ident = supervisor.machine.id
        if self.supervisors.get(ident, (None, None))[1] is not link:
            return
        agents.supervisor_heard(self.state, ident, self.now())
        if death is not None:
            started = [AttemptRef(*s.key, s.tenant) for s in death.started]
            number, known, why = death.incarnation, death.known, death.why
            self.witness.excuse(ident)
            self.witness.buried.add((ident, number))
            supervisor.delivered.add(death)
            self.kernel.tally["supervisor told of a death"] += 1
            agents.runtime_died(self.state, ident, number, started, known, why, self.now())
        if self._confirmed(ANSWERS_FOR_MS):
            link.send(supervisor, lambda: supervisor.on_beat_answered(seq))

    def ask_restart(self, ident: AgentId) -> None:
        if ident in self.state.agents:
            agents.restart(self.state, ident, "asked", self.now())

    # ----------------------------------------------------------- registry and monitor

    def on_registry(self, records: Sequence[AgentRecord]) -> None:
        self.witness.shown(records)
        agents.registry_snapshot(self.state, records, self.now())

    def on_registered(self, record: AgentRecord) -> None:
        self.witness.leased(record)
        agents.registered(self.state, record, self.now())

    def on_unregistered(self, ident: AgentId) -> None:
        self.witness.lease_gone(ident)
        agents.unregistered(self.state, ident, self.now())

    def on_suspicions(self, verdicts: Sequence[Suspicion], *, snapshot: bool) -> None:
        now = self.now()
        if snapshot:
            kept = {v.agent for v in verdicts if v.suspected}
            for ident in sorted(self._suspected - kept):
                agents.suspicion(self.state, ident, 0, False, 0.0, now)
                self.witness.trust(ident)
            self._suspected &= kept
        for v in verdicts:
            agents.suspicion(self.state, v.agent, v.incarnation, v.suspected, v.phi, now)
            (self._suspected.add if v.suspected else self._suspected.discard)(v.agent)
            self.witness.suspicion(v)

    # ------------------------------------------------------------------------ flush

    def after_each(self) -> None:
        if not self.alive:
            return
        self._steps += 1
        if self._steps % LOOK_AT_ALL_STEPS:
            check_touched(self.state)
        else:
            check_all(self.state)
            self.witness.check_records()
        if not self._flushing:
            self._flushing = True
            self._carry_out()
            self._flushing = False

    def _carry_out(self) -> None:
        state = self.state
        commands = state.commands
        if not (
            state.dirty
            or state.place_again
            or commands.pushes
            or commands.changed
            or commands.restarts
            or commands.reload
            or commands.recoveries
            or commands.alarms
            or commands.stuck
        ):
            return
        may_write = self._writer.idle
        if may_write and state.place_again and self.ready and not self.restricted:
            state.placed = []
            place(state, self.now())
            check_placed(state, self.witness.doubted, self.boot_ms())
            check_touched(state)
        written = list(state.dirty.values()) if may_write else []
        commands = state.drain(writes=may_write)
        if commands.writes:
            check_drained(state, written)
            self._writer.add(commands.writes)
        for ident, push in commands.pushes.items():
            self.witness.check_push(ident, push)
            session = self.sessions.get(ident)
            if session is not None:
                session.push(push)
        for ident, incarnation, why in commands.restarts:
            if (found := self.supervisors.get(ident)) is not None:
                self._restart(*found, incarnation, why)
        self.recoveries.take(commands.recoveries)
        for change in commands.changed:
            self.kernel.tally[f"agent {change.state.value}"] += 1
            self.say("sees", change.agent, "as", change.state.value, "-", change.why)
            if change.state is AgentState.DOWN:
                self.witness.check_down(change.agent)
        self.recoveries.note_alarms(commands.alarms, commands.stuck)
        for _, ident_of_task in commands.reload:
            self.loader.look_up(ident_of_task, held_too=True)
        if commands.pushes or commands.changed:
            self.witness.excuses.clear()

    def _restart(self, supervisor: Supervisor, link: Link, incarnation: int, why: str) -> None:
        link.send(supervisor, lambda: supervisor.on_restart(incarnation, why))

    def stray(self, ident: AgentId, incarnation: int, ref: AttemptRef, *, ended: bool) -> None:
        """Somebody says that an attempt ended, or began, which is not his, or is by now."""
        task = self.state.tasks.get(ref.task_id)
        now = (task.status.agent, task.status.incarnation, task.ref()) if task is not None else ()
        if now == (ident, incarnation, ref):
            return
        if not ended:
            tasks.started_attempt(self.state, ident, incarnation, ref, 0, self.now())
            return
        outcome = Outcome(OutcomeKind.SUCCEEDED, output_blob="stray")
        tasks.outcome(self.state, ident, incarnation, ref, outcome, self.now())

    def _written(self, answers: list[tuple[Write, Answer]]) -> None:
        for write, (verdict, standing) in answers:
            task = write.task
            if verdict is not tasks.Verdict.OK:
                self.witness.excuse(task.status.agent)
            tasks.written(self.state, write, verdict, standing)
            if write.expect is None:
                for done in self._creating.pop(task.id, ()):
                    done()
            if task.id not in self.state.dirty and task.id not in self.state.cancel_again:
                for done in self._settling.pop(task.id, ()):
                    done()


def _ref(held: HeldRef) -> AttemptRef:
    return AttemptRef(held.key.task_id, held.key.attempt, held.tenant)
