"""The runtime's core: what it takes, ends, reports and forgets."""

from __future__ import annotations

import pytest

from muster.agent import error_kinds
from muster.agent.core import (
    CUT_OFF_AFTER_MS,
    CUT_OFF_GRACE_MS,
    DELIVERY_GRACE_MS,
    AgentCore,
)
from muster.agent.events import (
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
from muster.domain.ids import DEFAULT_TENANT, TaskId
from muster.domain.task import Outcome, OutcomeKind, Wish

OK = Outcome(OutcomeKind.SUCCEEDED, output_json=b"1")
STOPPED = Outcome(OutcomeKind.CANCELLED)


def key(task: str = "a", attempt: int = 1) -> AttemptKey:
    return AttemptKey(TaskId(task), attempt)


def spec(
    task: str = "a",
    attempt: int = 1,
    *,
    incarnation: int = 7,
    timeout_ms: int = 0,
    stop: bool = False,
) -> AttemptSpec:
    return AttemptSpec(
        key(task, attempt),
        DEFAULT_TENANT,
        "echo",
        b"null",
        incarnation,
        timeout_ms=timeout_ms,
        stop_when_cut_off=stop,
    )


def connected(slots: int = 2, now_ms: int = 0) -> AgentCore:
    core = AgentCore(slots=slots)
    core.handle([Registered(7), SessionOpened(), Welcomed(3)], now_ms)
    return core


def outcomes(commands: list[Command]) -> list[tuple[AttemptKey, OutcomeKind, str]]:
    return [
        (c.key, c.outcome.kind, c.outcome.error_kind)
        for c in commands
        if isinstance(c, SendOutcome)
    ]


def test_hello_comes_first_and_a_beat_follows_the_welcome() -> None:
    core = AgentCore(slots=1)
    assert core.handle([Registered(7), SessionOpened()], 5) == [SendHello(())]
    assert core.handle([Welcomed(3)], 6) == [SendBeat(1, 6)]
    assert core.handle([Tick()], 1005) == []
    assert core.handle([Tick()], 1006) == [SendBeat(2, 1006)]


def test_an_attempt_goes_from_assignment_to_acknowledgement() -> None:
    core = connected()
    assert core.handle([Assigned(3, (spec(),))], 1) == [Start(spec())]
    assert core.handle([AttemptStarted(key(), 99)], 2) == [SendStarted(key(), DEFAULT_TENANT, 99)]
    assert core.running == 1
    assert core.handle([AttemptEnded(key(), OK)], 3) == [SendOutcome(key(), DEFAULT_TENANT, OK)]
    assert (core.slots_used, core.outbox_size) == (0, 1)
    assert core.handle([OutcomesAcked(3, (key(),))], 4) == [Forget(key())]
    assert core.outbox_size == 0


def test_a_repeated_assignment_is_taken_once() -> None:
    core = connected()
    assert core.handle([Assigned(3, (spec(), spec()))], 1) == [Start(spec())]
    assert core.handle([Assigned(3, (spec(),))], 2) == []
    core.handle([AttemptEnded(key(), OK)], 3)
    assert outcomes(core.handle([Assigned(3, (spec(),))], 4)) == [
        (key(), OutcomeKind.SUCCEEDED, "")
    ]


def test_a_lower_term_is_refused_for_every_kind_of_message() -> None:
    core = connected()
    core.handle([Assigned(4, (spec(),)), AttemptEnded(key(), OK)], 1)
    stale: list[Event] = [
        Assigned(3, (spec("b"),)),
        CancelAsked(3, key(), Wish.CANCEL),
        OutcomesAcked(3, (key(),)),
        Dropped(3, (key(),)),
        LeaderDrain(3),
        BeatAnswered(3, 1),
    ]
    assert core.handle(stale, 2) == []
    assert core.outbox_size == 1
    core.handle([SessionLost(), SessionOpened()], 3)
    assert isinstance(core.handle([Welcomed(3)], 4)[0], CloseSession)


def test_another_incarnation_is_refused() -> None:
    assert connected().handle([Assigned(3, (spec(incarnation=6),))], 1) == []


def test_more_than_the_slots_is_returned() -> None:
    core = connected(slots=1)
    commands = core.handle([Assigned(3, (spec("a"), spec("b")))], 1)
    assert commands[0] == Start(spec("a"))
    assert outcomes(commands) == [(key("b"), OutcomeKind.RETURNED, error_kinds.NO_SLOT)]


def test_cancel_and_timeout_end_under_their_own_names() -> None:
    core = connected()
    core.handle(
        [Assigned(3, (spec("a"), spec("b", timeout_ms=50))), AttemptStarted(key("b"), 1)], 0
    )
    assert core.handle([CancelAsked(3, key("a"), Wish.CANCEL)], 1) == [
        Stop(key("a"), StopReason.CANCEL)
    ]
    assert core.handle([CancelAsked(3, key("a"), Wish.CANCEL)], 1) == []
    assert core.next_wake_ms() == 50
    assert core.handle([Tick()], 50) == [Stop(key("b"), StopReason.TIME_OUT)]
    ended = core.handle([AttemptEnded(key("a"), STOPPED), AttemptEnded(key("b"), STOPPED)], 60)
    assert outcomes(ended) == [
        (key("a"), OutcomeKind.CANCELLED, ""),
        (key("b"), OutcomeKind.TIMED_OUT, error_kinds.TIMEOUT),
    ]


def test_a_result_that_crossed_the_cancel_is_kept_but_not_past_a_timeout() -> None:
    core = connected()
    core.handle([Assigned(3, (spec("a"), spec("b")))], 0)
    core.handle([CancelAsked(3, key("a"), Wish.CANCEL), CancelAsked(3, key("b"), Wish.TIME_OUT)], 1)
    ended = core.handle([AttemptEnded(key("a"), OK), AttemptEnded(key("b"), OK)], 2)
    assert [kind for _, kind, _ in outcomes(ended)] == [
        OutcomeKind.SUCCEEDED,
        OutcomeKind.TIMED_OUT,
    ]


def test_a_dropped_attempt_is_stopped_and_never_reported() -> None:
    core = connected()
    core.handle([Assigned(3, (spec(),)), CancelAsked(3, key(), Wish.CANCEL)], 0)
    assert core.handle([Dropped(3, (key(),))], 1) == []  # it is being stopped already
    assert core.handle([AttemptEnded(key(), STOPPED)], 2) == [Forget(key())]
    core.handle([Assigned(3, (spec("b"),)), AttemptEnded(key("b"), OK)], 3)
    assert core.handle([Dropped(3, (key("b"),))], 4) == [Forget(key("b"))]


def test_a_new_leader_hears_what_is_held_and_every_unacknowledged_outcome() -> None:
    core = connected(slots=3)
    core.handle([Assigned(3, (spec("a"), spec("b"), spec("c")))], 0)
    core.handle([AttemptStarted(key("b"), 1), SessionLost(), AttemptEnded(key("c"), OK)], 1)
    hello = core.handle([SessionOpened()], 2)
    assert hello == [
        SendHello(
            (
                HeldRef(key("a"), DEFAULT_TENANT, HeldState.QUEUED),
                HeldRef(key("b"), DEFAULT_TENANT, HeldState.RUNNING),
                HeldRef(key("c"), DEFAULT_TENANT, HeldState.ENDED),
            )
        )
    ]
    assert outcomes(core.handle([Welcomed(4)], 3)) == [(key("c"), OutcomeKind.SUCCEEDED, "")]
    core.handle([SessionLost(), SessionOpened()], 4)
    assert outcomes(core.handle([Welcomed(4)], 5)) == [(key("c"), OutcomeKind.SUCCEEDED, "")]


def test_a_newer_attempt_of_a_held_task_waits_until_the_older_one_is_gone() -> None:
    core = connected(slots=2)
    core.handle([Assigned(3, (spec(),))], 0)
    assert core.handle([Assigned(3, (spec(attempt=2),))], 1) == [Stop(key(), StopReason.DROP)]
    assert core.handle([AttemptEnded(key(), STOPPED)], 2) == [
        Forget(key()),
        Start(spec(attempt=2)),
    ]
    assert core.handle([Assigned(3, (spec(),))], 3) == []


def test_cancel_of_an_attempt_that_waits_for_an_older_one_ends_at_once() -> None:
    core = connected(slots=2)
    core.handle([Assigned(3, (spec(),)), Assigned(3, (spec(attempt=2),))], 0)
    ended = core.handle([CancelAsked(3, key(attempt=2), Wish.CANCEL)], 1)
    assert outcomes(ended) == [(key(attempt=2), OutcomeKind.CANCELLED, "")]
    assert core.handle([AttemptEnded(key(), STOPPED)], 2) == [Forget(key())]


def test_stop_tasks_are_killed_nine_seconds_after_the_last_answered_beat_was_sent() -> None:
    core = connected(slots=2, now_ms=100)  # beat 1 sent at 100
    core.handle([Assigned(3, (spec("a", stop=True), spec("b")))], 150)
    core.handle([Tick()], 1100)  # beat 2
    core.handle([BeatAnswered(3, 2)], 5000)  # answered late: what counts is when it was sent
    assert core.stop_deadline_ms == 1100 + CUT_OFF_AFTER_MS
    assert [c for c in core.handle([Tick()], 10_099) if isinstance(c, Stop)] == []
    core.handle([SessionLost()], 10_099)
    stop = Stop(key("a"), StopReason.DISCONNECT, CUT_OFF_GRACE_MS)
    assert core.handle([Tick()], 10_100) == [stop]
    core.handle([AttemptEnded(key("a"), STOPPED), SessionOpened()], 10_200)
    assert outcomes(core.handle([Welcomed(3)], 10_300)) == [
        (key("a"), OutcomeKind.RETURNED, error_kinds.DISCONNECTED)
    ]
    assert core.stop_deadline_ms == 0


def test_a_welcome_alone_proves_no_leadership() -> None:
    core = connected(now_ms=0)
    core.handle([Assigned(3, (spec("a", stop=True),)), BeatAnswered(3, 1)], 10)
    core.handle([Tick()], 1000)
    core.handle([SessionLost(), SessionOpened()], 8000)
    core.handle([Welcomed(3)], 8001)
    assert core.stop_deadline_ms == CUT_OFF_AFTER_MS
    # An attempt that comes in this session may count from its hello, the older one may not.
    core.handle([Assigned(3, (spec("b", stop=True),))], 8002)
    stop = Stop(key("a"), StopReason.DISCONNECT, CUT_OFF_GRACE_MS)
    assert core.handle([Tick()], 9000)[-1] == stop
    core.handle([AttemptEnded(key("a"), STOPPED)], 9001)
    assert core.stop_deadline_ms == 8000 + CUT_OFF_AFTER_MS


def test_a_tick_is_asked_for_only_while_it_has_something_to_do() -> None:
    core = connected(now_ms=0)
    assert core.next_wake_ms() == 1_000
    core.handle([SessionLost()], 10)
    assert core.next_wake_ms() == 0
    core.handle([Assigned(3, (spec(stop=True),))], 20)
    assert core.next_wake_ms() == CUT_OFF_AFTER_MS
    core.handle([Tick()], CUT_OFF_AFTER_MS)
    # It is being ended; the supervisor sees to that it is, and still knows by when.
    assert (core.next_wake_ms(), core.stop_deadline_ms) == (0, CUT_OFF_AFTER_MS)
    core.handle([DrainBegan(20_000)], 10_000)
    core.handle([Tick()], 20_000)
    assert core.next_wake_ms() == 20_000 + DELIVERY_GRACE_MS
    core.handle([Tick()], 20_000 + DELIVERY_GRACE_MS)
    assert (core.finished, core.next_wake_ms()) == (True, 0)


@pytest.mark.parametrize(("thawed_ms", "grace_ms"), [(400, 600), (1_000, 0), (60_000, 0)])
def test_what_is_killed_late_has_less_time_to_end_by_itself(thawed_ms: int, grace_ms: int) -> None:
    core = connected(now_ms=0)
    core.handle([Assigned(3, (spec(stop=True),)), BeatAnswered(3, 1)], 10)
    killed = core.handle([Tick()], CUT_OFF_AFTER_MS + thawed_ms)
    assert killed[-1] == Stop(key(), StopReason.DISCONNECT, grace_ms)


def test_a_stop_task_that_a_thawed_leader_gives_out_late_is_returned() -> None:
    """Another leader may have given it to another agent 13 s after it had raised its term."""
    core = connected(slots=8, now_ms=0)  # hello and first beat at 0
    core.handle([BeatAnswered(3, 1)], 10)
    late = [Assigned(3, (spec("a", stop=True), spec("b")))]
    commands = core.handle(late, CUT_OFF_AFTER_MS)
    assert outcomes(commands) == [(key("a"), OutcomeKind.RETURNED, error_kinds.DISCONNECTED)]
    assert [c.spec.key for c in commands if isinstance(c, Start)] == [key("b")]
    # Said again, as after a reconnection: the leader has not seen the outcome.
    assert outcomes(core.handle(late, CUT_OFF_AFTER_MS + 1)) == outcomes(commands)
    # Just in time, and after contact, such a task is taken.
    for task, now_ms in (("c", CUT_OFF_AFTER_MS - 1), ("d", CUT_OFF_AFTER_MS + 1_000)):
        if task == "d":
            core.handle([Tick(), BeatAnswered(3, 2)], CUT_OFF_AFTER_MS + 500)
        taken = core.handle([Assigned(3, (spec(task, stop=True),))], now_ms)
        assert [c.spec.key for c in taken if isinstance(c, Start)] == [key(task)]
    # So is one in a new session, whose hello a leader has just heard.
    core.handle([SessionLost(), SessionOpened(), Welcomed(3)], 60_000)
    taken = core.handle([Assigned(3, (spec("e", stop=True),))], 60_001)
    assert [c.spec.key for c in taken if isinstance(c, Start)] == [key("e")]


def test_drain_returns_the_unstarted_lets_the_running_finish_and_then_ends() -> None:
    core = connected(slots=2)
    core.handle([Assigned(3, (spec("a"), spec("b"))), AttemptStarted(key("a"), 1)], 0)
    assert core.handle([DrainBegan(1000)], 1) == [
        SendDraining(),
        Stop(key("b"), StopReason.DRAIN),
    ]
    refused = core.handle([Assigned(3, (spec("c"),))], 2)
    assert outcomes(refused) == [(key("c"), OutcomeKind.RETURNED, error_kinds.DRAINED)]
    ended = core.handle([AttemptEnded(key("b"), STOPPED), AttemptEnded(key("a"), OK)], 3)
    assert [kind for _, kind, _ in outcomes(ended)] == [
        OutcomeKind.RETURNED,
        OutcomeKind.SUCCEEDED,
    ]
    acked = core.handle([OutcomesAcked(3, (key("a"), key("b"), key("c")))], 4)
    assert acked[-1] == Finished(0)


def test_drain_ends_what_runs_at_its_deadline_and_does_not_wait_for_ever_for_a_leader() -> None:
    core = connected()
    core.handle([Assigned(3, (spec(),)), AttemptStarted(key(), 1), SessionLost()], 0)
    core.handle([DrainBegan(1000)], 1)
    assert core.handle([Tick()], 1000) == [Stop(key(), StopReason.DRAIN)]
    assert core.handle([AttemptEnded(key(), STOPPED)], 1100) == []
    assert core.handle([Tick()], 1000 + DELIVERY_GRACE_MS) == [Finished(1)]


def test_the_operators_drain_returns_the_unstarted_only() -> None:
    core = connected()
    core.handle([Assigned(3, (spec("a"), spec("b"))), AttemptStarted(key("a"), 1)], 0)
    assert core.handle([LeaderDrain(3)], 1) == [Stop(key("b"), StopReason.DRAIN)]
    assert not core.draining


def test_a_waiting_parent_gives_its_slot_back_and_gets_one_before_it_goes_on() -> None:
    core = connected(slots=1)
    core.handle([Assigned(3, (spec("parent"),)), AttemptStarted(key("parent"), 1)], 0)
    assert core.handle([WaitBegan(key("parent"))], 1) == [
        SendWaiting(key("parent"), DEFAULT_TENANT, True)
    ]
    assert core.slots_used == 0
    assert core.handle([Assigned(3, (spec("child"),))], 2) == [Start(spec("child"))]
    assert core.handle([WaitEnded(key("parent"))], 3) == []
    commands = core.handle([AttemptEnded(key("child"), OK)], 4)
    assert commands[-2:] == [
        SendWaiting(key("parent"), DEFAULT_TENANT, False),
        Resume(key("parent")),
    ]
    assert core.slots_used == 1


def test_a_leader_that_never_acknowledges_is_left() -> None:
    core = connected(slots=1)
    closed = False
    for n in range(4_200):
        commands = core.handle([Assigned(3, (spec(f"t{n}"),)), AttemptEnded(key(f"t{n}"), OK)], n)
        closed = closed or any(isinstance(c, CloseSession) for c in commands)
    assert closed
    assert core.outbox_size == 4_096
