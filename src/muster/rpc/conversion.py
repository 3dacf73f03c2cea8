"""Protobuf ↔ domain, field for field. Enum values of a newer version are refused, not guessed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import TypeVar

from muster.api.v1 import agent_pb2, task_pb2
from muster.domain.agent import AgentRecord, AgentSpec, SkillOffer
from muster.domain.agent_lifecycle import AgentState, AgentWish
from muster.domain.errors import InvalidInput
from muster.domain.ids import AgentId, TaskId, TenantId
from muster.domain.resources import GivenDevices, ResourceVector
from muster.domain.task import (
    Constraint,
    Lifetime,
    OnDisconnect,
    Outcome,
    OutcomeKind,
    Task,
    TaskSpec,
    TaskStatus,
    Wish,
)
from muster.domain.task_lifecycle import TaskState

VERSION = task_pb2.SCHEMA_VERSION_1

TASK_STATE_TO_PROTO: Mapping[TaskState, task_pb2.TaskState.ValueType] = {
    s: task_pb2.TaskState.Value(f"TASK_STATE_{s.value}") for s in TaskState
}
AGENT_STATE_TO_PROTO: Mapping[AgentState, agent_pb2.AgentState.ValueType] = {
    s: agent_pb2.AgentState.Value(f"AGENT_STATE_{s.value}") for s in AgentState
}
AGENT_WISH_TO_PROTO: Mapping[AgentWish, agent_pb2.AgentWish.ValueType] = {
    w: agent_pb2.AgentWish.Value(f"AGENT_WISH_{w.value}") for w in AgentWish
}
WISH_TO_PROTO: Mapping[Wish, task_pb2.TaskWish.ValueType] = {
    w: task_pb2.TaskWish.Value(f"TASK_WISH_{w.name}") for w in Wish
}
OUTCOME_KIND_TO_PROTO: Mapping[OutcomeKind, task_pb2.OutcomeKind.ValueType] = {
    k: task_pb2.OutcomeKind.Value(f"OUTCOME_KIND_{k.name}") for k in OutcomeKind
}
ON_DISCONNECT_TO_PROTO: Mapping[OnDisconnect, task_pb2.OnDisconnect.ValueType] = {
    o: task_pb2.OnDisconnect.Value(f"ON_DISCONNECT_{o.name}") for o in OnDisconnect
}
LIFETIME_TO_PROTO: Mapping[Lifetime, task_pb2.Lifetime.ValueType] = {
    t: task_pb2.Lifetime.Value(f"LIFETIME_{t.name}") for t in Lifetime
}

K = TypeVar("K")
_TASK_STATES: Mapping[int, TaskState] = {v: k for k, v in TASK_STATE_TO_PROTO.items()}
_AGENT_STATES: Mapping[int, AgentState] = {v: k for k, v in AGENT_STATE_TO_PROTO.items()}
_AGENT_WISHES: Mapping[int, AgentWish] = {v: k for k, v in AGENT_WISH_TO_PROTO.items()}
_WISHES: Mapping[int, Wish] = {v: k for k, v in WISH_TO_PROTO.items()}
_OUTCOMES: Mapping[int, OutcomeKind] = {v: k for k, v in OUTCOME_KIND_TO_PROTO.items()}
_ON_DISCONNECT: Mapping[int, OnDisconnect] = {v: k for k, v in ON_DISCONNECT_TO_PROTO.items()}
_LIFETIMES: Mapping[int, Lifetime] = {v: k for k, v in LIFETIME_TO_PROTO.items()}


def _known(table: Mapping[int, K], value: int, field: str) -> K:
    found = table.get(value)
    if found is None:
        raise InvalidInput(field, value, "not a value that this version knows")
    return found


def state_to_proto(state: TaskState) -> task_pb2.TaskState.ValueType:
    """The wire value of a task's state."""
    return TASK_STATE_TO_PROTO[state]


def state_from_proto(value: int) -> TaskState:
    """A task's state; raises InvalidInput on an unknown value."""
    return _known(_TASK_STATES, value, "state")


def agent_state_to_proto(state: AgentState) -> agent_pb2.AgentState.ValueType:
    """The wire value of an agent's state."""
    return AGENT_STATE_TO_PROTO[state]


def agent_state_from_proto(value: int) -> AgentState:
    """An agent's state; raises InvalidInput on an unknown value."""
    return _known(_AGENT_STATES, value, "agent_state")


def agent_wish_to_proto(wish: AgentWish) -> agent_pb2.AgentWish.ValueType:
    """The wire value of an operator's wish."""
    return AGENT_WISH_TO_PROTO[wish]


def agent_wish_from_proto(value: int) -> AgentWish:
    """An operator's wish; an unset one is NONE."""
    return AgentWish.NONE if value == 0 else _known(_AGENT_WISHES, value, "agent_wish")


# Tasks ask for few distinct vectors; errors are not remembered.
@lru_cache(maxsize=4096)
def _vector(amounts: tuple[tuple[str, int], ...]) -> ResourceVector:
    return ResourceVector.of(dict(amounts))


