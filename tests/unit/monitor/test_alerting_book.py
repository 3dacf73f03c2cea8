"""The book of alerts."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muster_monitor.alerting import book as module
from muster_monitor.alerting.alerts import Alert, AlertState, fingerprint_of
from muster_monitor.alerting.book import (
    CONFIRM_MS,
    EVENTS,
    RESOLVED_KEPT_MS,
    UNDELIVERED_KEPT_MS,
    AlertBook,
)
from muster_monitor.findings import Finding, Severity

T0 = 1_000_000
HOT = Finding("cpu_high", {"agent": "a"}, Severity.WARNING, True, "hot", T0, for_s=30.0, value=0.97)
MARK = fingerprint_of(HOT.rule, HOT.labels)


def post(book: AlertBook, finding: Finding = HOT, at_ms: int = T0, holder: str = "m1") -> None:
    book.post(fingerprint_of(finding.rule, finding.labels), finding, holder, at_ms)


def stop(book: AlertBook, at_ms: int, holder: str = "m1") -> None:
    post(book, replace(HOT, active=False), at_ms, holder)


def state(book: AlertBook) -> AlertState | None:
    return book.alerts[MARK].state if MARK in book.alerts else None


def test_it_fires_when_it_has_held_for_long_enough_and_not_before() -> None:
    book = AlertBook()
    post(book)
    book.tick(T0 + 29_999, ())
    assert state(book) is AlertState.PENDING
    book.tick(T0 + 30_000, ())
    assert state(book) is AlertState.FIRING
    assert book.alerts[MARK].fired_at_ms == T0 + 30_000
    stop(book, T0 + 40_000)
    assert state(book) is AlertState.RESOLVED


def test_one_that_did_not_hold_is_forgotten_without_a_word() -> None:
    book = AlertBook()
    post(book)
    stop(book, T0 + 10_000)
    assert not book.alerts
    post(book, at_ms=T0 + 20_000)
    book.tick(T0 + 35_000, ())
    assert state(book) is AlertState.PENDING


def test_a_resolved_one_is_kept_longer_while_somebody_has_to_be_told() -> None:
    book = AlertBook()
    post(book, replace(HOT, for_s=0.0))
    stop(book, T0)
    book.tick(T0 + RESOLVED_KEPT_MS, {MARK})
    assert state(book) is AlertState.RESOLVED
    book.tick(T0 + RESOLVED_KEPT_MS, ())
    assert state(book) is None
    post(book, replace(HOT, for_s=0.0))
    stop(book, T0)
    book.tick(T0 + UNDELIVERED_KEPT_MS, {MARK})
    assert state(book) is None


def test_it_holds_while_one_of_two_monitors_says_so() -> None:
    book = AlertBook()
    post(book, replace(HOT, for_s=0.0))
    post(book, holder="m2")
    stop(book, T0, "m1")
    assert state(book) is AlertState.FIRING
    stop(book, T0, "m1")
    assert state(book) is AlertState.FIRING
    stop(book, T0, "m2")
    assert state(book) is AlertState.RESOLVED


def test_a_monitor_that_dies_leaves_its_alerts_to_whoever_watches_next() -> None:
    book = AlertBook()
    post(book, replace(HOT, for_s=0.0))
    fired_at_ms = book.alerts[MARK].fired_at_ms
    book.lose("m1", T0 + 1)
    book.tick(T0 + CONFIRM_MS, ())
    assert state(book) is AlertState.FIRING
    post(book, at_ms=T0 + CONFIRM_MS, holder="m2")
    book.tick(T0 + 10 * CONFIRM_MS, ())
    assert (state(book), book.alerts[MARK].fired_at_ms) == (AlertState.FIRING, fired_at_ms)
    book.lose("m2", T0)
    book.tick(T0 + CONFIRM_MS, ())
    assert state(book) is AlertState.RESOLVED


def test_what_was_pending_when_its_monitor_died_waits_anew() -> None:
    book = AlertBook()
    post(book)
    book.lose("m1", T0 + 1_000)
    book.tick(T0 + 31_000, ())
    assert state(book) is AlertState.PENDING
    post(book, at_ms=T0 + 32_000, holder="m2")
    assert state(book) is AlertState.PENDING
    book.tick(T0 + 62_000, ())
    assert state(book) is AlertState.FIRING


def test_after_a_restart_only_events_hold_without_being_said_again() -> None:
    book = AlertBook()
    post(book, replace(HOT, for_s=0.0))
    other = replace(HOT, rule="agent_down", for_s=0.0)
    post(book, other, holder=EVENTS)
    written = msgspec.json.encode(list(book.alerts.values()))
    again = AlertBook()
    again.load(msgspec.json.decode(written, type=list[Alert]), T0 + 5_000_000)
    again.tick(T0 + 5_000_001, ())
    assert {a.state for a in again.alerts.values()} == {AlertState.FIRING}
    again.tick(T0 + 5_000_000 + CONFIRM_MS, ())
    assert state(again) is AlertState.RESOLVED
    assert again.alerts[fingerprint_of(other.rule, other.labels)].state is AlertState.FIRING


def test_the_word_of_an_event_lapses() -> None:
    book = AlertBook()
    book.post(MARK, replace(HOT, for_s=0.0), EVENTS, T0, lapses_at_ms=T0 + 100)
    book.tick(T0 + 99, ())
    assert state(book) is AlertState.FIRING
    book.tick(T0 + 100, ())
    assert state(book) is AlertState.RESOLVED


def test_alerts_are_bounded_and_resolved_ones_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ALERTS", 2)
    book = AlertBook()
    for name in "abc":
        post(book, replace(HOT, labels={"agent": name}, for_s=0.0))
    assert (len(book.alerts), book.dropped) == (2, 1)
    stop(book, T0)
    post(book, replace(HOT, labels={"agent": "c"}, for_s=0.0))
    assert [a.labels["agent"] for a in book.alerts.values()] == ["b", "c"]


def test_a_new_text_is_no_new_state() -> None:
    book = AlertBook()
    post(book)
    book.changed.clear()
    book.touched.clear()
    post(book, replace(HOT, summary="hotter", value=float("nan")), T0 + 1)
    assert not book.changed
    assert book.touched == {MARK}
    assert (book.alerts[MARK].summary, book.alerts[MARK].value) == ("hotter", None)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["post", "stop", "lose", "tick", "reload"]),
        st.sampled_from(["m1", "m2", EVENTS]),
        st.integers(0, 90_000),
    ),
    max_size=40,
)


@given(STEPS)
def test_whatever_happens_an_alert_fires_only_after_its_time_and_what_changes_is_written(
    steps: list[tuple[str, str, int]],
) -> None:
    book, now_ms = AlertBook(), T0
    written: dict[str, bytes] = {}
    for step, holder, pause_ms in steps:
        now_ms += pause_ms
        if step == "post":
            post(book, at_ms=now_ms, holder=holder)
        elif step == "stop":
            stop(book, now_ms, holder)
        elif step == "lose":
            book.lose(holder, now_ms)
        elif step == "tick":
            book.tick(now_ms, ())
        else:
            alerts = [msgspec.json.decode(text, type=Alert) for text in written.values()]
            book.load(alerts, now_ms)
        for mark in book.changed | book.touched:
            if mark in book.alerts:
                written[mark] = msgspec.json.encode(book.alerts[mark])
            else:
                written.pop(mark, None)
        book.changed.clear()
        book.touched.clear()
        assert written.keys() == book.alerts.keys()
        for alert in book.alerts.values():
            if alert.state is AlertState.FIRING:
                assert alert.fired_at_ms - alert.started_at_ms >= 30_000
                assert alert.holders or alert.doubtful_at_ms
            if alert.state is AlertState.RESOLVED:
                assert alert.resolved_at_ms >= alert.fired_at_ms > 0
                assert not alert.holders
    for holder in ("m1", "m2", EVENTS):
        stop(book, now_ms, holder)
    book.tick(now_ms + CONFIRM_MS, ())
    assert state(book) in (None, AlertState.RESOLVED)
