"""A watch's cursor over answers of a model etcd, and the liveness of a stream."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muster.etcd.keyvalue import KeyValue, version_of
from muster.etcd.watch_core import (
    EventKind,
    Liveness,
    Step,
    WatchAnswer,
    WatchBatch,
    WatchCursor,
    WatchEndedError,
    WatchEvent,
    WatchKind,
)


def put(key: str, revision: int, value: bytes = b"v", created: int = 0) -> WatchEvent:
    return WatchEvent(EventKind.PUT, KeyValue(key, value, revision, created or revision, 0))


def delete(key: str, revision: int) -> WatchEvent:
    return WatchEvent(EventKind.DELETE, KeyValue(key, b"", revision, 0, 0))


def answer(*events: WatchEvent, revision: int, watch_id: int = 0) -> WatchAnswer:
    return WatchAnswer(watch_id=watch_id, revision=revision, events=events)


def cursor_at(revision: int, *kvs: KeyValue) -> WatchCursor:
    cursor = WatchCursor()
    cursor.snapshot(kvs, revision)
    return cursor


def test_a_snapshot_shows_all_keys_as_puts() -> None:
    kvs = [put("a", 3).kv, put("b", 2).kv]
    batch = WatchCursor().snapshot(kvs, 7)
    assert batch == WatchBatch(WatchKind.SNAPSHOT, 7, (put("a", 3), put("b", 2)))


def test_resumes_after_the_last_event_although_the_header_runs_ahead() -> None:
    cursor = cursor_at(1)
    batch = cursor.take(answer(put("a", 2), put("b", 1001), revision=3001))
    assert batch == WatchBatch(WatchKind.CHANGES, 1001, (put("a", 2), put("b", 1001)))
    assert cursor.revision == 1001


def test_progress_of_this_watch_moves_on_but_nothing_else_does() -> None:
    cursor = cursor_at(5)
    created = WatchAnswer(watch_id=0, revision=20, created=True)
    assert cursor.take(created) is None
    assert cursor.revision == 5
    assert cursor.take(answer(revision=30, watch_id=-1)) is None
    assert cursor.revision == 5
    assert cursor.take(answer(revision=40)) is None
    assert cursor.revision == 40
    assert cursor.take(answer(revision=35)) is None
    assert cursor.revision == 40


def test_events_that_were_delivered_are_not_delivered_again() -> None:
    cursor = cursor_at(5)
    assert cursor.take(answer(put("a", 4), put("a", 5), revision=5)) is None
    batch = cursor.take(answer(put("a", 5), put("a", 6), revision=6))
    assert batch is not None
    assert batch.events == (put("a", 6),)
    assert cursor.take(answer(put("a", 4), revision=90)) is None
    assert cursor.revision == 6


@pytest.mark.parametrize(
    ("ended", "why"),
    [
        (WatchAnswer(0, 9, canceled=True, compact_revision=8), "before 8 are compacted"),
        (WatchAnswer(0, 9, canceled=True, created=True, cancel_reason="denied"), "denied"),
        (WatchAnswer(0, 9, canceled=True), "no reason given"),
    ],
)
def test_a_cancelled_watch_says_why(ended: WatchAnswer, why: str) -> None:
    with pytest.raises(WatchEndedError, match=why):
        cursor_at(5).take(ended)


def test_knows_its_own_past_again() -> None:
    cursor = cursor_at(5, put("a", 3).kv, put("b", 4).kv)
    cursor.take(answer(put("a", 6, created=3), delete("b", 7), put("c", 8), revision=8))
    past = {"a": version_of(put("a", 6, created=3).kv), "c": version_of(put("c", 8).kv)}
    assert cursor.continues(past)
    assert not cursor.continues(None)
    assert not cursor.continues({})
    assert not cursor.continues({**past, "b": past["a"]})
    assert not cursor.continues({**past, "c": replace(past["c"], mod_revision=7)})
    assert not cursor.continues({**past, "c": replace(past["c"], lease_id=1)})


# One operation per revision; what a real etcd would send for any cut of its history.
operations = st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), min_size=1, max_size=30)


@given(history=operations, cuts=st.lists(st.integers(0, 40), max_size=5), data=st.data())
def test_however_the_stream_is_cut_every_event_comes_once_and_in_order(
    history: list[tuple[str, bool]], cuts: list[int], data: st.DataObject
) -> None:
    events = [
        put(key, revision) if is_put else delete(key, revision)
        for revision, (key, is_put) in enumerate(history, start=2)
    ]
    last = events[-1].kv.mod_revision
    cursor, seen = cursor_at(1), list[WatchEvent]()
    for cut in [*cuts, last]:
        pending = [e for e in events if cursor.revision < e.kv.mod_revision <= cut]
        while pending:
            size = data.draw(st.integers(1, len(pending)))
            batch = cursor.take(answer(*pending[:size], revision=last))
            pending = pending[size:]
            assert batch is not None
            seen.extend(batch.events)
            cut_short: bool = data.draw(st.booleans())
            if cut_short:
                break
    assert seen == events[: len(seen)]
    batch = cursor.take(answer(*events, revision=last))
    seen.extend(batch.events if batch else ())
    assert seen == events
    view: dict[str, WatchEvent] = {}
    for event in events:
        if event.kind is EventKind.PUT:
            view[event.kv.key] = event
        else:
            view.pop(event.kv.key, None)
    assert cursor.continues({key: version_of(e.kv) for key, e in view.items()})


def test_a_silent_stream_is_asked_and_then_given_up() -> None:
    liveness = Liveness(idle_s=2.0, answer_within_s=3.0, now_s=100.0)
    assert liveness.next_step(101.0) == (Step.WAIT, 2.0)
    assert liveness.next_step(103.0) == (Step.DEAD, 0.0)
    liveness.heard(102.0)
    assert liveness.next_step(103.5) == (Step.WAIT, 0.5)
    assert liveness.next_step(104.0) == (Step.PROBE, 0.0)
    liveness.asked(104.0)
    assert liveness.next_step(106.0) == (Step.WAIT, 1.0)
    assert liveness.next_step(107.0) == (Step.DEAD, 0.0)
    liveness.heard(106.5)
    assert liveness.next_step(107.0) == (Step.WAIT, 1.5)
