"""Protobuf records as the JSON that clients see."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final

import msgspec

from muster.api.v1 import agent_pb2, monitor_pb2, scheduler_pb2, storage_pb2, task_pb2
from muster.domain.agent_lifecycle import shown_state
from muster.domain.durations import format_duration
from muster.domain.errors import InvalidInput
from muster.domain.ids import TaskId, task_time_ms
from muster.domain.quantity import format_quantity
from muster.domain.resources import unit_of
from muster.rpc.conversion import agent_state_from_proto, agent_wish_from_proto
from muster_gateway.tail import ENDED

UNSET: Final = msgspec.UNSET
encode: Final = msgspec.json.Encoder().encode


@lru_cache(maxsize=64)
def state_name(value: int) -> str:
    """E.g. PENDING; a value of a newer version is shown as it is."""
    try:
        return task_pb2.TaskState.Name(value).removeprefix("TASK_STATE_")  # type: ignore[arg-type]
    except ValueError:
        return f"STATE_{value}"


def rfc3339(at_ms: int) -> str | None:
    """E.g. 2026-01-31T12:00:00.123Z; None for 0, which stands for never."""
    if at_ms <= 0:
        return None
    whole_s, ms = divmod(at_ms, 1000)
    return f"{_second(whole_s)}.{ms:03d}Z"


@lru_cache(maxsize=4_096)
def _second(at_s: int) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def resources_text(amounts: Mapping[str, int]) -> dict[str, str]:
    """Quantities as people write them, by name."""
    return dict(_resources_text(tuple(sorted(amounts.items()))))


@lru_cache(maxsize=1_024)
def _resources_text(pairs: tuple[tuple[str, int], ...]) -> tuple[tuple[str, str], ...]:
    return tuple((name, _quantity(name, amount)) for name, amount in pairs)


def _quantity(name: str, amount: int) -> str:
    try:
        return format_quantity(max(0, amount), unit_of(name))
    except InvalidInput:
        return str(amount)


class ErrorOut(msgspec.Struct, omit_defaults=True):
    """Why a task has no result."""

    kind: str
    message: str
    exit_code: int | msgspec.UnsetType = UNSET
    output: msgspec.Raw | msgspec.UnsetType = UNSET


class ProgressOut(msgspec.Struct):
    """How far a running attempt is; `fraction` is 0 to 1 or unknown."""

    fraction: float | None
    note: str
    at: str | None


class ConstraintOut(msgspec.Struct):
    """A demand on agents' labels."""

    key: str
    op: str
    values: list[str]


class TaskOut(msgspec.Struct):
    """A task as clients see it; `result` or `error` once it has ended."""

    id: str
    state: str
    attempt: int
    agent: str | None
    skill: str
    submitted_at: str | None
    assigned_at: str | None
    started_at: str | None
    ended_at: str | None
    why: str
    priority: int
    labels: dict[str, str]
    resources: dict[str, str]
    constraints: list[ConstraintOut]
    timeout: str | None
    start_deadline: str | None
    total_deadline: str | None
    progress_timeout: str | None
    estimate: str | None
    max_attempts: int
    on_disconnect: str
    lifetime: str
    failures: int
    agent_deaths: int
    parent: str | None
    progress: ProgressOut | None
    cancelling: bool
    input: msgspec.Raw | msgspec.UnsetType = UNSET
    result: msgspec.Raw | msgspec.UnsetType = UNSET
    result_blob: dict[str, Any] | msgspec.UnsetType = UNSET
    error: ErrorOut | msgspec.UnsetType = UNSET
    last_error: ErrorOut | msgspec.UnsetType = UNSET
    devices: dict[str, list[int]] | msgspec.UnsetType = UNSET


class ResultOut(msgspec.Struct):
    """What came of a task."""

    id: str
    state: str
    attempt: int
    agent: str | None
    result: msgspec.Raw | msgspec.UnsetType = UNSET
    error: ErrorOut | msgspec.UnsetType = UNSET


def result_out(task: task_pb2.Task) -> ResultOut:
    """The result's envelope; `result` is left out while it is open, or lies in a blob."""
    status = task.status
    out = ResultOut(task.spec.id, state_name(status.state), status.attempt, status.agent or None)
    if status.state in ENDED:
        _put_ending(out, task)
    return out


def blob_of(task: task_pb2.Task) -> str:
    """SHA-256 of the blob that holds the result; empty when it does not lie in one."""
    if task.status.state != task_pb2.TASK_STATE_SUCCEEDED:
        return ""
    return task.outcome.output_blob


