"""Messages that are put together from serialized parts equal those that protobuf makes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from muster.api.v1 import storage_pb2 as pb
from muster.api.v1 import task_pb2
from muster_storage.records import Row
from muster_storage.wire import (
    framed_event,
    number_field,
    repeated_first_field,
    task_bytes,
    varint,
)

blobs = st.one_of(st.binary(max_size=300), st.just(b"x" * 70_000))


@given(st.integers(0, 2**63 - 1))
def test_a_number_field_is_protobufs(number: int) -> None:
    expected = pb.Event(term=number).SerializeToString()
    assert (number_field(11, number) if number else b"") == expected
    assert varint(number) == (expected[1:] or b"\x00")


@given(blobs, st.text(max_size=50), blobs, st.booleans())
def test_a_task_is_protobufs(given_input: bytes, why: str, output: bytes, ended: bool) -> None:
    task = task_pb2.Task(
        spec=task_pb2.TaskSpec(id="x", input_json=given_input),
        status=task_pb2.TaskStatus(attempt=1, why=why),
    )
    if ended:
        task.outcome.CopyFrom(task_pb2.Outcome(kind=task_pb2.OUTCOME_KIND_FAILED))
        task.outcome.output_json = output
        task.progress.CopyFrom(task_pb2.TaskProgress(note=why, fraction=0.5))
    row = Row(
        task.spec.SerializeToString(),
        task.status.SerializeToString(),
        task.outcome.SerializeToString() if ended else b"",
        task.progress.SerializeToString() if ended else b"",
    )
    assert task_bytes(row) == task.SerializeToString()


def test_an_unknown_task_is_empty() -> None:
    message = pb.GetTasksResponse.FromString(repeated_first_field([task_bytes(None)] * 2))
    assert message == pb.GetTasksResponse(tasks=[task_pb2.Task(), task_pb2.Task()])
    assert not message.tasks[0].HasField("spec")


@given(st.integers(1, 2**53), blobs)
def test_an_event_is_framed_with_its_id(seq: int, partial: bytes) -> None:
    event = pb.Event(kind=pb.EVENT_KIND_TASK_PROGRESS, partial_json=partial, term=3)
    frame = framed_event(seq, event.SerializeToString())
    event.id = str(seq)
    assert pb.TailResponse.FromString(frame * 2) == pb.TailResponse(events=[event, event])
