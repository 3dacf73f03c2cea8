"""The gateways of one cluster: which one is spoken to, and when it is turned from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

# Whoever has another gateway to turn to waits no longer than this for an answer that is due; twice
# as long at each repetition, because all of them may be slow.
PATIENCE_S: Final = 5.0
# Answers that another gateway may not give: this one is going down, or does not reach storage.
PASSING: Final = frozenset({502, 503, 504})


class Gateways:
    """URLs without a slash at the end, at least one. May be shared by threads: a turn that is lost
    to another thread's costs one more try."""

    def __init__(self, urls: Sequence[str]) -> None:
        self._urls = tuple(url.rstrip("/") for url in urls)
        self._index = 0

    def __len__(self) -> int:
        return len(self._urls)

    @property
    def url(self) -> str:
        """The one to speak to."""
        return self._urls[self._index]

    def turn_from(self, url: str) -> None:
        """To the next one, unless another request that failed there has turned already."""
        if self.url == url:
            self._index = (self._index + 1) % len(self._urls)


def patience_s(gateways: int, usual_s: float, due_s: float, tries: int) -> float:
    """How long an answer may be silent: `usual_s` where there is no other gateway; else less,
    counted from when it is due."""
    if gateways == 1:
        return usual_s
    return min(usual_s, due_s + PATIENCE_S * 2.0 ** min(tries, 10))
