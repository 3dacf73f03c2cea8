"""How much of something is let through, and how much there was lately. Pure."""

from __future__ import annotations

# A window is counted in this many parts: the count is off by one part at most.
_PARTS = 10


class TokenBucket:
    """`per_s` tokens a second, at most `burst` at once; full at the beginning."""

    __slots__ = ("_at_ms", "_burst", "_per_s", "_tokens")

    def __init__(self, per_s: float, burst: float, now_ms: int) -> None:
        self._per_s, self._burst = per_s, burst
        self._tokens = burst
        self._at_ms = now_ms

    def take(self, wanted: int, now_ms: int) -> int:
        """How many of `wanted` are let through now, from 0 to `wanted`."""
        # A clock that seems to go back gives nothing and takes nothing.
        elapsed_ms = max(0, now_ms - self._at_ms)
        self._at_ms = max(self._at_ms, now_ms)
        self._tokens = min(self._burst, self._tokens + elapsed_ms * self._per_s / 1000)
        granted = max(0, min(wanted, int(self._tokens)))
        self._tokens -= granted
        return granted


class WindowCount:
    """How many came within the last `window_ms`, in a few integers."""

    __slots__ = ("_counts", "_newest", "_part_ms", "total")

    def __init__(self, window_ms: int) -> None:
        self._part_ms = max(1, window_ms // _PARTS)
        self._counts = [0] * _PARTS
        self._newest = 0
        self.total = 0

    def add(self, count: int, now_ms: int) -> None:
        self.look(now_ms)
        self._counts[self._newest % _PARTS] += count
        self.total += count

    def look(self, now_ms: int) -> int:
        """The count now; forgets what is older than the window."""
        part = max(self._newest, now_ms // self._part_ms)
        gone = min(part - self._newest, _PARTS)
        for step in range(1, gone + 1):
            slot = (part - gone + step) % _PARTS
            self.total -= self._counts[slot]
            self._counts[slot] = 0
        self._newest = part
        return self.total
