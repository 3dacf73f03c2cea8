"""Reads log lines one by one and says what they give away. Pure.

Lines come through `offer`, which is cheap and bounded, and are looked at later, by `read_some`, as
far as there is time: a flood of lines delays what is said about lines and nothing else.
"""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from muster_monitor.findings import Finding, Severity
from muster_monitor.log_analysis.plain_text import plain
from muster_monitor.log_analysis.rates import TokenBucket, WindowCount
from muster_monitor.log_analysis.templates import Templates
from muster_monitor.rules.fields import compile_pattern
from muster_monitor.rules.schema import LineSource, LogRules, PatternRule, Subject

LOG_BURST = "log_burst"
LOG_NEW_ERROR = "log_new_error"

# Lines that wait to be looked at, of all agents.
MAX_QUEUED_LINES = 20_000
# Agents whose lines are told apart; the one silent for longest gives way.
MAX_LOG_SUBJECTS = 10_000
# New kinds of errors that are told at once; a program that is new is full of them.
MAX_NEW_ERRORS = 20
_QUOTED_CHARS = 200
_ERROR_LEVELS = frozenset({"error", "critical", "fatal", "panic", "alert", "emergency"})
_CALM_LEVELS = frozenset({"debug", "info", "notice", "warning", "warn", "trace"})
# For lines without a level: what a program prints when it fails.
_ERROR_WORDS: Any = compile_pattern(
    r"(?i:\b(?:error|fatal|panic|critical|traceback|failed|failure|exception)\b)"
    r"|[A-Za-z](?:Error|Exception)\b"
)


class RawLine(NamedTuple):
    """One line as it came. `own`: of the agent itself, not of a task."""

    subject: Subject
    own: bool
    level: str
    text: str


@dataclass(slots=True)
class _Matches:
    """`since` holds the times of the newest matches, at most as many as the rule asks for."""

    times_ms: deque[int]
    standing: Finding | None = None


@dataclass(slots=True)
class _Heard:
    """What is known of one agent's lines."""

    bucket: TokenBucket
    errors: WindowCount
    burst: Finding | None = None
    matches: dict[str, _Matches] = field(default_factory=dict)


