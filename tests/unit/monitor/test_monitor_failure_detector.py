"""Phi accrual: when silence becomes suspicion, and when it must not."""

from __future__ import annotations

import math
import random
from statistics import NormalDist, median

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muster.domain.ids import AgentId
from muster_monitor.failure_detector import (
    DetectorSettings,
    FailureTable,
    ObserverSettings,
    PhiDetector,
    Verdict,
    tail_phi,
)

A, B = AgentId("a"), AgentId("b")
TICK_MS = 100


class World:
    """A table that is ticked as its process would tick it, over virtual time."""

    def __init__(self) -> None:
        self.table = FailureTable()
        self.now_ms = 1_000_000
        self.heard: list[tuple[int, Verdict]] = []

    def run(self, duration_ms: int, beats: dict[int, list[AgentId]] | None = None) -> None:
        """Advances by `duration_ms`; `beats` gives agents by milliseconds from now."""
        beats = beats or {}
        start = self.now_ms
        moments = sorted({*range(0, duration_ms + 1, TICK_MS), *beats})
        for offset in moments:
            self.now_ms = start + offset
            for agent in beats.get(offset, ()):
                self.table.observe(agent, 1, self.now_ms)
            if offset % TICK_MS == 0:
                self.look()
        self.now_ms = start + duration_ms

    def look(self) -> None:
        self.heard += [(self.now_ms, verdict) for verdict in self.table.verdicts(self.now_ms)]

    def beat_for(self, seconds: int, *agents: AgentId) -> None:
        self.run(seconds * 1000, {s * 1000: list(agents) for s in range(seconds + 1)})


def test_phi_is_the_tail_of_the_normal_distribution() -> None:
    normal = NormalDist()
    for deviations in (-3.0, 0.0, 0.5, 1.0, 3.0, 5.6, 7.0):
        expected = -math.log10(normal.cdf(-deviations))
        assert tail_phi(deviations) == pytest.approx(expected, rel=1e-6)


def test_phi_has_no_step_where_the_series_takes_over() -> None:
    edge = 20.0 * math.sqrt(2.0)
    assert tail_phi(edge + 1e-9) == pytest.approx(tail_phi(edge - 1e-9), rel=1e-9)


@given(st.floats(-1e6, 1e9), st.floats(0, 1e6))
def test_phi_is_finite_and_never_falls(deviations: float, more: float) -> None:
    low, high = tail_phi(deviations), tail_phi(deviations + more)
    assert 0.0 <= low <= high < math.inf


@given(
    gaps=st.lists(st.integers(1, 20_000), max_size=60),
    silences=st.lists(st.integers(0, 10_000_000), min_size=2, max_size=10),
)
def test_phi_grows_with_silence_whatever_was_learnt(gaps: list[int], silences: list[int]) -> None:
    now = 0
    detector = PhiDetector(DetectorSettings(), now)
    for gap in gaps:
        now += gap
        detector.beat(now)
    phis = [detector.phi(now + silence) for silence in sorted(silences)]
    assert phis == sorted(phis)
    assert detector.phi(now) < 1.0


@settings(max_examples=50)
@given(st.lists(st.integers(500, 3000), min_size=1, max_size=80), st.integers(10, 20))
def test_running_sums_equal_the_window(gaps: list[int], window: int) -> None:
    # A threshold beyond reach, so that every gap is learnt.
    detector = PhiDetector(DetectorSettings(window=window, threshold=1e9), 0)
    now = 0
    for gap in gaps:
        now += gap
        detector.beat(now)
    kept = [750, 1250, *gaps][-window:]
    mean = sum(kept) / len(kept)
    deviation = math.sqrt(sum((gap - mean) ** 2 for gap in kept) / len(kept))
    assert detector.mean_ms() == pytest.approx(max(1000.0, mean))
    assert detector.deviation_ms() == pytest.approx(max(100.0, deviation), rel=1e-6)


def test_a_killed_agent_is_suspected_after_two_and_a_half_seconds_at_the_median() -> None:
    chance = random.Random(7)
    delays = []
    for _ in range(41):
        world = World()
        killed_ms = 60_000 + chance.randrange(1000)
        beats = {t: [A] for t in (s * 1000 + chance.randrange(-40, 41) for s in range(1, 60))}
        beats[60_000] = [A]
        start = world.now_ms
        world.run(killed_ms + 5_000, beats)
        (at_ms, verdict), *rest = world.heard
        assert verdict.suspected
        assert not rest
        delays.append(at_ms - start - killed_ms)
    assert 2_300 <= median(delays) <= 2_800
    assert max(delays) <= 3_300


