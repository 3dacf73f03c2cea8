"""Models of what the scheduler's leader deals with: storage, registry, agents and supervisors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.scenarios.sim_kernel import Kernel, Link, Part, SimulationError

from muster.domain.agent import AgentRecord, AgentSpec, SkillOffer
from muster.domain.agent_lifecycle import AgentWish
from muster.domain.ids import AgentId, TaskId
from muster.domain.resources import ResourceVector
from muster.domain.task import OnDisconnect, Outcome, OutcomeKind, TaskSpec, TaskStatus, Wish
from muster.domain.task_lifecycle import ENDED_STATES, HELD_STATES, TaskState
from muster_scheduler.core.records import AttemptRef
from muster_scheduler.core.tasks import Verdict

if TYPE_CHECKING:
    from tests.scenarios.sim_leader import SimLeader

LEASE_MS = 10_000
HEARTBEAT_MS = 3_000
BEAT_MS = 1_000
# A `stop` task is killed within 3 s from 9 s after the last answered beat was sent.
CUT_OFF_MS = 9_000
KILLED_MS = 12_000

Answer = tuple[Verdict, TaskStatus | None]


def label(task: TaskId, attempt: int) -> str:
    return f"#{int(task)}.{attempt}"


@dataclass(frozen=True, slots=True)
class Habits:
    """What a task does when it is run."""

    runs_ms: int
    kinds: tuple[OutcomeKind, ...]
    poison: bool = False
    waits: bool = False


class SimStore:
    """Compare-and-set on (state, attempt, term), and what must be true of every write."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.tasks: dict[TaskId, tuple[TaskSpec, TaskStatus]] = {}
        self.term = 0
        self.clock_ms = 10_000
        self.wishes: dict[AgentId, AgentWish] = {}
        # Ids that gateways created on their own, in order; `followers` hear of each.
        self.by_gateways: list[TaskId] = []
        self.followers: list[Callable[[TaskId], None]] = []

    def acquire(self) -> tuple[int, int]:
        self.term += 1
        return self.term, self.clock_ms

    def confirm(self, term: int, advance_ms: int) -> tuple[bool, int]:
        if term == self.term:
            self.clock_ms += min(advance_ms, 10_000)
        return term == self.term, self.clock_ms

    def create(
        self, term: int, items: Sequence[tuple[TaskSpec, TaskStatus]]
    ) -> list[Answer] | None:
        """None: the term is stale."""
        if term not in (0, self.term):
            return None
        out: list[Answer] = []
        for spec, status in items:
            if spec.id in self.tasks:
                out.append((Verdict.STALE, self.tasks[spec.id][1]))
                continue
            if status.state not in (TaskState.PENDING, TaskState.ASSIGNED):
                raise SimulationError(f"task {spec.id} is created {status.state}")
            self.tasks[spec.id] = (spec, status)
            self.kernel.say("store", "creates", label(spec.id, status.attempt), status.state.value)
            if not term:
                self.by_gateways.append(spec.id)
                for follow in self.followers:
                    follow(spec.id)
            out.append((Verdict.OK, None))
        return out

    def apply(
        self, term: int, items: Sequence[tuple[TaskId, tuple[TaskState, int], TaskStatus]]
    ) -> list[Answer] | None:
        if term != self.term:
            return None
        out: list[Answer] = []
        for ident, expect, status in items:
            spec, standing = self.tasks[ident]
            if (standing.state, standing.attempt) != expect:
                out.append((Verdict.STALE, standing))
                continue
            _check_change(ident, standing, status)
            self.tasks[ident] = (spec, status)
            self.kernel.say(
                "store", label(ident, standing.attempt), standing.state.value, "becomes",
                label(ident, status.attempt), status.state.value, status.agent, status.why,
            )  # fmt: skip
            out.append((Verdict.OK, None))
        return out

    def is_settled(self, ref: AttemptRef) -> bool:
        """Whether the attempt's outcome is recorded, or can be recorded no more."""
        status = self.tasks[ref.task_id][1]
        return status.attempt > ref.attempt or status.state not in HELD_STATES

    def is_durable(self, ref: AttemptRef) -> bool:
        """Whether the assignment has been written."""
        return self.tasks[ref.task_id][1].attempt >= ref.attempt


def _check_change(ident: TaskId, old: TaskStatus, new: TaskStatus) -> None:
    if old.state in ENDED_STATES:
        raise SimulationError(f"{label(ident, old.attempt)} had ended and is changed")
    if new.attempt < old.attempt or new.failures < old.failures:
        raise SimulationError(f"{label(ident, old.attempt)} counts backwards")
    outcome = new.outcome
    if outcome is not None and outcome is not old.outcome and outcome.output_blob:
        expected = token(old.agent, old.incarnation, ident, old.attempt)
        if outcome.output_blob != expected or old.state not in HELD_STATES:
            raise SimulationError(f"recorded the outcome of {outcome.output_blob}, not {expected}")


