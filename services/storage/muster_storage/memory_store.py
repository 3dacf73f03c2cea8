"""The store in memory, for tests and simulation: it forgets everything with its process."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence

from muster.domain.errors import Conflict
from muster_storage.memory_tasks import HeldBlob, Memory, MemoryTasks
from muster_storage.records import (
    NO_WISH,
    DeleteVerdict,
    Drop,
    Durability,
    LogRef,
    PutVerdict,
    StoredKey,
    Value,
)
from muster_storage.redis_shared import MAX_API_KEYS
from muster_storage.redis_store import EVENTS_KEPT
from muster_storage.wire import number_field

_EVENT_TERM_FIELD = 11


class MemoryCluster:
    """ClusterStore."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._incarnations: Counter[str] = Counter()
        self._name = ""
        self._policy = b""
        self._policy_version = 0
        self._wishes: dict[str, int] = {}
        self._keys: dict[str, StoredKey] = {}

    async def acquire_term(self, head: str, event: bytes, above: int = 0) -> tuple[int, int]:
        self._memory.term = max(self._memory.term, above) + 1
        self._memory.emit(head, event + number_field(_EVENT_TERM_FIELD, self._memory.term))
        return self._memory.term, self._memory.clock_ms

    async def confirm_term(self, term: int, advance_ms: int) -> tuple[bool, int]:
        current = term == self._memory.term
        if current:
            self._memory.clock_ms += advance_ms
        return current, self._memory.clock_ms

    async def term(self) -> int:
        return self._memory.term

    async def clock_ms(self) -> int:
        return self._memory.clock_ms

    async def next_incarnation(self, agent: str, above: int = 0) -> int:
        self._incarnations[agent] = max(self._incarnations[agent], above) + 1
        return self._incarnations[agent]

    async def name(self, offered: str) -> str:
        self._name = self._name or offered
        return self._name

    @property
    def durability(self) -> Durability:
        return Durability()

    async def policy(self) -> tuple[bytes, str]:
        return self._policy, str(self._policy_version)

    async def put_policy(
        self, policy: bytes, if_match: str, head: str, event: bytes
    ) -> tuple[bool, str]:
        written = if_match in ("", str(self._policy_version))
        if written:
            self._policy = policy
            self._policy_version += 1
            self._memory.emit(head, event)
        return written, str(self._policy_version)

    async def set_wish(self, agent: str, wish: int, who: str, head: str, event: bytes) -> None:  # noqa: ARG002
        self._wishes[agent] = wish
        if wish == NO_WISH:
            del self._wishes[agent]
        self._memory.emit(head, event)

    async def wishes(self) -> dict[str, int]:
        return dict(self._wishes)

    async def create_api_key(self, ident: str, record: bytes) -> bool:
        if ident in self._keys:
            return False
        if len(self._keys) >= MAX_API_KEYS:
            raise Conflict(f"there are {MAX_API_KEYS} API keys, which is the most there may be")
        self._keys[ident] = StoredKey(record, 0, 0)
        return True

    async def api_key(self, ident: str) -> StoredKey | None:
        return self._keys.get(ident)

    async def api_keys(self) -> list[StoredKey]:
        return [self._keys[ident] for ident in sorted(self._keys)]

    async def revoke_api_key(self, ident: str, now_ms: int) -> None:
        key = self._keys.get(ident)
        if key is not None and not key.revoked_at_ms:
            self._keys[ident] = key._replace(revoked_at_ms=now_ms)

    async def touch_api_keys(self, last_used_at_ms: Mapping[str, int]) -> None:
        for ident, used in last_used_at_ms.items():
            key = self._keys.get(ident)
            if key is not None:
                self._keys[ident] = key._replace(last_used_at_ms=max(used, key.last_used_at_ms))


