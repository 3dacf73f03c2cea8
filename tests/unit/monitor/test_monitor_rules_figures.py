"""Figures judged by rules: thresholds with hysteresis, anomalies, who is judged, what ends."""

from __future__ import annotations

import math
import random
from statistics import median

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muster_monitor.findings import Finding, Severity
from muster_monitor.rules.baseline import BASELINE_POINTS, MAD_TO_DEVIATION, Baseline, median_of
from muster_monitor.rules.checks import AnomalyCheck, ThresholdCheck
from muster_monitor.rules.figures import MAX_SUBJECTS, STALE_MS, FigureJudge
from muster_monitor.rules.schema import (
    AnomalyRule,
    Direction,
    FigureRule,
    Matcher,
    Selector,
    Source,
    Subject,
    ThresholdRule,
)

FINITE = st.floats(-1e12, 1e12)


def threshold(
    level: float, recover: float, direction: Direction = Direction.ABOVE, **more: object
) -> ThresholdRule:
    fields: dict[str, object] = {
        "name": "r",
        "source": Source.AGENT,
        "metric": "m",
        "severity": Severity.WARNING,
        **more,
    }
    return ThresholdRule(direction=direction, level=level, recover=recover, **fields)  # type: ignore[arg-type]


def anomaly(**more: object) -> AnomalyRule:
    fields: dict[str, object] = {
        "name": "a",
        "source": Source.AGENT,
        "metric": "m",
        "severity": Severity.INFO,
        "direction": Direction.BOTH,
        "min_samples": 20,
        "window_s": 60.0,
        "min_difference": 1.0,
        **more,
    }
    return AnomalyRule(**fields)  # type: ignore[arg-type]


def subject(ident: str = "a", **attributes: str) -> Subject:
    return Subject(ident, f"agent {ident}", {"agent": ident}, {"agent": ident, **attributes})


class Watch:
    """One judge over virtual seconds, and everything that it has said."""

    def __init__(self, *rules: FigureRule) -> None:
        self.judge = FigureJudge(Source.AGENT, rules)
        self.subject = subject()
        self.now_ms = 1_000
        self.said: list[Finding] = []

    def feed(self, *values: float) -> list[Finding]:
        found = []
        for value in values:
            self.now_ms += 1_000
            found += self.judge.observe(self.subject, {"m": value}, self.now_ms, 7)
        self.said += found
        return found


def test_a_threshold_holds_until_the_recovery_level() -> None:
    watch = Watch(threshold(0.9, 0.7, for_s=30, summary="too busy"))
    assert watch.feed(0.5, 0.9) == []
    (found,) = watch.feed(0.91)
    assert (found.active, found.rule, found.labels, found.for_s) == (True, "r", {"agent": "a"}, 30)
    assert found.summary == "too busy: m of agent a is 0.91, above 0.9"
    assert (found.value, found.at_ms) == (0.91, 7)
    assert watch.feed(0.8, 0.95, 0.71) == []
    (over,) = watch.feed(0.7)
    assert (over.active, over.rule, over.labels) == (False, "r", {"agent": "a"})


def test_below_is_the_mirror_image() -> None:
    watch = Watch(threshold(2, 5, Direction.BELOW))
    assert watch.feed(2) == []
    assert [f.active for f in watch.feed(1, 4.9, 5)] == [True, False]


@given(st.lists(FINITE, max_size=60), FINITE, st.floats(0, 1e6), st.booleans())
def test_findings_alternate_and_follow_the_levels(
    values: list[float], level: float, gap: float, above: bool
) -> None:
    direction = Direction.ABOVE if above else Direction.BELOW
    recover = level - gap if above else level + gap
    watch = Watch(threshold(level, recover, direction))
    holds = False
    for value in values:
        found = watch.feed(value)
        beyond = value > level if above else value < level
        back = value <= recover if above else value >= recover
        expected = True if not holds and beyond else False if holds and back else holds
        assert [f.active for f in found] == ([expected] if expected is not holds else [])
        holds = expected


def test_a_figure_that_swings_around_the_level_makes_one_finding() -> None:
    watch = Watch(threshold(0.9, 0.8))
    watch.feed(*(0.95 if i % 2 else 0.85 for i in range(100)))
    assert [f.active for f in watch.said] == [True]


def test_counters_are_judged_by_their_growth() -> None:
    watch = Watch(threshold(10, 1, rate=True))
    assert watch.feed(1_000_000, 1_000_005) == []
    (found,) = watch.feed(1_000_025)
    assert found.value == 20
    # Begun anew: it has grown by 3.
    assert watch.feed(3) == []
    assert [f.active for f in watch.feed(3)] == [False]


@given(st.lists(FINITE, min_size=1, max_size=200))
def test_the_median_is_the_median(values: list[float]) -> None:
    assert median_of(values) == pytest.approx(median(values), rel=1e-9, abs=1e-9)


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=40))
def test_the_baseline_is_finite_for_all_finite_figures(values: list[float]) -> None:
    baseline = Baseline(10.0)
    for i, value in enumerate(values):
        baseline.learn(value, i * 1000)
    assert math.isfinite(baseline.median)
    assert not math.isnan(baseline.spread)


