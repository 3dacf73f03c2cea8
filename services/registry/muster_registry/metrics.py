"""The registry's own figures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import Counter, Gauge
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from muster_registry.cluster import Cluster

REGISTRATIONS = Counter("muster_registry_registrations_total", "Attempts to register.", ("result",))
BEATS = Counter("muster_registry_heartbeats_total", "Heartbeats answered.", ("result",))
STREAMS = Gauge("muster_registry_heartbeat_streams", "Agents connected.")
WATCHERS = Gauge("muster_registry_watchers", "Watchers of agents connected.")
PUSHES = Counter("muster_registry_leader_pushes_total", "Leader changes told unasked.")


class ClusterCollector(Collector):
    """Made anew at each scrape from what the registry knows."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        for name, text, value in (
            ("muster_registry_agents", "Agents registered.", len(self._cluster.view)),
            ("muster_registry_revision", "etcd's revision.", self._cluster.view.revision),
            ("muster_registry_leader_known", "A leader is known.", bool(self._cluster.leader)),
            ("muster_registry_etcd_up", "etcd answers.", self._cluster.why_not_ready() is None),
        ):
            yield GaugeMetricFamily(name, text, value=value)
