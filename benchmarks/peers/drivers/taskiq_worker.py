"""The taskiq application: redis streams with acknowledgements, results in Redis."""

from __future__ import annotations

import asyncio
import os

from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

from benchmarks.peers.drivers.measuring import NAP_S, note_nap

_URL = os.environ["PEER_REDIS_URL"]
# "short" gives out again after 15 s what a dead worker held; the default is 10 minutes, and a
# lock of the dead one that is kept for ever.
_RECOVERY = (
    {"idle_timeout": 15_000, "unacknowledged_lock_timeout": 15.0}
    if os.environ["PEER_RECOVERY"] == "short"
    else {}
)
# One message at a time where tasks are long: by default one worker fetches 100.
_FETCH = {"xread_count": 1} if os.environ["PEER_ONE_AT_A_TIME"] == "1" else {}

broker = RedisStreamBroker(_URL, **_RECOVERY, **_FETCH).with_result_backend(
    RedisAsyncResultBackend(_URL, result_ex_time=3600)
)


@broker.task
async def same(number: int) -> int:
    """A no-op."""
    return number


@broker.task
async def nap(number: int, journal: str) -> int:
    """Sleeps as the other peers' naps do."""
    note_nap(number, journal)
    await asyncio.sleep(NAP_S)
    return number