def test_the_baseline_is_that_of_the_window() -> None:
    baseline = Baseline(60.0)
    values = [float(i * i % 97) for i in range(300)]
    for i, value in enumerate(values):
        baseline.learn(value, i * 1000)
    kept = values[-BASELINE_POINTS:]
    assert baseline.median == median(kept)
    spread = MAD_TO_DEVIATION * median([abs(v - median(kept)) for v in kept])
    assert baseline.spread == pytest.approx(spread)
    assert baseline.samples == 300


def test_what_is_far_from_usual_is_an_anomaly_and_noise_is_none() -> None:
    chance = random.Random(5)
    watch = Watch(anomaly())
    watch.feed(*(chance.gauss(100, 5) for _ in range(300)))
    assert watch.said == []
    (found,) = watch.feed(160)
    assert found.active
    assert "away from its median" in found.summary
    assert [f.active for f in watch.feed(100)] == [False]


def test_an_anomaly_needs_samples_and_a_difference_that_matters() -> None:
    watch = Watch(anomaly(min_difference=50.0))
    assert watch.feed(*[10.0] * 10, 1e6) == []
    watch.feed(*[10.0] * 30)
    # The figure never moves, so its spread is 0: the least difference decides.
    assert watch.feed(59) == []
    assert [f.active for f in watch.feed(61)] == [True]
    assert watch.feed(40) == []
    assert [f.active for f in watch.feed(34)] == [False]


def test_a_direction_is_kept_to() -> None:
    watch = Watch(anomaly(direction=Direction.ABOVE))
    watch.feed(*[10.0] * 30)
    assert watch.feed(-1000) == []
    assert [f.active for f in watch.feed(1000)] == [True]


def test_a_new_level_becomes_usual_and_the_anomaly_ends() -> None:
    watch = Watch(anomaly())
    watch.feed(*[10.0] * 120)
    watch.feed(*[1000.0] * 130)
    assert [f.active for f in watch.said] == [True, False]


@settings(max_examples=50)
@given(st.lists(FINITE, min_size=1, max_size=150))
def test_anomalies_alternate_whatever_comes(values: list[float]) -> None:
    watch = Watch(anomaly(min_samples=5))
    watch.feed(*values)
    assert [f.active for f in watch.said] == [i % 2 == 0 for i in range(len(watch.said))]


def test_selectors_say_who_is_judged() -> None:
    where = Selector((("zone", Matcher(frozenset({"a"}))),))
    judge = FigureJudge(Source.AGENT, [threshold(1, 1, where=where)])
    assert judge.observe(subject("x", zone="b"), {"m": 5.0}, 1, 1) == []
    assert len(judge.observe(subject("y", zone="a"), {"m": 5.0}, 1, 1)) == 1


def test_conditions_end_with_their_figures_their_agent_and_their_rule() -> None:
    watch = Watch(threshold(1, 1))
    watch.feed(5)
    assert watch.judge.sweep(watch.now_ms + STALE_MS, 9) == []
    (stale,) = watch.judge.sweep(watch.now_ms + STALE_MS + 1, 9)
    assert not stale.active
    watch.feed(5)
    (gone,) = watch.judge.forget("a", 9)
    assert not gone.active
    assert len(watch.judge) == 0
    watch.feed(5)
    (replaced,) = watch.judge.replace_rules([threshold(2, 2)], 9)
    assert not replaced.active
    assert [f.active for f in watch.feed(5)] == [True]


def test_a_rule_that_stays_keeps_what_it_knows() -> None:
    watch = Watch(threshold(1, 1), anomaly())
    watch.feed(*[0.5] * 30)
    watch.feed(5)
    other = threshold(3, 3, name="other", metric="z")
    assert watch.judge.replace_rules([anomaly(), threshold(1, 1), other], 9) == []
    # Neither is told again, and both end when the figure is back.
    assert watch.feed(5) == []
    assert sorted(f.rule for f in watch.feed(0.5)) == ["a", "r"]


def test_a_label_that_changes_ends_what_was_said_under_the_old_one() -> None:
    watch = Watch(threshold(1, 1))
    watch.feed(5)
    watch.subject = Subject("a", "agent a", {"agent": "a", "zone": "b"}, {"agent": "a"})
    over, again = watch.feed(5)
    assert (over.active, over.labels) == (False, {"agent": "a"})
    assert (again.active, again.labels) == (True, {"agent": "a", "zone": "b"})


def test_more_subjects_than_fit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("muster_monitor.rules.figures.MAX_SUBJECTS", 2)
    assert MAX_SUBJECTS > 10_000
    judge = FigureJudge(Source.AGENT, [threshold(1, 1)])
    found = [judge.observe(subject(name), {"m": 5.0}, 1, 1) for name in "abc"]
    assert [len(f) for f in found] == [1, 1, 0]
    assert (len(judge), judge.refused) == (2, 1)


def test_checks_are_what_rules_ask_for() -> None:
    assert isinstance(ThresholdCheck(threshold(1, 1)), ThresholdCheck)
    assert AnomalyCheck(anomaly()).feed(1.0, 1) is False
