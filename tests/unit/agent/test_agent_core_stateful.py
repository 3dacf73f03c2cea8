"""Whatever happens in whatever order: one outcome per attempt, none forgotten, slots respected."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from muster.agent.core import AgentCore
from muster.agent.events import (
    Assigned,
    AttemptEnded,
    AttemptKey,
    AttemptSpec,
    AttemptStarted,
    BeatAnswered,
    CancelAsked,
    Command,
    DrainBegan,
    Dropped,
    Event,
    Forget,
    OutcomesAcked,
    Registered,
    Resume,
    SendBeat,
    SendHello,
    SendOutcome,
    SessionLost,
    SessionOpened,
    Start,
    Stop,
    Tick,
    WaitBegan,
    WaitEnded,
    Welcomed,
)
from muster.domain.ids import DEFAULT_TENANT, TaskId
from muster.domain.task import Outcome, OutcomeKind, Wish

SLOTS = 3
_TERM = 5


class Agent(RuleBasedStateMachine):
    """The core between a leader that may say anything and processes that end at any time."""

    keys = Bundle("keys")

    def __init__(self) -> None:
        super().__init__()
        self.core = AgentCore(slots=SLOTS)
        self.now_ms = 0
        self.term = _TERM
        self.started: dict[AttemptKey, bool] = {}  # given to a process → reported as started
        self.waiting: set[AttemptKey] = set()
        self.accepted: set[AttemptKey] = set()
        self.dropped: set[AttemptKey] = set()
        self.given: set[AttemptKey] = set()
        self.acked: set[AttemptKey] = set()
        self.seen: dict[AttemptKey, Outcome] = {}
        self.open = False
        self.welcomed = False
        self.last_beat = 0
        self.tell(Registered(1))

    def tell(self, *events: Event) -> list[Command]:
        commands = self.core.handle(events, self.now_ms)
        for command in commands:
            self._observe(command)
        return commands

    def _observe(self, command: Command) -> None:
        if isinstance(command, Start):
            assert command.spec.key not in self.accepted, "started twice"
            task_id = command.spec.key.task_id
            assert all(k.task_id != task_id for k in self.started), "two attempts of a task at once"
            self.accepted.add(command.spec.key)
            self.started[command.spec.key] = False
        elif isinstance(command, Stop):
            assert command.key in self.started, "stopped what does not run"
        elif isinstance(command, SendOutcome):
            assert self.welcomed, "an outcome before the welcome"
            assert command.key not in self.started, "an outcome of what still runs"
            before = self.seen.setdefault(command.key, command.outcome)
            assert before == command.outcome, "two outcomes of one attempt"
        elif isinstance(command, SendBeat):
            self.last_beat = command.seq
        elif isinstance(command, Resume):
            self.waiting.discard(command.key)
        elif isinstance(command, Forget):
            assert command.key in self.acked | self.dropped, "forgotten without a word"

    @rule(
        target=keys,
        task=st.sampled_from("abcdef"),
        attempt=st.integers(1, 4),
        stop=st.booleans(),
        timeout_ms=st.sampled_from([0, 0, 500]),
        behind=st.booleans(),
    )
    def assign(
        self, task: str, attempt: int, stop: bool, timeout_ms: int, behind: bool
    ) -> AttemptKey:
        key = AttemptKey(TaskId(task), attempt)
        gone = self.acked | self.dropped
        if not self.welcomed or key in gone:
            return key  # a leader does not assign again what it knows to have ended
        spec = AttemptSpec(key, DEFAULT_TENANT, "echo", b"", 1, timeout_ms, stop)
        older = [k for k in self.given if k.task_id == key.task_id and k.attempt < attempt]
        if not behind:
            # Giving a newer attempt tells that the older ones were given up, also one that still
            # waits for its turn and is forgotten at once.
            self.dropped |= {k for k in older if self.core.holds(k)}
            self.given.add(key)
        self.tell(Assigned(self.term - behind, (spec,)))
        return key

    @rule(key=keys)
    def start(self, key: AttemptKey) -> None:
        if self.started.get(key) is False:
            self.started[key] = True
            self.tell(AttemptStarted(key, 1))

    @rule(key=keys, kind=st.sampled_from([OutcomeKind.SUCCEEDED, OutcomeKind.FAILED]))
    def end(self, key: AttemptKey, kind: OutcomeKind) -> None:
        if self.started.pop(key, None) is not None:
            self.waiting.discard(key)
            self.tell(AttemptEnded(key, Outcome(kind)))

    @rule(key=keys, wish=st.sampled_from([Wish.CANCEL, Wish.TIME_OUT]))
    def cancel(self, key: AttemptKey, wish: Wish) -> None:
        if self.welcomed:
            self.tell(CancelAsked(self.term, key, wish))

    @rule(key=consumes(keys))
    def drop(self, key: AttemptKey) -> None:
        if self.welcomed:
            self.dropped.add(key)
            self.tell(Dropped(self.term, (key,)))

    @rule(key=keys)
    def acknowledge(self, key: AttemptKey) -> None:
        if self.welcomed and key in self.seen:
            self.acked.add(key)
            self.tell(OutcomesAcked(self.term, (key,)))

    @rule(key=keys)
    def wait(self, key: AttemptKey) -> None:
        if self.started.get(key) and key not in self.waiting:
            self.waiting.add(key)
            self.tell(WaitBegan(key))

    @rule(key=keys)
    def wait_ends(self, key: AttemptKey) -> None:
        if key in self.waiting:
            self.tell(WaitEnded(key))

    @rule(ms=st.sampled_from([1, 400, 1_000, 10_000]), answered=st.booleans())
    def time_passes(self, ms: int, answered: bool) -> None:
        self.now_ms += ms
        if self.welcomed and answered:
            self.tell(BeatAnswered(self.term, self.last_beat))
        self.tell(Tick())
        wake_ms = self.core.next_wake_ms()
        assert wake_ms == 0 or wake_ms > self.now_ms, "it asks for Tick after Tick"

    @rule()
    def lose_session(self) -> None:
        self.open = self.welcomed = False
        self.tell(SessionLost())

    @rule(newer=st.booleans())
    def new_session(self, newer: bool) -> None:
        self.open, self.welcomed = True, False
        hello = self.tell(SessionOpened())
        assert isinstance(hello[0], SendHello)
        named = {ref.key for ref in hello[0].held}
        assert len(named) == len(hello[0].held)
        unspoken = self.accepted - self.acked - self.dropped
        assert unspoken <= named, "an attempt is missing in the hello"
        self.term += newer
        self.welcomed = True
        outbox = {k for k in named if k not in self.started}
        told = {c.key for c in self.tell(Welcomed(self.term)) if isinstance(c, SendOutcome)}
        # An attempt whose turn has not come (an older one still runs) is held and not started.
        assert told == {k for k in outbox if not self.core.holds(k)}

    @rule()
    def drain(self) -> None:
        if self.now_ms > 20_000:
            self.tell(DrainBegan(self.now_ms + 1_000))

    @invariant()
    def slots_are_never_exceeded(self) -> None:
        assert self.core.slots_used <= SLOTS

    @invariant()
    def every_accepted_attempt_is_held_or_owed_or_settled(self) -> None:
        for key in self.accepted - self.acked - self.dropped:
            assert self.core.holds(key) or key in self.core._outbox


TestAgent = Agent.TestCase
TestAgent.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