def task_out(task: task_pb2.Task, *, with_input: bool = False) -> TaskOut:
    """The whole task; a result in a blob is left out, see `blob_of`."""
    spec, status = task.spec, task.status
    progress = None
    if task.HasField("progress"):
        fraction = task.progress.fraction
        progress = ProgressOut(
            fraction if fraction >= 0 else None, task.progress.note, rfc3339(task.progress.at_ms)
        )
    out = TaskOut(
        id=spec.id,
        state=state_name(status.state),
        attempt=status.attempt,
        agent=status.agent or None,
        skill=spec.skill,
        submitted_at=rfc3339(spec.submitted_at_ms or task_time_ms(TaskId(spec.id))),
        assigned_at=rfc3339(status.assigned_at_ms),
        started_at=rfc3339(status.started_at_ms),
        ended_at=rfc3339(status.ended_at_ms),
        why=status.why,
        priority=spec.priority,
        labels=dict(spec.labels),
        resources=resources_text(spec.resources),
        constraints=[ConstraintOut(c.key, c.op, list(c.values)) for c in spec.constraints],
        timeout=_duration(spec.timeout_ms),
        start_deadline=_duration(spec.start_deadline_ms),
        total_deadline=_duration(spec.total_deadline_ms),
        progress_timeout=_duration(spec.progress_timeout_ms),
        estimate=_duration(spec.estimate_ms),
        max_attempts=spec.max_attempts,
        on_disconnect="stop" if spec.on_disconnect == task_pb2.ON_DISCONNECT_STOP else "keep",
        lifetime="service" if spec.lifetime == task_pb2.LIFETIME_SERVICE else "finite",
        failures=status.failures,
        agent_deaths=status.agent_deaths,
        parent=spec.parent or None,
        progress=progress,
        cancelling=status.wish == task_pb2.TASK_WISH_CANCEL,
    )
    if with_input:
        out.input = msgspec.Raw(spec.input_json or b"null")
    if status.devices:
        out.devices = {given.resource: list(given.indices) for given in status.devices}
    if status.state in ENDED:
        _put_ending(out, task)
    elif task.outcome.kind == task_pb2.OUTCOME_KIND_FAILED:
        out.last_error = _error_out(task)
    return out


def _duration(duration_ms: int) -> str | None:
    return format_duration(duration_ms) if duration_ms else None


def _put_ending(out: TaskOut | ResultOut, task: task_pb2.Task) -> None:
    if task.status.state != task_pb2.TASK_STATE_SUCCEEDED:
        out.error = _error_out(task)
    elif not task.outcome.output_blob:
        out.result = msgspec.Raw(task.outcome.output_json or b"null")


def _error_out(task: task_pb2.Task) -> ErrorOut:
    outcome, state = task.outcome, task.status.state
    kind = outcome.error_kind
    if not kind or state not in (task_pb2.TASK_STATE_FAILED, task_pb2.TASK_STATE_PENDING):
        kind = kind or state_name(state).lower()
    out = ErrorOut(kind, outcome.error or task.status.why or f"the task is {state_name(state)}")
    if outcome.HasField("exit_code"):
        out.exit_code = outcome.exit_code
    if outcome.output_json:
        out.output = msgspec.Raw(outcome.output_json)
    return out


_EVENT_NAMES: Mapping[int, str] = {
    storage_pb2.EVENT_KIND_TASK_CREATED: "task.created",
    storage_pb2.EVENT_KIND_TASK_CHANGED: "task.changed",
    storage_pb2.EVENT_KIND_TASK_PROGRESS: "task.progress",
    storage_pb2.EVENT_KIND_AGENT_CHANGED: "agent.changed",
    storage_pb2.EVENT_KIND_POLICY_CHANGED: "policy.changed",
    storage_pb2.EVENT_KIND_AGENT_WISH_CHANGED: "agent.wish_changed",
    storage_pb2.EVENT_KIND_LEADER_CHANGED: "leader.changed",
    storage_pb2.EVENT_KIND_TASK_STRAGGLER: "task.straggler",
    storage_pb2.EVENT_KIND_AGENT_RECOVERY: "agent.recovery",
    storage_pb2.EVENT_KIND_CLUSTER_ALARM: "cluster.alarm",
    storage_pb2.EVENT_KIND_TASK_STUCK: "task.stuck",
}


def event_name(event: storage_pb2.Event) -> str:
    return _EVENT_NAMES.get(event.kind, "other")


def event_json(event: storage_pb2.Event) -> bytes:
    """An event without the fields that say nothing."""
    out: dict[str, Any] = {
        "id": event.id,
        "kind": event_name(event),
        "at": rfc3339(event.at_ms),
    }
    if event.task_id:
        out |= {"task": event.task_id, "attempt": event.attempt}
    if event.state:
        out["state"] = state_name(event.state)
    if event.skill:
        out["skill"] = event.skill
    if event.agent:
        out["agent"] = event.agent
    if event.agent_state:
        out["agent_state"] = agent_pb2.AgentState.Name(event.agent_state).removeprefix(
            "AGENT_STATE_"
        )
        out["incarnation"] = event.incarnation
    if event.kind == storage_pb2.EVENT_KIND_CLUSTER_ALARM:
        out |= {"alarm": event.note, "over": not event.why}
    if event.why:
        out["why"] = event.why
    if event.kind == storage_pb2.EVENT_KIND_TASK_PROGRESS:
        out["progress"] = {
            "fraction": event.fraction if event.fraction >= 0 else None,
            "note": event.note,
        }
        if event.partial_json:
            out["partial"] = msgspec.Raw(event.partial_json)
            out["partial_index"] = event.partial_index
    return encode(out)


