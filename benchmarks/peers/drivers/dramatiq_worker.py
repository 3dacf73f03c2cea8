"""The dramatiq application: Redis as broker and for results."""

from __future__ import annotations

import os

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

from benchmarks.peers.drivers import measuring

_URL = os.environ["PEER_REDIS_URL"]
# "short" takes a worker for dead after 15 s and looks at one command in ten; the defaults are
# 60 s and one in a thousand.
_RECOVERY = (
    {"heartbeat_timeout": 15_000, "maintenance_chance": 100_000}
    if os.environ["PEER_RECOVERY"] == "short"
    else {}
)

broker = RedisBroker(url=_URL, **_RECOVERY)
results = RedisBackend(url=_URL)
broker.add_middleware(Results(backend=results))
dramatiq.set_broker(broker)


@dramatiq.actor(store_results=True)
def same(number: int) -> int:
    """A no-op."""
    return number


@dramatiq.actor(store_results=True)
def nap(number: int, journal: str) -> int:
    """The peers' common nap."""
    return measuring.nap(number, journal)