class MemoryValues:
    """ValueStore."""

    def __init__(self) -> None:
        self._values: dict[str, dict[str, Value]] = {}
        self._version = 0

    async def value(self, tenant: str, key: str) -> Value | None:
        return self._values.get(tenant, {}).get(key)

    async def put_value(
        self, tenant: str, key: str, value: Value, *, if_match: str, if_none_match: bool
    ) -> PutVerdict:
        values = self._values.setdefault(tenant, {})
        present = values.get(key)
        etag = present.etag if present is not None else ""
        if if_none_match:
            refused = present is not None
        elif if_match == "*":
            refused = present is None
        else:
            refused = if_match not in ("", etag)
        if refused:
            return PutVerdict(written=False, etag=etag, created=False)
        self._version += 1
        values[key] = value._replace(etag=str(self._version))
        return PutVerdict(written=True, etag=str(self._version), created=present is None)

    async def delete_value(self, tenant: str, key: str, if_match: str) -> DeleteVerdict:
        values = self._values.get(tenant, {})
        if key not in values:
            return DeleteVerdict(deleted=False, etag="")
        etag = values[key].etag
        if if_match not in ("", "*", etag):
            return DeleteVerdict(deleted=False, etag=etag)
        del values[key]
        return DeleteVerdict(deleted=True, etag=etag)

    async def value_keys(
        self, tenant: str, prefix: str, cursor: str, limit: int
    ) -> tuple[list[str], str]:
        keys = sorted(
            (key for key in self._values.get(tenant, {}) if key.startswith(prefix)),
            key=str.encode,
        )
        rest = [key for key in keys if not cursor or key.encode() > cursor.encode()]
        return rest[:limit], rest[limit - 1] if len(rest) > limit else ""


class MemoryBlobs:
    """BlobIndex."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    async def claim_blob(self, tenant: str, sha256: str, size_bytes: int, *, pinned: bool) -> bool:  # noqa: ARG002
        memory, name = self._memory, (tenant, sha256)
        if name in memory.dying:
            return False
        blob = memory.blobs.setdefault(name, HeldBlob(pinned=False, idle_since_clock_ms=None))
        blob.pinned = blob.pinned or pinned
        idle = not blob.pinned and not memory.holders.get(name)
        blob.idle_since_clock_ms = memory.clock_ms if idle else None
        return True

    async def drop_blob(self, tenant: str, sha256: str) -> Drop:
        memory, name = self._memory, (tenant, sha256)
        if name not in memory.blobs:
            return Drop.UNKNOWN
        if memory.holders.get(name):
            memory.blobs[name].pinned = False
            return Drop.HELD
        del memory.blobs[name]
        memory.dying[name] = memory.clock_ms
        return Drop.DOOMED

    async def doom_blobs(
        self, idle_before_clock_ms: int, dying_before_clock_ms: int, limit: int
    ) -> list[tuple[str, str]]:
        memory = self._memory
        doomed = [name for name, at in memory.dying.items() if at < dying_before_clock_ms][:limit]
        idle = [
            name
            for name, blob in memory.blobs.items()
            if blob.idle_since_clock_ms is not None
            and blob.idle_since_clock_ms < idle_before_clock_ms
        ]
        for name in idle[:limit]:
            del memory.blobs[name]
            doomed.append(name)
        for name in doomed:
            memory.dying[name] = memory.clock_ms
        return doomed

    async def buried(self, blobs: Sequence[tuple[str, str]]) -> None:
        for name in blobs:
            self._memory.dying.pop(name, None)

    async def set_logs(self, logs: Sequence[LogRef]) -> int:
        memory = self._memory
        taken = 0
        for log in logs:
            if memory.task(log.tenant, log.task_id) is None:
                continue
            taken += 1
            of_task = memory.logs.setdefault((log.tenant, log.task_id), {})
            before, _, rank = of_task.get(log.attempt, ("", b"", 0))
            if log.rank < rank:
                taken -= 1
                continue
            of_task[log.attempt] = (log.sha256, log.record, log.rank)
            if before != log.sha256:
                holder = f"l:{log.task_id}:{log.attempt}"
                if before:
                    memory.release(log.tenant, before, holder)
                memory.hold(log.tenant, log.sha256, holder)
        return taken

    async def logs(self, tenant: str, task_id: str) -> list[bytes]:
        found = self._memory.logs.get((tenant, task_id), {})
        return [found[attempt][1] for attempt in sorted(found)]


class MemoryStore:
    """A Store."""

    def __init__(self, events_kept: int = EVENTS_KEPT) -> None:
        self.memory = Memory(events_kept)
        self.tasks = MemoryTasks(self.memory)
        self.events = self.tasks
        self.cluster = MemoryCluster(self.memory)
        self.values = MemoryValues()
        self.blobs = MemoryBlobs(self.memory)

    async def run(self) -> None:
        """There is nothing to keep connected."""
        await asyncio.Event().wait()

    def why_not_ready(self) -> str | None:
        return None
