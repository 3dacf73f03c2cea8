"""Where detectors leave their findings."""

from __future__ import annotations

from dataclasses import replace

from muster_monitor.alerting.alerts import MAX_LABEL_CHARS, MAX_LABELS
from muster_monitor.alerting.inbox import MAX_CONDITIONS, MAX_WAITING, FindingInbox
from muster_monitor.findings import Finding, Severity


def finding(agent: str = "a", active: bool = True, summary: str = "hot") -> Finding:
    return Finding("cpu_high", {"agent": agent}, Severity.WARNING, active, summary, 1_000)


def test_a_condition_is_given_once_and_then_by_its_newest_text() -> None:
    inbox = FindingInbox()
    inbox.post([finding(), finding(summary="hotter"), finding(summary="hottest")])
    assert [f.summary for _, f in inbox.take()] == ["hot", "hottest"]
    assert not inbox.take()
    assert len(inbox.standing) == 1


def test_a_condition_that_came_and_went_between_two_looks_is_seen() -> None:
    inbox = FindingInbox()
    inbox.post([finding(), finding(active=False), finding()])
    assert [f.active for _, f in inbox.take()] == [True, False, True]


def test_labels_in_another_order_are_the_same_condition() -> None:
    inbox = FindingInbox()
    one = replace(finding(), labels={"agent": "a", "zone": "z"})
    inbox.post([one, replace(one, labels={"zone": "z", "agent": "a"})])
    assert len(inbox.standing) == 1


def test_conditions_are_bounded_and_their_ends_are_not_lost() -> None:
    inbox = FindingInbox()
    inbox.post(finding(str(n)) for n in range(MAX_CONDITIONS + 5))
    assert (len(inbox.standing), inbox.dropped) == (MAX_CONDITIONS, 5)
    while len(inbox._waiting) < MAX_WAITING:
        inbox.post([finding("unknown", active=False)])
    inbox.post([finding("unknown", active=False)])
    assert inbox.dropped == 6
    inbox.post([finding("0", active=False)])
    assert inbox.take()[-1][1].labels == {"agent": "0"}


def test_labels_beyond_the_bounds_are_dropped_and_counted() -> None:
    inbox = FindingInbox()
    inbox.post([replace(finding(), labels={"agent": "x" * (MAX_LABEL_CHARS + 1)})])
    inbox.post([replace(finding(), labels={str(n): "" for n in range(MAX_LABELS + 1)})])
    assert inbox.dropped == 2
    assert not inbox.standing


def test_a_condition_that_ended_is_not_given_again_by_its_last_text() -> None:
    inbox = FindingInbox()
    inbox.post([finding()])
    inbox.take()
    inbox.post([finding(summary="hotter"), finding(active=False)])
    assert [f.active for _, f in inbox.take()] == [False]
