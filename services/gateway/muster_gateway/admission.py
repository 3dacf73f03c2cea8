"""How much of submissions a gateway takes on at once, and who is turned away before it costs work.

A body of 10,000 tasks takes 0.1 s to decode and some ten times its size while it is on its way. A
gateway that decodes what the leader will refuse serves nobody; so it refuses large bodies itself
for a moment after the leader was full, and bounds the sum of what it holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from muster.domain.errors import Overloaded
from muster_gateway.metrics import SUBMISSIONS_TURNED_AWAY

# Six bodies of the largest size: the leader takes four chunks of each at a time.
MAX_BYTES: Final = 64 * 1024 * 1024
# Up to this a submission is cheap to try: single tasks pass while batches are turned away.
SMALL_BYTES: Final = 64 * 1024
# So long no large body is tried after the leader was full.
_FULL_FOR_S: Final = 1.0
_LAST_RETRY_AFTER_S: Final = 30.0
# With so many turned away since one was taken, the pause that is asked for has doubled.
_REFUSALS_PER_SECOND: Final = 8


class Admission:
    """`now_s()` is any clock that only moves on; `spread()` is uniform in [0, 1)."""

    def __init__(
        self,
        now_s: Callable[[], float],
        spread: Callable[[], float],
        *,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._now_s = now_s
        self._spread = spread
        self._max_bytes = max_bytes
        self._bytes = 0
        self._full_until_s = 0.0
        self._refused = 0

    @contextmanager
    def room(self, size_bytes: int) -> Iterator[None]:
        """Holds room for a submission while it is taken in. Raises Overloaded, also in place of
        one from inside, with a time to come back that grows with the crowd."""
        if self._now_s() < self._full_until_s and size_bytes > SMALL_BYTES:
            raise self._turned_away("leader", "the leader has as many tasks as it takes")
        if self._bytes and self._bytes + size_bytes > self._max_bytes:
            why = f"{self._bytes} bytes of submissions are being taken in"
            raise self._turned_away("bytes", why)
        self._bytes += size_bytes
        try:
            yield
        except Overloaded as error:
            self._full_until_s = self._now_s() + _FULL_FOR_S
            raise self._turned_away("leader", str(error), error.retry_after_s) from None
        else:
            self._refused = 0
        finally:
            self._bytes -= size_bytes

    def _turned_away(self, reason: str, why: str, least_s: float = 1.0) -> Overloaded:
        SUBMISSIONS_TURNED_AWAY.labels(reason).inc()
        self._refused += 1
        pause_s = min(_LAST_RETRY_AFTER_S, least_s + self._refused / _REFUSALS_PER_SECOND)
        return Overloaded(why, retry_after_s=pause_s * (0.5 + self._spread()))
