"""The store in Redis: its two connections, and the check that Redis keeps what it acknowledges."""

from __future__ import annotations

import asyncio

from muster_storage.redis_link import RedisAddress, RedisLink, RedisRefusedError
from muster_storage.redis_shared import RedisBlobs, RedisCluster, RedisValues
from muster_storage.redis_tasks import RedisTasks

# Of events in the stream: at 15,000 a second, what a subscriber may be away for is 13 s.
EVENTS_KEPT = 200_000
# Longest wait for an event, which every timeout of that connection comes on top of.
TAIL_WAIT_S = 1.0

_NEEDED = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}


class RedisStore:
    """A Store. `allow_weak` uses a Redis that may lose or evict what it acknowledged."""

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = 3.0,
        events_kept: int = EVENTS_KEPT,
        allow_weak: bool = False,
    ) -> None:
        address = RedisAddress.parse(url)
        self._link = RedisLink(
            address,
            timeout_s=timeout_s,
            name="calls",
            fit=None if allow_weak else why_weak,
        )
        self._tail_link = RedisLink(address, timeout_s=timeout_s + TAIL_WAIT_S, name="events")
        self.tasks = RedisTasks(self._link, self._tail_link, events_kept)
        self.events = self.tasks
        self.cluster = RedisCluster(self._link, events_kept)
        self.values = RedisValues(self._link)
        self.blobs = RedisBlobs(self._link)

    async def run(self) -> None:
        """Keeps both connections up until it is cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._link.run(), name="redis calls")
            group.create_task(self._tail_link.run(), name="redis events")

    def why_not_ready(self) -> str | None:
        return self._link.why_not_ready() or self._tail_link.why_not_ready()


async def why_weak(link: RedisLink) -> str | None:
    """One sentence when this Redis may lose or evict what it has acknowledged."""
    advice = "or set MUSTER_ALLOW_WEAK_REDIS=1 and accept the loss of acknowledged tasks"
    for name, needed in _NEEDED.items():
        try:
            found = await link.call("CONFIG", "GET", name)
        except RedisRefusedError as error:
            return f"its {name} cannot be checked ({error}); allow CONFIG GET, {advice}"
        value = found[1].decode() if found else "unknown"
        if value != needed:
            return f"{name} is {value} and must be {needed}; change it, {advice}"
    return None
