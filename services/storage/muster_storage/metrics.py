"""The figures that the storage service counts."""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

TASK_WRITES: Final = Counter(
    "muster_storage_task_writes_total", "Writes of tasks that were done.", ("kind",)
)
REFUSED_WRITES: Final = Counter(
    "muster_storage_refused_writes_total",
    "Writes that changed nothing: fenced (another term), stale (another state or attempt), "
    "not_found, exists, repeated.",
    ("why",),
)
REDIS_SECONDS: Final = Histogram(
    "muster_storage_redis_seconds",
    "From handing commands to the connection to their last reply.",
    buckets=(0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1, 5),
)
EVENTS: Final = Counter("muster_storage_events_total", "Events read from the log.")
TAIL_SUBSCRIBERS: Final = Gauge("muster_storage_tail_subscribers", "Open Tail streams.")
TAIL_GAPS: Final = Counter(
    "muster_storage_tail_gaps_total", "Times that a subscriber was told of events it cannot get."
)
TAIL_LAGGED: Final = Counter(
    "muster_storage_tail_lagged_total",
    "Times that a subscriber was too slow for its queue and went back to reading the log.",
)
SWEPT: Final = Counter(
    "muster_storage_swept_total", "What the sweep removed: task, request, blob.", ("kind",)
)
BLOB_BYTES: Final = Counter("muster_storage_blob_bytes_total", "Bytes of blobs.", ("direction",))