def vector_from_proto(amounts: Mapping[str, int]) -> ResourceVector:
    """A resource vector; raises InvalidInput on bad names and amounts."""
    # A protobuf map's own `items` costs three times as much.
    return _vector(tuple([(name, amounts[name]) for name in amounts]))


def spec_to_proto(spec: TaskSpec) -> task_pb2.TaskSpec:
    """A task's specification for the wire."""
    return task_pb2.TaskSpec(
        version=VERSION,
        id=spec.id,
        tenant=spec.tenant,
        skill=spec.skill,
        input_json=spec.input_json,
        resources=spec.resources.as_dict(),
        labels=dict(spec.labels),
        constraints=[
            task_pb2.Constraint(key=c.key, op=c.op, values=c.values) for c in spec.constraints
        ],
        priority=spec.priority,
        timeout_ms=spec.timeout_ms,
        start_deadline_ms=spec.start_deadline_ms,
        total_deadline_ms=spec.total_deadline_ms,
        progress_timeout_ms=spec.progress_timeout_ms,
        estimate_ms=spec.estimate_ms,
        max_attempts=spec.max_attempts,
        on_disconnect=ON_DISCONNECT_TO_PROTO[spec.on_disconnect],
        lifetime=LIFETIME_TO_PROTO[spec.lifetime],
        parent=spec.parent,
        depth=spec.depth,
        submitted_at_ms=spec.submitted_at_ms,
    )


def spec_from_proto(message: task_pb2.TaskSpec) -> TaskSpec:
    """A task's specification; raises InvalidInput on values of a newer version."""
    return TaskSpec(
        id=TaskId(message.id),
        tenant=TenantId(message.tenant),
        skill=message.skill,
        input_json=message.input_json,
        resources=vector_from_proto(message.resources),
        labels=tuple(sorted(message.labels.items())) if message.labels else (),
        constraints=tuple(Constraint(c.key, c.op, tuple(c.values)) for c in message.constraints)
        if message.constraints
        else (),
        priority=message.priority,
        timeout_ms=message.timeout_ms,
        start_deadline_ms=message.start_deadline_ms,
        total_deadline_ms=message.total_deadline_ms,
        progress_timeout_ms=message.progress_timeout_ms,
        estimate_ms=message.estimate_ms,
        max_attempts=message.max_attempts,
        on_disconnect=_known(_ON_DISCONNECT, message.on_disconnect, "on_disconnect"),
        lifetime=_known(_LIFETIMES, message.lifetime, "lifetime"),
        parent=message.parent,
        depth=message.depth,
        submitted_at_ms=message.submitted_at_ms,
    )


def outcome_to_proto(outcome: Outcome) -> task_pb2.Outcome:
    """An attempt's outcome for the wire."""
    message = task_pb2.Outcome()
    fill_outcome(message, outcome)
    return message


def fill_outcome(message: task_pb2.Outcome, outcome: Outcome) -> None:
    """Writes the outcome into an empty message."""
    message.kind = OUTCOME_KIND_TO_PROTO[outcome.kind]
    message.started_at_ms = outcome.started_at_ms
    message.ended_at_ms = outcome.ended_at_ms
    if outcome.output_json:
        message.output_json = outcome.output_json
    if outcome.output_blob:
        message.output_blob = outcome.output_blob
    if outcome.output_bytes:
        message.output_bytes = outcome.output_bytes
    if outcome.error:
        message.error = outcome.error
    if outcome.error_kind:
        message.error_kind = outcome.error_kind
    if outcome.exit_code is not None:
        message.exit_code = outcome.exit_code


def outcome_from_proto(message: task_pb2.Outcome) -> Outcome:
    """An attempt's outcome; raises InvalidInput on an unknown kind."""
    return Outcome(
        kind=_known(_OUTCOMES, message.kind, "outcome.kind"),
        output_json=message.output_json,
        output_blob=message.output_blob,
        output_bytes=message.output_bytes,
        error=message.error,
        error_kind=message.error_kind,
        exit_code=message.exit_code if message.HasField("exit_code") else None,
        started_at_ms=message.started_at_ms,
        ended_at_ms=message.ended_at_ms,
    )


def status_to_proto(status: TaskStatus) -> task_pb2.TaskStatus:
    """A task's status for the wire, without its outcome, which travels beside it."""
    message = task_pb2.TaskStatus()
    fill_status(message, status)
    return message


