"""From the text of a rules file to rules, or to every mistake in it. Pure.

The form of the file is described in docs/rules.md.
"""

from __future__ import annotations

import re
from typing import Any

from muster_monitor.findings import Severity
from muster_monitor.rules.builtin import BUILTIN_RULES
from muster_monitor.rules.fields import Fields
from muster_monitor.rules.located import Located, Mistake, Unreadable, locate
from muster_monitor.rules.schema import (
    MAX_LOG_PATTERNS,
    MAX_RULE_NAME_CHARS,
    MAX_RULE_SUMMARY_CHARS,
    MAX_RULES,
    Across,
    AnomalyRule,
    Direction,
    LineSource,
    LogRules,
    PatternRule,
    RuleSet,
    Source,
    ThresholdRule,
)

# A file with many mistakes is told the first ones.
MAX_MISTAKES = 50
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_METRIC = re.compile(r"[a-zA-Z][a-zA-Z0-9_:]*")
_METRIC_CHARS = 200
_SEVERITIES = tuple(s.value for s in Severity)
_DAY_S = 86_400.0
# Names that detectors without rules give their findings.
RESERVED_NAMES = frozenset(
    {"agent_suspected", "mass_failure", "monitor_lagging", "rules_invalid", "log_burst"}
    | {"log_new_error"}
)


def read_rules(encoded: bytes) -> tuple[RuleSet, list[Mistake]]:
    """The rules, with the built-in ones unless the file says otherwise.

    With mistakes the rules are not to be used. Never raises for what is in the file.
    """
    mistakes: list[Mistake] = []
    try:
        root = locate(encoded)
    except Unreadable as error:
        return RuleSet(), [error.mistake]
    fields = Fields(root, "file" if not isinstance(root.value, dict) else "", mistakes)
    fields.whole("version", 1, 1, 1)
    with_builtin = fields.flag("builtin", True)
    switched_off = _switched_off(fields)
    thresholds, anomalies, names = _figures(fields, mistakes)
    logs = _logs(fields, mistakes, names)
    fields.close()
    own = RuleSet(tuple(thresholds), tuple(anomalies), logs)
    if mistakes or not with_builtin:
        return own, mistakes[:MAX_MISTAKES]
    merged = _with_builtin(own, names | switched_off)
    unknown = switched_off - {rule.name for rule in builtin_rules().figures}
    unknown -= {pattern.name for pattern in builtin_rules().logs.patterns}
    for name in sorted(unknown):
        line = fields.line
        mistakes.append(Mistake(line, "without", name, "the name of a built-in rule"))
    return merged, mistakes


def builtin_rules() -> RuleSet:
    """What is in force without a file."""
    text = BUILTIN_RULES.encode()
    rules, mistakes = read_rules(b"builtin: false\n" + text)
    assert not mistakes, mistakes
    return rules


def _with_builtin(own: RuleSet, replaced: set[str]) -> RuleSet:
    usual = builtin_rules()
    patterns = (*(p for p in usual.logs.patterns if p.name not in replaced), *own.logs.patterns)
    logs = {name: getattr(own.logs, name) for name in LogRules.__slots__}
    return RuleSet(
        (*(r for r in usual.thresholds if r.name not in replaced), *own.thresholds),
        (*(r for r in usual.anomalies if r.name not in replaced), *own.anomalies),
        LogRules(**{**logs, "patterns": patterns}),
    )


def _switched_off(fields: Fields) -> set[str]:
    node = fields.node("without")
    if node is None:
        return set()
    if not isinstance(node.value, list):
        fields.note("without", node, "a list of names of built-in rules")
        return set()
    return {str(item.value) for item in node.value}


def _items(fields: Fields, key: str, most: int) -> list[Located]:
    node = fields.node(key)
    if node is None or node.value is None:
        return []
    if not isinstance(node.value, list):
        fields.note(fields.at(key), node, "a list")
        return []
    if len(node.value) > most:
        fields.note(fields.at(key), node, f"at most {most}")
        return []
    return node.value


def _figures(
    fields: Fields, mistakes: list[Mistake]
) -> tuple[list[ThresholdRule], list[AnomalyRule], set[str]]:
    thresholds: list[ThresholdRule] = []
    anomalies: list[AnomalyRule] = []
    names: set[str] = set()
    for i, node in enumerate(_items(fields, "rules", MAX_RULES)):
        if len(mistakes) >= MAX_MISTAKES:
            break
        rule = Fields(node, f"rules[{i}]", mistakes)
        if not isinstance(node.value, dict):
            continue
        shared = _shared(rule, names)
        if rule.has("anomaly"):
            anomalies.append(_anomaly(rule, shared, mistakes))
        else:
            thresholds.append(_threshold(rule, shared))
        rule.close()
    return thresholds, anomalies, names


def _name(rule: Fields, names: set[str]) -> str:
    name = rule.text("name", None, MAX_RULE_NAME_CHARS, _NAME)
    if name in names:
        rule.note(rule.at("name"), rule.node("name"), "each name once")
    if name in RESERVED_NAMES:
        rule.note(rule.at("name"), rule.node("name"), "this name belongs to a detector")
    names.add(name)
    return name


def _shared(rule: Fields, names: set[str]) -> dict[str, Any]:
    source = Source(rule.choice("source", tuple(s.value for s in Source), Source.AGENT))
    across = Across(rule.choice("across", tuple(a.value for a in Across), Across.EACH))
    if source is Source.AGENT and across is not Across.EACH:
        rule.note(rule.at("across"), rule.node("across"), "only rules of source: service")
    return {
        "name": _name(rule, names),
        "source": source,
        "metric": rule.text("metric", None, _METRIC_CHARS, _METRIC),
        "severity": Severity(rule.choice("severity", _SEVERITIES, Severity.WARNING)),
        "for_s": rule.seconds("for", 0.0),
        "where": rule.selector(),
        "summary": rule.text("summary", "", MAX_RULE_SUMMARY_CHARS, None),
        "rate": rule.flag("rate", False),
        "across": across,
    }


