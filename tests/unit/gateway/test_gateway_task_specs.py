"""From task objects to specifications."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muster.api.v1 import task_pb2
from muster.domain.errors import InvalidInput
from muster.domain.ids import TenantId, request_prefix, task_id
from muster.domain.task import TaskSpec
from muster.rpc.conversion import spec_from_proto
from muster_gateway.task_body import decode_submission
from muster_gateway.task_specs import CHUNK_BYTES, CHUNK_TASKS, CheckedTasks, check_tasks

TENANT = TenantId("default")
PREFIX = request_prefix(TENANT, "key", 1_700_000_000_000)


class NoSchemas:
    """No skill restricts its input."""

    def needs_check(self, tenant: str, skill: str) -> bool:
        return False

    def check(self, tenant: str, skill: str, input_json: bytes, field: str) -> None:
        raise AssertionError("nothing is to be checked")


def checked(value: Any) -> CheckedTasks:
    tasks, is_batch = decode_submission(json.dumps(value).encode(), ndjson=False)
    return check_tasks(tasks, TENANT, NoSchemas(), is_batch=is_batch)


def specs(value: Any) -> list[task_pb2.TaskSpec]:
    return [s for chunk in checked(value).chunks(PREFIX, 1_700_000_000_000) for s in chunk.tasks]


def test_defaults_are_the_domains() -> None:
    (message,) = specs({"skill": "echo"})
    spec = spec_from_proto(message)
    default = TaskSpec(id=task_id(PREFIX, 0), skill="echo")
    assert spec.resources.as_dict() == {"cpu": 100, "memory": 64 * 1024**2}
    for field in ("id", "tenant", "input_json", "labels", "constraints", "priority", "parent"):
        assert getattr(spec, field) == getattr(default, field), field
    for field in ("max_attempts", "on_disconnect", "lifetime", "timeout_ms", "estimate_ms"):
        assert getattr(spec, field) == getattr(default, field), field
    assert spec.submitted_at_ms == 1_700_000_000_000


def test_every_field_arrives() -> None:
    task = {
        "skill": "translate",
        "input": {"text": "ä"},
        "resources": {"cpu": "500m", "memory": "256Mi", "network": "10M", "gpu": 0},
        "labels": {"team": "docs"},
        "constraints": [{"key": "zone", "op": "in", "values": ["a", "b"]}],
        "priority": 0,
        "timeout": "60s",
        "start_deadline": "10m",
        "total_deadline": "1h",
        "progress_timeout": "5s",
        "estimate": "2s",
        "max_attempts": 7,
        "on_disconnect": "stop",
        "lifetime": "service",
    }
    (message,) = specs(task)
    spec = spec_from_proto(message)
    assert json.loads(spec.input_json) == {"text": "ä"}
    assert spec.resources.as_dict() == {
        "cpu": 500,
        "memory": 256 * 1024**2,
        "network": 10_000_000,
    }
    assert spec.labels == (("team", "docs"),)
    assert [(c.key, c.op, c.values) for c in spec.constraints] == [("zone", "in", ("a", "b"))]
    assert (spec.priority, spec.max_attempts) == (0, 7)
    assert (spec.timeout_ms, spec.start_deadline_ms) == (60_000, 600_000)
    assert (spec.total_deadline_ms, spec.progress_timeout_ms) == (3_600_000, 5_000)
    assert (spec.estimate_ms, spec.on_disconnect, spec.lifetime) == (2_000, "stop", "service")


def test_what_is_not_named_of_resources_gets_its_default_and_zero_stays_nothing() -> None:
    first, second, third = specs(
        {
            "tasks": [
                {"skill": "a", "resources": {"cpu": 2}},
                {"skill": "a", "resources": {"cpu": 0, "memory": 0}},
                {"skill": "a", "resources": {}},
            ]
        }
    )
    assert dict(first.resources) == {"cpu": 2000, "memory": 64 * 1024**2}
    assert dict(second.resources) == {}
    assert dict(third.resources) == {"cpu": 100, "memory": 64 * 1024**2}


def test_tasks_of_different_shapes_do_not_borrow_from_each_other() -> None:
    shapes: list[dict[str, Any]] = [
        {"priority": 1},
        {"priority": 2},
        {"labels": {"a": "b"}},
        {"labels": {"a": "c"}},
        {"resources": {"cpu": 1}},
        {"resources": {"cpu": "1"}},
        {"resources": {"cpu": "1m"}},
        {"timeout": "1s"},
        {"start_deadline": "1s"},
        {"total_deadline": "1s"},
        {"progress_timeout": "1s"},
        {"estimate": "1s"},
        {"max_attempts": 1},
        {"on_disconnect": "stop"},
        {"lifetime": "service"},
        {"constraints": [{"key": "z", "op": "exists"}]},
        {},
    ]
    batch = [{"skill": "a", "input": n, **shape} for n, shape in enumerate(shapes)] * 2
    together = specs({"tasks": batch})
    for index, task in enumerate(batch):
        (alone,) = specs(task)
        alone.id = task_id(PREFIX, index)
        assert together[index] == alone


def test_ids_follow_from_prefix_and_index_through_all_chunks() -> None:
    count = CHUNK_TASKS * 2 + 1
    chunks = checked({"tasks": [{"skill": "a"}] * count}).chunks(PREFIX, 5)
    assert [len(c.tasks) for c in chunks] == [CHUNK_TASKS, CHUNK_TASKS, 1]
    ids = [spec.id for chunk in chunks for spec in chunk.tasks]
    assert ids == [task_id(PREFIX, index) for index in range(count)]


def test_chunks_are_bounded_in_bytes() -> None:
    text = "x" * 1_000_000
    chunks = checked({"tasks": [{"skill": "a", "input": text}] * 9}).chunks(PREFIX, 5)
    assert len(chunks) > 1
    assert max(c.ByteSize() for c in chunks) < CHUNK_BYTES + 1_100_000


def _task(**fields: Any) -> dict[str, Any]:
    return {"skill": "a", **fields}


@pytest.mark.parametrize(
    ("task", "field"),
    [
        ({"skill": ""}, "skill"),
        ({"skill": "UPPER"}, "skill"),
        ({"skill": "a" * 64}, "skill"),
        ({"skill": "a b"}, "skill"),
        (_task(resources={"cpu": "-1"}), "resources.cpu"),
        (_task(resources={"cpu": -1}), "resources.cpu"),
        (_task(resources={"cpu": -0.5}), "resources.cpu"),
        (_task(resources={"cpu": "NaN"}), "resources.cpu"),
        (_task(resources={"cpu": "inf"}), "resources.cpu"),
        (_task(resources={"cpu": "1e999999"}), "resources.cpu"),
        (_task(resources={"memory": "9999999999999Ei"}), "resources.memory"),
        (_task(resources={"memory": "1 Gi"}), "resources.memory"),
        (_task(resources={"memory": ""}), "resources.memory"),
        (_task(resources={"gpu": "1.5"}), "resources.gpu"),
        (_task(resources={"gpu": "1500m"}), "resources.gpu"),
        (_task(resources={"CPU": "1"}), "resources.CPU"),
        (_task(resources={f"r{n}": 1 for n in range(33)}), "resources"),
        (_task(labels={f"k{n}": "v" for n in range(33)}), "labels"),
        (_task(labels={"UP": "v"}), "labels.UP"),
        (_task(labels={"k": "v" * 129}), "labels.k"),
        (_task(labels={"k": "a\nb"}), "labels.k"),
        (_task(priority=-1), "priority"),
        (_task(priority=101), "priority"),
        (_task(priority=10**400), "priority"),
        (_task(max_attempts=0), "max_attempts"),
        (_task(max_attempts=101), "max_attempts"),
        (_task(timeout="soon"), "timeout"),
        (_task(timeout="-1s"), "timeout"),
        (_task(start_deadline="99999d"), "start_deadline"),
        (_task(total_deadline="0s"), "total_deadline"),
        (_task(progress_timeout=""), "progress_timeout"),
        (_task(estimate="1"), "estimate"),
        (_task(on_disconnect="maybe"), "on_disconnect"),
        (_task(lifetime="forever"), "lifetime"),
        (_task(constraints=[{"key": "z", "op": "~", "values": ["a"]}]), "constraints[0].op"),
        (_task(constraints=[{"key": "Z", "op": "exists"}]), "constraints[0].key"),
        (_task(constraints=[{"key": "z", "op": "=="}]), "constraints[0].values"),
        (
            _task(constraints=[{"key": "z", "op": "exists", "values": ["a"]}]),
            "constraints[0].values",
        ),
        (_task(constraints=[{"key": "z", "op": ">", "values": ["a"]}]), "constraints[0].values"),
        (_task(constraints=[{"key": "z", "op": ">", "values": ["nan"]}]), "constraints[0].values"),
        (
            _task(constraints=[{"key": "z", "op": "in", "values": ["a"] * 33}]),
            "constraints[0].values",
        ),
        (
            _task(constraints=[{"key": "z", "op": "in", "values": ["a" * 129]}]),
            "constraints[0].values",
        ),
        (
            _task(
                constraints=[
                    {"key": "z", "op": "==", "values": ["a"]},
                    {"key": "z", "op": "==", "values": ["b"]},
                ]
            ),
            "constraints[1]",
        ),
        (
            _task(constraints=[{"key": f"k{n}", "op": "exists"} for n in range(17)]),
            "constraints[16]",
        ),
        (_task(input="x" * 1024 * 1024), "input"),
    ],
)
def test_a_bad_value_is_refused_alone_and_in_a_batch_by_its_field(task: Any, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        checked(task)
    assert caught.value.field == field
    with pytest.raises(InvalidInput) as caught:
        checked({"tasks": [{"skill": "a"}] * 17 + [task]})
    assert caught.value.field == f"tasks[17].{field}"


class Picky(NoSchemas):
    """The skill `picky` takes only the input 1."""

    def needs_check(self, tenant: str, skill: str) -> bool:
        return skill == "picky"

    def check(self, tenant: str, skill: str, input_json: bytes, field: str) -> None:
        if input_json != b"1":
            raise InvalidInput(field, input_json, "must be 1")


def test_inputs_of_restricted_skills_are_checked_one_by_one() -> None:
    body = b'{"tasks":[{"skill":"picky","input":1},{"skill":"a"},{"skill":"picky","input":2}]}'
    tasks, _ = decode_submission(body, ndjson=False)
    with pytest.raises(InvalidInput) as caught:
        check_tasks(tasks, TENANT, Picky(), is_batch=True)
    assert caught.value.field == "tasks[2].input"


@given(
    st.dictionaries(
        st.sampled_from(["cpu", "memory", "gpu", "x"]),
        st.text(max_size=8) | st.integers() | st.floats(allow_nan=False, allow_infinity=False),
        max_size=4,
    ),
    st.dictionaries(st.text(max_size=4), st.text(max_size=4), max_size=3),
    st.integers(-5, 200),
    st.text(alphabet="0123456789smhd.", max_size=6),
)
def test_any_values_give_a_specification_that_the_domain_takes_or_are_refused(
    resources: dict[str, Any], labels: dict[str, str], priority: int, timeout: str
) -> None:
    task = {
        "skill": "a",
        "resources": resources,
        "labels": labels,
        "priority": priority,
        "timeout": timeout,
    }
    try:
        (message,) = specs(task)
    except InvalidInput:
        return
    spec = spec_from_proto(message)
    assert (spec.skill, spec.priority, dict(spec.labels)) == ("a", priority, labels)
