"""The leader's shell around scripted storage: batches, refusals, lost answers, bounded messages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from tests.polling import HANG_S, eventually
from tests.unit.scheduler.core_bench import ident, record

from muster.api.v1 import scheduler_pb2, storage_pb2, task_pb2
from muster.domain.errors import (
    DeadlineExceeded,
    InvalidInput,
    MusterError,
    NotFound,
    NotLeader,
    Overloaded,
    StaleTerm,
    Unavailable,
)
from muster.domain.ids import AgentId, TaskId
from muster.domain.task import Outcome, OutcomeKind, TaskSpec, TaskStatus
from muster.domain.task_lifecycle import TaskState
from muster.rpc.clock import boot_ms
from muster.rpc.conversion import VERSION, spec_to_proto
from muster_scheduler import leader as leader_module
from muster_scheduler.core import agents, tasks
from muster_scheduler.core.commands import Push
from muster_scheduler.core.records import AttemptRef, OpenTask, Write
from muster_scheduler.core.tasks import Verdict
from muster_scheduler.errors import passes
from muster_scheduler.intake import open_session
from muster_scheduler.leader import Leader
from muster_scheduler.placement.plan import Policy
from muster_scheduler.publisher import MAX_WAITING_BYTES, Publisher
from muster_scheduler.sessions import MAX_MESSAGE_BYTES, MAX_UNSENT, Session
from muster_scheduler.stored_policy import StoredPolicy
from muster_scheduler.writer import CALLS_AT_ONCE, MAX_BATCH, MAX_BATCH_BYTES, Answer, Writer

A = AgentId("a")


class Storage:
    """Stands where a ServiceChannel to storage does. `reply` answers or raises."""

    def __init__(self, reply: Callable[[str, Any], Any]) -> None:
        self.reply = reply
        self.calls: list[tuple[str, Any]] = []
        self.rotations = 0
        self.address = "storage:1"

    async def call(self, stub: Any, method: str, request: Any, **_: Any) -> Any:
        self.calls.append((method, request))
        await asyncio.sleep(0)
        answer = self.reply(method, request)
        if isinstance(answer, MusterError):
            raise answer
        return answer

    def stream(self, stub: Any, method: str, request: Any, **_: Any) -> Any:
        return _Stream(self.reply(method, request), endless=method == "Tail")

    def turn_from(self, address: str, why: MusterError) -> None:
        assert (address, passes(why)) == (self.address, True)
        self.rotations += 1


class _Stream:
    def __init__(self, messages: list[Any], *, endless: bool) -> None:
        self._messages = messages
        self._endless = endless

    async def __aiter__(self) -> AsyncIterator[Any]:
        for message in self._messages:
            yield message
        if self._endless:
            await asyncio.Event().wait()

    def cancel(self) -> None:
        self._messages = []


def fine(method: str, request: Any) -> Any:
    """A storage to which all is well."""
    if method == "Create":
        created = storage_pb2.CreateResult(code=storage_pb2.CREATE_CODE_CREATED)
        return storage_pb2.CreateResponse(results=[created for _ in request.tasks])
    if method == "Apply":
        done = storage_pb2.ApplyResult(code=storage_pb2.APPLY_CODE_OK)
        return storage_pb2.ApplyResponse(results=[done for _ in request.transitions])
    if method == "ConfirmTerm":
        return storage_pb2.ConfirmTermResponse(current=True, clock_ms=5)
    if method == "GetPolicy":
        return storage_pb2.GetPolicyResponse(etag="0")
    if method == "GetValue":
        return NotFound("value", request.key)
    if method == "ListValues":
        return storage_pb2.ListValuesResponse()
    if method == "PutValue":
        return storage_pb2.PutValueResponse(etag="1")
    if method == "LoadOpen":
        return [storage_pb2.LoadOpenResponse(tail_from="1")]
    if method == "Tail":
        return [storage_pb2.TailResponse(last_id="1")]
    if method == "GetValue":
        return storage_pb2.GetValueResponse()
    if method == "ListValues":
        return storage_pb2.ListValuesResponse()
    if method == "PutValue":
        return storage_pb2.PutValueResponse(written=True)
    return storage_pb2.PublishResponse()


def write(number: int, *, size: int = 10, new: bool = True, output: int = 0) -> Write:
    spec = TaskSpec(ident(number), "echo", input_json=b"x" * size)
    status = TaskStatus()
    if output:
        outcome = Outcome(OutcomeKind.SUCCEEDED, output_json=b"x" * output)
        status = TaskStatus(TaskState.SUCCEEDED, attempt=1, outcome=outcome)
    task = OpenTask(spec, status, spec_to_proto(spec), stored=not new)
    task.write = Write(task, None if new else (TaskState.RUNNING, 1), status, ())
    return task.write


async def written(
    reply: Callable[[str, Any], Any], writes: list[Write]
) -> tuple[Storage, list[Answer]]:
    """What the writer made of the writes."""
    storage = Storage(reply)
    answers: list[Answer] = []
    all_answered = asyncio.Event()

    def on_written(some: Any) -> None:
        answers.extend(some)
        if len(answers) == len(writes):
            all_answered.set()

    writer = Writer(storage, 7, on_written)  # type: ignore[arg-type]
    writer.add(writes)
    work = asyncio.create_task(writer.run())
    ended = asyncio.create_task(all_answered.wait())
    async with asyncio.timeout(HANG_S):
        await asyncio.wait((work, ended), return_when=asyncio.FIRST_COMPLETED)
    ended.cancel()
    work.cancel()
    results = await asyncio.gather(work, return_exceptions=True)
    if isinstance(results[0], BaseExceptionGroup):
        raise results[0].exceptions[0]
    return storage, answers


# ------------------------------------------------------------------------------ writer


@pytest.mark.parametrize("new", [True, False])
async def test_batches_are_bounded_in_number(new: bool) -> None:
    storage, answers = await written(fine, [write(n, new=new) for n in range(2 * MAX_BATCH + 1)])
    sizes = [len(r.tasks if new else r.transitions) for _, r in storage.calls]
    assert sizes == [MAX_BATCH, MAX_BATCH, 1]
    assert {verdict for _, verdict, _ in answers} == {Verdict.OK}
    assert all(r.term == 7 for _, r in storage.calls)


@pytest.mark.parametrize("new", [True, False])
async def test_batches_are_bounded_in_bytes(new: bool) -> None:
    size = 60_000
    writes = [
        write(n, size=size if new else 1, new=new, output=0 if new else size) for n in range(300)
    ]
    storage, _ = await written(fine, writes)
    sizes = [request.ByteSize() for _, request in storage.calls]
    assert sum(sizes) > 17_000_000
    assert max(sizes) < MAX_BATCH_BYTES + 100_000
    assert len(sizes) == 3


async def test_one_task_that_is_too_large_for_a_batch_goes_alone() -> None:
    storage, answers = await written(fine, [write(1, size=MAX_BATCH_BYTES + 1), write(2)])
    assert [len(r.tasks) for _, r in storage.calls] == [1, 1]
    assert len(answers) == 2


async def test_a_task_that_storage_refuses_stops_nobody_elses() -> None:
    def refuse_some(method: str, request: Any) -> Any:
        if any(task.spec.id in (ident(3), ident(40)) for task in request.tasks):
            return InvalidInput("spec", "x", "no")
        return fine(method, request)

    _, answers = await written(refuse_some, [write(n) for n in range(64)])
    gone = {w.task.id for w, verdict, _ in answers if verdict is Verdict.GONE}
    assert gone == {ident(3), ident(40)}
    assert len(answers) == 64


@pytest.mark.parametrize(
    "error",
    [
        Unavailable("storage"),
        DeadlineExceeded("storage", 5.0),
        Overloaded("storage is full"),
        MusterError("storage: UNKNOWN: Stream removed"),
    ],
)
async def test_a_write_is_repeated_until_it_is_answered(error: MusterError) -> None:
    assert passes(error)
    errors = [error, error]

    def after_a_while(method: str, request: Any) -> Any:
        return errors.pop() if errors else fine(method, request)

    storage, answers = await written(after_a_while, [write(1, new=False, output=5)])
    assert [verdict for _, verdict, _ in answers] == [Verdict.OK]
    assert (len(storage.calls), storage.rotations) == (3, 2)


async def test_two_calls_are_under_way_and_the_rest_gathers() -> None:
    gate = asyncio.Event()
    storage = Storage(fine)
    asked: list[int] = []

    async def slow(stub: Any, method: str, request: Any, **_: Any) -> Any:
        asked.append(len(request.transitions))
        await gate.wait()
        return fine(method, request)

    storage.call = slow  # type: ignore[method-assign]
    answered: list[Answer] = []
    writer = Writer(storage, 7, answered.extend)  # type: ignore[arg-type]
    work = asyncio.create_task(writer.run())
    for number in range(6):
        assert writer.idle == (number < CALLS_AT_ONCE)
        writer.add([write(number, new=False)])
        for _ in range(10):
            await asyncio.sleep(0)
    assert asked == [1] * CALLS_AT_ONCE
    gate.set()
    await eventually(lambda: len(answered) == 6)
    assert asked == [1, 1, 4]
    assert writer.idle
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)


async def test_a_lost_term_ends_the_writer() -> None:
    with pytest.raises(StaleTerm):
        await written(lambda *_: StaleTerm(7, 8), [write(1)])


async def test_a_standing_status_of_a_newer_version_is_no_reason_to_end() -> None:
    def newer(method: str, request: Any) -> Any:
        status = task_pb2.TaskStatus(state=task_pb2.TaskState.ValueType(77))
        result = storage_pb2.ApplyResult(code=storage_pb2.APPLY_CODE_STALE, status=status)
        return storage_pb2.ApplyResponse(results=[result])

    _, answers = await written(newer, [write(1, new=False, output=5)])
    assert [(verdict, standing) for _, verdict, standing in answers] == [(Verdict.STALE, None)]


# ---------------------------------------------------------------------------- sessions


def assignment(number: int, size: int = 10) -> OpenTask:
    spec = TaskSpec(ident(number), "echo", input_json=b"x" * size)
    return OpenTask(spec, TaskStatus(attempt=1, incarnation=1), spec_to_proto(spec), stored=True)


def ref(number: int) -> AttemptRef:
    return AttemptRef(ident(number), 1, TaskSpec(ident(1), "echo").tenant)


async def messages(session: Session) -> list[scheduler_pb2.SessionResponse]:
    out = []
    while session._messages:
        message = await session.next(3)
        assert message is not None
        out.append(message)
    return out


async def test_what_gathers_goes_in_one_message() -> None:
    session = Session(A, 1, supervisor=False)
    session.welcome(5)
    session.push(Push(assign=[assignment(1)]), 0)
    session.push(Push(acks=[(ref(2), True), (ref(3), False)], drop=[ref(4)]), 0)
    session.answer_beat(9)
    (message,) = await messages(session)
    assert (message.term, message.welcome.clock_ms, message.beat_ack.seq) == (3, 5, 9)
    assert [a.spec.id for a in message.assign] == [ident(1)]
    assert [a.code for a in message.outcome_acks] == [
        scheduler_pb2.ACK_CODE_RECORDED,
        scheduler_pb2.ACK_CODE_STALE,
    ]
    assert [r.task_id for r in message.drop] == [ident(4)]


async def test_messages_are_bounded_in_bytes_and_nothing_overtakes_an_assignment() -> None:
    session = Session(A, 1, supervisor=False)
    session.push(Push(assign=[assignment(n, 1_000_000) for n in range(10)]), 0)
    session.push(Push(drop=[ref(9)]), 0)
    sent = await messages(session)
    assert max(m.ByteSize() for m in sent) < MAX_MESSAGE_BYTES + 1_000_000
    assert [a.spec.id for m in sent for a in m.assign] == [ident(n) for n in range(10)]
    where = {a.spec.id: n for n, m in enumerate(sent) for a in m.assign}
    dropped = next(n for n, m in enumerate(sent) if m.drop)
    assert dropped >= where[ident(9)]


async def test_an_agent_that_does_not_read_is_cut_off_but_not_for_one_large_push() -> None:
    session = Session(A, 1, supervisor=False)
    session.push(Push(drop=[ref(n) for n in range(MAX_UNSENT + 5)]), 0)
    assert not session.closed
    session.push(Push(drop=[ref(1)]), 0)
    assert session.closed
    session.push(Push(drop=[ref(1)]), 0)
    assert await session.next(3) is None
    assert not session._messages


async def test_an_empty_push_says_nothing() -> None:
    session = Session(A, 1, supervisor=False)
    session.push(Push(), 0)
    assert not session._messages


# --------------------------------------------------------------------------- publisher


def test_progress_that_nobody_takes_is_bounded_in_bytes() -> None:
    publisher = Publisher(Storage(fine), 7)  # type: ignore[arg-type]
    for number in range(2_000):
        publisher.add(storage_pb2.Event(task_id=str(number), partial_json=b"x" * 60_000))
    assert publisher._waiting_bytes <= MAX_WAITING_BYTES
    assert publisher._waiting[-1][0].task_id == "1999"
    assert publisher._waiting_bytes == sum(size for _, size in publisher._waiting)


# ------------------------------------------------------------------------------ leader


def leader_with(reply: Callable[[str, Any], Any]) -> Leader:
    storage: Any = Storage(reply)
    return Leader(storage, 7, 0, StoredPolicy(storage, Policy()), "here:1")


async def test_a_flush_that_fails_ends_the_lead(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(leader_module, "place", broken)
    leader = leader_with(fine)
    leader.state.place_again = True
    with pytest.raises(ExceptionGroup) as failed:
        async with asyncio.timeout(HANG_S):
            await leader.run()
    assert failed.group_contains(ZeroDivisionError)
    assert leader.over
    with pytest.raises(NotLeader):
        await leader.submit([])
    with pytest.raises(NotLeader):
        await leader.settled([])


async def test_whoever_waits_for_a_lead_that_ends_is_told() -> None:
    def stale_later(method: str, request: Any) -> Any:
        return StaleTerm(7, 8) if method in ("Create", "Apply") else fine(method, request)

    leader = leader_with(stale_later)
    work = asyncio.create_task(leader.run())
    spec = spec_to_proto(TaskSpec(TaskId("0" * 26), "echo", input_json=b"1"))
    with pytest.raises(Unavailable, match="stepped down"):
        await leader.submit([spec])
    assert (await asyncio.gather(work, return_exceptions=True))[0] is not None
    assert leader.over


async def test_a_cancellation_is_answered_once_it_is_durable_even_of_a_task_stored_otherwise() -> (
    None
):
    """A gateway had created the task as PENDING, while the leader creates it ASSIGNED."""
    spec = spec_to_proto(TaskSpec(ident(1), "echo", input_json=b"1"))
    stored = task_pb2.TaskStatus(version=VERSION, state=task_pb2.TASK_STATE_PENDING)
    look = asyncio.Event()
    looked_up = asyncio.Event()
    cancelled = False
    settled: list[asyncio.Task[None]] = []

    def reply(method: str, request: Any) -> Any:
        nonlocal cancelled
        if method == "Create":
            tasks.cancel(leader.state, leader.state.tasks[ident(1)], leader.now())
            settled.append(asyncio.create_task(leader.settled([ident(1)])))
            exists = storage_pb2.CreateResult(code=storage_pb2.CREATE_CODE_EXISTS, status=stored)
            return storage_pb2.CreateResponse(results=[exists])
        if method == "GetTasks":
            looked_up.set()
            if not look.is_set():
                return Unavailable("storage")
            return storage_pb2.GetTasksResponse(tasks=[task_pb2.Task(spec=spec, status=stored)])
        if method == "Apply":
            cancelled = cancelled or any(
                t.status.state == task_pb2.TASK_STATE_CANCELLED for t in request.transitions
            )
        return fine(method, request)

    leader = leader_with(reply)
    work = asyncio.create_task(leader.run())
    await leader.ready.wait()
    agents.registered(leader.state, record(A), leader.now())
    hello = scheduler_pb2.SessionHello(agent=A, role=scheduler_pb2.SESSION_ROLE_RUNTIME)
    open_session(leader, scheduler_pb2.SessionRequest(incarnation=1, hello=hello))
    async with asyncio.timeout(HANG_S):
        await leader.submit([spec])
        await looked_up.wait()
        await asyncio.sleep(0.05)
        assert not settled[0].done()
        look.set()
        await settled[0]
    assert cancelled
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)


async def test_the_clusters_clock_never_runs_ahead_when_answers_are_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ten confirmations got through without an answer: together they advance by what passed."""
    clock = [1_000]
    advanced: list[int] = []

    def confirm(method: str, request: Any) -> Any:
        if method != "ConfirmTerm":
            return fine(method, request)
        advanced.append(request.advance_ms)
        clock[0] += 300
        return Unavailable("storage", "the answer is lost")

    async def no_pause(_: float) -> None:
        if len(advanced) == 10:
            raise asyncio.CancelledError

    monkeypatch.setattr(leader_module, "boot_ms", lambda: clock[0])
    leader = leader_with(confirm)
    monkeypatch.setattr(asyncio, "sleep", no_pause)
    with pytest.raises(asyncio.CancelledError):
        await leader._confirm()
    assert sum(advanced) == 9 * 300
    assert clock[0] == 4_000
    assert not leader.confirmed
    assert not leader.may_answer


async def test_submissions_are_refused_while_storage_does_not_confirm(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    leader = leader_with(fine)
    now_ms = boot_ms()
    monkeypatch.setattr(leader_module, "boot_ms", lambda: now_ms + 3_001)
    with pytest.raises(Unavailable, match="storage"):
        await leader.submit([])


async def test_submissions_that_wait_for_storage_are_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(leader_module, "MAX_UNWRITTEN_BYTES", 1_000)
    leader = leader_with(fine)
    big = spec_to_proto(TaskSpec(ident(1), "echo", input_json=b"x" * 2_000))
    waiting = asyncio.create_task(leader.submit([big]))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await leader.submit([spec_to_proto(TaskSpec(ident(2), "echo"))])
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
