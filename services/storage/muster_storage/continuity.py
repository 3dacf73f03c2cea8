"""Whether Redis is still as far on as this process has seen it; nothing is written where it is not.

A leader finds out within a second and halts. What would be written until then, on the word of a
Redis that was set back, would be gone again when the right one is put back. Pure.
"""

from __future__ import annotations

from muster.domain.errors import StaleTerm, StoreRolledBack


class Continuity:
    """Of one process. Terms are of leaders that write: one that halts takes a term and writes
    nothing, so the first write under a higher term is of a leader that has judged the store."""

    def __init__(self) -> None:
        self._clock_ms = 0
        self._term = 0
        self._store = ""
        self._shown = ""
        self.broken = False

    def connected(self, clock_ms: int, store: str) -> None:
        """What a fresh connection shows; `store` "" = it has no name yet."""
        self._shown = store
        renamed = bool(self._store) and store != self._store
        self.broken = renamed or clock_ms < self._clock_ms
        if not self.broken:
            self._clock_ms, self._store = clock_ms, store or self._store

    def heard(self, clock_ms: int) -> None:
        """The clock, as an answer told it."""
        if clock_ms > self._clock_ms and not self.broken:
            self._clock_ms = clock_ms

    def check(self, term: int) -> None:
        """Before a write; term 0 = not a leader's. Raises StaleTerm or StoreRolledBack."""
        if not self.broken:
            self._term = max(self._term, term)
        elif not term:
            raise StoreRolledBack("Redis is older than it was, and no leader has judged it yet")
        elif term <= self._term:
            raise StaleTerm(term, self._term + 1)

    def led(self, term: int, clock_ms: int) -> None:
        """A leader of this term has advanced the clock: it goes by this store, whatever it is."""
        if self.broken and term > self._term:
            self.broken = False
            self._clock_ms, self._store = clock_ms, self._shown
        self.heard(clock_ms)
        if not self.broken:
            self._term = max(self._term, term)
