"""One alert: a condition that somebody may have to be told of, and where it stands. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from enum import StrEnum

import msgspec

from muster_monitor.findings import Severity

# A label's text beyond that says nothing more to anybody, and one shard of the book has to fit
# into one value of storage.
MAX_LABELS = 16
MAX_LABEL_NAME_CHARS = 64
MAX_LABEL_CHARS = 200
MAX_SUMMARY_CHARS = 500


class AlertState(StrEnum):
    """PENDING until the condition has held for long enough; RESOLVED ones are kept for a while."""

    PENDING = "pending"
    FIRING = "firing"
    RESOLVED = "resolved"


class Alert(msgspec.Struct):
    """Times in unix milliseconds, 0 = not yet.

    `holders` are those who say that the condition holds (monitors, or the leader's events), each
    with the time at which its word lapses (0 = when it takes it back). `doubtful_at_ms` is when
    the last of them went away without a word; 0 = there are some.
    """

    fingerprint: str
    rule: str
    labels: dict[str, str]
    severity: Severity
    summary: str
    # None stands for NaN, which JSON lacks.
    value: float | None
    for_s: float
    tenant: str
    state: AlertState
    started_at_ms: int
    fired_at_ms: int = 0
    resolved_at_ms: int = 0
    doubtful_at_ms: int = 0
    holders: dict[str, int] = {}


def fingerprint_of(rule: str, labels: Mapping[str, str]) -> str:
    """The identity of rule and labels: 16 hexadecimal digits, the same in every process."""
    text = msgspec.json.encode([rule, sorted(labels.items())])
    return hashlib.sha256(text).hexdigest()[:16]
