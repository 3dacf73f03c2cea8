"""The figures that the gateway counts about its HTTP requests and submissions."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

REQUESTS = Counter("muster_http_requests_total", "HTTP requests.", ("method", "route", "status"))
REQUEST_SECONDS = Histogram(
    "muster_http_request_duration_seconds",
    "Time from a request's head to the start of its answer; long-polls wait on purpose.",
    ("method", "route"),
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60),
)
IN_FLIGHT = Gauge("muster_http_requests_in_flight", "HTTP requests being answered.")
TASKS_SUBMITTED = Counter(
    "muster_tasks_submitted_total", "Tasks accepted, by who took them.", ("via",)
)
TASKS_REFUSED = Counter("muster_tasks_refused_total", "Submissions refused as bad input.")
SUBMISSIONS_TURNED_AWAY = Counter(
    "muster_submissions_turned_away_total",
    "Submissions answered with 429, by what was at its bound.",
    ("reason",),
)
TAKEN_SHARE = Gauge(
    "muster_submissions_taken_share", "Of new submissions; below 1 while the gateway is late."
)
WATCHED_TASKS = Gauge("muster_watched_tasks", "Tasks whose end somebody waits for.")
SUBSCRIBERS = Gauge("muster_event_subscribers", "Open event streams.")
