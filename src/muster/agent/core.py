"""What a runtime decides: which attempts it takes, ends, reports and forgets. Pure.

Events go in as a list, commands come out as a list. An attempt that was taken ends in exactly
one outcome, kept in the outbox until the leader acknowledges it, or is dropped at the leader's
word. Attempts that hold a slot never exceed the agent's slots.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from muster.agent import error_kinds
from muster.agent.device_books import DeviceBooks
from muster.agent.events import (
    STOP_GRACE_MS,
    Assigned,
    AttemptEnded,
    AttemptKey,
    AttemptSpec,
    AttemptStarted,
    BeatAnswered,
    CancelAsked,
    CloseSession,
    Command,
    DrainBegan,
    Dropped,
    Event,
    Finished,
    Forget,
    HeldRef,
    HeldState,
    LeaderDrain,
    OutcomesAcked,
    Registered,
    Resume,
    SendBeat,
    SendDraining,
    SendHello,
    SendOutcome,
    SendStarted,
    SendWaiting,
    SessionLost,
    SessionOpened,
    Start,
    Stop,
    StopReason,
    Tick,
    WaitBegan,
    WaitEnded,
    Welcomed,
)
from muster.domain.ids import TaskId, TenantId
from muster.domain.task import Outcome, OutcomeKind, Wish

BEAT_INTERVAL_MS: Final = 1_000
# A `stop` task is killed this long after the last answered beat was SENT (docs: fencing).
CUT_OFF_AFTER_MS: Final = 9_000
# And by force at the latest so much later: the leader gives it away 4 s after the first moment.
CUT_OFF_GRACE_MS: Final = 1_000
# After the drain's deadline outcomes get this long to reach a leader.
DELIVERY_GRACE_MS: Final = 5_000
# Waiting parents give their slot back; this bounds how many may pile up, per slot.
HELD_PER_SLOT: Final = 4
# A leader that never acknowledges is left when this many outcomes per slot (at least 4,096) wait.
OUTBOX_PER_SLOT: Final = 64
_MIN_OUTBOX: Final = 4_096
_CUT_OFF: Final = "the agent was cut off from the leader, and the task must not run twice at once"
# Beats that were never answered are forgotten beyond this many; only the latest matter.
_MAX_OPEN_BEATS: Final = 64


@dataclass(slots=True)
class _Held:
    spec: AttemptSpec
    # None = not started.
    started_at_ms: int | None = None
    stop: StopReason | None = None
    waiting: bool = False
    # Starts only once this older attempt of the same task is gone.
    after: AttemptKey | None = None
    # Starts only once its devices are free.
    lacks_devices: bool = False


class AgentCore:
    """The runtime's books. `slots` is how many attempts may be held at once (≥ 1)."""

    def __init__(self, *, slots: int) -> None:
        assert slots >= 1
        self.slots = slots
        self.incarnation = 0
        self.term = 0
        self.draining = False
        self.finished = False
        self._welcomed = False
        self._held: dict[AttemptKey, _Held] = {}
        self._newest: dict[TaskId, AttemptKey] = {}
        self._outbox: dict[AttemptKey, tuple[TenantId, Outcome]] = {}
        self._max_outbox = max(_MIN_OUTBOX, OUTBOX_PER_SLOT * slots)
        self._waiting = 0
        self._devices = DeviceBooks()
        self._resume: deque[AttemptKey] = deque()
        self._timeouts: list[tuple[int, AttemptKey]] = []
        # The `stop` attempts, with the contact that their assignment itself proves, oldest first;
        # apart from them those that are being ended because it was too long ago.
        self._stop_tasks: dict[AttemptKey, int] = {}
        self._cut_off_tasks: dict[AttemptKey, int] = {}
        self._seq = 0
        self._beats: dict[int, int] = {}
        self._next_beat_ms = 0
        self._hello_sent_ms = 0
        self._last_answered_ms = 0
        self._drain_deadline_ms = 0
        self._drain_is_over = False
        self._out: list[Command] = []
        self._reactions: dict[type[Any], Callable[[Any, int], None]] = {
            Registered: self._on_registered,
            SessionOpened: self._on_session_opened,
            Welcomed: self._on_welcomed,
            SessionLost: self._on_session_lost,
            BeatAnswered: self._on_beat_answered,
            Assigned: self._on_assigned,
            CancelAsked: self._on_cancel_asked,
            OutcomesAcked: self._on_outcomes_acked,
            Dropped: self._on_dropped,
            LeaderDrain: self._on_leader_drain,
            DrainBegan: self._on_drain_began,
            AttemptStarted: self._on_attempt_started,
            AttemptEnded: self._on_attempt_ended,
            WaitBegan: self._on_wait_began,
            WaitEnded: self._on_wait_ended,
            Tick: self._on_tick,
        }

    # --- what the shell may ask -------------------------------------------------------------

    @property
    def slots_used(self) -> int:
        """Attempts that hold a slot now."""
        return len(self._held) - self._waiting

    @property
    def outbox_size(self) -> int:
        """Outcomes that no leader has acknowledged yet."""
        return len(self._outbox)

    @property
    def running(self) -> int:
        """Attempts that have started and not ended."""
        return sum(1 for held in self._held.values() if held.started_at_ms is not None)

    @property
    def stop_deadline_ms(self) -> int:
        """When `stop` tasks must be killed unless a beat is answered before; 0 = there are none."""
        return self._kill_at_ms(self._cut_off_tasks) or self._kill_at_ms(self._stop_tasks)

    def _kill_at_ms(self, stop_tasks: dict[AttemptKey, int]) -> int:
        if not stop_tasks:
            return 0
        # A leader lets nobody in unless it knew within the last second that it led, so that the
        # hello of a session in which an attempt was assigned is worth an answered beat.
        contact_ms = max(self._last_answered_ms, next(iter(stop_tasks.values())))
        return contact_ms + CUT_OFF_AFTER_MS

    def holds(self, key: AttemptKey) -> bool:
        """Whether the attempt is queued, running or being stopped here."""
        return key in self._held

    def next_wake_ms(self) -> int:
        """The latest time at which a Tick is due, later than the last Tick; 0 = none is."""
        wakes = [self._next_beat_ms] if self._welcomed else []
        if self._timeouts:
            wakes.append(self._timeouts[0][0])
        if self._stop_tasks:
            wakes.append(self._kill_at_ms(self._stop_tasks))
        if self.draining and not self.finished:
            grace_ms = DELIVERY_GRACE_MS if self._drain_is_over else 0
            wakes.append(self._drain_deadline_ms + grace_ms)
        return min(wakes, default=0)

    def handle(self, events: Sequence[Event], now_ms: int) -> list[Command]:
        """Takes events in their order; `now_ms` is CLOCK_BOOTTIME."""
        reactions = self._reactions
        for event in events:
            reactions[type(event)](event, now_ms)
        self._grant_resumes()
        self._check_finished(now_ms)
        out, self._out = self._out, []
        return out

    # --- session ----------------------------------------------------------------------------

    def _obeys(self, term: int) -> bool:
        if term < self.term:
            return False
        self.term = term
        return True

    def _on_registered(self, event: Registered, _now_ms: int) -> None:
        self.incarnation = event.incarnation

    def _on_session_opened(self, _event: SessionOpened, now_ms: int) -> None:
        self._welcomed = False
        self._beats.clear()
        self._hello_sent_ms = now_ms
        held = [
            HeldRef(
                key,
                h.spec.tenant,
                HeldState.QUEUED if h.started_at_ms is None else HeldState.RUNNING,
            )
            for key, h in self._held.items()
            if h.stop is not StopReason.DROP
        ]
        held += [HeldRef(key, tenant, HeldState.ENDED) for key, (tenant, _) in self._outbox.items()]
        self._out.append(SendHello(tuple(held)))

    def _on_welcomed(self, event: Welcomed, now_ms: int) -> None:
        if not self._obeys(event.term):
            self._out.append(CloseSession(f"its term {event.term} is below {self.term}"))
            return
        self._welcomed = True
        self._next_beat_ms = now_ms
        if self.draining:
            self._out.append(SendDraining())
        for key, held in self._held.items():
            if held.waiting:
                self._out.append(SendWaiting(key, held.spec.tenant, True))
        for key, (tenant, outcome) in self._outbox.items():
            self._out.append(SendOutcome(key, tenant, outcome))
        self._beat(now_ms)

    def _on_session_lost(self, _event: SessionLost, _now_ms: int) -> None:
        self._welcomed = False

    def _on_beat_answered(self, event: BeatAnswered, _now_ms: int) -> None:
        if not self._obeys(event.term):
            return
        sent_ms = self._beats.get(event.seq)
        if sent_ms is None:
            return
        self._last_answered_ms = max(self._last_answered_ms, sent_ms)
        self._beats = {seq: at for seq, at in self._beats.items() if seq > event.seq}

    def _beat(self, now_ms: int) -> None:
        if not self._welcomed or now_ms < self._next_beat_ms:
            return
        self._seq += 1
        self._beats[self._seq] = now_ms
        if len(self._beats) > _MAX_OPEN_BEATS:
            del self._beats[next(iter(self._beats))]
        self._next_beat_ms = now_ms + BEAT_INTERVAL_MS
        self._out.append(SendBeat(self._seq, now_ms))

    # --- attempts: in -----------------------------------------------------------------------

    def _on_assigned(self, event: Assigned, now_ms: int) -> None:
        if not self._obeys(event.term):
            return
        for spec in event.attempts:
            if spec.incarnation == self.incarnation and spec.key not in self._held:
                self._take(spec, now_ms)

    def _is_cut_off(self, now_ms: int) -> bool:
        """Whether a leader may by now have given `stop` tasks of this agent away."""
        return now_ms >= max(self._last_answered_ms, self._hello_sent_ms) + CUT_OFF_AFTER_MS

    def _take(self, spec: AttemptSpec, now_ms: int) -> None:
        key = spec.key
        if key in self._outbox:
            # The leader has not seen the outcome, or it would not assign the attempt again.
            self._send_outcome(key)
            return
        older = self._newest.get(key.task_id)
        # The attempt that must be gone first: the older one, or what that one waited for itself.
        in_the_way = older
        if older is not None:
            if older.attempt > key.attempt:
                return
            waits = self._held.get(older)
            in_the_way = waits.after if waits is not None and waits.after is not None else older
            self._stop(older, StopReason.DROP)
        if len(self._outbox) >= self._max_outbox:
            self._out.append(CloseSession(f"{len(self._outbox)} outcomes are unacknowledged"))
        elif self.draining:
            self._return(spec, error_kinds.DRAINED, "the agent is draining")
        elif spec.stop_when_cut_off and self._is_cut_off(now_ms):
            # A leader that was frozen gives out what another may have given away since.
            self._return(spec, error_kinds.DISCONNECTED, _CUT_OFF)
        elif self.slots_used >= self.slots or len(self._held) >= HELD_PER_SLOT * self.slots:
            self._return(spec, error_kinds.NO_SLOT, f"all {self.slots} slots are taken")
        else:
            still_there = in_the_way if in_the_way in self._held else None
            taken = self._held[key] = _Held(spec, after=still_there)
            self._newest[key.task_id] = key
            if spec.stop_when_cut_off:
                self._stop_tasks[key] = self._hello_sent_ms
            if still_there is None:
                self._start(taken)

    def _start(self, held: _Held) -> None:
        spec = held.spec
        if spec.devices and not self._devices.take(spec.key, spec.devices):
            held.lacks_devices = True
        else:
            self._out.append(Start(spec))

    def _return(self, spec: AttemptSpec, error_kind: str, error: str) -> None:
        outcome = Outcome(OutcomeKind.RETURNED, error=error, error_kind=error_kind)
        self._outbox[spec.key] = (spec.tenant, outcome)
        self._send_outcome(spec.key)

    def _on_attempt_started(self, event: AttemptStarted, now_ms: int) -> None:
        held = self._held.get(event.key)
        if held is None or held.started_at_ms is not None:
            return
        held.started_at_ms = event.started_at_ms
        if held.spec.timeout_ms > 0 and held.stop is None:
            heapq.heappush(self._timeouts, (now_ms + held.spec.timeout_ms, event.key))
        if self._welcomed and held.stop is not StopReason.DROP:
            self._out.append(SendStarted(event.key, held.spec.tenant, event.started_at_ms))

    # --- attempts: stopping -----------------------------------------------------------------

    def _on_cancel_asked(self, event: CancelAsked, _now_ms: int) -> None:
        if self._obeys(event.term):
            timed_out = event.wish is Wish.TIME_OUT
            self._stop(event.key, StopReason.TIME_OUT if timed_out else StopReason.CANCEL)

    def _on_dropped(self, event: Dropped, _now_ms: int) -> None:
        if not self._obeys(event.term):
            return
        for key in event.keys:
            self._stop(key, StopReason.DROP)
            if self._outbox.pop(key, None) is not None:
                self._out.append(Forget(key))

    def _stop(self, key: AttemptKey, reason: StopReason, grace_ms: int = STOP_GRACE_MS) -> None:
        """The first reason stands, except that a drop silences every other."""
        held = self._held.get(key)
        if held is None or held.stop is StopReason.DROP:
            return
        if held.after is not None or held.lacks_devices:
            # It was never handed on, so nothing has to be waited for.
            held.stop = reason
            self._end(key, held, Outcome(OutcomeKind.CANCELLED))
            return
        if held.stop is None:
            self._out.append(Stop(key, reason, grace_ms))
            held.stop = reason
        elif reason is StopReason.DROP:
            held.stop = reason

    def _return_unstarted(self) -> None:
        for key in [k for k, h in self._held.items() if h.started_at_ms is None]:
            self._stop(key, StopReason.DRAIN)

    def _on_leader_drain(self, event: LeaderDrain, _now_ms: int) -> None:
        if self._obeys(event.term):
            self._return_unstarted()

    def _on_drain_began(self, event: DrainBegan, _now_ms: int) -> None:
        if self.draining:
            self._drain_deadline_ms = min(self._drain_deadline_ms, event.deadline_ms)
            return
        self.draining = True
        self._drain_deadline_ms = event.deadline_ms
        if self._welcomed:
            self._out.append(SendDraining())
        self._return_unstarted()

    # --- attempts: out ----------------------------------------------------------------------

    def _on_attempt_ended(self, event: AttemptEnded, _now_ms: int) -> None:
        held = self._held.get(event.key)
        if held is not None:
            self._end(event.key, held, event.outcome)

    def _end(self, key: AttemptKey, held: _Held, seen: Outcome) -> None:
        del self._held[key]
        if held.waiting:
            self._waiting -= 1
        if held.spec.stop_when_cut_off:
            self._stop_tasks.pop(key, None)
            self._cut_off_tasks.pop(key, None)
        if self._newest.get(key.task_id) == key:
            del self._newest[key.task_id]
        if held.stop is StopReason.DROP:
            self._out.append(Forget(key))
        else:
            self._outbox[key] = (held.spec.tenant, _verdict(held, seen))
            self._send_outcome(key)
        successor = self._held.get(self._newest.get(key.task_id, key))
        if successor is not None and successor.after == key:
            successor.after = None
            self._start(successor)
        if held.spec.devices:
            for other in self._devices.leave(key):
                self._held[other].lacks_devices = False
                self._out.append(Start(self._held[other].spec))

    def _send_outcome(self, key: AttemptKey) -> None:
        if self._welcomed:
            tenant, outcome = self._outbox[key]
            self._out.append(SendOutcome(key, tenant, outcome))

    def _on_outcomes_acked(self, event: OutcomesAcked, _now_ms: int) -> None:
        if not self._obeys(event.term):
            return
        for key in event.keys:
            if self._outbox.pop(key, None) is not None:
                self._out.append(Forget(key))

    # --- waiting parents --------------------------------------------------------------------

    def _on_wait_began(self, event: WaitBegan, _now_ms: int) -> None:
        held = self._held.get(event.key)
        if held is None or held.waiting or held.stop is not None:
            return
        held.waiting = True
        self._waiting += 1
        if self._welcomed:
            self._out.append(SendWaiting(event.key, held.spec.tenant, True))

    def _on_wait_ended(self, event: WaitEnded, _now_ms: int) -> None:
        held = self._held.get(event.key)
        if held is None or not held.waiting:
            self._out.append(Resume(event.key))
        elif event.key not in self._resume:
            self._resume.append(event.key)

    def _grant_resumes(self) -> None:
        while self._resume:
            held = self._held.get(self._resume[0])
            if held is not None and held.waiting:
                if self.slots_used >= self.slots:
                    return
                held.waiting = False
                self._waiting -= 1
                if self._welcomed:
                    self._out.append(SendWaiting(self._resume[0], held.spec.tenant, False))
                self._out.append(Resume(self._resume[0]))
            self._resume.popleft()

    # --- time -------------------------------------------------------------------------------

    def _on_tick(self, _event: Tick, now_ms: int) -> None:
        self._beat(now_ms)
        while self._timeouts and self._timeouts[0][0] <= now_ms:
            _, key = heapq.heappop(self._timeouts)
            self._stop(key, StopReason.TIME_OUT)
        while self._stop_tasks:
            late_ms = now_ms - self._kill_at_ms(self._stop_tasks)
            if late_ms < 0:
                break
            key = next(iter(self._stop_tasks))
            self._cut_off_tasks[key] = self._stop_tasks.pop(key)
            # After a thaw there is no time left for anything but force.
            self._stop(key, StopReason.DISCONNECT, max(0, CUT_OFF_GRACE_MS - late_ms))
        if self.draining and now_ms >= self._drain_deadline_ms and not self._drain_is_over:
            self._drain_is_over = True
            for key in list(self._held):
                self._stop(key, StopReason.DRAIN)

    def _check_finished(self, now_ms: int) -> None:
        if not self.draining or self.finished:
            return
        settled = not self._held and not self._outbox
        if settled or now_ms >= self._drain_deadline_ms + DELIVERY_GRACE_MS:
            self.finished = True
            self._out.append(Finished(undelivered=len(self._outbox) + len(self._held)))


