"""What runtime and supervisor say to the leader, and what they make of its words."""

from __future__ import annotations

from muster.agent.conversion import events_from_proto
from muster.agent.events import (
    Assigned,
    AttemptKey,
    BeatAnswered,
    CancelAsked,
    Dropped,
    Event,
    HeldRef,
    HeldState,
    LeaderDrain,
    OutcomesAcked,
    SendBeat,
    SendHello,
    SendOutcome,
    SendStarted,
    SendWaiting,
    SessionLost,
    SessionOpened,
    Welcomed,
)
from muster.agent.runtime_speech import STARTED_AFTER_MS, RuntimeSpeech
from muster.agent.slot_table import StartedAttempt
from muster.agent.supervisor_speech import SupervisorSpeech
from muster.api.v1 import scheduler_pb2 as pb
from muster.api.v1 import task_pb2
from muster.domain.ids import DEFAULT_TENANT, AgentId, TaskId
from muster.domain.task import Outcome, OutcomeKind, Wish

A, B = AttemptKey(TaskId("a"), 1), AttemptKey(TaskId("b"), 2)
C = AttemptKey(TaskId("c"), 1)


class Clock:
    now_ms = 0


def speech() -> tuple[RuntimeSpeech, list[Event]]:
    events: list[Event] = []
    Clock.now_ms = 0
    made = RuntimeSpeech(AgentId("x"), events.append, lambda: (7, 3), lambda: Clock.now_ms)
    return made, events


def greeted() -> RuntimeSpeech:
    made, _ = speech()
    made.opened()
    made.hello(SendHello(()))
    assert made.next_message() is not None
    return made


def outcome(key: AttemptKey, output: bytes = b"1") -> SendOutcome:
    return SendOutcome(key, DEFAULT_TENANT, Outcome(OutcomeKind.SUCCEEDED, output_json=output))


def test_nothing_is_said_before_the_hello() -> None:
    made, events = speech()
    made.opened()
    assert events == [SessionOpened()]
    made.beat(SendBeat(1, 5))
    assert made.next_message() is None
    made.hello(SendHello((HeldRef(A, DEFAULT_TENANT, HeldState.RUNNING),)))
    first = made.next_message()
    assert first is not None
    assert (first.incarnation, first.term, first.hello.agent) == (7, 3, "x")
    assert [(h.ref.task_id, h.state) for h in first.hello.held] == [("a", pb.HELD_STATE_RUNNING)]
    assert not first.HasField("beat")
    second = made.next_message()
    assert second is not None
    assert second.beat.seq == 1
    assert made.next_message() is None


def test_a_start_is_not_told_once_the_end_is() -> None:
    made = greeted()
    made.started(SendStarted(A, DEFAULT_TENANT, 1))
    made.started(SendStarted(B, DEFAULT_TENANT, 2))
    made.progress(A, DEFAULT_TENANT, 0.5, "")
    made.progress(B, DEFAULT_TENANT, 0.1, "")
    made.progress(B, DEFAULT_TENANT, 0.2, "later")
    made.outcome(outcome(A))
    assert made.next_started_ms() == STARTED_AFTER_MS
    Clock.now_ms = STARTED_AFTER_MS
    made.started(SendStarted(C, DEFAULT_TENANT, 2))
    message = made.next_message()
    assert message is not None
    assert [s.ref.task_id for s in message.started] == ["b"]
    assert [(p.ref.task_id, p.note) for p in message.progress] == [("b", "later")]
    assert [o.ref.task_id for o in message.outcomes] == ["a"]
    assert made.next_message() is None
    assert made.next_started_ms() == 2 * STARTED_AFTER_MS


def test_large_outcomes_are_spread_over_messages() -> None:
    made = greeted()
    for n in range(200):
        made.outcome(outcome(AttemptKey(TaskId(f"t{n}"), 1), b"x" * 65_536))
    said = []
    while (message := made.next_message()) is not None:
        assert message.ByteSize() < 16 * 1024 * 1024
        said += [o.ref.task_id for o in message.outcomes]
    assert said == [f"t{n}" for n in range(200)]


def test_what_was_not_said_is_void_when_the_stream_is_lost() -> None:
    made = greeted()
    made.outcome(outcome(A))
    made.waiting(SendWaiting(B, DEFAULT_TENANT, True))
    made.lost()
    made.opened()
    made.hello(SendHello(()))
    assert made.next_message() is not None
    assert made.next_message() is None


def test_a_lost_stream_is_an_event() -> None:
    made, events = speech()
    made.lost()
    assert events == [SessionLost()]


def test_the_leaders_words_become_events_in_a_safe_order() -> None:
    ref = pb.AttemptRef(task_id="a", attempt=1, tenant="default")
    spec = task_pb2.TaskSpec(
        id="b",
        tenant="default",
        skill="echo",
        input_json=b"1",
        timeout_ms=50,
        on_disconnect=task_pb2.ON_DISCONNECT_STOP,
    )
    message = pb.SessionResponse(
        term=4,
        welcome=pb.SessionWelcome(),
        beat_ack=pb.SessionBeatAck(seq=9),
        assign=[pb.Assignment(spec=spec, attempt=2, incarnation=7, timeout_ms=40)],
        cancel=[pb.CancelAttempt(ref=ref, wish=task_pb2.TASK_WISH_TIME_OUT)],
        outcome_acks=[pb.OutcomeAck(ref=ref)],
        drop=[ref],
        drain=True,
    )
    events = events_from_proto(message)
    assert [type(e) for e in events] == [
        Welcomed,
        BeatAnswered,
        OutcomesAcked,
        Dropped,
        Assigned,
        CancelAsked,
        LeaderDrain,
    ]
    assigned = events[4]
    assert isinstance(assigned, Assigned)
    (taken,) = assigned.attempts
    assert (taken.key, taken.incarnation, taken.timeout_ms) == (B, 7, 40)
    assert taken.stop_when_cut_off
    cancelled = events[5]
    assert isinstance(cancelled, CancelAsked)
    assert cancelled.wish is Wish.TIME_OUT


# --- the supervisor -----------------------------------------------------------------------------


def beat_ack(seq: int, term: int = 1) -> pb.SessionResponse:
    return pb.SessionResponse(term=term, beat_ack=pb.SessionBeatAck(seq=seq))


def test_a_death_is_told_until_an_answered_beat_confirms_it() -> None:
    made = SupervisorSpeech(AgentId("x"), lambda: 7, lambda *_: None)
    made.opened()
    made.died(7, (StartedAttempt(A, DEFAULT_TENANT),), True, "signal 9")
    hello, death = made.next_message(), made.next_message()
    assert hello is not None
    assert hello.hello.role == pb.SESSION_ROLE_SUPERVISOR
    assert death is not None
    assert death.runtime_died.started[0].task_id == "a"
    assert made.next_message() is None
    # The stream breaks before the beat is answered.
    made.opened()
    made.next_message()
    again = made.next_message()
    assert again is not None
    assert again.runtime_died == death.runtime_died
    made.heard(beat_ack(again.beat.seq - 1))
    assert made.undelivered == 1
    made.heard(beat_ack(again.beat.seq))
    assert made.undelivered == 0


def test_a_restart_is_obeyed_unless_its_term_is_over() -> None:
    asked: list[tuple[int, str]] = []
    made = SupervisorSpeech(AgentId("x"), lambda: 7, lambda n, why: asked.append((n, why)))
    restart = pb.RestartRuntime(incarnation=7, why="w")
    made.heard(pb.SessionResponse(term=3, restart=restart))
    made.heard(pb.SessionResponse(term=2, restart=restart))
    assert asked == [(7, "w")]
