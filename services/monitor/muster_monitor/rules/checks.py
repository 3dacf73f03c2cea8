"""One rule on one subject: whether its condition holds, figure by figure. Pure.

A condition that holds stays until the figure is back at the recovery level, so that a figure
which swings around the threshold makes one finding and not a hundred.
"""

from __future__ import annotations

from muster_monitor.rules.baseline import Baseline
from muster_monitor.rules.schema import AnomalyRule, Direction, FigureRule, Source, ThresholdRule


class Check:
    """`feed` gives True when `holds` has changed. `value` is the figure that was judged last."""

    __slots__ = ("_before", "_before_ms", "figure", "heard_ms", "holds", "rule", "value")

    def __init__(self, rule: FigureRule) -> None:
        self.rule = rule
        self.figure = rule.figure
        self.holds = False
        self.value = 0.0
        self.heard_ms = 0
        self._before = 0.0
        self._before_ms = -1

    def feed(self, figure: float, now_ms: int) -> bool:
        """`figure` is finite; `now_ms` is monotonic milliseconds and never goes back."""
        self.heard_ms = now_ms
        if self.rule.rate and self.rule.source is Source.AGENT:
            rate = self._rate(figure, now_ms)
            if rate is None:
                return False
            figure = rate
        self.value = figure
        holds = self._judge(figure, now_ms)
        changed = holds is not self.holds
        self.holds = holds
        return changed

    def limit(self) -> str:
        """The bound that is broken, for a sentence."""
        raise NotImplementedError

    def _judge(self, value: float, now_ms: int) -> bool:
        raise NotImplementedError

    def _rate(self, figure: float, now_ms: int) -> float | None:
        """Growth per second; None for the first figure and for one that comes too soon."""
        if self._before_ms < 0:
            self._before, self._before_ms = figure, now_ms
            return None
        elapsed_s = (now_ms - self._before_ms) / 1000
        # The growth over less is noise.
        if elapsed_s < 0.5:
            return None
        # A counter that has fallen began anew, with its process.
        grown = figure - self._before if figure >= self._before else figure
        self._before, self._before_ms = figure, now_ms
        return grown / elapsed_s


class ThresholdCheck(Check):
    """Beyond `level` it holds, until `recover` is reached."""

    __slots__ = ("_above", "_level", "_recover")

    def __init__(self, rule: ThresholdRule) -> None:
        super().__init__(rule)
        self._above = rule.direction is Direction.ABOVE
        self._level, self._recover = rule.level, rule.recover

    def limit(self) -> str:
        return f"{self.rule.direction.value} {self._level:g}"

    def _judge(self, value: float, now_ms: int) -> bool:  # noqa: ARG002
        if self._above:
            return value > (self._recover if self.holds else self._level)
        return value < (self._recover if self.holds else self._level)


class AnomalyCheck(Check):
    """Far from the median it holds, until it is near the median again."""

    __slots__ = ("_anomaly", "_baseline", "_usual", "_width")

    def __init__(self, rule: AnomalyRule) -> None:
        super().__init__(rule)
        self._anomaly = rule
        self._baseline = Baseline(rule.window_s)
        # What the newest figure was compared with.
        self._usual = self._width = 0.0

    def limit(self) -> str:
        return f"more than {self._width:.4g} away from its median {self._usual:.4g}"

    def _judge(self, value: float, now_ms: int) -> bool:
        rule, baseline = self._anomaly, self._baseline
        enough = baseline.samples >= rule.min_samples
        difference = value - baseline.median
        width = max(rule.deviations * baseline.spread, rule.min_difference)
        self._usual, self._width = baseline.median, width
        baseline.learn(value, now_ms)
        if not enough:
            return False
        if rule.direction is Direction.BELOW:
            difference = -difference
        elif rule.direction is Direction.BOTH:
            difference = abs(difference)
        if self.holds:
            # The whole band shrinks, also where the least difference makes it.
            width *= rule.recover_deviations / rule.deviations
        return difference > width


def check_of(rule: FigureRule) -> Check:
    """The check that a rule asks for."""
    if isinstance(rule, ThresholdRule):
        return ThresholdCheck(rule)
    assert isinstance(rule, AnomalyRule)
    return AnomalyCheck(rule)
