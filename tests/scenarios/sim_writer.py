"""Brings a leader's decisions to storage: creations and changes, a few calls of each at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

from tests.scenarios.sim_network import Lane, call

from muster_scheduler.core.records import Write
from muster_scheduler.writer import CALLS_AT_ONCE

if TYPE_CHECKING:
    from tests.scenarios.sim_leader import SimLeader
    from tests.scenarios.sim_store import Answer

MAX_BATCH = 6


class SimWriter:
    """As the production writer, whose calls are repeated until they are answered."""

    def __init__(
        self, leader: SimLeader, on_written: Callable[[list[tuple[Write, Answer]]], None]
    ) -> None:
        self._leader = leader
        self._on_written = on_written
        self._waiting: tuple[deque[Write], deque[Write]] = (deque(), deque())
        self._busy = [0, 0]
        # Two storage services may overtake each other, one does not overtake itself.
        kernel, overtaking = leader.kernel, leader.world.overtaking
        self._lanes = (None, None) if overtaking else (Lane(kernel), Lane(kernel))

    @property
    def idle(self) -> bool:
        """Whether a compare-and-set would go out at once."""
        return self._busy[1] < CALLS_AT_ONCE and not self._waiting[1]

    def add(self, writes: Sequence[Write]) -> None:
        for write in writes:
            self._waiting[write.expect is not None].append(write)
        for lane in (0, 1):
            for _ in range(CALLS_AT_ONCE):
                self._next(lane)

    def _next(self, lane: int) -> None:
        waiting, store, term = self._waiting[lane], self._leader.store, self._leader.term
        if self._busy[lane] >= CALLS_AT_ONCE or not waiting:
            return
        self._busy[lane] += 1
        batch = [waiting.popleft() for _ in range(min(MAX_BATCH, len(waiting)))]

        def serve() -> object:
            if lane == 0:
                return store.create(term, [(w.task.spec, w.status) for w in batch])
            changes = [(w.task.spec, w.expect, w.status) for w in batch]
            return store.apply(term, changes)  # type: ignore[arg-type]

        def answered(answer: object) -> None:
            if answer is None:
                self._leader.depose()
                return
            self._busy[lane] -= 1
            self._next(lane)
            answers = cast("list[Answer]", answer)
            self._on_written(list(zip(batch, answers, strict=True)))

        call(self._leader, store, serve, answered, lane=self._lanes[lane])