def agent_out(view: agent_pb2.AgentView, *, detailed: bool) -> dict[str, Any]:
    """An agent; in detail with its skills' schemas and what it was judged by."""
    spec = view.record.spec
    state, wish = agent_state_from_proto(view.state), agent_wish_from_proto(view.wish)
    out: dict[str, Any] = {
        "id": spec.id,
        "state": shown_state(state, wish),
        "health_state": state.value,
        "wish": wish.value,
        "incarnation": view.record.incarnation,
        "health": view.health,
        "health_reasons": list(view.health_reasons),
        "phi": view.phi,
        "capacity": resources_text(spec.capacity),
        "used": resources_text(view.used),
        "assigned_tasks": view.assigned_tasks,
        "running_tasks": view.running_tasks,
        "skills": sorted(s.name for s in spec.skills),
        "labels": dict(sorted(spec.labels.items())),
        "host": spec.host,
        "pid": spec.pid,
        "version": spec.version,
        "registered_at": rfc3339(view.record.registered_at_ms),
    }
    if detailed:
        out["offers"] = [
            {
                "name": s.name,
                "description": s.description,
                "schema_hash": s.schema_hash,
                "input_schema": msgspec.Raw(s.input_schema_json or b"null"),
                "output_schema": msgspec.Raw(s.output_schema_json or b"null"),
            }
            for s in spec.skills
        ]
        # `timeline` is the same under the name that people look for.
        out["evidence"] = out["timeline"] = [_evidence_out(e) for e in view.evidence]
    return out


def _evidence_out(entry: agent_pb2.AgentEvidence) -> dict[str, Any]:
    return {
        "at": rfc3339(entry.at_ms),
        "state": agent_state_from_proto(entry.state).value,
        "what": entry.what or None,
        "why": entry.why,
        "who": entry.who or None,
        "phi": entry.phi,
        "silent_ms": entry.silent_ms,
        "incarnation": entry.incarnation,
    }


def metrics_out(samples: monitor_pb2.AgentSamples) -> dict[str, Any]:
    """The newest figures of an agent."""
    newest = max(samples.samples, key=lambda s: s.at_ms, default=None)
    return {
        "last_seen_at": rfc3339(samples.last_seen_at_ms),
        "phi": samples.phi,
        "at": rfc3339(newest.at_ms) if newest is not None else None,
        "values": dict(sorted(newest.values.items())) if newest is not None else {},
    }


def cluster_out(
    status: scheduler_pb2.GetClusterStatusResponse | None, by_state: Mapping[str, int] | None
) -> dict[str, Any]:
    """The cluster's figures; None where a part did not answer."""
    out: dict[str, Any] = {
        "leader": None,
        "tasks": dict(sorted(by_state.items())) if by_state is not None else None,
    }
    if status is not None and status.alarms:
        out["alarms"] = dict(sorted(status.alarms.items()))
    if status is not None and status.halted:
        out |= {
            "leader": status.leader or None,
            "halted": status.halted,
            "term": status.term,
            "version": status.version,
        }
    elif status is not None:
        out |= {
            "leader": status.leader or None,
            "term": status.term,
            "clock_ms": status.clock_ms,
            "queued": status.queued,
            "assigned": status.assigned,
            "running": status.running,
            "agents": dict(sorted(status.agents_by_state.items())),
            "capacity": resources_text(status.capacity),
            "used": resources_text(status.used),
            "tasks_per_s": status.tasks_per_s,
            "version": status.version,
            "strategy": status.strategy,
            "policy_etag": status.policy_etag or None,
        }
        if status.HasField("objective"):
            now = status.objective
            out["objective"] = {"T": now.t_seconds, "U": now.u_ratio, "B": now.b_ratio}
    return out


_STREAMS: Mapping[int, str] = {
    monitor_pb2.LOG_STREAM_STDOUT: "stdout",
    monitor_pb2.LOG_STREAM_STDERR: "stderr",
    monitor_pb2.LOG_STREAM_LOG: "log",
    monitor_pb2.LOG_STREAM_AGENT: "agent",
}


def log_line_out(line: monitor_pb2.LogLine) -> dict[str, Any]:
    """A line of a task's log."""
    return {
        "attempt": line.attempt,
        "index": line.index,
        "at": rfc3339(line.at_ms),
        "stream": _STREAMS.get(line.stream, "log"),
        "level": line.level or None,
        "text": line.text,
    }


def key_out(key: storage_pb2.ApiKey) -> dict[str, Any]:
    """An API key without anything secret."""
    return {
        "id": key.id,
        "name": key.name,
        "role": key.role,
        "tenant": key.tenant,
        "created_at": rfc3339(key.created_at_ms),
        "expires_at": rfc3339(key.expires_at_ms),
        "revoked_at": rfc3339(key.revoked_at_ms),
        "last_used_at": rfc3339(key.last_used_at_ms),
    }
