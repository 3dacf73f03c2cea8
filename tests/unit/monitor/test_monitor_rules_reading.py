"""Rules files: what is read, and that mistakes are told with line, field, value and limit."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from muster_monitor.findings import Severity
from muster_monitor.rules import command
from muster_monitor.rules.located import MAX_RULES_BYTES, MAX_RULES_NODES
from muster_monitor.rules.reading import MAX_MISTAKES, builtin_rules, read_rules
from muster_monitor.rules.schema import (
    MAX_LOG_PATTERNS,
    MAX_RULE_PATTERN_CHARS,
    MAX_RULES,
    Across,
    AnomalyRule,
    Direction,
    Source,
    Subject,
)

GOOD = b"""\
builtin: false
rules:
  - name: busy
    metric: host_cpu_ratio
    above: 0.9
    recover: 0.7
    for: 2m
    severity: critical
    where: {zone: [a, b], agent: "~gpu-[0-9]+", skill: ocr}
    summary: too busy
  - name: few
    source: service
    metric: muster_agents
    across: sum
    below: 3
  - name: odd
    metric: agent_memory_bytes
    anomaly: {deviations: 5, window: 5m, min_samples: 30, min_difference: 1000, direction: above}
logs:
  lines_per_s: 50
  burst: {lines: 10, recover: 2, within: 30s, severity: info}
  new_errors: {enabled: false}
  patterns:
    - {name: boom, pattern: 'boo+m', at_least: 3, within: 10s, hold: 1m, lines: task}
