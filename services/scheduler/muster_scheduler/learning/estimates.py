"""What follows from predicted quantiles: remaining time, stragglers, timeouts, and when a waiting
task will start."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from statistics import NormalDist

import msgspec
import numpy as np

from muster.domain.errors import InvalidInput
from muster_scheduler.learning.evaluation import LEVELS
from muster_scheduler.placement.snapshot import FloatArray

# A timeout that was learned leaves room for what the window has not shown.
TIMEOUT_FACTOR = 3.0
MIN_TIMEOUT_S = 1.0
# Rounding must not make a certain time uncertain, or logarithms of 0.
_LEAST_S = 1e-6


class Quantiles(msgspec.Struct, frozen=True):
    """Predicted run time of one task on one agent: seconds at LEVELS, rising, above 0.

    `source` says where they come from: "learned", or "declared" (then all are equal).
    """

    seconds: tuple[float, ...]
    source: str

    @property
    def median_s(self) -> float:
        return self.seconds[LEVELS.index(0.5)]

    @property
    def timeout_s(self) -> float:
        """TIMEOUT_FACTOR times the highest quantile."""
        return max(MIN_TIMEOUT_S, TIMEOUT_FACTOR * self.seconds[-1])

    @property
    def straggles_after_s(self) -> float:
        """What 99 of 100 such attempts end within.

        A declared estimate is one number, so three times it is allowed.
        """
        return self.seconds[-1] if self.source == "learned" else 3.0 * self.seconds[-1]

    def is_straggler(self, elapsed_s: float) -> bool:
        return elapsed_s > self.straggles_after_s

    def remaining_s(self, elapsed_s: float) -> float:
        """Median of what is left, given that it has run `elapsed_s` ≥ 0 already.

        The quantiles are joined by straight lines in log seconds over normal scores (a piecewise
        log-normal law); beyond the last the last line goes on, so who is late already is expected
        to stay late.
        """
        if elapsed_s <= 0:
            return self.median_s
        below = self._share_below(elapsed_s)
        if below >= 1.0 - 1e-9:
            return elapsed_s
        return max(_LEAST_S, self._at(below + (1.0 - below) / 2) - elapsed_s)

    def _knots(self) -> tuple[FloatArray, FloatArray]:
        """Normal scores of the levels, and log seconds, strictly rising."""
        log_s = np.log(np.maximum(self.seconds, _LEAST_S))
        return _SCORES, log_s + np.arange(len(log_s)) * 1e-9

    def _share_below(self, seconds: float) -> float:
        scores, log_s = self._knots()
        score = _on_line(math.log(seconds), log_s, scores)
        return _NORMAL.cdf(score)

    def _at(self, level: float) -> float:
        scores, log_s = self._knots()
        return math.exp(_on_line(_NORMAL.inv_cdf(level), scores, log_s))


def declared(seconds: float) -> Quantiles:
    return Quantiles((seconds,) * len(LEVELS), "declared")


def expected_starts(
    busy_for_s: Sequence[float], places: int, run_s: Sequence[float]
) -> tuple[float, ...]:
    """Seconds from now until each waiting task starts, in the order of the queue.

    `places` run at once, of which `len(busy_for_s)` are taken for that long yet (the remaining
    times of what runs); `run_s` are predicted run times of those that wait. As list scheduling
    does it: each task to the place that is free first. Raises InvalidInput for no place.
    """
    if places < 1:
        raise InvalidInput("places", places, "must be at least 1")
    free_at = sorted(busy_for_s)[-places:]
    free_at += [0.0] * (places - len(free_at))
    heapq.heapify(free_at)
    starts = []
    for seconds in run_s:
        start = free_at[0]
        starts.append(start)
        heapq.heapreplace(free_at, start + seconds)
    return tuple(starts)


def _on_line(x: float, xs: FloatArray, ys: FloatArray) -> float:
    """Piecewise linear through (xs, ys), the outer pieces going on; xs strictly rise."""
    piece = min(max(int(np.searchsorted(xs, x)) - 1, 0), len(xs) - 2)
    slope = (ys[piece + 1] - ys[piece]) / (xs[piece + 1] - xs[piece])
    return float(ys[piece] + slope * (x - xs[piece]))


_NORMAL = NormalDist()
_SCORES = np.array([_NORMAL.inv_cdf(level) for level in LEVELS])
