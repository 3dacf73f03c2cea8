"""What the detectors say: one condition that holds of one thing, or no longer does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """How soon somebody should look."""

    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"


@dataclass(frozen=True, slots=True)
class Finding:
    """A detector's word about one condition; alerts are made of these.

    rule       name of the rule or detector: `agent_suspected`, `cpu_high`, …
    labels     what it is about (`agent`, `zone`, `skill`, `service`, …); rule and labels together
               are its identity
    active     whether the condition holds; False ends it
    for_s      how long it must hold before anybody is told, seconds, 0 or more
    summary    one sentence for an operator, escaped, at most 500 characters
    value      the figure that the condition is about; NaN where there is none
    at_ms      unix milliseconds
    """

    rule: str
    labels: Mapping[str, str]
    severity: Severity
    active: bool
    summary: str
    at_ms: int
    for_s: float = 0.0
    value: float = float("nan")