def test_jittered_beats_raise_no_suspicion() -> None:
    chance = random.Random(3)
    world = World()
    beats = {}
    for second in range(1, 600):
        # A second and a half late now and then: a busy machine, a garbage collection.
        late = chance.randrange(1500) if chance.random() < 0.05 else chance.randrange(200)
        beats[second * 1000 + late] = [A]
    world.run(600_000, beats)
    assert world.heard == []


def test_an_agent_heard_once_is_given_longer() -> None:
    world = World()
    world.run(3_500, {0: [A]})
    assert world.heard == []
    world.run(1_000)
    assert [verdict.suspected for _, verdict in world.heard] == [True]


def test_a_suspicion_is_lifted_after_two_beats_and_not_by_a_burst() -> None:
    world = World()
    world.beat_for(30, A)
    world.run(5_000)
    assert [verdict.suspected for _, verdict in world.heard] == [True]
    # What queued up arrives within a millisecond: that is one sign of life.
    world.run(400, {0: [A], 1: [A], 2: [A]})
    assert world.table.is_suspected(A)
    world.run(1_000, {600: [A]})
    assert not world.table.is_suspected(A)
    assert [verdict.suspected for _, verdict in world.heard] == [True, False]


def test_an_outage_is_not_learnt_as_the_pace() -> None:
    world = World()
    world.beat_for(30, A)
    world.run(60_000)
    world.beat_for(10, A)
    world.run(4_000)
    assert [verdict.suspected for _, verdict in world.heard] == [True, False, True]


def test_reports_with_log_lines_in_between_do_not_blur_the_pace() -> None:
    world = World()
    beats: dict[int, list[AgentId]] = {}
    for second in range(60):
        for between in (0, 10, 20, 30, 200):
            beats[second * 1000 + between] = [A]
    world.run(60_000, beats)
    # 3.3 s after the last report of all.
    world.run(2_500)
    assert [verdict.suspected for _, verdict in world.heard] == [True]


def test_a_stall_of_the_monitor_suspects_nobody() -> None:
    world = World()
    world.beat_for(30, A, B)
    # The process was stopped for 15 s; then a tick comes before any beat that queued up.
    world.now_ms += 15_000
    world.look()
    world.run(500)
    world.beat_for(10, A, B)
    assert world.heard == []
    assert 14_500 <= world.table.total_lag_ms <= 15_000


def test_a_stall_that_ends_with_a_beat_does_not_hide_a_later_death() -> None:
    world = World()
    world.beat_for(30, A, B)
    world.now_ms += 15_000
    for agent in (A, B):
        world.table.observe(agent, 1, world.now_ms)
    world.run(8_000, {s * 1000: [B] for s in range(9)})
    assert [(v.agent, v.suspected) for _, v in world.heard] == [(A, True)]


def test_who_died_during_a_stall_is_suspected_after_it() -> None:
    world = World()
    world.beat_for(30, A, B)
    world.now_ms += 15_000
    world.look()
    world.run(8_000, {s * 1000: [B] for s in range(9)})
    assert [(v.agent, v.suspected) for _, v in world.heard] == [(A, True)]


def test_leaving_agents_are_forgotten() -> None:
    world = World()
    world.beat_for(10, A, B)
    assert world.table.leave(A, 1)
    world.run(10_000, {s * 1000: [B] for s in range(11)})
    assert world.heard == []
    assert world.table.agents() == [B]


def test_a_suspected_agent_that_leaves_is_cleared() -> None:
    world = World()
    world.beat_for(10, A)
    world.run(5_000)
    assert world.table.leave(A, 1)
    world.look()
    assert [verdict.suspected for _, verdict in world.heard] == [True, False]


def test_an_older_incarnation_counts_for_nothing() -> None:
    table = FailureTable()
    assert table.observe(A, 2, 0)
    assert not table.observe(A, 1, 100)
    assert not table.leave(A, 1)
    assert table.incarnation(A) == 2


def test_a_new_incarnation_clears_the_suspicion_of_the_old_one() -> None:
    world = World()
    world.beat_for(10, A)
    world.run(5_000)
    world.table.observe(A, 2, world.now_ms)
    world.look()
    assert [(v.incarnation, v.suspected) for _, v in world.heard] == [(1, True), (2, False)]
    assert world.table.suspicions(world.now_ms) == []


def test_silent_agents_are_forgotten_sooner_when_unregistered() -> None:
    world = World()
    world.beat_for(5, A, B)
    world.table.set_registered(A, False)
    world.run(70_000)
    assert world.table.agents() == [B]
    assert [(v.agent, v.suspected) for _, v in world.heard][-1] == (A, False)
    assert [verdict.agent for verdict in world.table.suspicions(world.now_ms)] == [B]


def test_the_table_is_bounded() -> None:
    table = FailureTable(observer=ObserverSettings(max_agents=1))
    assert table.observe(A, 1, 0)
    assert not table.observe(B, 1, 0)
    assert table.unwatched_beats == 1
    assert table.phi(B, 0) is None
