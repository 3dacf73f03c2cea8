"""Figures of alerts and of who was told of them."""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter, Gauge

ALERTS: Final = Gauge(
    "muster_monitor_alerts", "Alerts in the book, at the monitor that speaks.", ("state",)
)
SPEAKING: Final = Gauge(
    "muster_monitor_speaking", "1 at the monitor that tells receivers, 0 at the others."
)
SILENCES: Final = Gauge("muster_monitor_silences", "Silences that hide something now.")
NOTIFICATIONS: Final = Counter(
    "muster_monitor_notifications_total", "Messages to receivers.", ("receiver", "result")
)
DROPPED: Final = Counter(
    "muster_monitor_findings_dropped_total", "Findings that were not taken.", ("reason",)
)
