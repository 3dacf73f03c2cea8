"""The logs of all attempts in bounded memory, and which of them storage has to be given. Pure.

What storage holds may leave memory at any time and is read again when it is needed. What storage
does not hold yet stays, until memory is full; then logs are cut, marked, and nobody waits.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from muster.domain.ids import TaskId, TenantId
from muster_monitor.attempt_log import AttemptLog
from muster_monitor.log_lines import Line

DEFAULT_MEMORY_BYTES = 64 * 1024 * 1024
# How much of an unfinished log a killed monitor leaves to the agents to send again.
FLUSH_EVERY_MS = 10_000
# Under a full memory this share is freed at once, so that not every line has to look for room.
_ROOM_SHARE = 0.1
# A log of fewer lines is given up whole instead of being cut.
_FEW_LINES = 4


class LogKey(NamedTuple):
    tenant: TenantId
    task: TaskId
    attempt: int


@dataclass(frozen=True, slots=True)
class Flush:
    """One log to be stored. `position` says what is in it; hand it back to `stored`."""

    key: LogKey
    blob: bytes
    complete: bool
    position: int
    next_index: int


class TaskLogs:
    """`position` counts every change of any log; a log is safe when storage holds its newest."""

    def __init__(self, memory_bytes: int = DEFAULT_MEMORY_BYTES) -> None:
        self._clean: OrderedDict[LogKey, AttemptLog] = OrderedDict()
        self._dirty: OrderedDict[LogKey, AttemptLog] = OrderedDict()
        # Attempts of a task that are in memory, for readers.
        self._attempts: dict[tuple[TenantId, TaskId], set[int]] = {}
        self._position = 0
        self._memory_bytes = memory_bytes
        self._held_bytes = 0
        self.lost_logs = 0

    @property
    def held_bytes(self) -> int:
        return self._held_bytes

    @property
    def log_count(self) -> int:
        return len(self._clean) + len(self._dirty)

    @property
    def dirty_count(self) -> int:
        return len(self._dirty)

    def get(self, key: LogKey) -> AttemptLog | None:
        return self._dirty.get(key) or self._clean.get(key)

    def attempts(self, tenant: TenantId, task: TaskId) -> list[int]:
        """Attempts in memory, ascending."""
        return sorted(self._attempts.get((tenant, task), ()))

    def append(self, key: LogKey, lines: Iterable[Line], now_ms: int) -> int:
        """The position that has to be stored before these lines are safe; 0 = they are."""
        log = self.get(key) or self._begin(key, now_ms)
        before = log.memory_bytes
        # `append` has to see every line, so this is no any().
        added = sum([log.append(line) for line in lines])
        self._held_bytes += log.memory_bytes - before
        if added:
            self._touch(key, log, now_ms)
            self._make_room(key)
        return log.changed if log.dirty else 0

    def end(self, key: LogKey, now_ms: int) -> int:
        """The log is complete; agents end only logs that have lines.

        One that is not in memory has its lines in storage, where it must be marked.
        """
        log = self.get(key)
        if log is None:
            log = self._begin(key, now_ms)
            log.wants_older = True
        if not log.complete:
            log.complete = True
            self._touch(key, log, now_ms)
            self._make_room(key)
        return log.changed if log.dirty else 0

    def is_safe(self, key: LogKey, position: int) -> bool:
        """Whether storage holds it, or memory had to give it up: either way nobody need wait."""
        log = self._dirty.get(key)
        return log is None or log.flushed >= position

    def due(self, now_ms: int, limit: int) -> list[LogKey]:
        """Logs to store now, longest waiting first: complete ones, and those that grew long ago."""
        out: list[LogKey] = []
        for key, log in self._dirty.items():
            if len(out) >= limit:
                break
            if log.complete or now_ms - log.dirty_since_ms >= FLUSH_EVERY_MS:
                out.append(key)
        return out

    def all_dirty(self) -> list[LogKey]:
        return list(self._dirty)

    def flush_of(self, key: LogKey) -> Flush | None:
        """None when there is nothing (more) to store, or the older part has to be read first."""
        log = self._dirty.get(key)
        if log is None or log.wants_older:
            return None
        return Flush(key, log.blob(), log.complete, log.changed, log.next_index)

    def stored(self, flush: Flush, now_ms: int) -> None:
        """Storage holds this flush."""
        log = self._dirty.get(flush.key)
        if log is None:
            return
        log.flushed = max(log.flushed, flush.position)
        log.dirty_since_ms = now_ms
        if not log.dirty:
            del self._dirty[flush.key]
            self._clean[flush.key] = log
            self._make_room(flush.key)
        else:
            self._dirty.move_to_end(flush.key)

    def merge_older(self, key: LogKey, older: Sequence[Line]) -> None:
        """What storage held of this log (nothing is an answer too)."""
        log = self.get(key)
        if log is None or not log.wants_older:
            return
        before = log.memory_bytes
        log.merge_older(older)
        self._held_bytes += log.memory_bytes - before
        self._make_room(key)

    def give_up(self, key: LogKey) -> None:
        """Storage will never take it (its task is gone)."""
        self._drop(key)

    def _begin(self, key: LogKey, now_ms: int) -> AttemptLog:
        log = AttemptLog(now_ms)
        self._held_bytes += log.memory_bytes
        self._clean[key] = log
        self._attempts.setdefault((key.tenant, key.task), set()).add(key.attempt)
        return log

    def _touch(self, key: LogKey, log: AttemptLog, now_ms: int) -> None:
        self._position += 1
        if not log.dirty:
            self._clean.pop(key, None)
            log.dirty_since_ms = now_ms
            self._dirty[key] = log
        log.changed = self._position

    def _make_room(self, spare: LogKey) -> None:
        """Frees memory when it is over its bound; the log of `spare` goes last."""
        if self._held_bytes <= self._memory_bytes:
            return
        goal = int(self._memory_bytes * (1 - _ROOM_SHARE))
        for key in [key for key in self._clean if key != spare]:
            if self._held_bytes <= goal:
                return
            self._drop(key)
        while self._held_bytes > goal and (self._dirty or self._clean):
            self._shed_round(goal, spare)

    def _shed_round(self, goal: int, spare: LogKey) -> None:
        keys = [key for key in (*self._clean, *self._dirty) if key != spare]
        for key in keys or [spare]:
            if self._held_bytes <= goal:
                return
            log = self.get(key)
            assert log is not None
            if log.line_count < _FEW_LINES or not log.dirty:
                self.lost_logs += log.dirty
                self._drop(key)
                continue
            before = log.memory_bytes
            log.shed()
            self._held_bytes += log.memory_bytes - before

    def _drop(self, key: LogKey) -> None:
        log = self._dirty.pop(key, None) or self._clean.pop(key, None)
        if log is None:
            return
        self._held_bytes -= log.memory_bytes
        attempts = self._attempts[(key.tenant, key.task)]
        attempts.discard(key.attempt)
        if not attempts:
            del self._attempts[(key.tenant, key.task)]
