"""The figures that every service counts about its RPCs."""

from __future__ import annotations

from prometheus_client import Counter, Histogram

RPC_SECONDS = Histogram(
    "muster_rpc_duration_seconds",
    "Time from a unary RPC's arrival to its answer.",
    ("service", "method"),
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
)
RPC_ERRORS = Counter(
    "muster_rpc_errors_total", "RPCs that ended with an error.", ("service", "method", "code")
)
