"""The store in Redis: its two connections, and the check that Redis keeps what it acknowledges."""

from __future__ import annotations

import asyncio
import re

import structlog

from muster_storage.continuity import Continuity
from muster_storage.records import Durability
from muster_storage.redis_errors import RedisRefusedError
from muster_storage.redis_events import RedisEvents
from muster_storage.redis_link import KEY_PREFIX, RedisAddress, RedisLink
from muster_storage.redis_shared import RedisBlobs, RedisCluster, RedisValues
from muster_storage.redis_tasks import RedisTasks

_LOG = structlog.get_logger("muster.storage")

# Of events in the stream: at 15,000 a second, what a subscriber may be away for is 13 s.
EVENTS_KEPT = 200_000
# How tasks and events lie in Redis; 1 was one hash for each task.
LAYOUT = 2
OLDEST_REDIS = (6, 2)
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
            fit=self._fit,
        )
        self._allow_weak = allow_weak
        self._durability = Durability()
        continuity = self._continuity = Continuity()
        self._tail_link = RedisLink(address, timeout_s=timeout_s + TAIL_WAIT_S, name="events")
        self.events = RedisEvents(self._link, self._tail_link)
        self.tasks = RedisTasks(self._link, self.events, events_kept, continuity)
        self.cluster = RedisCluster(self._link, events_kept, continuity, lambda: self._durability)
        self.values = RedisValues(self._link, continuity)
        self.blobs = RedisBlobs(self._link)

    async def run(self) -> None:
        """Keeps both connections up until it is cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._link.run(), name="redis calls")
            group.create_task(self._tail_link.run(), name="redis events")

    async def _fit(self, link: RedisLink) -> str | None:
        why = await why_weak(link)
        if why is not None and not self._allow_weak:
            return why
        weak = why is not None
        self._durability = Durability(weak, await _run_of(link) if weak else "")
        unfit = await why_layout_unfit(link)
        if unfit is None:
            clock_ms, store = await link.call("MGET", f"{KEY_PREFIX}clock", f"{KEY_PREFIX}store")
            self._continuity.connected(int(clock_ms or 0), (store or b"").decode())
            if self._continuity.broken:
                _LOG.error("Redis is older than it was, or another one: it is not written to")
        return unfit

    def why_not_ready(self) -> str | None:
        return self._link.why_not_ready() or self._tail_link.why_not_ready()


async def _run_of(link: RedisLink) -> str:
    """Names the run of this Redis process; "" when it may not be asked."""
    try:
        info = (await link.call("INFO", "server")).decode()
    except RedisRefusedError:
        return ""
    found = re.search(r"^run_id:(\w+)", info, re.MULTILINE)
    return found[1] if found else ""


async def why_layout_unfit(link: RedisLink) -> str | None:
    """One sentence when this Redis is too old or holds what another version of Muster wrote."""
    try:
        info = (await link.call("INFO", "server")).decode()
    except RedisRefusedError:
        # Who may not ask for the version asks for what 6.2 brought; this trims nothing.
        await link.call("XTRIM", f"{KEY_PREFIX}events", "MINID", 0)
    else:
        version = re.search(r"^redis_version:(\d+)\.(\d+)", info, re.MULTILINE)
        if version and (int(version[1]), int(version[2])) < OLDEST_REDIS:
            return f"it is Redis {version[1]}.{version[2]}, and the oldest that serves is 6.2"
    layout, seq = await link.call("MGET", f"{KEY_PREFIX}layout", f"{KEY_PREFIX}seq")
    # Layout 1 had neither this key nor the stream of news.
    if layout is None and (seq is None or await link.call("EXISTS", f"{KEY_PREFIX}news")):
        await link.call("SET", f"{KEY_PREFIX}layout", LAYOUT, "NX")
        layout = b"%d" % LAYOUT
    if layout != b"%d" % LAYOUT:
        found = (layout or b"1").decode(errors="replace")
        return (
            f"its data has layout {found} and this Muster reads layout {LAYOUT}; "
            "use the Muster that wrote it, or give this one an empty Redis"
        )
    return None


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
