"""Agents: the production cores of runtime and supervisor, each in a shell of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from tests.scenarios.sim_books import label
from tests.scenarios.sim_executor import SimExecutor
from tests.scenarios.sim_kernel import Part, SimulationError
from tests.scenarios.sim_network import Link, call

from muster.agent import events as ev
from muster.agent.core import DELIVERY_GRACE_MS, HELD_PER_SLOT, AgentCore
from muster.agent.runtime import _STOP_MARGIN_MS
from muster.agent.runtime_speech import STARTED_AFTER_MS
from muster.agent.session_link import SILENCE_MS
from muster.agent.slot_table import StartedAttempt, TableView
from muster.agent.supervisor_core import MAX_DEATHS, Death, Deaths, Next, SupervisorCore
from muster.domain.agent import AgentRecord, AgentSpec, SkillOffer
from muster.domain.ids import AgentId, TenantId
from muster.domain.resources import ResourceVector

if TYPE_CHECKING:
    from tests.scenarios.sim_leader import SimLeader
    from tests.scenarios.sim_world import World

HEARTBEAT_MS = 3_000
REPORT_MS = 1_000
REGISTER_MS = 5_000
LOOK_MS = 1_000
DRAIN_MS = 6_000
# A `stop` task is ended so long after the last beat that was answered was sent, or the hello: see
# invariant 17. Some for the timer.
CUT_OFF_MS = 9_000 + 50
# A Tick may be asked for at once so many times; more without an effect is a busy loop.
MAX_IDLE_TICKS = 3
_EXIT_WELL = 0
_EXIT_REPLACED = 78


@dataclass(slots=True)
class Table:
    """The slot table's content: it outlives its runtime."""

    incarnation: int = 0
    term: int = 0
    stop_deadline_ms: int = 0
    started: dict[ev.AttemptKey, TenantId] = field(default_factory=dict)

    def view(self) -> TableView:
        started = tuple(StartedAttempt(key, tenant) for key, tenant in self.started.items())
        return TableView(1, self.incarnation, self.term, self.stop_deadline_ms, "", started)


class Machine:
    """One agent: its supervisor, and its runtimes one after the other."""

    def __init__(self, world: World, ident: AgentId, slots: int) -> None:
        self.world = world
        self.id = ident
        self.slots = slots
        self.runtime: Runtime | None = None
        self.supervisor: Supervisor | None = None
        self.table = Table()
        # Of the seeds with enough agents some have zones.
        self.zone = world.rng.choice(("", "east", "west"))
        # Until then all that it runs fails.
        self.sick_until_ms = 0

    def start(self) -> None:
        """Somebody starts the agent, unless it runs."""
        if self.supervisor is None or not self.supervisor.alive:
            self.supervisor = Supervisor(self)

    @property
    def frozen(self) -> bool:
        """Whether nobody of it could act: its processes are taken to be frozen, too."""
        supervisor, runtime = self.supervisor, self.runtime
        watched = supervisor is not None and supervisor.alive and not supervisor.frozen
        return runtime is not None and runtime.frozen and not watched

    def parts(self) -> list[Part]:
        """Its processes that live, the supervisor first."""
        found: list[Part | None] = [self.supervisor, self.runtime]
        return [part for part in found if part is not None and part.alive]

    def record(self, incarnation: int) -> AgentRecord:
        capacity = ResourceVector.of({"cpu": 4_000, "memory": 1 << 30, "slots": self.slots})
        labels = (("zone", self.zone),) if self.zone else ()
        spec = AgentSpec(self.id, capacity, (SkillOffer("echo"),), labels)
        return AgentRecord(spec, incarnation)

    def crash(self) -> None:
        """kill -9 of all of it: nobody is left to tell."""
        for part in self.parts():
            part.end()
        self.world.later_start(self)


