"""The monitor's own figures, and all agents' newest ones, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import REGISTRY, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector, CollectorRegistry

from muster_monitor.state import MonitorState

REPORTS = Counter("muster_monitor_reports_total", "Reports of agents taken.")
LINES = Counter("muster_monitor_log_lines_total", "Log lines taken.", ("kind",))
DROPPED = Counter("muster_monitor_dropped_total", "Input that was not taken.", ("reason",))
SUSPICIONS = Counter("muster_monitor_suspicions_total", "Suspicions raised.")
SCRAPE_ERRORS = Counter(
    "muster_monitor_scrape_errors_total", "Metrics pages of services not read.", ("of", "error")
)
STREAMS = Gauge("muster_monitor_report_streams", "Agents connected.")
WATCHERS = Gauge("muster_monitor_failure_watchers", "Watchers of failures connected.")
READERS = Gauge("muster_monitor_log_readers", "Log readers connected.")
STORES = Counter("muster_monitor_log_stores_total", "Logs handed to storage.", ("result",))
STORE_SECONDS = Histogram(
    "muster_monitor_log_store_seconds",
    "Time to hand one round of logs to storage.",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)

# Figures that the monitor itself gives under the same prefix as those that agents send.
_OWN = frozenset({"phi", "up", "last_report_age_seconds", "incarnation"})
# An agent silent for longer has no present figures, only the one that says it is down.
_FRESH_MS = 60_000


class AgentCollector(Collector):
    """`muster_agent_*`, one series per agent, from its newest sample; made anew at each scrape."""

    def __init__(
        self, state: MonitorState, boot_ms: Callable[[], int], wall_ms: Callable[[], int]
    ) -> None:
        self._state = state
        self._boot_ms = boot_ms
        self._wall_ms = wall_ms

    def describe(self) -> Iterable[Metric]:
        """Nothing in advance: the families depend on what agents send."""
        return ()

    def collect(self) -> Iterator[Metric]:
        yield from self._agents()
        yield from self._self()

    def _agents(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("muster_agent_up", "Heard and not suspected.", labels=["agent"])
        phi = GaugeMetricFamily("muster_agent_phi", "Suspicion of failure.", labels=["agent"])
        age = GaugeMetricFamily(
            "muster_agent_last_report_age_seconds", "Since the last report.", labels=["agent"]
        )
        families: dict[str, GaugeMetricFamily] = {}
        table, now_ms, at_ms = self._state.table, self._boot_ms(), self._wall_ms()
        for agent in sorted({*table.agents(), *self._state.registered}):
            value = table.phi(agent, now_ms)
            heard = value is not None and not table.is_suspected(agent)
            up.add_metric([agent], 1.0 if heard else 0.0)
            if value is not None:
                phi.add_metric([agent], value)
            seen_ms = self._state.last_seen_ms.get(agent)
            if seen_ms is not None:
                age.add_metric([agent], max(0, at_ms - seen_ms) / 1000)
            sample = self._state.rings.newest(agent)
            if sample is None or at_ms - sample.at_ms > _FRESH_MS:
                continue
            for name, figure in sample.values.items():
                if name in _OWN:
                    continue
                family = families.get(name)
                if family is None:
                    full = f"muster_agent_{name}"
                    family = GaugeMetricFamily(full, "As the agent reports it.", labels=["agent"])
                    families[name] = family
                family.add_metric([agent], figure)
        yield from (up, phi, age)
        yield from families.values()

    def _self(self) -> Iterator[Metric]:
        logs, table = self._state.logs, self._state.table
        for name, text, value in (
            ("muster_monitor_agents", "Agents watched.", len(table)),
            ("muster_monitor_registered_agents", "Registered.", len(self._state.registered)),
            ("muster_monitor_log_memory_bytes", "Task logs in memory.", logs.held_bytes),
            ("muster_monitor_logs", "Task logs in memory.", logs.log_count),
            ("muster_monitor_unstored_logs", "Logs storage does not hold.", logs.dirty_count),
        ):
            yield GaugeMetricFamily(name, text, value=value)
        lag = CounterMetricFamily(
            "muster_monitor_stalled_seconds", "How long the monitor itself did not run."
        )
        lag.add_metric([], table.total_lag_ms / 1000)
        yield lag
        lost = CounterMetricFamily(
            "muster_monitor_logs_lost", "Logs given up for want of memory while storage was away."
        )
        lost.add_metric([], logs.lost_logs)
        yield lost
        dropped = CounterMetricFamily(
            "muster_monitor_metrics_dropped", "Metric values not taken.", labels=["reason"]
        )
        for reason, count in self._state.rings.dropped.items():
            dropped.add_metric([reason], count)
        yield dropped
        yield from self._senses()

    def _senses(self) -> Iterator[Metric]:
        senses = self._state.senses
        for name, text, value in (
            ("muster_monitor_rules", "Rules in force.", len(senses.rules.figures)),
            ("muster_monitor_lag_ms", "Lateness of the newest look.", senses.trust.late_ms),
            ("muster_monitor_log_templates", "Kinds of errors known.", len(senses.lines.templates)),
            ("muster_monitor_log_queue", "Lines to be looked at.", senses.lines.queued),
        ):
            yield GaugeMetricFamily(name, text, value=value)
        read = CounterMetricFamily("muster_monitor_lines_analysed", "Log lines looked at.")
        read.add_metric([], senses.lines.read_lines)
        yield read
        left_out = CounterMetricFamily(
            "muster_monitor_lines_left_out", "Log lines not looked at.", labels=["reason"]
        )
        for reason, count in senses.lines.left_out.items():
            left_out.add_metric([reason], count)
        yield left_out


def register(collector: AgentCollector, registry: CollectorRegistry = REGISTRY) -> None:
    """Adds the agents' figures to what is scraped."""
    registry.register(collector)