def _verdict(held: _Held, seen: Outcome) -> Outcome:
    """The outcome to report for an attempt that looked like `seen` from inside."""
    reason = held.stop
    if reason is None:
        return seen
    if reason is StopReason.TIME_OUT:
        after = f" after {held.spec.timeout_ms / 1000:g} s" if held.spec.timeout_ms else ""
        error = f"the attempt was stopped{after} because its time was up"
        return _ended(seen, OutcomeKind.TIMED_OUT, error_kinds.TIMEOUT, error)
    if seen.kind is OutcomeKind.SUCCEEDED:
        # It was done before the stop reached it: the work is not thrown away.
        return seen
    if reason is StopReason.CANCEL:
        return _ended(seen, OutcomeKind.CANCELLED, "", "cancelled")
    if reason is StopReason.DISCONNECT:
        return _ended(seen, OutcomeKind.RETURNED, error_kinds.DISCONNECTED, _CUT_OFF)
    return _ended(seen, OutcomeKind.RETURNED, error_kinds.DRAINED, "the agent drained")


def _ended(seen: Outcome, kind: OutcomeKind, error_kind: str, error: str) -> Outcome:
    return Outcome(
        kind,
        error=error,
        error_kind=error_kind,
        started_at_ms=seen.started_at_ms,
        ended_at_ms=seen.ended_at_ms,
    )
