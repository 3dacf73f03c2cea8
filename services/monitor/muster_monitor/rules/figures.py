"""Judges the figures of all subjects by all rules, and says what changed. Pure.

Which rules are for a subject is found out once; a figure then costs a look-up and a comparison.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from muster_monitor.findings import Finding
from muster_monitor.rules.checks import Check, check_of
from muster_monitor.rules.schema import FigureRule, Source, Subject

# Agents and series of services that are judged; more are not, and counted.
MAX_SUBJECTS = 20_000
# A condition about figures that no longer come is neither true nor false: it ends.
STALE_MS = 60_000
_SUMMARY_CHARS = 500


@dataclass(slots=True)
class _Judged:
    subject: Subject
    checks: tuple[Check, ...]


class FigureJudge:
    """`source` says which of the rules are its business."""

    def __init__(self, source: Source, rules: Iterable[FigureRule] = ()) -> None:
        self._source = source
        self._rules = tuple(rule for rule in rules if rule.source is source)
        self._judged: dict[str, _Judged] = {}
        self.refused = 0

    def __len__(self) -> int:
        return len(self._judged)

    @property
    def metrics(self) -> frozenset[str]:
        """Names of all figures that a rule asks for."""
        return frozenset(rule.metric for rule in self._rules)

    @property
    def rules(self) -> tuple[FigureRule, ...]:
        return self._rules

    def observe(
        self, subject: Subject, figures: Mapping[str, float], now_ms: int, at_ms: int
    ) -> list[Finding]:
        """Figures are finite. `now_ms` is monotonic, `at_ms` unix time for the findings."""
        judged = self._judged.get(subject.ident)
        ended: list[Finding] = []
        if judged is None or judged.subject is not subject:
            if judged is None and len(self._judged) >= MAX_SUBJECTS:
                self.refused += 1
                return []
            ended = self._meet(subject, judged, at_ms)
            judged = self._judged[subject.ident]
        changed = [
            check
            for check in judged.checks
            if (figure := figures.get(check.figure)) is not None and check.feed(figure, now_ms)
        ]
        if not changed and not ended:
            return []
        return ended + [_finding(subject, check, at_ms) for check in changed]

    def replace_rules(self, rules: Iterable[FigureRule], at_ms: int) -> list[Finding]:
        """Rules that stay as they were keep what they know; conditions of others end."""
        self._rules = tuple(rule for rule in rules if rule.source is self._source)
        ended: list[Finding] = []
        for judged in list(self._judged.values()):
            ended += self._meet(judged.subject, judged, at_ms)
        return ended

    def forget(self, ident: str, at_ms: int) -> list[Finding]:
        """The subject is gone, and with it what was said of it."""
        judged = self._judged.pop(ident, None)
        if judged is None:
            return []
        return [_ended(judged.subject, c, at_ms, "it is gone") for c in judged.checks if c.holds]

    def sweep(self, now_ms: int, at_ms: int) -> list[Finding]:
        """Ends conditions whose figures no longer come."""
        ended = []
        for judged in self._judged.values():
            for check in judged.checks:
                if check.holds and now_ms - check.heard_ms > STALE_MS:
                    check.holds = False
                    why = f"no figure came for {STALE_MS // 1000} s"
                    ended.append(_ended(judged.subject, check, at_ms, why))
        return ended

    def _meet(self, subject: Subject, before: _Judged | None, at_ms: int) -> list[Finding]:
        wanted = [rule for rule in self._rules if rule.where.accepts(subject)]
        known = {check.rule.name: check for check in before.checks} if before else {}
        same_labels = before is not None and before.subject.labels == subject.labels
        checks, kept = [], set()
        for rule in wanted:
            check = known.get(rule.name)
            if check is not None and same_labels and _alike(check.rule, rule):
                kept.add(rule.name)
                check.rule = rule
            else:
                check = check_of(rule)
            checks.append(check)
        ended = []
        if before is not None:
            why = "the rule or the agent's labels have changed"
            for name, check in known.items():
                if name not in kept and check.holds:
                    ended.append(_ended(before.subject, check, at_ms, why))
        self._judged[subject.ident] = _Judged(subject, tuple(checks))
        return ended


def _alike(one: FigureRule, other: FigureRule) -> bool:
    """Whether what was learnt for one rule serves the other; where it applies may differ."""
    left = {name: getattr(one, name) for name in _fields(one) if name != "where"}
    return type(one) is type(other) and all(getattr(other, n) == v for n, v in left.items())


def _fields(rule: FigureRule) -> tuple[str, ...]:
    return tuple(type(rule).__dataclass_fields__)


def _finding(subject: Subject, check: Check, at_ms: int) -> Finding:
    rule = check.rule
    per_s = " per second" if rule.rate else ""
    figure = f"{rule.metric} of {subject.name} is {check.value:.6g}{per_s}"
    if check.holds:
        text = f"{figure}, {check.limit()}"
        text = f"{rule.summary}: {text}" if rule.summary else text
    else:
        text = f"{figure} again"
    return Finding(
        rule=rule.name,
        labels=subject.labels,
        severity=rule.severity,
        active=check.holds,
        summary=text[:_SUMMARY_CHARS],
        at_ms=at_ms,
        for_s=rule.for_s,
        value=check.value,
    )


def _ended(subject: Subject, check: Check, at_ms: int, why: str) -> Finding:
    rule = check.rule
    return Finding(
        rule=rule.name,
        labels=subject.labels,
        severity=rule.severity,
        active=False,
        summary=f"{rule.metric} of {subject.name}: {why}"[:_SUMMARY_CHARS],
        at_ms=at_ms,
        for_s=rule.for_s,
        value=check.value,
    )
