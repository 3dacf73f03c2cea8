"""Conversion there and back loses nothing, and refuses what a newer version may send."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muster.api.v1 import task_pb2
from muster.domain.agent import AgentRecord, AgentSpec, SkillOffer
from muster.domain.errors import InvalidInput
from muster.domain.ids import AgentId, TaskId
from muster.domain.resources import ResourceVector
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
from muster.rpc import conversion

_MS = st.integers(0, 2**50)
_OUTCOMES = st.builds(
    Outcome,
    kind=st.sampled_from(OutcomeKind),
    output_json=st.binary(max_size=20),
    output_blob=st.text("0123456789abcdef", max_size=8),
    output_bytes=_MS,
    error=st.text(max_size=10),
    error_kind=st.text(max_size=10),
    exit_code=st.none() | st.integers(-128, 255),
    started_at_ms=_MS,
    ended_at_ms=_MS,
)
_STATUSES = st.builds(
    TaskStatus,
    state=st.sampled_from(TaskState),
    attempt=st.integers(0, 100),
    failures=st.integers(0, 100),
    agent_deaths=st.integers(0, 3),
    agent=st.sampled_from([AgentId(""), AgentId("a1")]),
    incarnation=_MS,
    wish=st.sampled_from(Wish),
    created_clock_ms=_MS,
    assigned_at_ms=_MS,
    started_at_ms=_MS,
    started_clock_ms=_MS,
    ended_at_ms=_MS,
    not_before_clock_ms=_MS,
    avoid=st.sampled_from([(), (AgentId("x"), AgentId("y"))]),
    why=st.text(max_size=10),
    outcome=st.none() | _OUTCOMES,
)
_SPECS = st.builds(
    TaskSpec,
    id=st.just(TaskId("0" * 26)),
    skill=st.sampled_from(["echo", "chat"]),
    input_json=st.binary(max_size=20),
    resources=st.sampled_from([ResourceVector(), ResourceVector.of({"cpu": 100, "gpu": 500})]),
    labels=st.sampled_from([(), (("a", "b"), ("c", ""))]),
    constraints=st.sampled_from([(), (Constraint("zone", "in", ("a", "b")),)]),
    priority=st.integers(0, 100),
    timeout_ms=_MS,
    start_deadline_ms=_MS,
    total_deadline_ms=_MS,
    progress_timeout_ms=_MS,
    estimate_ms=_MS,
    max_attempts=st.integers(1, 100),
    on_disconnect=st.sampled_from(OnDisconnect),
    lifetime=st.sampled_from(Lifetime),
    parent=st.sampled_from(["", "0" * 26]),
    depth=st.integers(0, 8),
    submitted_at_ms=_MS,
)


@given(st.builds(Task, spec=_SPECS, status=_STATUSES))
def test_a_task_survives_the_wire(task: Task) -> None:
    wire = conversion.task_to_proto(task).SerializeToString()
    assert conversion.task_from_proto(task_pb2.Task.FromString(wire)) == task


def test_an_agent_record_survives_the_wire() -> None:
    record = AgentRecord(
        AgentSpec(
            AgentId("a1"),
            ResourceVector.of({"cpu": 4000, "slots": 64}),
            skills=(SkillOffer("echo", "says it again", b"{}", b"", "0123456789abcdef"),),
            labels=(("zone", "a"),),
            host="h",
            pid=7,
            version="0.1.0",
        ),
        incarnation=3,
        lease_id=99,
        registered_at_ms=5,
        revision=12,
    )
    assert conversion.agent_record_from_proto(conversion.agent_record_to_proto(record)) == record


def test_an_enum_value_of_a_newer_version_is_refused() -> None:
    message = conversion.status_to_proto(TaskStatus())
    message.state = 99  # type: ignore[assignment]
    with pytest.raises(InvalidInput, match="state: 99"):
        conversion.status_from_proto(message)
