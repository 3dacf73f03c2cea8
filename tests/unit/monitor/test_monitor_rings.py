"""Metric rings: what is kept, what is dropped, and that memory is bounded."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from muster.domain.ids import AgentId
from muster_monitor.rings import KEPT_S, MAX_METRICS, MetricRings

A = AgentId("a")
NOW = 1_700_000_000_000


def test_samples_come_back_oldest_first_and_since_a_time() -> None:
    rings = MetricRings()
    for second in range(5):
        at_ms = NOW + second * 1000
        rings.add(A, at_ms, {"cpu_ratio": second / 10}, at_ms)
    samples = rings.since(A, NOW + 2000)
    assert [(s.at_ms - NOW, s.values["cpu_ratio"]) for s in samples] == [
        (2000, 0.2),
        (3000, 0.3),
        (4000, 0.4),
    ]
    newest = rings.newest(A)
    assert newest is not None
    assert newest.at_ms == NOW + 4000


def test_fifteen_minutes_are_kept_and_no_more() -> None:
    rings = MetricRings()
    for second in range(KEPT_S + 100):
        at_ms = NOW + second * 1000
        rings.add(A, at_ms, {"x": float(second)}, at_ms)
    samples = rings.since(A, 0)
    assert len(samples) == KEPT_S
    assert [s.values["x"] for s in samples] == [float(x) for x in range(100, KEPT_S + 100)]


def test_a_metric_that_stops_or_begins_is_absent_elsewhere() -> None:
    rings = MetricRings()
    rings.add(A, NOW, {"x": 1.0}, NOW)
    rings.add(A, NOW + 1000, {"y": 2.0}, NOW + 1000)
    assert [s.values for s in rings.since(A, 0)] == [{"x": 1.0}, {"y": 2.0}]


def test_one_sample_per_second_the_newest_values_win() -> None:
    rings = MetricRings()
    rings.add(A, NOW, {"x": 1.0, "y": 5.0}, NOW)
    rings.add(A, NOW + 300, {"x": 2.0}, NOW + 300)
    assert [s.values for s in rings.since(A, 0)] == [{"x": 2.0, "y": 5.0}]


def test_unsound_input_is_dropped_and_counted() -> None:
    rings = MetricRings()
    bad = {"nan": math.nan, "inf": math.inf, "Bad-Name": 1.0, "good": 1.0}
    rings.add(A, NOW, bad, NOW)
    rings.add(A, -5, {"good": 2.0}, NOW)
    rings.add(A, NOW - 5000, {"good": 3.0}, NOW)
    assert [s.values for s in rings.since(A, 0)] == [{"good": 1.0}]
    assert rings.dropped == {"not_finite": 2, "bad_name": 1, "negative_time": 1, "late": 1}


def test_metrics_and_agents_are_bounded() -> None:
    rings = MetricRings(max_agents=1)
    rings.add(A, NOW, {f"m{n}": 1.0 for n in range(MAX_METRICS + 8)}, NOW)
    rings.add(AgentId("b"), NOW, {"x": 1.0}, NOW)
    newest = rings.newest(A)
    assert newest is not None
    assert len(newest.values) == MAX_METRICS
    assert rings.dropped == {"too_many_metrics": 8, "too_many_agents": 1}
    assert rings.agents() == [A]


def test_a_wrong_agent_clock_is_replaced_by_the_monitors() -> None:
    rings = MetricRings()
    rings.add(A, NOW + 3_600_000, {"x": 1.0}, NOW)
    rings.add(A, 1_000, {"x": 2.0}, NOW + 1000)
    assert [s.at_ms for s in rings.since(A, 0)] == [NOW, NOW + 1000]


def test_a_monitor_clock_set_back_starts_the_ring_anew() -> None:
    rings = MetricRings()
    rings.add(A, NOW, {"x": 1.0}, NOW)
    earlier = NOW - 3_600_000
    rings.add(A, earlier, {"x": 2.0}, earlier)
    assert [s.values["x"] for s in rings.since(A, 0)] == [2.0]


def test_silent_agents_expire() -> None:
    rings = MetricRings()
    rings.add(A, NOW, {"x": 1.0}, NOW)
    assert rings.expire(NOW + KEPT_S * 1000) == []
    assert rings.expire(NOW + KEPT_S * 1000 + 1) == [A]
    assert len(rings) == 0


@given(
    st.lists(
        st.tuples(
            st.integers(-10_000, 2_000_000),
            st.integers(0, 3000),
            st.dictionaries(st.sampled_from(["a", "b", "c"]), st.floats(), max_size=3),
        ),
        max_size=60,
    )
)
def test_times_ascend_and_values_are_finite_whatever_comes(
    reports: list[tuple[int, int, dict[str, float]]],
) -> None:
    rings = MetricRings()
    now = NOW
    for offset, step, metrics in reports:
        now += step
        rings.add(A, NOW + offset, metrics, now)
    samples = rings.since(A, 0)
    seconds = [sample.at_ms // 1000 for sample in samples]
    assert seconds == sorted(set(seconds))
    assert all(math.isfinite(v) for sample in samples for v in sample.values.values())