class Supervisor(Part):
    """Keeps one runtime alive."""

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine.world.kernel, f"{machine.id}/sup", machine.id)
        self.machine = machine
        self.core = SupervisorCore()
        self.deaths = Deaths()
        self.link: Link | None = None
        self.leader: SimLeader | None = None
        self._ordered = False
        # Deaths that a leader has heard of.
        self.delivered: set[Death] = set()
        self._seq = 0
        self.later(0, self._start)
        self.later(LOOK_MS, self._tick)
        self.later(300 * self.kernel.rng.random(), self._connect)

    def _start(self) -> None:
        self.core.began(self.boot_ms())
        self._ordered = False
        self.machine.runtime = Runtime(self.machine)

    def _tick(self) -> None:
        self._look()
        if len(self.deaths):
            self._beat()
        self.later(LOOK_MS, self._tick)

    def thawed(self) -> None:
        """Timers that are due run before anything that was received meanwhile."""
        self._look()

    def _look(self) -> None:
        runtime = self.machine.runtime
        if runtime is not None and runtime.alive:
            why = self.core.look(self.machine.table.view(), self.boot_ms())
            if why:
                self._kill(why)

    def _kill(self, why: str, *, blameless: bool = False) -> None:
        runtime = self.machine.runtime
        if runtime is not None and runtime.alive:
            self.say("kills its runtime:", why)
            self.kernel.tally["runtime ended by its supervisor"] += 1
            self.core.killed(why, blameless=blameless)
            self._ordered = blameless
            runtime.exit(-9)

    def on_exit(self, code: int) -> None:
        """Its runtime has ended; it hears of it a moment later."""
        self.later(1 + 5 * self.kernel.rng.random(), lambda: self._exited(code))

    def _exited(self, code: int) -> None:
        after = self.core.ended(code)
        if after is Next.LEAVE:
            self.say("leaves")
            self.end()
            self.machine.world.later_start(self.machine)
            return
        death = self.core.death(code, self.machine.table.view())
        self.say("buries incarnation", death.incarnation, *(label(*s.key) for s in death.started))
        if self._ordered and death.started:
            raise SimulationError(f"invariant 9: {death} was ordered, and attempts are blamed")
        if death.incarnation:
            self.deaths.add(death)
            self._beat()
        if after is Next.LAST_WORDS:
            self.later(2_000, self._leave_after_last_words)
        else:
            self.later(self.core.pause_ms(self.boot_ms(), self.kernel.rng.random()), self._start)

    def _leave_after_last_words(self) -> None:
        self.end()
        self.machine.world.later_start(self.machine)

    def terminate(self) -> None:
        """SIGTERM: drain, then end."""
        if self.core.stopping:
            return
        self.say("is asked to drain")
        self.core.stopping = True
        runtime = self.machine.runtime
        if runtime is not None and runtime.alive:
            runtime.do(runtime.drain)
        else:
            self.end()
            self.machine.world.later_start(self.machine)

    # --- its session ------------------------------------------------------------------------

    def _connect(self) -> None:
        if self.link is not None:
            return
        self.leader = leader = self.machine.world.dial(self)
        if leader is None:
            self.later(100 + 400 * self.kernel.rng.random(), self._connect)
            return
        self.link = link = Link(self.machine.world.network, self, leader)
        self.deaths.unsay()
        link.send(leader, lambda: leader.on_supervisor(self, link))
        if len(self.deaths):
            self._beat()

    def on_cut(self, link: Link) -> None:
        if self.link is link:
            self.link = self.leader = None
            self.later(100 + 400 * self.kernel.rng.random(), self._connect)

    def _beat(self) -> None:
        """Only what a death needs: its other beats would tell the leader nothing."""
        link, leader = self.link, self.leader
        if link is None or leader is None:
            return
        while True:
            self._seq += 1
            death = self.deaths.say_next(self._seq)
            link.send(leader, partial(leader.on_supervisor_beat, self, link, self._seq, death))
            if not self.deaths.unsaid:
                return

    def on_beat_answered(self, seq: int) -> None:
        before = self._kept()
        self.deaths.confirm(seq)
        lost = set(before) - set(self._kept()) - self.delivered
        if lost:
            raise SimulationError(f"{self.name} forgets {lost}, of which no leader has heard")

    def _kept(self) -> list[Death]:
        return [death for death, _ in self.deaths._kept]

    def on_restart(self, incarnation: int, why: str) -> None:
        reason = self.core.restart_asked(incarnation, why)
        if reason and incarnation not in (0, self.core.incarnation):
            raise SimulationError(f"{self.name} kills for a word about incarnation {incarnation}")
        if reason:
            self._kill(reason, blameless=True)

    def after_each(self) -> None:
        if len(self.deaths) > MAX_DEATHS:
            raise SimulationError(f"invariant 14: {self.name} keeps {len(self.deaths)} deaths")


