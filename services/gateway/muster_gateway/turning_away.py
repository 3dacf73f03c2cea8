"""Turns submissions away while the gateway is late, before their bodies are read.

A body that is read, checked and then refused costs most of what taking it costs: at ten times the
load a gateway would do little else.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from muster.domain.errors import Overloaded
from muster_gateway.lateness import Lateness
from muster_gateway.metrics import SUBMISSIONS_TURNED_AWAY, TAKEN_SHARE

LOOK_EVERY_S: Final = 0.05


class TurningAway:
    """Looks how late the running loop is, and how long what is taken waits."""

    def __init__(
        self,
        lateness: Lateness | None = None,
        *,
        now_s: Callable[[], float] = time.monotonic,
        spread: Callable[[], float] = random.random,
    ) -> None:
        """`now_s()` only moves on; `spread()` is uniform in [0, 1)."""
        self.lateness = Lateness() if lateness is None else lateness
        # Submissions that passed the edge and are not answered yet.
        self.under_way = 0
        self._now_s, self._spread = now_s, spread
        self._timer: asyncio.TimerHandle | None = None
        # Submissions on their way to be durable, those that were since `_since_s`, and until when.
        self._waiting, self._done = 0, 0.0
        self._since_s = now_s()
        self._late = SUBMISSIONS_TURNED_AWAY.labels("late")
        TAKEN_SHARE.set(self.lateness.taken)

    def start(self) -> None:
        """Begins to look; belongs to the running loop."""
        self._plan(asyncio.get_running_loop())

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def refusal(self) -> Overloaded | None:
        """Why the submission that comes now is turned away, if it is."""
        lateness = self.lateness
        if not lateness.refuses(self.under_way):
            return None
        self._late.inc()
        pause_s = lateness.pause_s(self._spread())
        return Overloaded("the gateway is late with what it has taken", retry_after_s=pause_s)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """While a submission that was read and checked is made durable."""
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1
            self._done += 1

    def look(self, late_s: float) -> None:
        """The loop came round so much later than planned."""
        now_s = self._now_s()
        before = self.lateness.taken
        self.lateness.look(now_s, late_s, self._wait_s(now_s))
        if self.lateness.taken != before:
            TAKEN_SHARE.set(self.lateness.taken)

    def _wait_s(self, now_s: float) -> float:
        """By Little's law: how many wait, over how many came through in a second. It is known
        before those who wait have waited."""
        elapsed_s = now_s - self._since_s
        wait_s = self._waiting * elapsed_s / max(1, self._done)
        if elapsed_s > 1.0:
            # Two halves: no answer of a batch that takes long is forgotten too early.
            self._since_s, self._done = now_s - elapsed_s / 2, self._done / 2
        return wait_s

    def _plan(self, loop: asyncio.AbstractEventLoop) -> None:
        # The loop's own clock stands still within a round.
        due_s = self._now_s() + LOOK_EVERY_S
        self._timer = loop.call_later(LOOK_EVERY_S, self._look, loop, due_s)

    def _look(self, loop: asyncio.AbstractEventLoop, due_s: float) -> None:
        self.look(max(0.0, self._now_s() - due_s))
        self._plan(loop)
