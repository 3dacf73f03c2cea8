"""Records for tests of the storage service, as its servicer would make them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from muster.api.v1 import storage_pb2 as pb
from muster.api.v1 import task_pb2
from muster.domain.ids import TenantId, request_prefix, task_id
from muster_storage import intake
from muster_storage.records import Change, Creation, Notice

TENANT = "default"
NOW_MS = 1_700_000_000_000
PREFIX = request_prefix(TenantId(TENANT), "tests", NOW_MS)
SHA_A, SHA_B = "a" * 64, "b" * 64


def ident(index: int) -> str:
    """The id of the `index`-th task of the tests' request; ids sort by index."""
    return task_id(PREFIX, index)


def status(
    state: int = 1, attempt: int = 0, agent: str = "", *, why: str = "", clock_ms: int = 7
) -> task_pb2.TaskStatus:
    return task_pb2.TaskStatus(
        version=task_pb2.SCHEMA_VERSION_1,
        state=task_pb2.TaskState.ValueType(state),
        attempt=attempt,
        agent=agent,
        wish=task_pb2.TASK_WISH_NONE,
        created_clock_ms=clock_ms,
        why=why,
    )


def task(
    index: int,
    *,
    state: int = 1,
    attempt: int = 0,
    agent: str = "",
    skill: str = "echo",
    labels: Mapping[str, str] | None = None,
    tenant: str = TENANT,
    input_json: bytes = b"null",
    clock_ms: int = 7,
) -> task_pb2.Task:
    """A new task for a CreateRequest."""
    return task_pb2.Task(
        spec=task_pb2.TaskSpec(
            version=task_pb2.SCHEMA_VERSION_1,
            id=ident(index),
            tenant=tenant,
            skill=skill,
            labels=labels or {},
            input_json=input_json,
        ),
        status=status(state, attempt, agent, clock_ms=clock_ms),
    )


def transition(
    index: int,
    expect: tuple[int, int],
    after: task_pb2.TaskStatus,
    *,
    outcome: task_pb2.Outcome | None = None,
    tenant: str = TENANT,
) -> pb.Transition:
    """A compare-and-set for an ApplyRequest; `expect` is (state, attempt)."""
    return pb.Transition(
        tenant=tenant,
        id=ident(index),
        expect_state=task_pb2.TaskState.ValueType(expect[0]),
        expect_attempt=expect[1],
        status=after,
        outcome=outcome,
        skill="echo",
    )


def progress(index: int, attempt: int, fraction: float, *, term: int = 0) -> pb.Event:
    return pb.Event(
        kind=pb.EVENT_KIND_TASK_PROGRESS,
        tenant=TENANT,
        task_id=ident(index),
        attempt=attempt,
        fraction=fraction,
        term=term,
    )


def creations(tasks: Iterable[task_pb2.Task], term: int = 0) -> list[Creation]:
    return intake.creations(pb.CreateRequest(term=term, tasks=tasks), NOW_MS)


def changes(transitions: Iterable[pb.Transition], term: int) -> list[Change]:
    return intake.changes(pb.ApplyRequest(term=term, transitions=transitions), NOW_MS)


def notices(events: Iterable[pb.Event]) -> list[Notice]:
    return intake.notices(pb.PublishRequest(events=events), NOW_MS)[1]