class Runtime(Part):
    """One incarnation of an agent: the shell around the production core."""

    def __init__(self, machine: Machine) -> None:
        world = self.world = machine.world
        super().__init__(world.kernel, f"{machine.id}/new", machine.id)
        self.machine = machine
        self.core = AgentCore(slots=machine.slots)
        self.executor = SimExecutor(self)
        self.link: Link | None = None
        self.leader: SimLeader | None = None
        self.table = machine.table = Table()
        self._events: list[ev.Event] = []
        self._pumping = False
        self._wake_ms = -1
        self._idle_ticks = 0
        self._heard_ms = 0
        self._top_term = 0
        # By its own books: when what a leader answered last was said, and what it said when.
        self.contact_ms = 0
        self._hello_ms = 0
        self._drains = False
        self._may_leave_ms = 0
        # All that it was ever told to start.
        self.given: dict[ev.AttemptKey, ev.AttemptSpec] = {}
        self._beats: dict[int, int] = {}
        self._unsaid_starts: dict[ev.AttemptKey, ev.SendStarted] = {}
        # Attempts that a leader has acknowledged or dropped: they may be forgotten.
        self._released: set[ev.AttemptKey] = set()
        executor = self.executor
        self._carry_out: dict[type[Any], Callable[[Any], None]] = {
            ev.Start: self._start,
            ev.Stop: lambda c: executor.stop(c.key, c.grace_ms),
            ev.Resume: lambda c: executor.resume(c.key),
            ev.SendHello: self._send_hello,
            ev.SendBeat: self._send_beat,
            ev.SendStarted: self._send_started,
            ev.SendOutcome: self._send_outcome,
            ev.SendWaiting: lambda c: self._tell(lambda to: to.on_waiting(self, c.key, c.waiting)),
            ev.SendDraining: lambda _: self._tell(lambda to: to.on_draining(self)),
            ev.CloseSession: lambda c: self._give_up(c.why),
            ev.Forget: self._forget,
            ev.Finished: lambda c: self.later(0, lambda: self._leave(c.undelivered)),
        }
        self.later(100 + 200 * self.kernel.rng.random(), self._register)

    # --- core and shell ---------------------------------------------------------------------

    def emit(self, event: ev.Event) -> None:
        """What happens while commands are carried out comes to the core after them."""
        self._events.append(event)
        if not self._pumping:
            self._pump()

    def _pump(self) -> list[ev.Command]:
        self._pumping = True
        done: list[ev.Command] = []
        while self._events and self.alive:
            taken, self._events = self._events, []
            commands = self.core.handle(taken, self.boot_ms())
            for command in commands:
                self._carry_out[type(command)](command)
            done += commands
        self._pumping = False
        self._note_in_table()
        self._schedule()
        self._check()
        return done

    def _schedule(self) -> None:
        wake_ms = self.core.next_wake_ms()
        if wake_ms == self._wake_ms or not wake_ms:
            return
        self._wake_ms = wake_ms
        # A Tick that comes late finds all that is due.
        self.later(max(1, wake_ms - self.boot_ms()), lambda: self._tick(wake_ms))

    def _tick(self, wake_ms: int) -> None:
        if self._wake_ms != wake_ms:
            return
        self._wake_ms = -1
        if self.link is not None and self.boot_ms() - self._heard_ms >= SILENCE_MS:
            self._give_up("the leader is silent")
        self._events.append(ev.Tick())
        idle = not self._pump() and self.core.next_wake_ms() <= self.boot_ms()
        self._idle_ticks = self._idle_ticks + 1 if idle else 0
        if self._idle_ticks > MAX_IDLE_TICKS:
            raise SimulationError(f"{self.name} asks for Tick after Tick and does nothing")

    def thawed(self) -> None:
        """Timers that are due run before anything that was received meanwhile."""
        self.emit(ev.Tick())

    def _note_in_table(self) -> None:
        core, table = self.core, self.table
        table.incarnation, table.term = core.incarnation, core.term
        deadline_ms = core.stop_deadline_ms
        table.stop_deadline_ms = deadline_ms + _STOP_MARGIN_MS if deadline_ms else 0

    def _check(self) -> None:
        core = self.core
        if core.slots_used > core.slots:
            raise SimulationError(
                f"invariant 13: {self.name} gives out {core.slots_used} of {core.slots} slots"
            )
        if len(core._held) > HELD_PER_SLOT * core.slots or core.outbox_size > core._max_outbox:
            raise SimulationError(f"invariant 14: {self.name} holds more than it may")

    def after_each(self) -> None:
        """17: `stop` tasks that nobody stands for any more are being ended."""
        silent_ms = self.boot_ms() - max(self.contact_ms, self._hello_ms)
        if silent_ms <= CUT_OFF_MS or not self.alive:
            return
        for key, held in self.core._held.items():
            if held.spec.stop_when_cut_off and held.stop is None:
                name = label(*key)
                raise SimulationError(f"invariant 17: {self.name} keeps {name} for {silent_ms} ms")

    # --- life -------------------------------------------------------------------------------

    def _register(self) -> None:
        registry, mine = self.world.registry, self.core.incarnation
        call(
            self,
            registry,
            lambda: registry.register(self.machine, mine),
            self._registered,
            timeout_ms=REGISTER_MS,
            repeat=False,
        )
        self.later(REGISTER_MS, self._register_again)

    def _register_again(self) -> None:
        if not self.core.incarnation:
            self._register()

    def _registered(self, answer: object) -> None:
        assert isinstance(answer, int)
        if not answer:
            self.exit(_EXIT_REPLACED)
            return
        first = not self.core.incarnation
        if self.world.incarnations.setdefault((self.machine.id, answer), self) is not self:
            raise SimulationError(f"invariant 5: {self.machine.id}/{answer} is two runtimes")
        if first:
            self.name = f"{self.machine.id}/{answer}"
            self.say("starts")
        self.emit(ev.Registered(answer))
        if first:
            self.later(HEARTBEAT_MS * self.kernel.rng.random(), self._heartbeat)
            self.later(0, self._connect)
            self.later(REPORT_MS * self.kernel.rng.random(), self._report)

    def _heartbeat(self) -> None:
        registry, machine, mine = self.world.registry, self.machine, self.core.incarnation
        call(self, registry, lambda: registry.beat(machine, mine), self._beaten, repeat=False)
        self.later(HEARTBEAT_MS, self._heartbeat)

    def _beaten(self, answer: object) -> None:
        if answer == "superseded":
            self.say("is superseded")
            self.exit(_EXIT_REPLACED)
        elif answer == "unregistered":
            registry, machine, mine = self.world.registry, self.machine, self.core.incarnation
            again = lambda: registry.register(machine, mine)  # noqa: E731
            call(self, registry, again, self._registered, repeat=False)

    def _report(self) -> None:
        monitor, ident, mine = self.world.monitor, self.machine.id, self.core.incarnation
        if not self.kernel.is_lost() and self.world.network.passes(self, monitor):
            self.kernel.at(
                self.kernel.delay_ms(),
                lambda: monitor.do(lambda: monitor.on_report(ident, mine)),
            )
        self.later(REPORT_MS, self._report)

    def drain(self) -> None:
        """SIGTERM."""
        if not self.core.incarnation:
            self.exit(-15)
            return
        self.say("drains")
        if not self._drains:
            self._may_leave_ms = self.boot_ms() + DRAIN_MS + DELIVERY_GRACE_MS
        self.emit(ev.DrainBegan(self.boot_ms() + DRAIN_MS))
        self._drains = True

    def _leave(self, undelivered: int) -> None:
        if undelivered and self.boot_ms() < self._may_leave_ms:
            raise SimulationError(f"invariant 6: {self.name} leaves with {undelivered} outcomes")
        self.say("has drained and leaves", undelivered or "", "outcomes" * bool(undelivered))
        self.world.registry.leave_later(self)
        self.world.monitor.leave_later(self)
        self.exit(_EXIT_WELL)

    def exit(self, code: int) -> None:
        """Its process ends, and all that it had started."""
        if not self.alive:
            return
        self.end()
        supervisor = self.machine.supervisor
        if supervisor is not None and supervisor.alive:
            supervisor.on_exit(code)

    def end(self) -> None:
        self.say("is gone")
        super().end()
        self.executor.end()

    # --- session ----------------------------------------------------------------------------

    def _connect(self) -> None:
        if self.link is not None:
            return
        self.leader = leader = self.world.dial(self)
        if leader is None:
            self.later(50 + 400 * self.kernel.rng.random(), self._connect)
            return
        self.link = Link(self.world.network, self, leader)
        self._heard_ms = self.boot_ms()
        self.emit(ev.SessionOpened())

    def on_cut(self, link: Link) -> None:
        if self.link is link:
            self.link = self.leader = None
            self._unsaid_starts.clear()
            self.emit(ev.SessionLost())
            self.later(50 + 400 * self.kernel.rng.random(), self._connect)

    def _give_up(self, why: str) -> None:
        if self.link is not None:
            self.link.cut(f"{self.name}: {why}", by=self)

    def _tell(self, say: Callable[[SimLeader], None]) -> None:
        link, leader = self.link, self.leader
        if link is not None and leader is not None:
            link.send(leader, lambda: say(leader))

    def _start(self, command: ev.Start) -> None:
        if self._drains:
            raise SimulationError(f"{self.name} drains and takes {label(*command.spec.key)}")
        if command.spec.key in self.given.keys() - self._released:
            raise SimulationError(f"{self.name} starts {label(*command.spec.key)} once more")
        self.given[command.spec.key] = command.spec
        self.executor.start(command.spec)

    def _send_beat(self, beat: ev.SendBeat) -> None:
        self._beats[beat.seq] = self.boot_ms()
        self._tell(lambda leader: leader.on_beat(self, beat.seq))

    def _send_hello(self, hello: ev.SendHello) -> None:
        link, term = self.link, self.core.term
        assert link is not None
        self._hello_ms = self.boot_ms()
        self._tell(lambda leader: leader.on_hello(self, link, hello.held, term))

    def _send_started(self, command: ev.SendStarted) -> None:
        """Told in a while, and never of an attempt that has ended by then."""
        self._unsaid_starts[command.key] = command
        self.later(STARTED_AFTER_MS, lambda: self._say_started(command))

    def _say_started(self, command: ev.SendStarted) -> None:
        if self._unsaid_starts.get(command.key) is command:
            del self._unsaid_starts[command.key]
            self._tell(lambda to: to.on_started(self, command.key, command.started_at_ms))

    def say_progress(self, key: ev.AttemptKey) -> None:
        """An attempt shows progress; nobody acknowledges that."""
        self._tell(lambda leader: leader.on_progress(self, key))

    def _send_outcome(self, command: ev.SendOutcome) -> None:
        self._unsaid_starts.pop(command.key, None)
        self.world.books.ended(command.key, command.outcome)
        self._tell(lambda leader: leader.on_outcome(self, command.key, command.outcome))

    def hear(self, link: Link, term: int, events: Sequence[ev.Event]) -> None:
        """A message of a leader."""
        if self.link is not link:
            # Of a stream that it has given up.
            return
        self._heard_ms = self.boot_ms()
        stale = term < self._top_term
        self._top_term = max(term, self._top_term)
        for event in events:
            if isinstance(event, ev.OutcomesAcked | ev.Dropped):
                self._released.update(event.keys)
            elif isinstance(event, ev.BeatAnswered) and not stale:
                self.contact_ms = max(self.contact_ms, self._beats.get(event.seq, 0))
                self._beats = {seq: at for seq, at in self._beats.items() if seq > event.seq}
        self._events.extend(events)
        done = self._pump()
        if stale and any(not isinstance(c, ev.CloseSession) for c in done):
            raise SimulationError(
                f"invariant 4: {self.name} obeys term {term} after {self._top_term}: {done}"
            )

    def _forget(self, command: ev.Forget) -> None:
        key = command.key
        if key in self.executor.live:
            raise SimulationError(f"{self.name} forgets {label(*key)}, which runs")
        if key not in self._released:
            raise SimulationError(f"invariant 6: {self.name} forgets {label(*key)} unasked")
