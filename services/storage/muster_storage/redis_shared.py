"""The cluster's own records, values, and holders of blobs in Redis."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from muster.domain.errors import Conflict
from muster_storage.continuity import Continuity
from muster_storage.records import (
    DeleteVerdict,
    Drop,
    Durability,
    LogRef,
    PutVerdict,
    StoredKey,
    Value,
)
from muster_storage.redis_link import KEY_PREFIX, Argument, RedisLink

# Listing them reads all of them; a cluster with more needs another way to authenticate.
MAX_API_KEYS = 10_000


class RedisCluster:
    """ClusterStore."""

    def __init__(
        self,
        link: RedisLink,
        events_kept: int,
        continuity: Continuity,
        durability: Callable[[], Durability],
    ) -> None:
        self._link = link
        self._continuity = continuity
        self._events_kept = events_kept
        self._durability = durability

    async def acquire_term(self, head: str, event: bytes, above: int = 0) -> tuple[int, int]:
        term, clock_ms = await self._link.script(
            "acquire_term", self._events_kept, head, event, above
        )
        return int(term), int(clock_ms)

    async def name(self, offered: str) -> str:
        key = f"{KEY_PREFIX}store"
        _, name = await self._link.call_each([("SET", key, offered, "NX"), ("GET", key)])
        return str(name.decode())

    @property
    def durability(self) -> Durability:
        return self._durability()

    async def confirm_term(self, term: int, advance_ms: int) -> tuple[bool, int]:
        current, clock_ms = await self._link.script("confirm_term", term, advance_ms)
        if current == 1 and advance_ms > 0:
            self._continuity.led(term, int(clock_ms))
        return current == 1, int(clock_ms)

    async def term(self) -> int:
        return int(await self._link.call("GET", f"{KEY_PREFIX}term") or 0)

    async def clock_ms(self) -> int:
        return int(await self._link.call("GET", f"{KEY_PREFIX}clock") or 0)

    async def next_incarnation(self, agent: str, above: int = 0) -> int:
        key = f"{KEY_PREFIX}incarnations"
        given = int(await self._link.call("HINCRBY", key, agent, 1))
        if given <= above:
            # Two that do this at once jump twice, which harms nobody: they only have to grow.
            given = int(await self._link.call("HINCRBY", key, agent, above + 1 - given))
        return given

    async def policy(self) -> tuple[bytes, str]:
        policy, etag = await self._link.call("HMGET", f"{KEY_PREFIX}policy", "v", "e")
        return policy or b"", (etag or b"0").decode()

    async def put_policy(
        self, policy: bytes, if_match: str, head: str, event: bytes
    ) -> tuple[bool, str]:
        written, etag = await self._link.script(
            "put_policy", policy, if_match, self._events_kept, head, event
        )
        return written == 1, etag.decode()

    async def set_wish(self, agent: str, wish: int, who: str, head: str, event: bytes) -> None:
        await self._link.script("set_wish", agent, wish, who, self._events_kept, head, event)

    async def wishes(self) -> dict[str, int]:
        flat = await self._link.call("HGETALL", f"{KEY_PREFIX}wishes")
        return {
            agent.decode(): int(wish.split(b":", 1)[0])
            for agent, wish in zip(flat[::2], flat[1::2], strict=True)
        }

    async def create_api_key(self, ident: str, record: bytes) -> bool:
        code = await self._link.script("create_api_key", ident, record, MAX_API_KEYS)
        if code == 2:
            raise Conflict(f"there are {MAX_API_KEYS} API keys, which is the most there may be")
        return bool(code == 1)

    async def api_key(self, ident: str) -> StoredKey | None:
        record, revoked, used = await self._link.call_each(
            [
                ("HGET", f"{KEY_PREFIX}apikeys", ident),
                ("HGET", f"{KEY_PREFIX}apikeys:revoked", ident),
                ("HGET", f"{KEY_PREFIX}apikeys:used", ident),
            ]
        )
        return StoredKey(record, int(revoked or 0), int(used or 0)) if record else None

    async def api_keys(self) -> list[StoredKey]:
        flat, revoked, used = await self._link.call_each(
            [
                ("HGETALL", f"{KEY_PREFIX}apikeys"),
                ("HGETALL", f"{KEY_PREFIX}apikeys:revoked"),
                ("HGETALL", f"{KEY_PREFIX}apikeys:used"),
            ]
        )
        revoked_at = dict(zip(revoked[::2], revoked[1::2], strict=True))
        used_at = dict(zip(used[::2], used[1::2], strict=True))
        return [
            StoredKey(record, int(revoked_at.get(ident, 0)), int(used_at.get(ident, 0)))
            for ident, record in sorted(zip(flat[::2], flat[1::2], strict=True))
        ]

    async def revoke_api_key(self, ident: str, now_ms: int) -> None:
        await self._link.call("HSETNX", f"{KEY_PREFIX}apikeys:revoked", ident, now_ms)

    async def touch_api_keys(self, last_used_at_ms: Mapping[str, int]) -> None:
        arguments: list[Argument] = []
        for ident, used in last_used_at_ms.items():
            arguments += (ident, used)
        if arguments:
            await self._link.script("touch_api_keys", *arguments)


class RedisValues:
    """ValueStore."""

    def __init__(self, link: RedisLink, continuity: Continuity) -> None:
        self._link = link
        self._continuity = continuity

    async def value(self, tenant: str, key: str) -> Value | None:
        value, content_type, etag = await self._link.call(
            "HMGET", f"{KEY_PREFIX}{tenant}:v:{key}", "v", "c", "e"
        )
        return Value(value, content_type.decode(), etag.decode()) if etag is not None else None

    async def put_value(
        self, tenant: str, key: str, value: Value, *, if_match: str, if_none_match: bool
    ) -> PutVerdict:
        self._continuity.check(0)
        written, etag, created = await self._link.script(
            *("put_value", tenant, key, value.value, value.content_type),
            *(if_match, int(if_none_match)),
        )
        return PutVerdict(written == 1, etag.decode(), created == 1)

    async def delete_value(self, tenant: str, key: str, if_match: str) -> DeleteVerdict:
        self._continuity.check(0)
        deleted, etag = await self._link.script("delete_value", tenant, key, if_match)
        return DeleteVerdict(deleted == 1, etag.decode())

    async def value_keys(
        self, tenant: str, prefix: str, cursor: str, limit: int
    ) -> tuple[list[str], str]:
        # 0xff is in no UTF-8, so it comes after every key with the prefix.
        low = b"(" + cursor.encode() if cursor > prefix else b"[" + prefix.encode()
        high = b"(" + prefix.encode() + b"\xff"
        found = await self._link.call(
            *("ZRANGEBYLEX", f"{KEY_PREFIX}{tenant}:values", low, high, "LIMIT", 0, limit + 1)
        )
        keys = [key.decode() for key in found[:limit]]
        return keys, keys[-1] if len(found) > limit else ""


class RedisBlobs:
    """BlobIndex."""

    def __init__(self, link: RedisLink) -> None:
        self._link = link

    async def claim_blob(self, tenant: str, sha256: str, size_bytes: int, *, pinned: bool) -> bool:
        taken = await self._link.script("claim_blob", tenant, sha256, size_bytes, int(pinned))
        return bool(taken == 1)

    async def drop_blob(self, tenant: str, sha256: str) -> Drop:
        return Drop(await self._link.script("drop_blob", tenant, sha256))

    async def doom_blobs(
        self, idle_before_clock_ms: int, dying_before_clock_ms: int, limit: int
    ) -> list[tuple[str, str]]:
        names = await self._link.script(
            "doom_blobs", f"({idle_before_clock_ms}", f"({dying_before_clock_ms}", limit
        )
        return [_blob_name(name) for name in names]

    async def buried(self, blobs: Sequence[tuple[str, str]]) -> None:
        names = [f"{tenant}/{sha256}" for tenant, sha256 in blobs]
        if names:
            await self._link.call("ZREM", f"{KEY_PREFIX}blobs:dying", *names)

    async def set_logs(self, logs: Sequence[LogRef]) -> int:
        arguments: list[Argument] = []
        for log in logs:
            arguments.extend(log)
        return int(await self._link.script("set_logs", *arguments)) if arguments else 0

    async def logs(self, tenant: str, task_id: str) -> list[bytes]:
        flat = await self._link.call("HGETALL", f"{KEY_PREFIX}{tenant}:l:{task_id}")
        # "3" holds the record of attempt 3, "3:b" the name of its blob, "3:r" its rank.
        found = {int(f): v for f, v in zip(flat[::2], flat[1::2], strict=True) if f.isdigit()}
        return [found[attempt] for attempt in sorted(found)]


def _blob_name(name: bytes) -> tuple[str, str]:
    tenant, _, sha256 = name.decode().partition("/")
    return tenant, sha256
