"""Which of several monitors speaks for all: a claim in storage that its holder renews. Pure.

No clocks are compared: who watches a claim that does not change for STALE_MS of its own clock
may take it, and compare-and-set lets one of them.
"""

from __future__ import annotations

from typing import Final

RENEW_MS: Final = 2_000
STALE_MS: Final = 10_000
# A holder that could not renew for so long asks before it speaks: it may have been stopped.
SURE_MS: Final = 6_000


class ClaimWatch:
    """What one monitor has seen of the claim. `me` is its name."""

    def __init__(self, me: str) -> None:
        self._me = me
        self._etag = ""
        self._since_ms = 0
        # A monitor that is started again under its name need not wait for itself.
        self._is_new = True

    def may_take(self, holder: str, etag: str, now_ms: int) -> bool:
        """Looks at the claim as it stands; `holder` "" = it is free."""
        if etag != self._etag or not etag:
            self._etag, self._since_ms = etag, now_ms
        own = self._is_new and holder == self._me
        return not holder or own or now_ms - self._since_ms >= STALE_MS

    def lost(self, now_ms: int) -> None:
        """Another one has it, maybe by the same name: from now on it has to fall silent first."""
        self._is_new = False
        self._since_ms = now_ms
