"""How far the monitor may trust itself: its own lateness, and what follows from it. Pure.

After Lifeguard (Dadgar, Phillips, Currey, 2018): an observer that runs late sees silence where
there is none, so it looks at itself first. Lateness is how much later than planned the monitor's
loop came round; a loop of some hundred steps a second that is always late has not heard yet what
has long arrived.
"""

from __future__ import annotations

from collections import deque

from muster_monitor.findings import Finding, Severity

MONITOR_LAGGING = "monitor_lagging"
# A loop on a shared machine is late by a few ms at any time; that is no reason for doubt.
LATE_MS = 50
# Late by so much it is a stall.
STALLED_MS = 300
MAX_STALLS = 10
# How long a lateness is remembered.
MEMORY_MS = 10_000
# Suspicion waits at most this much longer for it: a monitor that is always late must still see.
MAX_DISTRUST_MS = 5_000
# Of the time, over the memory: told above, and over below.
_LAGGING_SHARE = 0.25
_RECOVER_SHARE = 0.10


class SelfTrust:
    """Times are monotonic milliseconds. `late_ms` is the newest lateness."""

    def __init__(self) -> None:
        self._late: deque[tuple[int, int]] = deque()
        self._sum_ms = 0
        self._stalls = 0
        self.late_ms = 0
        self.lagging = False

    def came_round(self, planned_ms: int, now_ms: int) -> None:
        """The loop meant to be back at `planned_ms` and is at `now_ms`."""
        self.late_ms = max(0, now_ms - planned_ms)
        self._stalls = self._stalls + 1 if self.late_ms > STALLED_MS else 0
        if self.late_ms > LATE_MS:
            self._late.append((now_ms, self.late_ms))
            self._sum_ms += self.late_ms
        while self._late and now_ms - self._late[0][0] > MEMORY_MS:
            self._sum_ms -= self._late.popleft()[1]

    @property
    def may_suspect(self) -> bool:
        """False right after a stall: what came meanwhile has not been read yet.

        A monitor that stalls each time judges all the same, by `distrust_ms`.
        """
        return self.late_ms <= STALLED_MS or self._stalls > MAX_STALLS

    @property
    def distrust_ms(self) -> int:
        """How much more silence than usual it takes: the worst lateness remembered."""
        worst_ms = max((late_ms for _, late_ms in self._late), default=0)
        return min(MAX_DISTRUST_MS, worst_ms)

    def judge(self, instance: str, at_ms: int) -> Finding | None:
        """A finding when the monitor begins or ceases to lag."""
        share = min(1.0, self._sum_ms / MEMORY_MS)
        holds = share > (_RECOVER_SHARE if self.lagging else _LAGGING_SHARE)
        if holds is self.lagging:
            return None
        self.lagging = holds
        text = (
            f"the monitor {instance} was late for {share:.0%} of the last {MEMORY_MS // 1000} s: "
            "it needs more processor time, and suspects nobody while it is late"
            if holds
            else f"the monitor {instance} is in time again"
        )
        labels = {"service": "monitor", "instance": instance}
        return Finding(
            MONITOR_LAGGING, labels, Severity.WARNING, holds, text, at_ms, for_s=10.0, value=share
        )
