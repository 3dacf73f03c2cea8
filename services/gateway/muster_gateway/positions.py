"""Where in the event log a moment lies: event ids are numbers that say nothing of time."""

from __future__ import annotations

from collections import deque
from typing import Final

# One mark a second, so this is ten minutes; who asks for older events begins at the oldest mark.
MAX_MARKS: Final = 600
_APART_MS: Final = 1_000
# Clocks of machines that keep them in step differ by less.
_CLOCKS_DIFFER_MS: Final = 1_000


class Positions:
    """Remembers when which event was the latest. Times are unix milliseconds."""

    def __init__(self) -> None:
        self._marks: deque[tuple[int, str]] = deque(maxlen=MAX_MARKS)

    def note(self, now_ms: int, event_id: str) -> None:
        """All events up to this one have happened."""
        if not self._marks or abs(now_ms - self._marks[-1][0]) >= _APART_MS:
            self._marks.append((now_ms, event_id))

    def before(self, at_ms: int) -> str:
        """An event after which stands all that happened from `at_ms` on, as far as is known.

        Empty when nothing is known.
        """
        for noted_ms, event_id in reversed(self._marks):
            if noted_ms <= at_ms - _CLOCKS_DIFFER_MS:
                return event_id
        return self._marks[0][1] if self._marks else ""