def token(agent: AgentId, incarnation: int, task: TaskId, attempt: int) -> str:
    """Marks an outcome with the attempt that it is of."""
    return f"{agent}/{incarnation}/{label(task, attempt)}"


class SimRegistry:
    """Leases, and watchers that hear of them in order; none of it while it is away."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.away = False
        self.shown: dict[AgentId, tuple[AgentRecord, int]] = {}
        self.watchers: list[SimLeader] = []

    def beat(self, record: AgentRecord) -> None:
        if self.away:
            return
        ident = record.spec.id
        now_ms = self.kernel.now_ms
        known = self.shown.get(ident)
        if known is not None and known[0].incarnation > record.incarnation:
            return
        self.shown[ident] = (record, now_ms + LEASE_MS)
        self.kernel.at(LEASE_MS + 1, lambda: self._expire(ident))
        if known is None or known[0].incarnation != record.incarnation:
            self._tell(lambda leader: leader.on_registered(record))

    def leave(self, record: AgentRecord) -> None:
        known = self.shown.get(record.spec.id)
        if not self.away and known is not None and known[0].incarnation == record.incarnation:
            del self.shown[record.spec.id]
            self._tell(lambda leader: leader.on_unregistered(record.spec.id))

    def _expire(self, ident: AgentId) -> None:
        known = self.shown.get(ident)
        if known is not None and known[1] < self.kernel.now_ms:
            del self.shown[ident]
            self._tell(lambda leader: leader.on_unregistered(ident))

    def watch(self, leader: SimLeader) -> None:
        self.watchers = [w for w in self.watchers if w.alive and w is not leader] + [leader]
        if not self.away:
            self._snapshot(leader)

    def come_back(self) -> None:
        self.away = False
        for leader in self.watchers:
            self._snapshot(leader)

    def _snapshot(self, leader: SimLeader) -> None:
        records = [record for record, _ in self.shown.values()]
        leader.registry_link.send(leader, lambda: leader.on_registry(records))

    def _tell(self, say: Callable[[SimLeader], None]) -> None:
        if not self.away:
            for leader in self.watchers:
                leader.registry_link.send(leader, lambda leader=leader: say(leader))  # type: ignore[misc]


@dataclass(slots=True)
class Attempt:
    """One attempt on an agent. `after` waits for an older one of the same task to be gone."""

    spec: TaskSpec
    ref: AttemptRef
    started: bool = False
    stopping: str = ""
    waiting: bool = False
    after: AttemptRef | None = None


@dataclass(slots=True)
class SimAgent:
    """The supervisor's side of an agent: it outlives its runtimes."""

    id: AgentId
    slots: int
    incarnation: int = 0
    runtime: Runtime | None = None
    # Runs of `stop` tasks at this moment, over all agents.
    running_stop: dict[TaskId, list[Runtime]] = field(default_factory=dict)

    def record(self) -> AgentRecord:
        capacity = ResourceVector.of({"cpu": 4_000, "memory": 1 << 30, "slots": self.slots})
        return AgentRecord(AgentSpec(self.id, capacity, (SkillOffer("echo"),)), self.incarnation)


