"""What share of new submissions a late gateway turns away. Pure.

After CoDel (Nichols, Jacobson, 2012): a queue that never empties for a while is a standing one,
and no burst. Two queues are looked at: how much later than planned the gateway's loop comes round,
which is what every request waits before anybody looks at it, and how long submissions that are
taken wait until they are durable. Where even the least of a window is above LATE_S or LONG_S, a
larger share is refused; where it is below half of both, a smaller one; in between all stays.

A window is long where ten times the load begins: what is taken within it would keep the gateway
busy for seconds. So beyond CROWD, one late look is enough to turn all others away until the next.
"""

from __future__ import annotations

from typing import Final

# At a gateway that is merely busy, a round takes some ten milliseconds.
LATE_S: Final = 0.1
# A healthy leader makes a chunk durable in tens of milliseconds.
LONG_S: Final = 2.0
WINDOW_S: Final = 0.25
# One stall of the machine is one late look, however long it was.
LEAST_LOOKS: Final = 3
# Of the submissions that come, some are always taken: without them nobody would learn that there
# is room again.
LEAST_TAKEN: Final = 0.05
# While fewer than so many are under way nobody is turned away: so few cannot be what makes it
# late, and clients that send one after another notice nothing.
FEW: Final = 16
CROWD: Final = 64
_FEWER: Final = 0.7
_MORE: Final = 1.15
# Who is turned away stays away for so long, and for so much longer for each that is turned away
# while one is taken: whoever comes back early is in the way of others.
_LEAST_PAUSE_S: Final = 1.0
_PAUSE_PER_REFUSAL_S: Final = 3.0
LONGEST_PAUSE_S: Final = 30.0


class Lateness:
    """`taken` is the share of new submissions that is taken, LEAST_TAKEN to 1."""

    def __init__(self) -> None:
        self.taken = 1.0
        self._level = 0.0
        # The least of the window that is looked at; 1 is at the limit.
        self._least: float | None = None
        self._looks = 0
        self._since_s = 0.0
        self._credit = 0.0
        # Of late; what was in the last window counts half, and so on.
        self._passed = self._turned_away = 0.0

    def look(self, now_s: float, late_s: float, wait_s: float) -> None:
        """At `now_s`, of a clock that only moves on, the loop came round `late_s` after it was
        planned, and what is taken waits for about `wait_s`; both from 0."""
        level = max(late_s / LATE_S, wait_s / LONG_S)
        self._level = level
        if self._least is None:
            self._since_s = now_s - late_s
            self._least = level
        self._least = min(self._least, level)
        self._looks += 1
        if self._looks < LEAST_LOOKS or now_s - self._since_s < WINDOW_S:
            return
        if self._least > 1.0:
            self.taken = max(LEAST_TAKEN, self.taken * _FEWER)
        elif self._least < 0.5:
            self.taken = min(1.0, self.taken * _MORE)
        self._least, self._looks = None, 0
        self._passed, self._turned_away = self._passed / 2, self._turned_away / 2

    def refuses(self, under_way: int) -> bool:
        """Whether the submission that comes now, beside so many others, is turned away."""
        refused = self._refuses(under_way)
        if refused:
            self._turned_away += 1.0
        else:
            self._passed += 1.0
        return refused

    def _refuses(self, under_way: int) -> bool:
        if under_way < FEW:
            return False
        if under_way >= CROWD and self._level > 1.0:
            return True
        if self.taken >= 1.0:
            return False
        # Evenly, without a draw.
        self._credit += self.taken
        if self._credit < 1.0:
            return True
        self._credit -= 1.0
        return False

    def pause_s(self, spread: float) -> float:
        """When to come back, in seconds; `spread` in [0, 1) keeps a crowd from coming together."""
        per_taken = self._turned_away / max(1.0, self._passed)
        pause_s = min(LONGEST_PAUSE_S, _LEAST_PAUSE_S + _PAUSE_PER_REFUSAL_S * per_taken)
        return pause_s * (0.75 + 0.5 * spread)
