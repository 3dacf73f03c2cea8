"""The monitor's own lateness: nobody is suspected for what the monitor has missed."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from muster.domain.ids import AgentId
from muster_monitor.failure_detector import FailureTable
from muster_monitor.self_trust import (
    LATE_MS,
    MAX_DISTRUST_MS,
    MAX_STALLS,
    MEMORY_MS,
    STALLED_MS,
    SelfTrust,
)

A = AgentId("a")


def test_a_monitor_in_time_trusts_itself() -> None:
    trust = SelfTrust()
    for tick in range(100):
        trust.came_round(tick * 100, tick * 100 + LATE_MS)
    assert trust.may_suspect
    assert trust.distrust_ms == 0
    assert trust.judge("m", 1) is None


def test_a_stall_forbids_and_its_memory_fades() -> None:
    trust = SelfTrust()
    trust.came_round(1_000, 1_000 + STALLED_MS + 1)
    assert not trust.may_suspect
    assert trust.distrust_ms == STALLED_MS + 1
    trust.came_round(1_500, 1_500)
    assert trust.may_suspect
    assert trust.distrust_ms == STALLED_MS + 1
    trust.came_round(1_302 + MEMORY_MS, 1_302 + MEMORY_MS)
    assert trust.distrust_ms == 0


def test_one_that_always_stalls_judges_in_the_end() -> None:
    trust = SelfTrust()
    seen = []
    for tick in range(MAX_STALLS + 5):
        trust.came_round(tick * 1_000, tick * 1_000 + 500)
        seen.append(trust.may_suspect)
    assert seen == [False] * MAX_STALLS + [True] * 5


def test_lagging_is_told_and_taken_back() -> None:
    trust = SelfTrust()
    now_ms, said = 0, []
    for late_ms in [*[0] * 20, *[200] * 40, *[0] * 200]:
        now_ms += 100 + late_ms
        trust.came_round(now_ms - late_ms, now_ms)
        if (found := trust.judge("host:1", now_ms)) is not None:
            said.append(found)
    assert [f.active for f in said] == [True, False]
    assert said[0].labels == {"service": "monitor", "instance": "host:1"}
    assert 0.25 < said[0].value <= 1


@settings(max_examples=100)
@given(st.lists(st.integers(-1_000, 60_000), max_size=100))
def test_distrust_is_bounded_whatever_the_loop_does(lates: list[int]) -> None:
    trust = SelfTrust()
    now_ms = 0
    for late_ms in lates:
        now_ms += 100 + max(0, late_ms)
        trust.came_round(now_ms - late_ms, now_ms)
        assert 0 <= trust.distrust_ms <= MAX_DISTRUST_MS
        found = trust.judge("m", now_ms)
        assert found is None or 0 <= found.value <= 1


def heard_until(now_ms: int) -> FailureTable:
    table = FailureTable()
    for at_ms in range(0, now_ms + 1, 100):
        if at_ms % 1000 == 0:
            table.observe(A, 1, at_ms)
        assert table.verdicts(at_ms) == []
    return table


def suspected_after(distrust_ms: int, *, may_suspect: bool = True) -> int | None:
    table = heard_until(60_000)
    for at_ms in range(60_100, 80_000, 100):
        if table.verdicts(at_ms, distrust_ms, may_suspect):
            return at_ms - 60_000
    return None


def test_distrust_lengthens_the_silence_that_it_takes() -> None:
    usual_ms = suspected_after(0)
    assert usual_ms is not None
    assert usual_ms < 3_500
    assert suspected_after(700) == usual_ms + 700
    assert suspected_after(0, may_suspect=False) is None


def test_a_suspicion_that_stands_is_lifted_also_in_doubt() -> None:
    table = heard_until(10_000)
    for at_ms in range(10_100, 14_100, 100):
        table.verdicts(at_ms)
    assert table.is_suspected(A)
    lifted = []
    for at_ms in range(14_100, 20_000, 100):
        if at_ms % 500 == 0:
            table.observe(A, 1, at_ms)
        lifted += table.verdicts(at_ms, 5_000, may_suspect=False)
    assert [verdict.suspected for verdict in lifted] == [False]
