"""Up to which report of one stream everything is kept, so that the agent may forget it. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from muster_monitor.task_logs import LogKey

# A report with lines waits for storage, at most FLUSH_EVERY_MS when storage answers: this is room
# for an agent that reports a hundred times a second through an outage of several minutes.
MAX_WAITING = 32_768


class Acknowledgements:
    """Reports are acknowledged in their order: `kept` never passes one that is not safe."""

    def __init__(self, max_waiting: int = MAX_WAITING) -> None:
        self._waiting: deque[tuple[int, tuple[tuple[LogKey, int], ...]]] = deque()
        self._max_waiting = max_waiting
        self.kept = 0

    def received(self, seq: int, needs: Sequence[tuple[LogKey, int]]) -> None:
        """`needs`: the positions of logs that storage has to hold first; empty = none.

        Past the bound the oldest waits no longer: its lines are in memory still.
        """
        self._waiting.append((seq, tuple(needs)))
        if len(self._waiting) > self._max_waiting:
            self.kept = max(self.kept, self._waiting.popleft()[0])

    def advance(self, is_safe: Callable[[LogKey, int], bool]) -> int:
        """The newest sequence number up to which all is kept."""
        while self._waiting:
            seq, needs = self._waiting[0]
            if not all(is_safe(key, position) for key, position in needs):
                break
            self._waiting.popleft()
            self.kept = max(self.kept, seq)
        return self.kept

    @property
    def waiting(self) -> int:
        return len(self._waiting)
