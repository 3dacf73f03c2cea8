"""What watchers are told."""

from __future__ import annotations

from muster.domain.ids import AgentId
from muster_monitor import suspicions
from muster_monitor.failure_detector import Verdict
from muster_monitor.suspicions import SuspicionBoard


def verdict(agent: str, suspected: bool, phi: float = 9.0) -> Verdict:
    return Verdict(AgentId(agent), 1, suspected, phi, "why")


def test_a_snapshot_holds_the_last_word_on_everybody_who_reports_here() -> None:
    board = SuspicionBoard()
    board.post(verdict("a", True), 10)
    board.post(verdict("b", True), 20)
    board.post(verdict("a", False), 30)
    board.post(verdict("c", True), 40)
    board.post(verdict("c", False), 50, heard=False)
    bulletin = board.snapshot()
    assert bulletin.snapshot
    told = {posted.verdict.agent: posted.verdict.suspected for posted in bulletin.posted}
    assert told == {"a": False, "b": True}
    assert bulletin.position == board.position == 5


def test_who_begins_to_report_is_told_once_and_forgives_no_suspicion() -> None:
    board = SuspicionBoard()
    assert board.hears(AgentId("a"), 1, 10)
    assert not board.hears(AgentId("a"), 1, 20)
    assert board.hears(AgentId("a"), 2, 30)
    board.post(verdict("a", True), 40)
    # Its detector wants to hear more than one beat before it trusts it again.
    assert not board.hears(AgentId("a"), 3, 50)
    assert [p.verdict.suspected for p in board.snapshot().posted] == [True]
    board.post(verdict("a", False), 60, heard=False)
    assert board.hears(AgentId("a"), 3, 70)


def test_changes_are_coalesced_to_the_newest_of_each_agent() -> None:
    board = SuspicionBoard()
    board.post(verdict("a", True), 10)
    start = board.position
    board.post(verdict("b", True), 20)
    board.post(verdict("a", False), 30)
    board.post(verdict("b", False), 40)
    bulletin = board.since(start)
    assert not bulletin.snapshot
    told = {posted.verdict.agent: posted.verdict.suspected for posted in bulletin.posted}
    assert told == {"a": False, "b": False}
    assert board.since(bulletin.position).posted == ()


def test_who_is_too_far_behind_gets_a_snapshot() -> None:
    board = SuspicionBoard()
    for number in range(suspicions._HISTORY + 1):
        board.post(verdict(f"a{number % 3}", True), number)
    assert board.since(0).snapshot
    assert not board.since(1).snapshot
    assert board.since(board.position + 1).snapshot
