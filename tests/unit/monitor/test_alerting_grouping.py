"""What receivers are owed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muster_monitor.alerting.alerts import Alert, AlertState, fingerprint_of
from muster_monitor.alerting.grouping import (
    EACH,
    FIRING,
    MAX_PART,
    RESOLVED,
    GroupLedger,
    Notification,
    ReceiverLedger,
    Rhythm,
)
from muster_monitor.alerting.matching import parse_matcher
from muster_monitor.findings import Severity

T0 = 1_000_000
MINUTE = 60_000


def alert(agent: str, rule: str = "cpu_high", state: AlertState = AlertState.FIRING) -> Alert:
    labels = {"agent": agent}
    return Alert(
        fingerprint=fingerprint_of(rule, labels),
        rule=rule,
        labels=labels,
        severity=Severity.WARNING,
        summary="hot",
        value=1.0,
        for_s=0.0,
        tenant="default",
        state=state,
        started_at_ms=T0,
        fired_at_ms=T0,
        resolved_at_ms=T0 if state is AlertState.RESOLVED else 0,
    )


class Told:
    """A receiver that takes everything, at a time of its own."""

    def __init__(self, rhythm: Rhythm | None = None) -> None:
        self.rhythm = rhythm or Rhythm()
        self.ledger = ReceiverLedger("r")
        self.muted: Callable[[Alert], bool] = lambda _: False

    def due(self, alerts: Sequence[Alert], at_ms: int) -> list[Notification]:
        return self.ledger.due(alerts, self.rhythm, self.muted, at_ms)

    def take(self, alerts: Sequence[Alert], at_ms: int) -> list[tuple[list[str], list[str]]]:
        """Agents firing and resolved of each message, which is delivered."""
        got = []
        for message in self.due(alerts, at_ms):
            self.ledger.tried(message, at_ms)
            self.ledger.delivered(message, at_ms)
            got.append(
                (
                    sorted(a.labels["agent"] for a in message.firing),
                    sorted(a.labels["agent"] for a in message.resolved),
                )
            )
        return got


def test_a_group_waits_for_company_then_for_its_interval_then_repeats() -> None:
    told, alerts = Told(), [alert("a")]
    assert told.take(alerts, T0) == []
    alerts.append(alert("b"))
    assert told.take(alerts, T0 + 9_999) == []
    assert told.take(alerts, T0 + 10_000) == [(["a", "b"], [])]
    alerts.append(alert("c"))
    assert told.take(alerts, T0 + 10_000 + MINUTE - 1) == []
    assert told.take(alerts, T0 + 10_000 + MINUTE) == [(["a", "b", "c"], [])]
    assert told.take(alerts, T0 + 60 * MINUTE) == []
    assert told.take(alerts, T0 + 10_000 + 241 * MINUTE) == [(["a", "b", "c"], [])]


def test_the_end_is_told_once_and_only_of_what_was_told() -> None:
    told, alerts = Told(), [alert("a")]
    told.take(alerts, T0)
    told.take(alerts, T0 + 10_000)
    alerts = [
        alert("a", state=AlertState.RESOLVED),
        alert("never", state=AlertState.RESOLVED),
    ]
    assert told.ledger.owed(alerts) == {alerts[0].fingerprint}
    assert told.take(alerts, T0 + 2 * MINUTE) == [([], ["a"])]
    assert told.ledger.owed(alerts) == set()
    assert told.take(alerts, T0 + 900 * MINUTE) == []
    assert told.take([], T0 + 900 * MINUTE) == []
    assert not told.ledger.groups


def test_an_alert_that_ended_while_the_receiver_failed_is_told_as_ended() -> None:
    told, alerts = Told(), [alert("a")]
    told.due(alerts, T0)
    (message,) = told.due(alerts, T0 + 10_000)
    told.ledger.tried(message, T0 + 10_000)
    ended = [alert("a", state=AlertState.RESOLVED)]
    assert told.ledger.owed(ended)
    (again,) = told.due(ended, T0 + 3_600_000)
    assert [a.labels["agent"] for a in again.resolved] == ["a"]
    assert again.key == message.key


def test_groups_are_by_labels_and_each_failing_one_lets_others_go_first() -> None:
    told = Told(Rhythm(group_by=("agent",), wait_ms=0))
    alerts = [alert("a"), alert("b"), alert("b", "memory_high")]
    first, second = told.due(alerts, T0)
    assert {len(first.firing), len(second.firing)} == {1, 2}
    told.ledger.tried(first, T0 + 5)
    assert [m.group for m in told.due(alerts, T0 + 10)] == [second.group, first.group]
    assert len(Told(Rhythm(group_by=(), wait_ms=0)).due(alerts, T0)) == 1
    assert len(Told(Rhythm(group_by=(EACH,), wait_ms=0)).due(alerts, T0)) == 3


def test_a_silenced_alert_is_not_told_but_its_end_is() -> None:
    told, alerts = Told(Rhythm(wait_ms=0)), [alert("a"), alert("b")]
    assert told.take(alerts, T0) == [(["a", "b"], [])]
    told.muted = lambda a: a.labels["agent"] == "a"
    alerts = [alert("a"), alert("b"), alert("c")]
    assert told.take(alerts, T0 + MINUTE) == [(["b", "c"], [])]
    alerts[0] = alert("a", state=AlertState.RESOLVED)
    assert told.take(alerts, T0 + 2 * MINUTE) == [(["b", "c"], ["a"])]
    quiet = Told(Rhythm(wait_ms=0))
    quiet.muted = lambda _: True
    assert quiet.take(alerts, T0) == []


def test_a_receiver_is_told_of_what_it_asks_for() -> None:
    wanted = parse_matcher("rule=~memory_.*", "match")
    told = Told(Rhythm(wait_ms=0, match=(wanted,)))
    assert told.take([alert("a"), alert("b", "memory_high")], T0) == [(["b"], [])]


def test_pending_alerts_are_nobodys_business() -> None:
    assert Told(Rhythm(wait_ms=0)).take([alert("a", state=AlertState.PENDING)], T0) == []


def test_a_receiver_that_keeps_alerts_gets_each_again_in_time_whatever_else_changes() -> None:
    told = Told(Rhythm(group_by=(), repeat_ms=MINUTE, parts=True))
    alerts = [alert(f"a{n:03}") for n in range(MAX_PART + 5)]
    sizes = [len(firing) for firing, _ in told.take(alerts, T0)]
    assert sizes == [MAX_PART, 5]
    assert told.take(alerts, T0 + 1) == []
    alerts.append(alert("new"))
    assert told.take(alerts, T0 + MINUTE - 1) == [(["new"], [])]
    sizes = [len(firing) for firing, _ in told.take(alerts, T0 + MINUTE)]
    assert sum(sizes) == MAX_PART + 5
    alerts[0] = alert("a000", state=AlertState.RESOLVED)
    assert told.take(alerts, T0 + MINUTE + 1) == [([], ["a000"])]


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["fire", "resolve", "forget", "ok", "fail", "mute", "restart"]),
        st.sampled_from("abc"),
        st.integers(0, 120_000),
    ),
    max_size=50,
)


@pytest.mark.parametrize("parts", [False, True])
@given(steps=STEPS)
def test_whatever_fails_the_last_state_arrives(
    parts: bool, steps: list[tuple[str, str, int]]
) -> None:
    """`knows` is what the receiver heard last, also where its answer was lost."""
    told = Told(Rhythm(group_by=() if parts else ("rule",), parts=parts))
    alerts: dict[str, Alert] = {}
    knows: dict[str, str] = {}
    hidden: set[str] = set()
    told.muted = lambda a: a.labels["agent"] in hidden
    now_ms = T0

    def send(ok: bool) -> None:
        for message in told.due(list(alerts.values()), now_ms):
            told.ledger.tried(message, now_ms)
            for each in message.firing:
                assert each.labels["agent"] not in hidden
                knows[each.fingerprint] = FIRING
            for each in message.resolved:
                knows[each.fingerprint] = RESOLVED
            if ok:
                told.ledger.delivered(message, now_ms)

    for step, name, pause_ms in steps:
        now_ms += pause_ms
        if step == "fire":
            alerts[name] = alert(name)
        elif step == "resolve" and name in alerts:
            alerts[name] = alert(name, state=AlertState.RESOLVED)
        elif step == "forget" and name in alerts:
            found = alerts[name]
            # As the book does.
            if found.state is AlertState.RESOLVED and not told.ledger.owed([found]):
                del alerts[name]
                knows.pop(found.fingerprint, None)
        elif step == "mute":
            hidden ^= {name}
        elif step == "restart":
            groups: dict[str, GroupLedger] = dict(told.ledger.groups)
            told.ledger = ReceiverLedger("r", groups)
        else:
            send(step == "ok")
    hidden.clear()
    for _ in range(3):
        now_ms += 6 * 3_600_000
        send(ok=True)
    for found in alerts.values():
        if found.state is AlertState.FIRING:
            assert knows[found.fingerprint] == FIRING
        else:
            assert knows.get(found.fingerprint, RESOLVED) == RESOLVED