def fill_status(message: task_pb2.TaskStatus, status: TaskStatus) -> None:
    """Writes the status into an empty message: most fields of most statuses are unset, and each
    that is set costs time on the way of every write."""
    message.version = VERSION
    message.state = TASK_STATE_TO_PROTO[status.state]
    message.wish = WISH_TO_PROTO[status.wish]
    message.created_clock_ms = status.created_clock_ms
    message.attempt = status.attempt
    if status.agent:
        message.agent = status.agent
    if status.incarnation:
        message.incarnation = status.incarnation
    if status.failures:
        message.failures = status.failures
    if status.agent_deaths:
        message.agent_deaths = status.agent_deaths
    if status.avoid:
        message.avoid.extend(status.avoid)
    if status.assigned_at_ms:
        message.assigned_at_ms = status.assigned_at_ms
    if status.started_at_ms:
        message.started_at_ms = status.started_at_ms
    if status.started_clock_ms:
        message.started_clock_ms = status.started_clock_ms
    if status.ended_at_ms:
        message.ended_at_ms = status.ended_at_ms
    if status.not_before_clock_ms:
        message.not_before_clock_ms = status.not_before_clock_ms
    if status.why:
        message.why = status.why
    for resource, indices in status.devices:
        message.devices.add(resource=resource, indices=indices)


def devices_from_proto(messages: Iterable[task_pb2.GivenDevices]) -> GivenDevices:
    """The devices that an attempt was given."""
    return tuple([(m.resource, tuple(m.indices)) for m in messages])


def status_from_proto(
    message: task_pb2.TaskStatus, outcome: task_pb2.Outcome | None = None
) -> TaskStatus:
    """A task's status with its outcome; raises InvalidInput on values of a newer version."""
    return TaskStatus(
        state=state_from_proto(message.state),
        attempt=message.attempt,
        failures=message.failures,
        agent_deaths=message.agent_deaths,
        agent=AgentId(message.agent),
        incarnation=message.incarnation,
        wish=_known(_WISHES, message.wish, "wish") if message.wish else Wish.NONE,
        created_clock_ms=message.created_clock_ms,
        assigned_at_ms=message.assigned_at_ms,
        started_at_ms=message.started_at_ms,
        started_clock_ms=message.started_clock_ms,
        ended_at_ms=message.ended_at_ms,
        not_before_clock_ms=message.not_before_clock_ms,
        avoid=tuple(AgentId(a) for a in message.avoid) if message.avoid else (),
        why=message.why,
        devices=devices_from_proto(message.devices) if message.devices else (),
        outcome=outcome_from_proto(outcome) if outcome is not None and outcome.kind else None,
    )


def task_to_proto(task: Task) -> task_pb2.Task:
    """A task for the wire."""
    message = task_pb2.Task(spec=spec_to_proto(task.spec), status=status_to_proto(task.status))
    if task.status.outcome is not None:
        message.outcome.CopyFrom(outcome_to_proto(task.status.outcome))
    return message


def task_from_proto(message: task_pb2.Task) -> Task:
    """A task; raises InvalidInput on values of a newer version."""
    outcome = message.outcome if message.HasField("outcome") else None
    return Task(spec_from_proto(message.spec), status_from_proto(message.status, outcome))


def tasks_from_proto(messages: Iterable[task_pb2.Task]) -> list[Task]:
    """Tasks, in order."""
    return [task_from_proto(m) for m in messages]


def agent_spec_to_proto(spec: AgentSpec) -> agent_pb2.AgentSpec:
    """What an agent says of itself, for the wire."""
    return agent_pb2.AgentSpec(
        id=spec.id,
        tenant=spec.tenant,
        capacity=spec.capacity.as_dict(),
        skills=[
            agent_pb2.SkillOffer(
                name=s.name,
                description=s.description,
                input_schema_json=s.input_schema_json,
                output_schema_json=s.output_schema_json,
                schema_hash=s.schema_hash,
            )
            for s in spec.skills
        ],
        labels=dict(spec.labels),
        host=spec.host,
        pid=spec.pid,
        version=spec.version,
    )


def agent_spec_from_proto(message: agent_pb2.AgentSpec) -> AgentSpec:
    """What an agent says of itself; raises InvalidInput on bad amounts."""
    return AgentSpec(
        id=AgentId(message.id),
        tenant=TenantId(message.tenant or "default"),
        capacity=vector_from_proto(message.capacity),
        skills=tuple(
            SkillOffer(
                s.name, s.description, s.input_schema_json, s.output_schema_json, s.schema_hash
            )
            for s in message.skills
        ),
        labels=tuple(sorted(message.labels.items())),
        host=message.host,
        pid=message.pid,
        version=message.version,
    )


def agent_record_to_proto(record: AgentRecord) -> agent_pb2.AgentRecord:
    """One incarnation of an agent, for the wire."""
    return agent_pb2.AgentRecord(
        spec=agent_spec_to_proto(record.spec),
        incarnation=record.incarnation,
        lease_id=record.lease_id,
        registered_at_ms=record.registered_at_ms,
        revision=record.revision,
    )


def agent_record_from_proto(message: agent_pb2.AgentRecord) -> AgentRecord:
    """One incarnation of an agent; raises InvalidInput on bad amounts."""
    return AgentRecord(
        spec=agent_spec_from_proto(message.spec),
        incarnation=message.incarnation,
        lease_id=message.lease_id,
        registered_at_ms=message.registered_at_ms,
        revision=message.revision,
    )
