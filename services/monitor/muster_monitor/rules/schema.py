"""The rules themselves, as they are after reading: frozen, checked, ready to be evaluated. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from muster_monitor.findings import Severity

# More rules than anybody reads; each costs every agent a comparison a second.
MAX_RULES = 200
MAX_LOG_PATTERNS = 64
MAX_RULE_PATTERN_CHARS = 500
MAX_RULE_NAME_CHARS = 63
MAX_RULE_SUMMARY_CHARS = 200
MAX_SELECTOR_KEYS = 16
MAX_SELECTOR_WORDS = 64
MAX_RULE_DURATION_S = 7 * 24 * 3600.0


class Source(StrEnum):
    """Whose figures a rule is about."""

    AGENT = "agent"
    SERVICE = "service"


class Direction(StrEnum):
    """On which side a figure is out of bounds."""

    ABOVE = "above"
    BELOW = "below"
    BOTH = "both"


class Across(StrEnum):
    """How the figures of a service's replicas become one; EACH judges every replica by itself."""

    EACH = "each"
    SUM = "sum"
    MAX = "max"
    MIN = "min"


@dataclass(frozen=True, slots=True)
class Matcher:
    """One of `words`, or the whole text matches `pattern` (compiled by RE2)."""

    words: frozenset[str] = frozenset()
    pattern: Any = None

    def accepts(self, text: str) -> bool:
        if text in self.words:
            return True
        return self.pattern is not None and self.pattern.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class Subject:
    """What figures or lines are about.

    ident       tells subjects apart, unique over all
    labels      of its findings
    attributes  what selectors look at: agent, labels of the agent, service, labels of the series
    skills      of an agent; the selector key `skill` asks for one of them
    name        for sentences: `agent worker-3`
    """

    ident: str
    name: str
    labels: Mapping[str, str]
    attributes: Mapping[str, str]
    skills: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Selector:
    """Every key has to match; no keys match everything. An attribute that is missing is ""."""

    matchers: tuple[tuple[str, Matcher], ...] = ()

    def accepts(self, subject: Subject) -> bool:
        for key, matcher in self.matchers:
            if key == "skill" and "skill" not in subject.attributes:
                if not any(matcher.accepts(skill) for skill in subject.skills):
                    return False
            elif not matcher.accepts(subject.attributes.get(key, "")):
                return False
        return True


@dataclass(frozen=True, slots=True)
class FigureRule:
    """What threshold and anomaly rules share."""

    name: str
    source: Source
    metric: str
    severity: Severity
    direction: Direction
    for_s: float = 0.0
    where: Selector = Selector()
    summary: str = ""
    # Of a counter: its growth per second is judged.
    rate: bool = False
    across: Across = Across.EACH

    @property
    def figure(self) -> str:
        """The name under which the figure is found: replicas are joined before rules see it."""
        if self.source is Source.AGENT:
            return self.metric
        metric = f"rate:{self.metric}" if self.rate else self.metric
        return metric if self.across is Across.EACH else f"{self.across.value}:{metric}"


@dataclass(frozen=True, slots=True)
class ThresholdRule(FigureRule):
    """Out of bounds beyond `level`, in bounds again at `recover` (equal or on the good side)."""

    level: float = 0.0
    recover: float = 0.0


@dataclass(frozen=True, slots=True)
class AnomalyRule(FigureRule):
    """Out of bounds when the figure is further from the window's median than it usually is.

    `deviations` robust standard deviations (1.4826 × MAD), and at least `min_difference`; in
    bounds again within `recover_deviations`. Not judged before `min_samples` of the window.
    """

    deviations: float = 6.0
    recover_deviations: float = 3.0
    window_s: float = 600.0
    min_samples: int = 60
    min_difference: float = 1.0


class LineSource(StrEnum):
    """Which lines a pattern is looked for in."""

    AGENT = "agent"
    TASK = "task"
    ANY = "any"


@dataclass(frozen=True, slots=True)
class PatternRule:
    """Holds from the `at_least`-th match within `within_s` until `hold_s` after the last one."""

    name: str
    pattern: Any
    severity: Severity
    lines: LineSource = LineSource.ANY
    at_least: int = 1
    within_s: float = 60.0
    hold_s: float = 300.0
    for_s: float = 0.0
    where: Selector = Selector()
    summary: str = ""


@dataclass(frozen=True, slots=True)
class LogRules:
    """What is looked for in log lines.

    A burst is `burst_lines` error lines of one agent within `burst_within_s`; it is over under
    `burst_recover`. A new template is told for `new_hold_s`, except while the monitor learns
    what is usual (`learn_s` from its first line, when it knew no templates).
    """

    patterns: tuple[PatternRule, ...] = ()
    burst_enabled: bool = True
    burst_lines: int = 100
    burst_recover: int = 50
    burst_within_s: float = 60.0
    burst_severity: Severity = Severity.WARNING
    new_enabled: bool = True
    new_hold_s: float = 600.0
    new_severity: Severity = Severity.INFO
    learn_s: float = 600.0
    # Per agent; more lines than that are not looked at, and counted.
    lines_per_s: float = 100.0
    lines_burst: int = 1000


@dataclass(frozen=True, slots=True)
class RuleSet:
    """All rules in force; names are unique."""

    thresholds: tuple[ThresholdRule, ...] = ()
    anomalies: tuple[AnomalyRule, ...] = ()
    logs: LogRules = field(default_factory=LogRules)

    @property
    def figures(self) -> tuple[FigureRule, ...]:
        return (*self.thresholds, *self.anomalies)