class LogAnalysis:
    """`now_ms` is monotonic, `at_ms` unix time. `left_out`: lines not looked at, by reason."""

    def __init__(self, rules: LogRules | None = None, known: Iterable[str] = ()) -> None:
        self._rules = rules or LogRules()
        self.templates = Templates(known)
        self._queue: deque[RawLine] = deque()
        self._heard: OrderedDict[str, _Heard] = OrderedDict()
        self._new: dict[str, tuple[Finding, int]] = {}
        # While everything is new, new is no news.
        self._learning_until_ms: int | None = None if not len(self.templates) else 0
        self.left_out: Counter[str] = Counter()
        self.read_lines = 0
        self.error_lines = 0
        self._ended: list[Finding] = []

    @property
    def queued(self) -> int:
        return len(self._queue)

    def offer(
        self, subject: Subject, own: bool, lines: Sequence[tuple[str, str]], now_ms: int
    ) -> None:
        """`lines` are pairs of level and text, oldest first."""
        heard = self._heard_of(subject, now_ms)
        granted = heard.bucket.take(len(lines), now_ms)
        self.left_out["too_fast"] += len(lines) - granted
        room = MAX_QUEUED_LINES - len(self._queue)
        if granted > room:
            self.left_out["queue_full"] += granted - room
            granted = room
        for level, text in lines[:granted]:
            # Cut here already: what waits must be small.
            self._queue.append(RawLine(subject, own, level[:16].lower(), plain(text)))

    def read_some(self, most: int, now_ms: int, at_ms: int) -> list[Finding]:
        """Looks at up to `most` of the lines that wait."""
        found: list[Finding] = []
        for _ in range(min(most, len(self._queue))):
            found += self._read(self._queue.popleft(), now_ms, at_ms)
        return found

    def sweep(self, now_ms: int, at_ms: int) -> list[Finding]:
        """Ends what no longer holds; to be called about each second."""
        over, self._ended = self._ended, []
        for key, (finding, until_ms) in list(self._new.items()):
            if now_ms >= until_ms:
                del self._new[key]
                over.append(_over(finding, at_ms, "this kind of error is known now"))
        for heard in self._heard.values():
            if heard.burst is not None:
                over += self._burst(heard, None, now_ms, at_ms)
            for name, matches in heard.matches.items():
                if matches.standing is None:
                    continue
                rule = self._pattern(name)
                if rule is None or now_ms - matches.times_ms[-1] > rule.hold_s * 1000:
                    over.append(_over(matches.standing, at_ms, "it was not seen again"))
                    matches.standing = None
        return over

    def replace_rules(self, rules: LogRules) -> None:
        """What stands on rules that are gone ends at the next sweep."""
        changed = (rules.lines_per_s, rules.lines_burst, rules.burst_within_s) != (
            self._rules.lines_per_s,
            self._rules.lines_burst,
            self._rules.burst_within_s,
        )
        self._rules = rules
        if changed:
            for ident in list(self._heard):
                self._forget(ident)

    def recall(self, templates: Iterable[str]) -> None:
        """Templates that were learnt before: what is not among them is new at once."""
        for template in templates:
            self.templates.remember(template)
        if len(self.templates):
            self._learning_until_ms = 0

    def forget(self, agent: str) -> None:
        """The agent is gone; what was said of it ends at the next sweep."""
        if agent in self._heard:
            self._forget(agent)

    def _pattern(self, name: str) -> PatternRule | None:
        return next((rule for rule in self._rules.patterns if rule.name == name), None)

    def _heard_of(self, subject: Subject, now_ms: int) -> _Heard:
        heard = self._heard.get(subject.ident)
        if heard is not None:
            self._heard.move_to_end(subject.ident)
            return heard
        if len(self._heard) >= MAX_LOG_SUBJECTS:
            self._forget(next(iter(self._heard)))
        rules = self._rules
        bucket = TokenBucket(rules.lines_per_s, rules.lines_burst, now_ms)
        heard = _Heard(bucket, WindowCount(int(rules.burst_within_s * 1000)))
        self._heard[subject.ident] = heard
        return heard

    def _forget(self, ident: str) -> None:
        heard = self._heard.pop(ident)
        standing = [m.standing for m in heard.matches.values()] + [heard.burst]
        for finding in standing:
            if finding is not None:
                self._ended.append(_over(finding, finding.at_ms, "its agent is gone"))

    def _read(self, line: RawLine, now_ms: int, at_ms: int) -> list[Finding]:
        self.read_lines += 1
        heard = self._heard_of(line.subject, now_ms)
        found: list[Finding] = []
        for rule in self._rules.patterns:
            if _is_of(rule.lines, line.own) and rule.pattern.search(line.text) is not None:
                found += self._matched(rule, heard, line, now_ms, at_ms)
        if not is_error(line.level, line.text):
            return found
        self.error_lines += 1
        heard.errors.add(1, now_ms)
        found += self._burst(heard, line, now_ms, at_ms)
        return found + self._learn(line, now_ms, at_ms)

    def _matched(
        self, rule: PatternRule, heard: _Heard, line: RawLine, now_ms: int, at_ms: int
    ) -> list[Finding]:
        if not rule.where.accepts(line.subject):
            return []
        matches = heard.matches.get(rule.name)
        if matches is None or matches.times_ms.maxlen != rule.at_least:
            # There are as many of these as there are rules, so they need no bound of their own.
            standing = matches.standing if matches else None
            matches = heard.matches[rule.name] = _Matches(deque(maxlen=rule.at_least), standing)
        matches.times_ms.append(now_ms)
        enough = len(matches.times_ms) == rule.at_least
        if matches.standing or not enough or now_ms - matches.times_ms[0] > rule.within_s * 1000:
            return []
        said = rule.summary or f"log lines match {rule.name}"
        text = f"{said}: {line.subject.name} printed “{line.text[:_QUOTED_CHARS]}”"
        matches.standing = _made(
            rule.name, line.subject.labels, rule.severity, text, at_ms, rule.for_s
        )
        return [matches.standing]

    def _burst(self, heard: _Heard, line: RawLine | None, now_ms: int, at_ms: int) -> list[Finding]:
        rules, count = self._rules, heard.errors.look(now_ms)
        if heard.burst is not None:
            if count >= rules.burst_recover and rules.burst_enabled:
                return []
            over, heard.burst = heard.burst, None
            return [_over(over, at_ms, f"{count} error lines in {rules.burst_within_s:g} s")]
        if line is None or not rules.burst_enabled or count < rules.burst_lines:
            return []
        text = (
            f"{line.subject.name} printed {count} error lines within {rules.burst_within_s:g} s, "
            f"the last is “{line.text[:_QUOTED_CHARS]}”"
        )
        heard.burst = _made(
            LOG_BURST, line.subject.labels, rules.burst_severity, text, at_ms, 0.0, float(count)
        )
        return [heard.burst]

    def _learn(self, line: RawLine, now_ms: int, at_ms: int) -> list[Finding]:
        template = self.templates.learn(line.text)
        if self._learning_until_ms is None:
            self._learning_until_ms = now_ms + int(self._rules.learn_s * 1000)
        if template is None or not self._rules.new_enabled or now_ms < self._learning_until_ms:
            return []
        if len(self._new) >= MAX_NEW_ERRORS:
            self.left_out["new_errors"] += 1
            return []
        key = hashlib.sha256(template.encode()).hexdigest()[:12]
        labels = {**line.subject.labels, "template": key}
        text = f"{line.subject.name} printed a new kind of error: “{line.text[:_QUOTED_CHARS]}”"
        made = _made(LOG_NEW_ERROR, labels, self._rules.new_severity, text, at_ms)
        if key in self._new:
            return []
        self._new[key] = (made, now_ms + int(self._rules.new_hold_s * 1000))
        return [made]


def is_error(level: str, text: str) -> bool:
    """By its level where it has one, else by its words."""
    if level in _ERROR_LEVELS:
        return True
    if level in _CALM_LEVELS:
        return False
    return _ERROR_WORDS.search(text) is not None


def _is_of(lines: LineSource, own: bool) -> bool:
    return lines is LineSource.ANY or (lines is LineSource.AGENT) is own


def _made(
    rule: str,
    labels: Mapping[str, str],
    severity: Severity,
    text: str,
    at_ms: int,
    for_s: float = 0.0,
    value: float = float("nan"),
) -> Finding:
    return Finding(rule, labels, severity, True, text[:500], at_ms, for_s, value)


def _over(finding: Finding, at_ms: int, why: str) -> Finding:
    return Finding(finding.rule, finding.labels, finding.severity, False, why, at_ms, finding.for_s)
