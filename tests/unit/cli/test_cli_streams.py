"""`logs`, `events`, `task --watch`: streams that are followed and taken up again."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from tests.unit.cli.conftest import TASK_ID, Muster, a_task, answer, events, problem

from muster.cli.sse import SentEvent, events_in

LOGS = f"GET /v1/tasks/{TASK_ID}/logs"
EVENTS = f"GET /v1/tasks/{TASK_ID}/events"


def a_line(index: int, text: str, stream: str = "stdout") -> dict[str, Any]:
    return {"attempt": 1, "index": index, "at": None, "stream": stream, "level": None, "text": text}


def sse(*sent: tuple[str, Any]) -> httpx.Response:
    return httpx.Response(200, text="retry: 1000\n\n: still here\n\n" + events(*sent))


def broken(*sent: tuple[str, Any]) -> httpx.Response:
    """Ends in the middle of an event."""
    return httpx.Response(200, text=events(*sent) + "event: line\ndata: {")


def test_logs_go_where_the_task_wrote_them(muster: Muster) -> None:
    lines = [a_line(0, "one\n"), a_line(1, "two", "stderr"), a_line(2, "\x1b[2Jthree")]
    muster.on(LOGS, answer({"items": lines, "next": None, "truncated": True}))
    ran = muster("logs", TASK_ID)
    assert ran.out == "one\n\\x1b[2Jthree\n"
    assert ran.err == "two\nmuster: the log was longer and has been cut\n"
    assert muster("logs", TASK_ID, "--json").json["items"] == lines


def test_followed_logs_end_with_the_task(muster: Muster) -> None:
    muster.on(LOGS, sse(("line", a_line(0, "a")), ("line", a_line(1, "b")), ("end", {})))
    ran = muster("logs", TASK_ID, "--follow")
    assert (ran.code, ran.out) == (0, "a\nb\n")
    assert muster.requests[0].url.params["follow"] == "1"


def test_followed_logs_are_taken_up_again_without_repeating(muster: Muster) -> None:
    first = broken(("line", a_line(0, "a")), ("gap", {"why": "monitor"}))
    second = sse(("line", a_line(0, "a")), ("line", a_line(1, "b")), ("end", {}))
    muster.on(LOGS, first, httpx.ConnectError("refused"), second)
    assert muster("logs", TASK_ID, "--follow").out == "a\nb\n"


def test_followed_logs_as_json_are_one_line_each(muster: Muster) -> None:
    muster.on(LOGS, sse(("line", a_line(0, "a")), ("end", {})))
    ran = muster("logs", TASK_ID, "-f", "--json")
    assert [json.loads(line) for line in ran.out.splitlines()] == [a_line(0, "a")]


def test_a_stream_that_never_holds_is_given_up(muster: Muster) -> None:
    muster.on(LOGS, sse())
    ran = muster("logs", TASK_ID, "--follow")
    assert ran.code == 3
    assert "breaks off again and again" in ran.err


def test_a_refused_stream_is_told(muster: Muster) -> None:
    muster.on(LOGS, problem(503, "the monitor is not available"))
    ran = muster("logs", TASK_ID, "--follow")
    assert (ran.code, ran.err) == (3, "muster: the monitor is not available\n")


CHANGES = (
    ("task", a_task("PENDING")),
    ("task.changed", {"at": "2026-01-31T12:00:00Z", "state": "RUNNING", "task": TASK_ID}),
    ("task.progress", {"task": TASK_ID, "progress": {"fraction": 0.5, "note": "half"}}),
    ("task.changed", {"state": "SUCCEEDED", "task": TASK_ID, "attempt": 1}),
)


def test_watch_shows_changes_and_then_the_task(muster: Muster) -> None:
    muster.on(EVENTS, sse(*CHANGES))
    muster.on(f"GET /v1/tasks/{TASK_ID}", answer(a_task(result=1)))
    ran = muster("task", TASK_ID, "--watch")
    lines = ran.out.splitlines()
    assert ran.code == 0
    assert "RUNNING" in lines[0]
    assert "50%  half" in lines[1]
    assert "SUCCEEDED" in lines[2]
    assert any(line.split() == ["result", "1"] for line in lines[3:])


def test_watch_resumes_after_the_last_event(muster: Muster) -> None:
    muster.on(EVENTS, broken(*CHANGES[:2]), sse(CHANGES[3]))
    muster.on(f"GET /v1/tasks/{TASK_ID}", answer(a_task()))
    ran = muster("task", TASK_ID, "--watch", "--json")
    assert muster.requests[1].headers["last-event-id"] == "2-0"
    states = [json.loads(line)["state"] for line in ran.out.splitlines()]
    assert states == ["RUNNING", "SUCCEEDED", "SUCCEEDED"]


def test_events_are_those_recorded(muster: Muster) -> None:
    record = {"kind": "agent.changed", "at": "2026-01-31T12:00:00Z", "agent": "agent-1"}
    record |= {"agent_state": "DOWN", "why": "the lease is gone"}

    def recorded_then_silence(request: httpx.Request) -> httpx.Response:
        assert request.url.params["after"] == "0"

        class Body(httpx.SyncByteStream):
            def __iter__(self) -> Any:
                yield events(("agent.changed", record)).encode()
                raise httpx.ReadTimeout("silence")

        return httpx.Response(200, stream=Body())

    muster.answers["GET /v1/events"] = [recorded_then_silence]
    ran = muster("events")
    assert ran.code == 0
    assert "agent.changed  DOWN  agent-1  the lease is gone" in ran.out
    assert json.loads(muster("events", "--json").out) == record


def test_followed_events_end_with_ctrl_c(muster: Muster) -> None:
    def interrupted(request: httpx.Request) -> httpx.Response:
        assert "after" not in request.url.params

        class Body(httpx.SyncByteStream):
            def __iter__(self) -> Any:
                yield events(("leader.changed", {"why": "term 2"})).encode()
                raise KeyboardInterrupt

        return httpx.Response(200, stream=Body())

    muster.answers["GET /v1/events"] = [interrupted]
    ran = muster("events", "--follow")
    assert (ran.code, ran.out) == (0, "leader.changed  term 2\n")


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("", []),
        (": comment\n\n", []),
        ("data: a\n\n", [SentEvent("message", "a", "")]),
        ("data:a\ndata: b\n\n", [SentEvent("message", "a\nb", "")]),
        (
            "id: 7\nevent: x\ndata: 1\n\ndata: 2\n\n",
            [SentEvent("x", "1", "7"), SentEvent("message", "2", "7")],
        ),
        ("event: x\n\n", []),
        ("data: cut off", []),
        ("id: a\0b\ndata: 1\n\n", [SentEvent("message", "1", "")]),
        ("retry: 5\nfoo: bar\ndata: 1\n\n", [SentEvent("message", "1", "")]),
    ],
)
def test_server_sent_events(text: str, parsed: list[SentEvent]) -> None:
    assert list(events_in(text.split("\n"))) == parsed
