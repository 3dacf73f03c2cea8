"""What is usual for one figure: median and spread over a window, in little memory. Pure.

The median and the median absolute deviation (MAD) do not follow outliers: up to half of the window
may be anything. 1.4826 × MAD estimates the standard deviation of normally distributed figures.
What stays unusual for half of the window becomes usual, so an anomaly ends by itself.
"""

from __future__ import annotations

from array import array

MAD_TO_DEVIATION = 1.4826
# Points that stand for the window, however many samples it has.
BASELINE_POINTS = 120


class Baseline:
    """Every `window_s / BASELINE_POINTS` seconds the newest figure becomes a point."""

    __slots__ = ("_every_ms", "_next", "_next_ms", "_points", "_samples", "median", "spread")

    def __init__(self, window_s: float) -> None:
        # Not quite a second, so that samples which come each second are all points.
        self._every_ms = max(500, int(window_s * 1000 / BASELINE_POINTS))
        self._points: array[float] = array("d")
        self._next = 0
        self._next_ms: int | None = None
        self._samples = 0
        self.median = 0.0
        self.spread = 0.0

    @property
    def samples(self) -> int:
        """Figures seen since the beginning (or since the clock was set back)."""
        return self._samples

    def learn(self, value: float, now_ms: int) -> None:
        """`value` is finite; `now_ms` monotonic."""
        self._samples += 1
        if self._next_ms is not None and now_ms < self._next_ms:
            return
        self._next_ms = now_ms + self._every_ms
        if len(self._points) < BASELINE_POINTS:
            self._points.append(value)
        else:
            self._points[self._next] = value
            self._next = (self._next + 1) % BASELINE_POINTS
        self.median = median_of(self._points)
        self.spread = MAD_TO_DEVIATION * median_of([abs(p - self.median) for p in self._points])


def median_of(values: array[float] | list[float]) -> float:
    """The middle of at least one value, or the mean of the two in the middle."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    if len(ordered) % 2:
        return ordered[middle]
    # Half of each, for the sum of two large ones may be infinite.
    return ordered[middle - 1] / 2 + ordered[middle] / 2
