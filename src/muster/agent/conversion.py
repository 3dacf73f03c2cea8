"""Protobuf ↔ the core's events and commands."""

from __future__ import annotations

from collections.abc import Iterable

from muster.agent.events import (
    Assigned,
    AttemptKey,
    AttemptSpec,
    BeatAnswered,
    CancelAsked,
    DeviceShare,
    Dropped,
    Event,
    HeldRef,
    HeldState,
    LeaderDrain,
    OutcomesAcked,
    Welcomed,
)
from muster.agent.logbook import LogBatch, LogLine
from muster.agent.peers import Endpoints
from muster.api.v1 import monitor_pb2, registry_pb2, scheduler_pb2, task_pb2
from muster.domain.ids import TaskId, TenantId
from muster.domain.task import Wish

_HELD = {
    HeldState.QUEUED: scheduler_pb2.HELD_STATE_QUEUED,
    HeldState.RUNNING: scheduler_pb2.HELD_STATE_RUNNING,
    HeldState.ENDED: scheduler_pb2.HELD_STATE_ENDED,
}
_STREAMS = {
    "stdout": monitor_pb2.LOG_STREAM_STDOUT,
    "stderr": monitor_pb2.LOG_STREAM_STDERR,
    "log": monitor_pb2.LOG_STREAM_LOG,
    "agent": monitor_pb2.LOG_STREAM_AGENT,
}


def ref_to_proto(key: AttemptKey, tenant: TenantId) -> scheduler_pb2.AttemptRef:
    """An attempt's name for the wire."""
    return scheduler_pb2.AttemptRef(task_id=key.task_id, attempt=key.attempt, tenant=tenant)


def held_to_proto(held: Iterable[HeldRef]) -> list[scheduler_pb2.HeldAttempt]:
    """The lines of a hello."""
    return [
        scheduler_pb2.HeldAttempt(ref=ref_to_proto(h.key, h.tenant), state=_HELD[h.state])
        for h in held
    ]


def endpoints_from_proto(message: registry_pb2.Endpoints) -> Endpoints:
    """Where the other services are."""
    return Endpoints(message.leader, tuple(message.storage), tuple(message.monitors))


def _key(ref: scheduler_pb2.AttemptRef) -> AttemptKey:
    return AttemptKey(TaskId(ref.task_id), ref.attempt)


def _assigned(message: scheduler_pb2.Assignment) -> AttemptSpec:
    spec = message.spec
    return AttemptSpec(
        key=AttemptKey(TaskId(spec.id), message.attempt),
        tenant=TenantId(spec.tenant),
        skill=spec.skill,
        input_json=spec.input_json,
        incarnation=message.incarnation,
        timeout_ms=message.timeout_ms or spec.timeout_ms,
        stop_when_cut_off=spec.on_disconnect == task_pb2.ON_DISCONNECT_STOP,
        priority=spec.priority,
        depth=spec.depth,
        devices=_devices(message) if message.devices else (),
    )


def _devices(message: scheduler_pb2.Assignment) -> tuple[DeviceShare, ...]:
    amounts = message.spec.resources
    return tuple(
        DeviceShare(d.resource, min(amounts[d.resource], 1000), tuple(d.indices))
        for d in message.devices
        if d.resource in amounts
    )


def events_from_proto(message: scheduler_pb2.SessionResponse) -> list[Event]:
    """What one message of the leader says, in the order in which it is to be taken.

    Drops come before assignments: a task may come back to the agent that had lost it.
    """
    term = message.term
    events: list[Event] = []
    if message.HasField("welcome"):
        events.append(Welcomed(term))
    if message.HasField("beat_ack"):
        events.append(BeatAnswered(term, message.beat_ack.seq))
    if message.outcome_acks:
        events.append(OutcomesAcked(term, tuple(_key(a.ref) for a in message.outcome_acks)))
    if message.drop:
        events.append(Dropped(term, tuple(_key(ref) for ref in message.drop)))
    if message.assign:
        events.append(Assigned(term, tuple(_assigned(a) for a in message.assign)))
    for cancel in message.cancel:
        timed_out = cancel.wish == task_pb2.TASK_WISH_TIME_OUT
        wish = Wish.TIME_OUT if timed_out else Wish.CANCEL
        events.append(CancelAsked(term, _key(cancel.ref), wish))
    if message.drain:
        events.append(LeaderDrain(term))
    return events


def line_to_proto(line: LogLine) -> monitor_pb2.LogLine:
    """A log line for the wire."""
    message = monitor_pb2.LogLine(
        at_ms=line.at_ms,
        stream=_STREAMS[line.stream],
        level=line.level,
        # Lone surrogates, which UTF-8 cannot hold, are shown as what they are.
        text=line.text.encode("utf-8", "backslashreplace").decode(),
        index=line.number,
    )
    if line.key is not None:
        message.tenant = line.tenant
        message.task_id = line.key.task_id
        message.attempt = line.key.attempt
    return message


def add_logs(message: monitor_pb2.ReportRequest, batch: LogBatch) -> None:
    """Puts a batch into a report."""
    message.lines.extend(line_to_proto(line) for line in batch.lines)
    message.ends.extend(
        monitor_pb2.LogEnd(tenant=e.tenant, task_id=e.key.task_id, attempt=e.key.attempt)
        for e in batch.ends
    )
