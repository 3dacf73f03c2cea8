"""From streamed bytes to text, token counts and the end of an answer."""

from __future__ import annotations

import itertools
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muster.skills.chat_stream import (
    MAX_LINE_BYTES,
    Completion,
    EventData,
    MalformedStream,
    ProviderError,
    error_text,
    retry_after_s,
    retryable,
)

STREAM = (
    b": a comment\r\n\r\n"
    b'data: {"a": 1}\r\n\r\n'
    b"event: other\nid: 7\ndata:two\ndata: lines\n\n"
    b"retry: 5\r\r"
    b"data: \xc3\xbc\r\r"
    b"data: cut"
)
EVENTS = ['{"a": 1}', "two\nlines", "ü"]


@given(st.lists(st.integers(1, len(STREAM) - 1), max_size=12))
def test_events_do_not_depend_on_how_they_were_cut(cuts: list[int]) -> None:
    places = [0, *sorted(set(cuts)), len(STREAM)]
    parser = EventData()
    found = [e for a, b in itertools.pairwise(places) for e in parser.feed(STREAM[a:b])]
    assert found == EVENTS


def test_events_are_bounded_and_utf8() -> None:
    with pytest.raises(MalformedStream, match="more than"):
        EventData().feed(b"data: " + b"x" * MAX_LINE_BYTES)
    parser = EventData()
    half = b"data: " + b"x" * (MAX_LINE_BYTES // 2) + b"\n"
    assert parser.feed(half) == []
    with pytest.raises(MalformedStream, match="more than"):
        parser.feed(half + half)
    with pytest.raises(MalformedStream, match="UTF-8"):
        EventData().feed(b"data: \xff\n\n")


def piece(delta: dict[str, Any], finish: str | None = None, **more: Any) -> str:
    return orjson.dumps(
        {"model": "m-7", "choices": [{"delta": delta, "finish_reason": finish}], **more}
    ).decode()


def test_text_counts_and_reason_are_gathered() -> None:
    completion = Completion("wanted")
    taken = [
        completion.take(piece({"role": "assistant", "content": ""})),
        completion.take(piece({"content": "Hel"})),
        completion.take(piece({"content": "lo"}, usage=None)),
        completion.take(piece({"content": None}, "stop")),
    ]
    assert taken == ["", "Hel", "lo", ""]
    assert completion.complete
    assert not completion.done
    completion.take('{"choices": [], "usage": {"prompt_tokens": 3, "total_tokens": 5}}')
    completion.take("[DONE]")
    assert completion.done
    assert completion.result() == {
        "content": "Hello",
        "finish_reason": "stop",
        "model": "m-7",
        "usage": {"prompt_tokens": 3, "total_tokens": 5},
    }


def test_tool_calls_are_put_together() -> None:
    completion = Completion("m")
    for call in (
        {"index": 1, "id": "b", "function": {"name": "second", "arguments": ""}},
        {"index": 0, "id": "a", "function": {"name": "first", "arguments": '{"x"'}},
        {"index": 0, "function": {"arguments": ": 1}"}},
    ):
        completion.take(piece({"tool_calls": [call]}))
    completion.take(piece({}, "tool_calls"))
    names = [(c["id"], c["function"]) for c in completion.result()["tool_calls"]]
    assert names == [
        ("a", {"name": "first", "arguments": '{"x": 1}'}),
        ("b", {"name": "second", "arguments": ""}),
    ]


def test_an_answer_in_one_piece() -> None:
    completion = Completion("m")
    whole = {
        "choices": [{"message": {"content": "yes"}, "finish_reason": "length"}],
        "usage": {"total_tokens": 2},
    }
    assert completion.take_whole(orjson.dumps(whole)) == "yes"
    assert completion.result()["finish_reason"] == "length"
    with pytest.raises(MalformedStream, match="no choice"):
        Completion("m").take_whole(b'{"choices": []}')


@pytest.mark.parametrize(
    "data",
    [
        "{",
        "[]",
        "null",
        "{}",
        '{"choices": 1}',
        '{"choices": [1]}',
        '{"choices": [{"delta": []}], "x": [1]}'.replace("[]}", "[1]}"),
        '{"choices": [{"delta": {"content": 5}}]}',
        '{"choices": [{"delta": {"tool_calls": [1]}}]}',
        '{"choices": [{"delta": {"tool_calls": [{"index": 128}]}}]}',
    ],
)
def test_what_is_no_chunk_is_malformed(data: str) -> None:
    with pytest.raises(MalformedStream):
        Completion("m").take(data)


def test_an_error_in_the_middle_is_the_providers() -> None:
    with pytest.raises(ProviderError, match="overloaded"):
        Completion("m").take('{"error": {"message": "overloaded", "code": 500}}')
    assert error_text({"error": "plain"}) == "plain"
    assert error_text("<html>") == "<html>"
    assert len(error_text("x" * 9999)) == 500


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 529])
def test_busy_and_broken_may_be_tried_again(status: int) -> None:
    assert retryable(status)


@pytest.mark.parametrize("status", [201, 302, 400, 401, 403, 404, 413, 422])
def test_a_no_is_a_no(status: int) -> None:
    assert not retryable(status)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("0", 0.0),
        (" 7 ", 7.0),
        ("1.5", 1.5),
        ("Thu, 01 Jan 1970 00:01:40 GMT", 40.0),
        ("Thu, 01 Jan 1970 00:00:10 GMT", 0.0),
        ("", None),
        ("-1", None),
        ("soon", None),
        ("9" * 400, None),
        ("nan", None),
    ],
)
def test_how_long_to_wait(header: str, seconds: float | None) -> None:
    assert retry_after_s(header, 60.0) == seconds