class Runtime(Part):
    """One incarnation of an agent."""

    def __init__(
        self,
        kernel: Kernel,
        agent: SimAgent,
        habits: dict[TaskId, Habits],
        dial: Callable[[Runtime], Link | None],
        registry: SimRegistry,
        died: Callable[[Runtime], None],
    ) -> None:
        super().__init__(kernel, f"{agent.id}/{agent.incarnation}")
        self.agent = agent
        self.incarnation = agent.incarnation
        self.record = agent.record()
        self.habits = habits
        self.held: dict[AttemptRef, Attempt] = {}
        self.outbox: dict[AttemptRef, Outcome] = {}
        self.link: Link | None = None
        self.leader: SimLeader | None = None
        self.draining = False
        self.cut_off_until_ms = 0
        self.term = 0
        self.answered_ms = kernel.now_ms
        self._beats: dict[int, int] = {}
        self._seq = 0
        self._dial = dial
        self._registry = registry
        self._died = died
        self.say("starts")
        self.later(0, self._heartbeat)
        self.later(kernel.rng.random() * 300, self._connect)
        self.later(BEAT_MS, self._tick)

    # ------------------------------------------------------------------- living

    @property
    def cut_off(self) -> bool:
        """It runs on and reaches nobody."""
        return self.kernel.now_ms < self.cut_off_until_ms

    def cut_from_all(self, ms: int) -> None:
        self.say("is cut off for", ms, "ms")
        self.cut_off_until_ms = self.kernel.now_ms + ms
        for link in self.streams:
            link.cut("the network is parted")

    def _heartbeat(self) -> None:
        leaves = self.draining and not self.held and not self.outbox
        if not leaves and not self.cut_off:
            self._registry.beat(self.record)
        self.later(HEARTBEAT_MS, self._heartbeat)

    def _tick(self) -> None:
        self._kill_if_cut_off()
        if self.link is not None:
            self._seq += 1
            self._beats[self._seq] = self.kernel.now_ms
            seq = self._seq
            self.tell(lambda leader: leader.on_beat(self, seq))
        if self.draining and not self.held and not self.outbox:
            self.say("has drained and leaves")
            self._registry.leave(self.record)
            self.end()
            return
        self.later(BEAT_MS / 2, self._tick)

    def thawed(self) -> None:
        self._kill_if_cut_off()

    def _silent_ms(self) -> int:
        """Since the last answered beat was sent."""
        return self.kernel.now_ms - self.answered_ms

    def _kill_if_cut_off(self) -> None:
        silent_ms = self._silent_ms()
        if silent_ms >= CUT_OFF_MS:
            # At once when it is late already: SIGKILL comes before anything else after a thaw.
            takes_ms = self.kernel.rng.random() * max(0, KILLED_MS - silent_ms)
            for attempt in list(self.held.values()):
                if attempt.spec.on_disconnect is OnDisconnect.STOP:
                    self.stop(attempt.ref, "cut off", takes_ms)

    def end(self) -> None:
        super().end()
        for attempt in self.held.values():
            self._runs(attempt, False)
        self._died(self)

    # ------------------------------------------------------------------ session

    def tell(self, say: Callable[[SimLeader], None]) -> None:
        link, leader = self.link, self.leader
        if link is not None and leader is not None:
            link.send(leader, lambda: say(leader))

    def _connect(self) -> None:
        if self.link is not None:
            return
        self.link = None if self.cut_off else self._dial(self)
        if self.link is None:
            self.later(50 + 400 * self.kernel.rng.random(), self._connect)
            return
        # Until it is welcomed it says nothing but this.
        sent_ms = self.kernel.now_ms
        held = [(a.ref, a.started, False) for a in self.held.values() if a.stopping != "drop"]
        held += [(ref, True, True) for ref in self.outbox]
        self.tell(lambda leader: leader.on_hello(self, held, sent_ms))

    def on_cut(self, link: Link) -> None:
        if self.link is link:
            self.link = self.leader = None
            self._beats.clear()
            self.later(200 * self.kernel.rng.random(), self._connect)

    def obeys(self, term: int) -> bool:
        if term < self.term:
            if self.link is not None:
                self.link.cut(f"{self.name} obeys term {self.term}, not {term}")
            return False
        self.term = term
        return True

    def on_welcome(self, term: int, sent_ms: int) -> None:
        if not self.obeys(term):
            return
        self.answered_ms = max(self.answered_ms, sent_ms)
        if self.draining:
            self.tell(lambda leader: leader.on_draining(self))
        for attempt in self.held.values():
            if attempt.waiting:
                self._say_waiting(attempt)
        for ref in self.outbox:
            self._send_outcome(ref)

    def on_beat_answered(self, term: int, seq: int) -> None:
        if self.obeys(term) and seq in self._beats:
            self.answered_ms = max(self.answered_ms, self._beats[seq])
            self._beats = {s: at for s, at in self._beats.items() if s > seq}

    # ----------------------------------------------------------------- attempts

    def on_assign(self, term: int, spec: TaskSpec, ref: AttemptRef, incarnation: int) -> None:
        if not self.obeys(term) or incarnation != self.incarnation or ref in self.held:
            return
        if ref in self.outbox:
            self._send_outcome(ref)
            return
        older = next((r for r in self.held if r.task_id == ref.task_id), None)
        if older is not None and older.attempt > ref.attempt:
            return
        if older is not None:
            self.stop(older, "drop", 100 * self.kernel.rng.random())
        busy = sum(1 for a in self.held.values() if not a.waiting)
        # A leader that was frozen may give out what another has given away since.
        cut_off = spec.on_disconnect is OnDisconnect.STOP and self._silent_ms() >= CUT_OFF_MS
        if self.draining or busy >= self.agent.slots or cut_off:
            self._keep(ref, Outcome(OutcomeKind.RETURNED, error="no room"))
            return
        self.held[ref] = Attempt(spec, ref, after=older if older in self.held else None)
        if self.held[ref].after is None:
            self.later(5 + 50 * self.kernel.rng.random(), lambda: self._start(ref))

    def _start(self, ref: AttemptRef) -> None:
        attempt = self.held.get(ref)
        if attempt is None or attempt.stopping:
            return
        habits = self.habits[ref.task_id]
        attempt.started = True
        self.say("runs", label(ref.task_id, ref.attempt))
        self._runs(attempt, True)
        self.tell(lambda leader: leader.on_started(self, ref))
        if habits.poison:
            self.later(5 + 40 * self.kernel.rng.random(), self._crash)
            return
        if habits.waits:
            attempt.waiting = True
            self._say_waiting(attempt)
            self.later(habits.runs_ms / 2, lambda: self._resume(ref))
        self.later(habits.runs_ms, lambda: self._finish(ref))

    def _crash(self) -> None:
        self.say("is killed by its task")
        self.end()

    def _resume(self, ref: AttemptRef) -> None:
        attempt = self.held.get(ref)
        if attempt is not None and attempt.waiting:
            attempt.waiting = False
            self._say_waiting(attempt)

    def _say_waiting(self, attempt: Attempt) -> None:
        ref, waiting = attempt.ref, attempt.waiting
        self.tell(lambda leader: leader.on_waiting(self, ref, waiting))

    def _finish(self, ref: AttemptRef) -> None:
        attempt = self.held.get(ref)
        if attempt is None or attempt.stopping:
            return
        kinds = self.habits[ref.task_id].kinds
        kind = kinds[min(ref.attempt, len(kinds)) - 1]
        self._over(attempt, Outcome(kind, error=f"it {kind.value}"))

    def stop(self, ref: AttemptRef, why: str, takes_ms: float) -> None:
        attempt = self.held.get(ref)
        if attempt is None:
            return
        if attempt.stopping:
            attempt.stopping = why if why == "drop" else attempt.stopping
            return
        attempt.stopping = why
        if takes_ms:
            self.later(takes_ms, lambda: self._stopped(ref))
        else:
            self._stopped(ref)

    def _stopped(self, ref: AttemptRef) -> None:
        attempt = self.held.get(ref)
        if attempt is None:
            return
        kind = {"cancel": OutcomeKind.CANCELLED, "time_out": OutcomeKind.TIMED_OUT}.get(
            attempt.stopping, OutcomeKind.RETURNED
        )
        self._over(attempt, Outcome(kind, error=attempt.stopping))

    def _over(self, attempt: Attempt, outcome: Outcome) -> None:
        ref = attempt.ref
        self._runs(attempt, False)
        del self.held[ref]
        if attempt.stopping != "drop":
            self._keep(ref, outcome)
        for other in self.held.values():
            if other.after == ref:
                other.after = None
                self.later(5, lambda other=other: self._start(other.ref))  # type: ignore[misc]

    def _keep(self, ref: AttemptRef, outcome: Outcome) -> None:
        mark = token(self.agent.id, self.incarnation, ref.task_id, ref.attempt)
        self.outbox[ref] = Outcome(outcome.kind, error=outcome.error, output_blob=mark)
        self._send_outcome(ref)

    def _send_outcome(self, ref: AttemptRef) -> None:
        outcome = self.outbox[ref]
        for _ in range(1 + self.kernel.is_repeated()):
            self.tell(lambda leader: leader.on_outcome(self, ref, outcome))

    def on_ack(self, term: int, ref: AttemptRef) -> None:
        if self.obeys(term):
            self.outbox.pop(ref, None)

    def on_cancel(self, term: int, ref: AttemptRef, wish: Wish) -> None:
        if self.obeys(term):
            self.stop(ref, wish.value, 200 * self.kernel.rng.random())

    def on_drop(self, term: int, ref: AttemptRef) -> None:
        if self.obeys(term):
            self.stop(ref, "drop", 100 * self.kernel.rng.random())
            self.outbox.pop(ref, None)

    def drain(self) -> None:
        """SIGTERM."""
        self.say("drains")
        self.draining = True
        self.tell(lambda leader: leader.on_draining(self))
        self.return_unstarted()

    def return_unstarted(self) -> None:
        for attempt in [a for a in self.held.values() if not a.started]:
            self.stop(attempt.ref, "drained", 10)

    def _runs(self, attempt: Attempt, now: bool) -> None:
        """Keeps watch that no two runs of a `stop` task overlap; a frozen one does not run."""
        if attempt.spec.on_disconnect is not OnDisconnect.STOP:
            return
        runs = self.agent.running_stop.setdefault(attempt.ref.task_id, [])
        if not now:
            if self in runs:
                runs.remove(self)
            return
        others = [r.name for r in runs if r.alive and not r.frozen]
        if others:
            raise SimulationError(
                f"{label(attempt.ref.task_id, attempt.ref.attempt)} runs on {self.name}"
                f" while it runs on {others}"
            )
        runs.append(self)
