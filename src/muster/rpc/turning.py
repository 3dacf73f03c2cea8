"""Which of a service's addresses to turn to after a failure; pure, the time is passed in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

# An address that failed this lately is not turned to because another one is merely slow: on a busy
# machine every answer is late at times, and a stopped process takes connections and says nothing.
BAD_FOR_S: Final = 5.0

_NEVER_S: Final = float("-inf")


class Turning:
    """What is known of the addresses by their last answer and last failure (seconds, any clock that
    only moves forward). Holds no more than two figures for each address it was told of."""

    def __init__(self) -> None:
        self._answered_s: dict[str, float] = {}
        self._failed_s: dict[str, float] = {}

    def answered(self, address: str, now_s: float) -> None:
        """It gave an answer, whatever that said, to what it was asked at `now_s`."""
        self._answered_s[address] = now_s

    def after_failure(
        self, addresses: Sequence[str], failed: str, now_s: float, *, slow: bool
    ) -> str:
        """Notes that `failed` did not serve, and gives the address to use from now on.

        `slow`: it did not answer in time, and that is all that is known. Then one that failed
        within the last BAD_FOR_S is turned to only if it has answered more lately than `failed`,
        and rather than that, `failed` is kept. One that is away is always turned from where there
        is another.
        """
        self._failed_s[failed] = now_s
        start = addresses.index(failed) + 1 if failed in addresses else 0
        others = [a for a in (*addresses[start:], *addresses[:start]) if a != failed]
        for address in others:
            if self._failed_s.get(address, _NEVER_S) <= now_s - BAD_FOR_S:
                return address
        if not slow:
            return others[0] if others else failed
        # All of them failed lately. The first of equals: the one in use.
        return max((failed, *others), key=lambda a: self._answered_s.get(a, _NEVER_S))
