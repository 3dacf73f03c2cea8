"""Log lines between what prints and the monitor: split, numbered, capped, kept until taken. Pure.

Per attempt at most MAX_TASK_LOG_BYTES and LINES_PER_S; over all at most MAX_PENDING_BYTES, of
which the oldest give way. What is left out is said where it is missing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

from muster.agent.events import AttemptKey
from muster.domain.ids import TenantId

# A task's log is for reading; larger output belongs into its result or a blob.
MAX_TASK_LOG_BYTES: Final = 1024 * 1024
MAX_LINE_CHARS: Final = 8 * 1024
LINES_PER_S: Final = 500
BURST_LINES: Final = 2_000
# A monitor may be away for a minute without loss at a hundred lines a second.
MAX_PENDING_BYTES: Final = 8 * 1024 * 1024
# What one report carries: well below gRPC's message size.
MAX_BATCH_LINES: Final = 2_000
MAX_BATCH_BYTES: Final = 1024 * 1024
_LINE_OVERHEAD_BYTES: Final = 64


class LogLine(NamedTuple):
    """One line of one attempt, or of the agent itself (empty task)."""

    key: AttemptKey | None
    tenant: TenantId
    at_ms: int
    stream: str
    level: str
    text: str
    number: int


class LogEnd(NamedTuple):
    """The attempt's log is complete."""

    key: AttemptKey
    tenant: TenantId


@dataclass(frozen=True, slots=True)
class LogBatch:
    """What one report carries."""

    lines: tuple[LogLine, ...] = ()
    ends: tuple[LogEnd, ...] = ()


@dataclass(slots=True)
class _TaskLog:
    tenant: TenantId
    index: int = 0
    size: int = 0
    tokens: float = BURST_LINES
    tokens_at_ms: int = 0
    left_out: int = 0
    full: bool = False


def _size(line: LogLine) -> int:
    return len(line.text) + _LINE_OVERHEAD_BYTES


class LogBook:
    """All lines that the monitor has not confirmed yet. `on_pending` is called at new ones."""

    def __init__(self, on_pending: Callable[[], None] = lambda: None) -> None:
        self._logs: dict[AttemptKey, _TaskLog] = {}
        self._pending: deque[LogLine | LogEnd] = deque()
        self._pending_bytes = 0
        self._in_flight: deque[tuple[int, tuple[LogLine | LogEnd, ...]]] = deque()
        self._on_pending = on_pending
        self._agent_index = 0
        self.dropped_lines = 0

    @property
    def has_pending(self) -> bool:
        """Whether something waits to be sent."""
        return bool(self._pending)

    def write(
        self, key: AttemptKey, tenant: TenantId, stream: str, level: str, text: str, now_ms: int
    ) -> None:
        """Takes complete lines of an attempt; `now_ms` is wall time."""
        log = self._logs.get(key)
        if log is None:
            log = self._logs[key] = _TaskLog(tenant, tokens_at_ms=now_ms)
        if log.full:
            return
        for line in text.split("\n"):
            self._write_line(key, log, stream, level, line.rstrip("\r"), now_ms)

    def write_agent(self, level: str, text: str, now_ms: int) -> None:
        """One line of the agent's own log."""
        line = LogLine(
            None, TenantId(""), now_ms, "agent", level, text[:MAX_LINE_CHARS], self._agent_index
        )
        self._agent_index += 1
        self._push(line)

    def end(self, key: AttemptKey, now_ms: int) -> None:
        """Nothing more will be written for the attempt. One without a line leaves no trace."""
        log = self._logs.pop(key, None)
        if log is None:
            return
        self._say_left_out(key, log, now_ms)
        self._pending.append(LogEnd(key, log.tenant))
        self._on_pending()

    def take(self, seq: int) -> LogBatch:
        """The next batch, for report number `seq`; it is kept until that is confirmed."""
        batch: list[LogLine | LogEnd] = []
        size = 0
        while self._pending and len(batch) < MAX_BATCH_LINES and size < MAX_BATCH_BYTES:
            item = self._pending.popleft()
            batch.append(item)
            if isinstance(item, LogLine):
                size += _size(item)
        if batch:
            self._in_flight.append((seq, tuple(batch)))
        return LogBatch(
            tuple(i for i in batch if isinstance(i, LogLine)),
            tuple(i for i in batch if isinstance(i, LogEnd)),
        )

    def confirmed(self, seq: int) -> None:
        """The monitor keeps everything up to this report."""
        while self._in_flight and self._in_flight[0][0] <= seq:
            self._forget_oldest_batch()

    def lost(self) -> None:
        """The connection is gone: what was not confirmed is to be sent again."""
        while self._in_flight:
            self._pending.extendleft(reversed(self._in_flight.pop()[1]))

    def _forget_oldest_batch(self) -> None:
        _, batch = self._in_flight.popleft()
        self._pending_bytes -= sum(_size(i) for i in batch if isinstance(i, LogLine))

    def _write_line(
        self, key: AttemptKey, log: _TaskLog, stream: str, level: str, text: str, now_ms: int
    ) -> None:
        elapsed_ms = max(0, now_ms - log.tokens_at_ms)
        log.tokens = min(BURST_LINES, log.tokens + elapsed_ms * LINES_PER_S / 1000)
        log.tokens_at_ms = now_ms
        if log.tokens < 1:
            log.left_out += 1
            return
        log.tokens -= 1
        self._say_left_out(key, log, now_ms)
        if len(text) > MAX_LINE_CHARS:
            text = text[:MAX_LINE_CHARS] + f"… [{len(text) - MAX_LINE_CHARS} characters more]"
        log.size += len(text) + 1
        if log.size > MAX_TASK_LOG_BYTES:
            log.full = True
            stream, level = "log", "warning"
            text = f"[the log ends here: it has reached {MAX_TASK_LOG_BYTES} bytes]"
        self._append(key, log, stream, level, text, now_ms)

    def _say_left_out(self, key: AttemptKey, log: _TaskLog, now_ms: int) -> None:
        if log.left_out:
            text = f"[{log.left_out} lines left out: more than {LINES_PER_S} lines a second]"
            log.left_out = 0
            self._append(key, log, "log", "warning", text, now_ms)

    def _append(
        self, key: AttemptKey, log: _TaskLog, stream: str, level: str, text: str, now_ms: int
    ) -> None:
        self._push(LogLine(key, log.tenant, now_ms, stream, level, text, log.index))
        log.index += 1

    def _push(self, line: LogLine) -> None:
        self._pending.append(line)
        self._pending_bytes += _size(line)
        self._on_pending()
        # What was sent is most likely kept by the monitor, so it is the first to go.
        while self._pending_bytes > MAX_PENDING_BYTES and self._in_flight:
            self._forget_oldest_batch()
        while self._pending_bytes > MAX_PENDING_BYTES:
            oldest = self._pending.popleft()
            if isinstance(oldest, LogEnd):
                # An end is small and tells readers that nothing more comes: it stays.
                self._pending.append(oldest)
                continue
            self._pending_bytes -= _size(oldest)
            self.dropped_lines += 1
