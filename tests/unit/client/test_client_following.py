"""Streams of events: partial outputs, logs, and going on after a break."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from tests.unit.client.fake_steps import LOST, World, reply

from muster.client import errors, following
from muster.client.exchange import Broken, Reply, Send
from muster.client.sse import EventReader


def event(name: str, data: Any, ident: str = "") -> bytes:
    head = f"id: {ident}\n" if ident else ""
    return f"{head}event: {name}\ndata: {json.dumps(data)}\n\n".encode()


def partial(index: int, value: Any, *, attempt: int = 1) -> bytes:
    data = {"id": f"{index}", "kind": "task.progress", "attempt": attempt}
    return event("task.progress", data | {"partial": value, "partial_index": index}, str(index))


RUNNING = event("task", {"id": "x", "state": "RUNNING"})
ENDED = event("task.changed", {"id": "9", "kind": "task.changed", "state": "SUCCEEDED"}, "9")


def following_world(
    streams: list[list[bytes | Broken | None]], result: Any, **ending: Any
) -> World:
    left = iter(streams)

    def answer(step: Send) -> Reply:
        if not step.stream:
            return reply({"id": "x", "state": "SUCCEEDED", "attempt": 1, "result": result} | ending)
        world.pieces = iter(next(left))
        return Reply(200, {})

    world = World([answer])
    return world


def streamed(world: World) -> list[tuple[int, Any]]:
    world.run(following.stream(world.settings(), "x", None))
    return [(p.index, p.value) for p in world.emitted]


def test_partial_outputs_come_as_they_are_sent_and_the_rest_from_the_result() -> None:
    world = following_world([[RUNNING, partial(0, "a"), partial(1, "b"), ENDED]], ["a", "b", "c"])
    assert streamed(world) == [(0, "a"), (1, "b"), (2, "c")]
    assert world.sent[0].request.params == {"from_start": "1"}


def test_a_result_of_another_kind_adds_nothing() -> None:
    world = following_world([[partial(0, "a"), ENDED]], {"text": "ab"})
    assert streamed(world) == [(0, "a")]
    world = following_world([[partial(0, "a"), ENDED]], ["other", "list"])
    assert streamed(world) == [(0, "a")]
    world = following_world([[ENDED]], ["too", "quick"])
    assert streamed(world) == [(0, "too"), (1, "quick")]


def test_a_stream_goes_on_after_its_last_event_and_says_nothing_twice() -> None:
    world = following_world(
        [
            [partial(0, "a"), partial(1, "b"), LOST],
            [partial(1, "b"), partial(2, "c"), event("gap", {"why": "storage"}), None],
            [ENDED],
        ],
        ["a", "b", "c"],
    )
    assert streamed(world) == [(0, "a"), (1, "b"), (2, "c")]
    resumed = [s.request.headers.get("Last-Event-ID") for s in world.sent if s.stream]
    assert resumed == [None, "1", "2"]


def test_another_attempt_begins_again() -> None:
    world = following_world(
        [[partial(0, "a"), partial(0, "x", attempt=2), partial(1, "y", attempt=2), ENDED]],
        ["x", "y"],
        attempt=2,
    )
    assert streamed(world) == [(0, "a"), (0, "x"), (1, "y")]


def test_a_task_that_fails_is_raised_after_what_it_said() -> None:
    ended = event("task", {"id": "x", "state": "FAILED"})
    world = following_world(
        [[partial(0, "a"), ended]], None, state="FAILED", error={"kind": "k", "message": "broke"}
    )
    with pytest.raises(errors.TaskFailed, match="broke"):
        streamed(world)
    assert len(world.emitted) == 1


def test_breaks_without_an_event_between_them_end_it() -> None:
    world = following_world([[LOST]] * 100, None)
    with pytest.raises(errors.Unreachable, match="hung up"):
        streamed(world)
    assert len(world.sent) == 21


def test_a_deadline_ends_it_though_the_stream_is_alive() -> None:
    world = following_world([], None)

    def beats() -> Iterator[bytes]:
        while True:
            world.now_s += 15.0
            yield b": still here\n\n"

    world.answers = [lambda _: Reply(200, {})]
    world.pieces = beats()
    with pytest.raises(errors.DeadlinePassed, match="following task x"):
        world.run(following.stream(world.settings(), "x", 60.0))
    assert world.now_s <= 1_075.0


def test_log_lines_come_once_though_the_stream_begins_again() -> None:
    def line(index: int) -> bytes:
        data = {"attempt": 1, "index": index, "stream": "stdout", "text": f"line {index}"}
        return event("line", data, f"1-{index}")

    world = following_world(
        [[line(0), line(1), LOST], [line(0), line(1), line(2), event("end", {})]], 0
    )
    world.run(following.follow_logs(world.settings(), "x", 0, None))
    assert [found.text for found in world.emitted] == ["line 0", "line 1", "line 2"]


def test_events_are_read_from_pieces_cut_anywhere() -> None:
    text = b": hello\r\nretry: 5\n\nid: 7\nevent: a\ndata: x\ndata: y\r\n\ndata: z\n\nevent: cut"
    reader = EventReader()
    found = [e for n in range(len(text)) for e in reader.feed(text[n : n + 1])]
    assert [(e.name, e.data, e.id) for e in found] == [("a", b"x\ny", "7"), ("message", b"z", "7")]
