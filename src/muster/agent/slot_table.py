"""A small mapped file that says what the runtime is doing, for the supervisor to read.

It costs the runtime a few memory writes per attempt and no system call, and it outlives the
runtime however that dies. One writer; a reader that meets it half-written errs by one attempt.
"""

from __future__ import annotations

import mmap
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from muster.agent.events import AttemptKey
from muster.domain.ids import TaskId, TenantId

_MAGIC: Final = b"MSLOT001"
# magic, slots, runtime's pid, incarnation, term, stop deadline (boot ms, 0 = none), leader
_HEADER: Final = struct.Struct("<8sIIqqq128s")
_HEADER_BYTES: Final = 256
_STOP_DEADLINE_AT: Final = 8 + 4 + 4 + 8 + 8
# used, attempt, task id, tenant
_RECORD: Final = struct.Struct("<Bxxxi26s32s")


class StartedAttempt(NamedTuple):
    """One attempt that had started."""

    key: AttemptKey
    tenant: TenantId


@dataclass(frozen=True, slots=True)
class TableView:
    """What the file says at one moment."""

    pid: int
    incarnation: int
    term: int
    stop_deadline_ms: int
    leader: str
    started: tuple[StartedAttempt, ...]


class SlotTable:
    """The writer's side. `records` bounds how many attempts can be shown at once."""

    def __init__(self, path: Path, *, records: int) -> None:
        size = _HEADER_BYTES + records * _RECORD.size
        scratch = path.with_suffix(".new")
        fd = os.open(scratch, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.truncate(fd, size)
            self._map = mmap.mmap(fd, size)
        finally:
            os.close(fd)
        self._records = records
        self._free = list(range(records - 1, -1, -1))
        self._index: dict[AttemptKey, int] = {}
        self._incarnation = self._term = self._stop_deadline_ms = 0
        self._leader = ""
        self._write_header()
        scratch.rename(path)

    def identify(self, *, incarnation: int, term: int, leader: str) -> None:
        """Notes who the runtime is and whom it obeys."""
        self._incarnation, self._term, self._leader = incarnation, term, leader
        self._write_header()

    def set_stop_deadline(self, deadline_ms: int) -> None:
        """When the supervisor must step in if the runtime does not (boot ms, 0 = never)."""
        if deadline_ms != self._stop_deadline_ms:
            self._stop_deadline_ms = deadline_ms
            struct.pack_into("<q", self._map, _STOP_DEADLINE_AT, deadline_ms)

    def started(self, key: AttemptKey, tenant: TenantId) -> None:
        """The attempt is about to be handed to a process."""
        if not self._free or key in self._index:
            return
        index = self._index[key] = self._free.pop()
        _RECORD.pack_into(
            self._map,
            _HEADER_BYTES + index * _RECORD.size,
            1,
            key.attempt,
            key.task_id.encode(),
            tenant.encode(),
        )

    def ended(self, key: AttemptKey) -> None:
        """Nothing of the attempt runs any more."""
        index = self._index.pop(key, None)
        if index is not None:
            self._map[_HEADER_BYTES + index * _RECORD.size] = 0
            self._free.append(index)

    def close(self) -> None:
        """Unmaps the file, which stays."""
        self._map.close()

    def _write_header(self) -> None:
        _HEADER.pack_into(
            self._map,
            0,
            _MAGIC,
            self._records,
            os.getpid(),
            self._incarnation,
            self._term,
            self._stop_deadline_ms,
            self._leader.encode()[:128],
        )


def read_slot_table(path: Path, *, attempts: bool = True) -> TableView | None:
    """What the file says now, without the attempts if so wished; None = no complete one."""
    try:
        with path.open("rb") as source:
            content = source.read(-1 if attempts else _HEADER_BYTES)
    except FileNotFoundError:
        return None
    if len(content) < _HEADER_BYTES:
        return None
    magic, records, pid, incarnation, term, stop_ms, leader = _HEADER.unpack_from(content)
    if magic != _MAGIC:
        return None
    if attempts and len(content) < _HEADER_BYTES + records * _RECORD.size:
        return None
    started = []
    for index in range(records if attempts else 0):
        used, attempt, task, tenant = _RECORD.unpack_from(
            content, _HEADER_BYTES + index * _RECORD.size
        )
        if used:
            key = AttemptKey(TaskId(task.rstrip(b"\0").decode()), attempt)
            started.append(StartedAttempt(key, TenantId(tenant.rstrip(b"\0").decode())))
    return TableView(pid, incarnation, term, stop_ms, leader.rstrip(b"\0").decode(), tuple(started))