"""


def mistakes_of(text: bytes) -> list[str]:
    return [str(mistake) for mistake in read_rules(text)[1]]


def one_rule(fields: str) -> bytes:
    return f"builtin: false\nrules:\n  - {{name: x, metric: m, {fields}}}\n".encode()


def test_a_file_is_read_whole() -> None:
    rules, mistakes = read_rules(GOOD)
    assert mistakes == []
    busy, few = rules.thresholds
    assert (busy.level, busy.recover, busy.for_s) == (0.9, 0.7, 120.0)
    assert (busy.severity, busy.summary) == (Severity.CRITICAL, "too busy")
    assert (few.source, few.across, few.direction) == (Source.SERVICE, Across.SUM, Direction.BELOW)
    (odd,) = rules.anomalies
    assert isinstance(odd, AnomalyRule)
    assert (odd.window_s, odd.recover_deviations, odd.direction) == (300, 2.5, Direction.ABOVE)
    logs = rules.logs
    assert (logs.burst_lines, logs.burst_within_s, logs.new_enabled) == (10, 30.0, False)
    assert logs.patterns[0].at_least == 3

    def of(agent: str, zone: str, *skills: str) -> Subject:
        return Subject(agent, agent, {}, {"agent": agent, "zone": zone}, frozenset(skills))

    assert busy.where.accepts(of("gpu-1", "b", "ocr", "other"))
    assert not busy.where.accepts(of("gpu-1x", "b", "ocr"))
    assert not busy.where.accepts(of("gpu-1", "c", "ocr"))
    assert not busy.where.accepts(of("gpu-1", "b"))


def test_the_built_in_rules_are_there_unless_replaced_or_left_out() -> None:
    usual = builtin_rules()
    assert len(usual.figures) > 10
    assert read_rules(b"")[0] == usual or read_rules(b"")[0].figures == usual.figures
    text = b"without: [service_down]\nrules: [{name: no_leader, metric: m, above: 1}]"
    rules, mistakes = read_rules(text)
    assert mistakes == []
    names = [rule.name for rule in rules.figures]
    assert len(names) == len(set(names)) == len(usual.figures) - 1
    assert next(r for r in rules.thresholds if r.name == "no_leader").metric == "m"
    assert [p.name for p in rules.logs.patterns] == [p.name for p in usual.logs.patterns]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (one_rule("above: .nan"), "line 3: rules[0].above: nan is not accepted; a finite number"),
        (one_rule("above: -.inf"), "rules[0].above: -inf is not accepted; a finite number"),
        (one_rule("above: 1e999"), "rules[0].above: '1e999' is not accepted; a finite number"),
        (one_rule("above: much"), "rules[0].above: 'much' is not accepted; a finite number"),
        (one_rule("above: true"), "rules[0].above: True is not accepted; a finite number"),
        (
            one_rule("above: 1, recover: 2"),
            "rules[0].recover: 2 is not accepted; at most above (1)",
        ),
        (one_rule("below: 1, recover: 0"), "rules[0].recover: 0 is not accepted; at least below"),
        (one_rule("above: 1, below: 0"), "rules[0]: 'above and below' is not accepted; one of"),
        (one_rule("for: 5m"), "rules[0]: 'neither' is not accepted; one of above, below"),
        (one_rule("above: 1, for: -5"), "rules[0].for: -5 is not accepted; seconds from 0"),
        (one_rule("above: 1, for: 5 weeks"), "rules[0].for: '5 weeks' is not accepted; seconds"),
        (one_rule("above: 1, for: 1000d"), "rules[0].for: '1000d' is not accepted; seconds"),
        (one_rule("above: 1, treshold: 2"), "rules[0].treshold: 'treshold' is not accepted; there"),
        (one_rule("above: 1, severity: bad"), "rules[0].severity: 'bad' is not accepted; one of"),
        (one_rule("above: 1, across: sum"), "rules[0].across: 'sum' is not accepted; only rules"),
        (one_rule("above: 1, where: [a]"), "rules[0].where: 'a list of 1' is not accepted"),
        (one_rule("above: 1, where: {a: '~('}"), "rules[0].where.a: '~(' is not accepted; a reg"),
        (one_rule("anomaly: {}"), "rules[0].anomaly.min_difference: 'nothing' is not accepted"),
        (
            one_rule("anomaly: {min_difference: 1, deviations: 2, recover_deviations: 3}"),
            "rules[0].anomaly.recover_deviations: 3 is not accepted; at most deviations (2)",
        ),
        (
            one_rule("anomaly: {min_difference: 1, window: 10s, min_samples: 60}"),
            "min_samples: 60 is not accepted; at most one a second of the window (10)",
        ),
        (b"rules: [{name: A, metric: m, above: 1}]", "rules[0].name: 'A' is not accepted; a text"),
        (b"rules: [{name: log_burst, metric: m, above: 1}]", "this name belongs to a detector"),
        (b"rules: [{metric: m, above: 1}]", "rules[0].name: 'nothing' is not accepted"),
        (b"rules: [5]", "line 1: rules[0]: 5 is not accepted; a mapping"),
        (b"rules: 5", "rules: 5 is not accepted; a list"),
        (b"version: 2", "version: 2 is not accepted"),
        (b"what: 2", "what: 'what' is not accepted; there is no such key here; known are builtin"),
        (b"a: 1\na: 2", "line 2: a: 'a' is not accepted; each key once"),
        (b"without: [nope]", "without: 'nope' is not accepted; the name of a built-in rule"),
        (b"logs: {patterns: [{name: a, pattern: '(?=b)'}]}", "a regular expression of RE2"),
        (b"logs: {patterns: [{name: a, pattern: '(a{999}){999}'}]}", "a regular expression of RE2"),
        (b"logs: {burst: {lines: 5, recover: 5}}", "logs.burst.recover: 5 is not accepted; under"),
        (b"x: &a [1]\ny: *a", "line 2: file: '*a' is not accepted; aliases"),
        (b"x: !!python/object/apply:os.system [id]", "values have no !tags"),
        (b"x: \xff", "line 1: file: b'\\xff' is not accepted; text in UTF-8"),
        (b"rules:\n  - [", "is not accepted; YAML"),
        (b"a: 1\n---\nb: 1", "is not accepted; YAML"),
        (b"[" * 100, "9 levels' is not accepted; at most 8 levels"),
        (b"- " * 30_000, "at most 8 levels"),
        (b"a: [" + b"1," * (MAX_RULES_NODES + 5) + b"]", f"at most {MAX_RULES_NODES} values"),
        (b"#" * (MAX_RULES_BYTES + 1), f"at most {MAX_RULES_BYTES} bytes"),
        (b"x: " + b"9" * 5000, "x: 'x' is not accepted"),
    ],
)
def test_each_mistake_is_one_clear_sentence(text: bytes, said: str) -> None:
    told = mistakes_of(text)
    assert any(said in sentence for sentence in told), told
    assert all(len(sentence) < 400 and sentence.isprintable() for sentence in told)


def test_too_many_of_anything_is_refused() -> None:
    many = b"rules:\n" + b"".join(
        b"  - {name: a%d, metric: m, above: 1}\n" % i for i in range(MAX_RULES + 1)
    )
    assert f"at most {MAX_RULES}" in mistakes_of(many)[0]
    patterns = b"logs:\n  patterns:\n" + b"".join(
        b"    - {name: a%d, pattern: a}\n" % i for i in range(MAX_LOG_PATTERNS + 1)
    )
    assert f"at most {MAX_LOG_PATTERNS}" in mistakes_of(patterns)[0]
    long = b"logs: {patterns: [{name: a, pattern: %s}]}" % (b"a" * (MAX_RULE_PATTERN_CHARS + 1))
    assert f"1 to {MAX_RULE_PATTERN_CHARS} characters" in mistakes_of(long)[0]
    wrong = b"rules:\n" + b"  - 5\n" * 190
    assert len(mistakes_of(wrong)) == MAX_MISTAKES


def test_several_mistakes_are_told_at_once_with_their_lines() -> None:
    text = b"rules:\n  - name: x\n    metric: m\n    above: .nan\n    for: -1\n  - 7\n"
    lines = {mistake.line for mistake in read_rules(text)[1]}
    assert lines == {4, 5, 6}


def test_a_catastrophic_pattern_takes_linear_time() -> None:
    text = b"logs: {patterns: [{name: a, pattern: '(a+)+(a+)+$'}]}"
    rules, mistakes = read_rules(text)
    assert mistakes == []
    began = time.process_time()
    assert rules.logs.patterns[-1].pattern.search("a" * 5_000 + "b") is None
    # A backtracking engine would need years.
    assert time.process_time() - began < 30


@settings(max_examples=150, deadline=None)
@given(
    st.binary(max_size=300)
    | st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace"))
)
def test_nothing_that_is_no_rules_file_raises(encoded: bytes) -> None:
    rules, mistakes = read_rules(encoded)
    if not mistakes:
        # Comments, or a sound key or two: no rule comes from nothing.
        assert {r.name for r in rules.figures} <= {r.name for r in builtin_rules().figures}


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["name", "metric", "above", "recover", "for", "where", "anomaly"])
            | st.text(max_size=5),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["rules", "logs", "builtin", "without", "version"]),
        _VALUES | st.lists(_VALUES, max_size=3) | st.fixed_dictionaries({"patterns": _VALUES}),
        max_size=5,
    )
)
def test_whatever_has_the_form_of_yaml_is_read_or_refused(tree: dict[str, object]) -> None:
    rules, mistakes = read_rules(yaml.safe_dump(tree).encode())
    if not mistakes:
        names = [rule.name for rule in rules.figures] + [p.name for p in rules.logs.patterns]
        assert len(names) == len(set(names))
        for rule in rules.thresholds:
            away = rule.recover - rule.level
            assert away <= 0 if rule.direction is Direction.ABOVE else away >= 0


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rules.yaml"
    path.write_bytes(GOOD)
    assert command.main(["check-rules", str(path)]) == 0
    assert "sound, 3 rules and 1 log patterns" in capsys.readouterr().out
    path.write_bytes(one_rule("above: .nan, for: -1"))
    assert command.main(["check-rules", str(path)]) == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert all(line.startswith(f"{path}: line 3: rules[0].") for line in said)
    assert command.main(["check-rules", str(tmp_path / "none")]) == 1
    assert "a file that can be read" in capsys.readouterr().err


def test_the_built_in_rules_can_be_shown_and_read_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["show-rules"]) == 0
    path = tmp_path / "rules.yaml"
    path.write_text(capsys.readouterr().out)
    assert command.main(["check-rules", str(path)]) == 0


def test_an_alerting_document_is_checked_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "alerting.yaml"
    path.write_text('receivers:\n  - {name: a, alertmanager: {url: "https://example.com"}}\n')
    assert command.main(["check-alerting", str(path)]) == 0
    assert "1 receivers" in capsys.readouterr().out
    path.write_text("receivers: [{name: a}]\nunheard: 1\n")
    assert command.main(["check-alerting", str(path)]) == 1
    assert "unheard" in capsys.readouterr().err
    path.write_bytes(b"\xff\xfe")
    assert command.main(["check-alerting", str(path)]) == 1
    assert command.main(["check-alerting", str(tmp_path / "none")]) == 1
    assert str(path) in capsys.readouterr().err
