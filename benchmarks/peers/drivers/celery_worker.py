"""The Celery application: Redis as broker and for results, tasks acknowledged late."""

from __future__ import annotations

import os

from celery import Celery

from benchmarks.peers.drivers import measuring

_URL = os.environ["PEER_REDIS_URL"]

app = Celery("peer", broker=_URL, backend=_URL)
app.conf.update(
    task_serializer="json",
    result_serializer="json",
    accept_content=["json"],
    # What Celery's documentation names for tasks that must not be lost with their worker.
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    # The documentation: 1 for long tasks, far more for short ones.
    worker_prefetch_multiplier=1 if os.environ["PEER_ONE_AT_A_TIME"] == "1" else 64,
    # "short" gives out again after 15 s what a dead worker held and looks every second; the
    # defaults are an hour, looked at every 100 s.
    broker_transport_options=(
        {
            "visibility_timeout": 15,
            "unacked_restore_interval": 1,
            "unacked_restore_throttle": 1,
        }
        if os.environ["PEER_RECOVERY"] == "short"
        else {}
    ),
    worker_hijack_root_logger=False,
)


@app.task(name="same")
def same(number: int) -> int:
    """A no-op."""
    return number


@app.task(name="nap")
def nap(number: int, journal: str) -> int:
    """The peers' common nap."""
    return measuring.nap(number, journal)
