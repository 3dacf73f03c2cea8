"""Bodies of submissions: what is taken, and how what is not is told."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muster.domain.errors import InvalidInput, TooLarge
from muster_gateway.problems import MalformedBody
from muster_gateway.task_body import decode_submission


def body_of(value: Any) -> bytes:
    return json.dumps(value).encode()


def test_one_task_is_no_batch() -> None:
    tasks, is_batch = decode_submission(b'{"skill":"echo","input":{"a":[1]}}', ndjson=False)
    assert not is_batch
    assert (tasks[0].skill, bytes(tasks[0].input)) == ("echo", b'{"a":[1]}')


def test_a_batch_of_one_is_a_batch() -> None:
    tasks, is_batch = decode_submission(b' { "tasks" : [{"skill":"echo"}] }', ndjson=False)
    assert is_batch
    assert bytes(tasks[0].input) == b"null"


def test_lines_are_a_batch() -> None:
    body = b'{"skill":"a"}\n\n{"skill":"b","input":"\\n"}\r\n'
    tasks, is_batch = decode_submission(body, ndjson=True)
    assert is_batch
    assert [task.skill for task in tasks] == ["a", "b"]


def test_ten_thousand_tasks_are_taken_and_one_more_is_not() -> None:
    task = {"skill": "echo"}
    tasks, _ = decode_submission(body_of({"tasks": [task] * 10_000}), ndjson=False)
    assert len(tasks) == 10_000
    with pytest.raises(InvalidInput) as caught:
        decode_submission(body_of({"tasks": [task] * 10_001}), ndjson=False)
    assert caught.value.field == "tasks"
    assert "10000" in caught.value.limit
    assert "10001" in str(caught.value.value)


@pytest.mark.parametrize(
    ("body", "field", "limit"),
    [
        ({"tasks": []}, "tasks", "1 to 10000"),
        ({"skill": "a", "x": 1}, "x", "no such field"),
        ({"tasks": [{"skill": "a"}, {"skill": "a", "prio": 1}]}, "tasks[1].prio", "no such field"),
        ({"tasks": [{"input": 1}]}, "tasks[0].skill", "needed"),
        ({}, "skill", "needed"),
        ([], "body", "expected object"),
        (3, "body", "expected object"),
        ({"tasks": 3}, "tasks", "expected array"),
        ({"tasks": [3]}, "tasks[0]", "expected object"),
        ({"skill": 3}, "skill", "expected str"),
        ({"skill": "a", "priority": "high"}, "priority", "expected int"),
        ({"skill": "a", "priority": 1.5}, "priority", "expected int"),
        ({"skill": "a", "timeout": 60}, "timeout", "expected str"),
        ({"skill": "a", "resources": {"cpu": True}}, "resources.cpu", "got bool"),
        (
            {"tasks": [{"skill": "a", "resources": {"memory": "1", "cpu": [1]}}]},
            "tasks[0].resources.cpu",
            "got array",
        ),
        ({"skill": "a", "labels": {"a": "b", "c": 1}}, "labels.c", "expected str"),
        ({"skill": "a", "constraints": [{"key": "z"}]}, "constraints[0].op", "needed"),
        ({"skill": "a", "tasks": [{"skill": "a"}]}, "tasks", "alone"),
        ({"x": 1, "tasks": [{"skill": "a"}]}, "tasks", "alone"),
    ],
)
def test_a_wrong_shape_names_the_spot(body: Any, field: str, limit: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        decode_submission(body_of(body), ndjson=False)
    assert caught.value.field == field
    assert limit in caught.value.limit
    assert not isinstance(caught.value, MalformedBody)


def test_an_endless_number_is_out_of_range() -> None:
    body = b'{"skill":"a","priority":' + b"9" * 5_000 + b"}"
    with pytest.raises(InvalidInput, match="out of range") as caught:
        decode_submission(body, ndjson=False)
    assert caught.value.field == "priority"


def test_a_bad_line_is_named_by_its_number() -> None:
    with pytest.raises(InvalidInput) as caught:
        decode_submission(b'{"skill":"a"}\n{"skill":"a","labels":{"k":2}}', ndjson=True)
    assert caught.value.field == "tasks[1].labels.k"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"  ",
        b"{",
        b'{"skill":"a"',
        b'{"skill":"a"} x',
        b'{"skill":"a","input":NaN}',
        b'{"skill":"a","input":Infinity}',
        b'{"skill":"a","input":-Infinity}',
        b'{"skill":"a","input":{"b":[1,NaN]}}',
        b"{'skill':'a'}",
        b'\xef\xbb\xbf{"skill":"a"}',
        b'{"skill":"\xff"}',
        b'{"skill":"a","input":"\xc3("}',
        b'{"skill":"a","input":"\xed\xa0\x80"}',
        b'{"skill":"a","input":"\\ud800"}',
        b'{"skill":"a","input":01}',
        b"\x00",
        '{"skill":"a"}'.encode("utf-16"),
    ],
)
def test_what_is_no_json_is_malformed(body: bytes) -> None:
    with pytest.raises(MalformedBody) as caught:
        decode_submission(body, ndjson=False)
    assert caught.value.field == "body"


@pytest.mark.parametrize("levels", [65, 100, 1_000, 100_000])
@pytest.mark.parametrize("closed", [True, False])
def test_deep_nesting_is_refused_by_its_limit(levels: int, closed: bool) -> None:
    nested = b"[" * levels + b"]" * (levels if closed else 0)
    for head, tail, ndjson in (
        (b'{"skill":"a","input":', b"}", False),
        (b'{"tasks":[{"skill":"a"},{"skill":"a","input":', b"}]}", False),
        (b'{"skill":"a"}\n{"skill":"a","input":', b"}", True),
    ):
        with pytest.raises(MalformedBody) as caught:
            decode_submission(head + nested + tail, ndjson=ndjson)
        assert "64" in caught.value.limit


def test_an_input_may_nest_64_deep_alone_and_in_a_batch() -> None:
    nested = b"[" * 64 + b"]" * 64
    task = b'{"skill":"a","input":' + nested + b"}"
    for body, ndjson in ((task, False), (b'{"tasks":[' + task + b"]}", False), (task, True)):
        (taken,), _ = decode_submission(body, ndjson=ndjson)
        assert bytes(taken.input) == nested


def test_the_deep_task_of_a_batch_is_named() -> None:
    nested = b"[" * 100 + b"]" * 100
    body = b'{"tasks":[{"skill":"a"},{"skill":"a","input":' + nested + b"}]}"
    with pytest.raises(MalformedBody) as caught:
        decode_submission(body, ndjson=False)
    assert caught.value.field == "tasks[1].input"


def test_a_body_over_ten_mebibytes_is_too_large() -> None:
    with pytest.raises(TooLarge):
        decode_submission(b" " * (10 * 1024 * 1024 + 1), ndjson=False)


@given(st.binary(max_size=200) | st.text(alphabet='{}[]":,taskilnpu0eE-.\\ ').map(str.encode))
def test_any_bytes_are_taken_or_refused_by_an_error_of_the_tree(body: bytes) -> None:
    for ndjson in (False, True):
        # Any other error fails the test.
        with suppress(InvalidInput):
            decode_submission(body, ndjson=ndjson)


_VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=5,
)
_FIELDS = st.sampled_from(
    ["skill", "input", "resources", "labels", "constraints", "priority", "timeout", "tasks", "x"]
)


@given(st.dictionaries(_FIELDS, _VALUE, max_size=5))
def test_any_object_is_taken_or_refused_by_a_field(value: dict[str, Any]) -> None:
    for body in (value, {"tasks": [{"skill": "a"}, value]}):
        with suppress(InvalidInput):
            tasks, _ = decode_submission(body_of(body), ndjson=False)
            assert all(isinstance(task.skill, str) for task in tasks)
