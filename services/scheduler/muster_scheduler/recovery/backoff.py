"""When an agent may be restarted again: a pause with full jitter, and so many in an hour."""

from __future__ import annotations

from collections import deque
from typing import Final

from muster_scheduler.recovery.settings import RecoverySettings, number

HOUR_S: Final = 3_600.0


def longest_pause_s(tried: int, settings: RecoverySettings) -> float:
    """The longest wait before the next restart when `tried` were in vain; 0 for the first."""
    if tried <= 0:
        return 0.0
    # Beyond 2^30 the cap holds anyway.
    return float(min(settings.pause_cap_s, settings.pause_first_s * 2.0 ** min(tried - 1, 30)))


def pause_s(tried: int, chance: float, settings: RecoverySettings) -> float:
    """Full jitter: `chance`, uniform in [0, 1), of the longest pause."""
    number("chance", chance, 0.0, 1.0)
    return chance * longest_pause_s(tried, settings)


class RestartBudget:
    """One agent's restarts of the last hour, by the seconds of a clock that does not go back."""

    def __init__(self, per_hour: int) -> None:
        self._per_hour = per_hour
        self._at_s: deque[float] = deque(maxlen=max(1, per_hour))

    def left(self, now_s: float) -> int:
        """How many more may be ordered now."""
        return self._per_hour - sum(1 for at_s in self._at_s if now_s - at_s < HOUR_S)

    def spend(self, now_s: float) -> bool:
        """Notes a restart; False, and nothing noted, when none is left."""
        if self.left(now_s) <= 0:
            return False
        self._at_s.append(now_s)
        return True

    def to_plain(self) -> list[float]:
        """When the restarts were, for keeping."""
        return list(self._at_s)

    @classmethod
    def from_plain(cls, at_s: list[float], per_hour: int) -> RestartBudget:
        """What `to_plain` gave."""
        budget = cls(per_hour)
        budget._at_s.extend(sorted(number("restarts", at, 0.0, 1e12) for at in at_s))
        return budget
