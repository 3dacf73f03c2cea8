"""What the servicer refuses before it reaches a store."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.storage_records import NOW_MS, SHA_A, ident, progress, status, task, transition

from muster.api.v1 import storage_pb2 as pb
from muster.api.v1 import task_pb2
from muster.domain.errors import InvalidInput, TooLarge
from muster_storage import intake
from muster_storage.records import event_head

Change = Callable[[task_pb2.Task], object]


def bad_task(change: Change) -> task_pb2.Task:
    new = task(1)
    change(new)
    return new


def setting(path: str, value: object) -> Change:
    def change(new: task_pb2.Task) -> None:
        part, field = path.split(".")
        setattr(getattr(new, part), field, value)

    return change


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (setting("spec.id", ""), "id"),
        (setting("spec.id", "../../etc/passwd"), "id"),
        (setting("spec.id", ident(1) + ":x"), "id"),
        (setting("spec.id", ident(1).upper()), "id"),
        (setting("spec.tenant", ""), "tenant"),
        (setting("spec.tenant", "a:b"), "tenant"),
        (setting("spec.skill", ""), "skill"),
        (setting("spec.skill", "e:x"), "skill"),
        (setting("spec.version", 2), "version"),
        (setting("status.version", 2), "version"),
        (setting("status.state", 0), "status.state"),
        (setting("status.state", 3), "status.state"),
        (setting("status.state", 4), "status.state"),
        (setting("status.state", 2), "term"),
        (setting("status.agent", "a"), "status.agent"),
        (lambda new: new.spec.labels.update({str(n): "" for n in range(33)}), "spec.labels"),
        (lambda new: new.spec.labels.update({"k": "v" * 129}), "spec.labels"),
    ],
)
def test_a_bad_new_task_is_refused_by_name(change: Change, field: str) -> None:
    request = pb.CreateRequest(tasks=[task(0), bad_task(change)])
    with pytest.raises(InvalidInput) as caught:
        intake.creations(request, NOW_MS)
    assert caught.value.field == field


def test_an_assigned_task_needs_an_agent() -> None:
    request = pb.CreateRequest(term=1, tasks=[task(1, state=2, attempt=1, agent="No Agent")])
    with pytest.raises(InvalidInput) as caught:
        intake.creations(request, NOW_MS)
    assert caught.value.field == "agent"


@pytest.mark.parametrize(
    ("item", "field"),
    [
        (transition(1, (0, 0), status(2, 1, "a")), "expect_state"),
        (transition(1, (4, 1), status(1, 1)), "expect_state"),
        (transition(1, (1, 0), status(0)), "status.state"),
        (transition(1, (2, 2), status(1, 1)), "status.attempt"),
        (transition(1, (1, 0), status(2, 1, "no:agent")), "agent"),
        (transition(1, (1, 0), status(4), tenant="No"), "tenant"),
        (
            transition(1, (1, 0), status(4), outcome=task_pb2.Outcome(output_blob="../x")),
            "outcome.output_blob",
        ),
    ],
)
def test_a_bad_transition_is_refused_by_name(item: pb.Transition, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        intake.changes(pb.ApplyRequest(term=1, transitions=[item]), NOW_MS)
    assert caught.value.field == field


@pytest.mark.parametrize("term", [0, -1])
def test_a_state_is_changed_under_a_term_only(term: int) -> None:
    with pytest.raises(InvalidInput) as caught:
        intake.changes(pb.ApplyRequest(term=term), NOW_MS)
    assert caught.value.field == "term"


@pytest.mark.parametrize(
    ("event", "field"),
    [
        (pb.Event(kind=pb.EVENT_KIND_TASK_CREATED), "events.kind"),
        (pb.Event(kind=pb.EVENT_KIND_TASK_CHANGED), "events.kind"),
        (pb.Event(kind=pb.EVENT_KIND_TASK_PROGRESS, tenant="default"), "id"),
        (pb.Event(kind=pb.EVENT_KIND_TASK_STRAGGLER, tenant="default"), "id"),
        (pb.Event(kind=pb.EVENT_KIND_AGENT_CHANGED), "agent"),
        (pb.Event(kind=pb.EVENT_KIND_AGENT_CHANGED, agent="a", tenant="A"), "tenant"),
        (
            pb.Event(kind=pb.EVENT_KIND_TASK_PROGRESS, partial_json=b"1" * 65_537),
            "events.partial_json",
        ),
        (pb.Event(kind=pb.EVENT_KIND_TASK_PROGRESS, note="n" * 1_025), "events.note"),
    ],
)
def test_a_bad_event_is_refused_by_name(event: pb.Event, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        intake.notices(pb.PublishRequest(events=[event]), NOW_MS)
    assert caught.value.field == field


def test_events_of_one_call_have_one_term() -> None:
    events = [progress(1, 1, 0.5, term=1), progress(1, 1, 0.5, term=2)]
    with pytest.raises(InvalidInput):
        intake.notices(pb.PublishRequest(events=events), NOW_MS)
    assert intake.notices(pb.PublishRequest(events=events[:1]), NOW_MS)[0] == 1
    assert intake.notices(pb.PublishRequest(), NOW_MS) == (0, [])


def test_calls_are_bounded() -> None:
    many = [pb.Event()] * (intake.MAX_EVENTS + 1)
    for refuse in (
        lambda: intake.creations(pb.CreateRequest(tasks=[task(1)] * 10_001), NOW_MS),
        lambda: intake.changes(
            pb.ApplyRequest(term=1, transitions=[pb.Transition()] * 10_001), NOW_MS
        ),
        lambda: intake.notices(pb.PublishRequest(events=many), NOW_MS),
    ):
        with pytest.raises(TooLarge):
            refuse()


def test_a_new_task_is_taken_apart() -> None:
    new = task(1, labels={"b": "2", "a": "1=1"}, clock_ms=0)
    (creation,) = intake.creations(pb.CreateRequest(tasks=[new]), NOW_MS)
    assert (creation.id, creation.skill, creation.state, creation.stamp) == (ident(1), "echo", 1, 1)
    assert creation.labels == ("a=1=1", "b=2")
    assert task_pb2.TaskSpec.FromString(creation.spec) == new.spec
    assert creation.event_head == event_head(pb.EVENT_KIND_TASK_CREATED, "default", 0)


def test_a_published_event_gets_its_time_and_no_id_of_its_sender() -> None:
    event = progress(1, 1, 0.5)
    event.id = "17"
    _, (notice,) = intake.notices(pb.PublishRequest(events=[event]), NOW_MS)
    sent = pb.Event.FromString(notice.event)
    assert (sent.id, sent.at_ms) == ("", NOW_MS)
    assert notice.task_id == ident(1)


@pytest.mark.parametrize("text", ["", SHA_A[1:], SHA_A + "a", "A" * 64, "/" * 64, "a" * 63 + "\n"])
def test_only_a_sha256_names_a_blob(text: str) -> None:
    assert intake.check_sha256("sha256", SHA_A) == SHA_A
    with pytest.raises(InvalidInput):
        intake.check_sha256("sha256", text)
