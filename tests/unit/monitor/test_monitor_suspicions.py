"""What watchers are told."""

from __future__ import annotations

from muster.domain.ids import AgentId
from muster_monitor import suspicions
from muster_monitor.failure_detector import Verdict
from muster_monitor.suspicions import SuspicionBoard


def verdict(agent: str, suspected: bool, phi: float = 9.0) -> Verdict:
    return Verdict(AgentId(agent), 1, suspected, phi, "why")


def test_a_snapshot_holds_the_present_suspicions_only() -> None:
    board = SuspicionBoard()
    board.post(verdict("a", True), 10)
    board.post(verdict("b", True), 20)
    board.post(verdict("a", False), 30)
    bulletin = board.snapshot()
    assert bulletin.snapshot
    assert [posted.verdict.agent for posted in bulletin.posted] == ["b"]
    assert bulletin.position == board.position == 3


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