def _threshold(rule: Fields, shared: dict[str, Any]) -> ThresholdRule:
    if rule.has("above") == rule.has("below"):
        given = "above and below" if rule.has("above") else "neither"
        node = Located(given, rule.line)
        rule.note(rule.path, node, "one of above, below and anomaly")
    direction = Direction.BELOW if rule.has("below") else Direction.ABOVE
    above, below = rule.number("above", 0.0), rule.number("below", 0.0)
    level = below if direction is Direction.BELOW else above
    recover = rule.number("recover", level)
    if rule.mistaken("above", "below", "recover"):
        return ThresholdRule(**shared, direction=direction)
    if direction is Direction.ABOVE and recover > level:
        rule.note(rule.at("recover"), rule.node("recover"), f"at most above ({level:g})")
    if direction is Direction.BELOW and recover < level:
        rule.note(rule.at("recover"), rule.node("recover"), f"at least below ({level:g})")
    return ThresholdRule(**shared, direction=direction, level=level, recover=recover)


def _anomaly(rule: Fields, shared: dict[str, Any], mistakes: list[Mistake]) -> AnomalyRule:
    for key in ("above", "below", "recover"):
        if (node := rule.node(key)) is not None:
            rule.note(rule.at(key), node, "either a threshold or an anomaly")
    node = rule.node("anomaly")
    assert node is not None
    inner = Fields(node, rule.at("anomaly"), mistakes)
    directions = tuple(d.value for d in Direction)
    deviations = inner.number("deviations", 6.0, 1.0, 1000.0)
    recover = inner.number("recover_deviations", deviations / 2, 0.0, 1000.0)
    if recover > deviations and not inner.mistaken("deviations", "recover_deviations"):
        limit = f"at most deviations ({deviations:g})"
        inner.note(inner.at("recover_deviations"), inner.node("recover_deviations"), limit)
    window_s = inner.seconds("window", 600.0, 10.0, _DAY_S)
    made = AnomalyRule(
        **shared,
        direction=Direction(inner.choice("direction", directions, Direction.BOTH)),
        deviations=deviations,
        recover_deviations=recover,
        window_s=window_s,
        min_samples=inner.whole("min_samples", 60, 5, 10_000),
        min_difference=inner.number("min_difference", None, 1e-9),
    )
    # One sample a second is all that there can be.
    if made.min_samples > window_s:
        limit = f"at most one a second of the window ({window_s:g})"
        inner.note(inner.at("min_samples"), inner.node("min_samples"), limit)
    inner.close()
    return made


def _logs(fields: Fields, mistakes: list[Mistake], names: set[str]) -> LogRules:
    node = fields.node("logs")
    if node is None:
        return LogRules()
    logs = Fields(node, "logs", mistakes)
    patterns = []
    for i, item in enumerate(_items(logs, "patterns", MAX_LOG_PATTERNS)):
        if len(mistakes) >= MAX_MISTAKES:
            break
        patterns.append(_pattern(Fields(item, f"logs.patterns[{i}]", mistakes), names))
    usual = LogRules()
    burst = Fields(logs.node("burst") or Located({}, node.line), "logs.burst", mistakes)
    new = Fields(logs.node("new_errors") or Located({}, node.line), "logs.new_errors", mistakes)
    burst_lines = burst.whole("lines", usual.burst_lines, 1, 1_000_000)
    recover = burst.whole("recover", burst_lines // 2, 0, 1_000_000)
    if recover >= burst_lines:
        burst.note(burst.at("recover"), burst.node("recover"), f"under lines ({burst_lines})")
    found = LogRules(
        patterns=tuple(patterns),
        burst_enabled=burst.flag("enabled", True),
        burst_lines=burst_lines,
        burst_recover=recover,
        burst_within_s=burst.seconds("within", usual.burst_within_s, 1.0, 3600.0),
        burst_severity=Severity(burst.choice("severity", _SEVERITIES, usual.burst_severity)),
        new_enabled=new.flag("enabled", True),
        new_hold_s=new.seconds("hold", usual.new_hold_s, 1.0),
        new_severity=Severity(new.choice("severity", _SEVERITIES, usual.new_severity)),
        learn_s=new.seconds("learn", usual.learn_s),
        lines_per_s=logs.number("lines_per_s", usual.lines_per_s, 1, 10_000),
        lines_burst=logs.whole("lines_burst", usual.lines_burst, 1, 100_000),
    )
    for part in (burst, new, logs):
        part.close()
    return found


def _pattern(rule: Fields, names: set[str]) -> PatternRule:
    made = PatternRule(
        name=_name(rule, names),
        pattern=rule.pattern("pattern"),
        severity=Severity(rule.choice("severity", _SEVERITIES, Severity.WARNING)),
        lines=LineSource(rule.choice("lines", tuple(s.value for s in LineSource), LineSource.ANY)),
        at_least=rule.whole("at_least", 1, 1, 1000),
        within_s=rule.seconds("within", 60.0, 1.0, _DAY_S),
        hold_s=rule.seconds("hold", 300.0, 1.0, _DAY_S),
        for_s=rule.seconds("for", 0.0),
        where=rule.selector(),
        summary=rule.text("summary", "", MAX_RULE_SUMMARY_CHARS, None),
    )
    rule.close()
    return made
