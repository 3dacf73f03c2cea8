"""Log lines: new errors, bursts, declared patterns; floods, forgeries, bounded memory."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muster_monitor.findings import Finding, Severity
from muster_monitor.log_analysis import analysis
from muster_monitor.log_analysis.analysis import (
    LOG_BURST,
    LOG_NEW_ERROR,
    MAX_NEW_ERRORS,
    MAX_QUEUED_LINES,
    LogAnalysis,
    is_error,
)
from muster_monitor.log_analysis.plain_text import MAX_ANALYSED_CHARS, masked, plain
from muster_monitor.log_analysis.rates import TokenBucket, WindowCount
from muster_monitor.log_analysis.templates import MAX_TEMPLATES, Templates
from muster_monitor.rules.fields import compile_pattern
from muster_monitor.rules.schema import (
    LineSource,
    LogRules,
    Matcher,
    PatternRule,
    Selector,
    Subject,
)
from muster_monitor.template_store import decode, encode


def agent(name: str = "a", **attributes: str) -> Subject:
    return Subject(name, f"agent {name}", {"agent": name}, {"agent": name, **attributes})


def pattern(name: str = "boom", text: str = "boo+m", **more: object) -> PatternRule:
    return PatternRule(name, compile_pattern(text), Severity.WARNING, **more)  # type: ignore[arg-type]


class Reader:
    """Offers lines and reads them at once, over virtual time."""

    def __init__(
        self, *patterns: PatternRule, known: tuple[str, ...] = (), **rules: object
    ) -> None:
        fields: dict[str, object] = {"patterns": patterns, **rules}
        self.lines = LogAnalysis(LogRules(**fields), known)  # type: ignore[arg-type]
        self.now_ms = 1_000_000

    def say(
        self, *texts: str, level: str = "", who: Subject | None = None, own: bool = False
    ) -> list[Finding]:
        pairs = [(level, text) for text in texts]
        self.lines.offer(who or agent(), own, pairs, self.now_ms)
        return self.lines.read_some(10**9, self.now_ms, 5)

    def after(self, seconds: float) -> list[Finding]:
        self.now_ms += int(seconds * 1000)
        return self.lines.sweep(self.now_ms, 6)


@given(st.text(max_size=2_000))
def test_plain_text_is_short_and_harmless(text: str) -> None:
    shown = plain(text)
    assert len(shown) <= MAX_ANALYSED_CHARS
    assert shown.isprintable()


def test_control_characters_are_written_out() -> None:
    assert plain("a\x1b[2Jb\rc\nd\te\u202ef\x00") == "a\\x1b[2Jb\\rc\\nd e\\u202ef\\x00"
    assert plain("x" * 10_000_000) == "x" * MAX_ANALYSED_CHARS


def test_what_differs_from_time_to_time_is_masked() -> None:
    text = "row 17 of 3f2b9c1d-77aa took 1.25 s at 10:22:03, ref 0xdeadbeef01, feedback"
    assert masked(text) == "row <n> of <id> took <n> s at <n>, ref <id>, feedback"


@pytest.mark.parametrize(
    ("level", "text", "expected"),
    [
        ("error", "all is well", True),
        ("info", "no error at all", False),
        ("", "ValueError: no", True),
        ("", "an Error occurred", True),
        ("", "Traceback (most recent call last):", True),
        ("", "terror and mirrors", False),
        ("", "done", False),
    ],
)
def test_errors_are_told_by_level_or_words(level: str, text: str, expected: bool) -> None:
    assert is_error(level, text) is expected


@settings(max_examples=80)
@given(
    st.floats(0.1, 1000),
    st.integers(1, 1000),
    st.lists(st.tuples(st.integers(-100, 5_000), st.integers(0, 2_000)), max_size=40),
)
def test_a_bucket_lets_through_no_more_than_its_rate(
    per_s: float, burst: int, takes: list[tuple[int, int]]
) -> None:
    bucket = TokenBucket(per_s, burst, 0)
    now_ms = newest_ms = granted = 0
    for step_ms, wanted in takes:
        now_ms += step_ms
        newest_ms = max(newest_ms, now_ms)
        given_now = bucket.take(wanted, now_ms)
        assert 0 <= given_now <= wanted
        granted += given_now
        assert granted <= burst + newest_ms * per_s / 1000 + 1e-6


@settings(max_examples=80)
@given(st.lists(st.tuples(st.integers(0, 30_000), st.integers(0, 5)), max_size=60))
def test_a_window_counts_what_is_within_it(adds: list[tuple[int, int]]) -> None:
    window, now_ms, times = WindowCount(60_000), 0, []
    for step_ms, count in adds:
        now_ms += step_ms
        window.add(count, now_ms)
        times += [now_ms] * count
        # Exact to a tenth of the window.
        assert window.total <= sum(now_ms - t < 60_000 for t in times)
        assert window.total >= sum(now_ms - t < 54_000 for t in times)


def test_a_new_kind_of_error_is_told_once_and_ends() -> None:
    reader = Reader(known=("the old error <n>",))
    assert reader.say("the old error 5") == []
    (found,) = reader.say("ValueError: row 17 is bad")
    assert (found.rule, found.active, found.labels["agent"]) == (LOG_NEW_ERROR, True, "a")
    assert "row 17 is bad" in found.summary
    assert reader.say("ValueError: row 18 is bad") == []
    assert reader.after(599) == []
    (over,) = reader.after(2)
    assert (over.active, over.labels) == (False, found.labels)


def test_while_it_learns_new_is_no_news() -> None:
    reader = Reader(learn_s=60.0)
    assert reader.say("first error of all") == []
    reader.after(61)
    assert len(reader.say("quite another failure in the engine room")) == 1
    # Unless it was told before what is usual.
    other = Reader()
    other.lines.recall(["first error of all"])
    assert other.say("first error of all") == []
    assert len(other.say("quite another failure in the engine room")) == 1


def test_calm_lines_are_not_mined() -> None:
    reader = Reader(learn_s=0.0)
    reader.say("error one two")
    assert reader.say("hello world", "so what") == []
    assert reader.say("an error it is not", level="info") == []
    assert len(reader.lines.templates) == 1


def test_new_errors_at_once_are_bounded() -> None:
    reader = Reader(learn_s=0.0)
    words = [f"error {'x' * i} {'y' * i} {'z' * i}" for i in range(1, 60)]
    assert len(reader.say(*words)) == MAX_NEW_ERRORS
    assert reader.lines.left_out["new_errors"] == 59 - MAX_NEW_ERRORS


def test_a_burst_begins_and_ends() -> None:
    reader = Reader(new_enabled=False, burst_lines=10, burst_recover=5, burst_within_s=60.0)
    assert reader.say(*["error"] * 9) == []
    (found,) = reader.say("error 17")
    assert (found.rule, found.value) == (LOG_BURST, 10.0)
    assert reader.say(*["error"] * 20) == []
    assert reader.after(30) == []
    (over,) = reader.after(60)
    assert (over.rule, over.active, over.labels) == (LOG_BURST, False, found.labels)
    assert reader.after(60) == []


def test_bursts_are_per_agent() -> None:
    reader = Reader(new_enabled=False, burst_lines=10, burst_recover=5)
    assert reader.say(*["error"] * 9) + reader.say(*["error"] * 9, who=agent("b")) == []


def test_a_pattern_holds_until_it_was_not_seen_for_a_while() -> None:
    reader = Reader(pattern(at_least=3, within_s=10.0, hold_s=60.0, for_s=4.0))
    reader.say("boom")
    reader.after(20)
    assert reader.say("booom", "boom") == []
    (found,) = reader.say("booooom!")
    assert (found.rule, found.for_s, found.active) == ("boom", 4.0, True)
    assert "booooom!" in found.summary
    reader.after(50)
    assert reader.say("boom") == []
    assert reader.after(50) == []
    (over,) = reader.after(11)
    assert not over.active


def test_patterns_look_where_they_are_told_to() -> None:
    zone = Selector((("zone", Matcher(frozenset({"north"}))),))
    reader = Reader(pattern("own", lines=LineSource.AGENT), pattern("zoned", where=zone))
    assert [f.rule for f in reader.say("boom", own=True)] == ["own"]
    assert reader.say("boom") == []
    assert [f.rule for f in reader.say("boom", who=agent("n", zone="north"))] == ["zoned"]


def test_a_rule_that_is_gone_and_an_agent_that_is_gone_end_what_they_said() -> None:
    reader = Reader(pattern(), pattern("other", "bang"))
    reader.say("boom bang")
    reader.lines.replace_rules(LogRules(patterns=(pattern("other", "bang"),)))
    assert [(f.rule, f.active) for f in reader.after(1)] == [("boom", False)]
    reader.lines.forget("a")
    assert [(f.rule, f.active) for f in reader.after(1)] == [("other", False)]


def test_a_flood_is_cut_and_counted_and_others_are_heard() -> None:
    reader = Reader(pattern(), lines_per_s=100.0, lines_burst=1000)
    for _ in range(10):
        reader.lines.offer(agent("loud"), False, [("", "spam")] * 100_000, reader.now_ms)
        reader.now_ms += 1000
    assert reader.lines.queued == 1000 + 9 * 100
    assert reader.lines.left_out["too_fast"] == 1_000_000 - reader.lines.queued
    assert [f.labels["agent"] for f in reader.say("boom", who=agent("calm"))] == ["calm"]


def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_QUEUED_LINES <= 100_000
    monkeypatch.setattr(analysis, "MAX_QUEUED_LINES", 10)
    monkeypatch.setattr(analysis, "MAX_LOG_SUBJECTS", 3)
    lines = LogAnalysis()
    for i in range(20):
        lines.offer(agent(f"a{i}"), False, [("", "hello")], 1)
    assert lines.queued == 10
    assert lines.left_out["queue_full"] == 10
    assert len(lines._heard) == 3


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "b"]),
            st.sampled_from(["", "error", "info", "\x00"]),
            st.text(max_size=60) | st.just("error " + "x" * 3_000) | st.just("boom error <*>"),
            st.integers(0, 40_000),
        ),
        max_size=40,
    )
)
def test_whatever_is_printed_findings_alternate_and_end(
    said: list[tuple[str, str, str, int]],
) -> None:
    reader = Reader(pattern(), learn_s=0.0, burst_lines=5, burst_recover=1)
    standing: set[tuple[str, str]] = set()

    def take(found: list[Finding]) -> None:
        for finding in found:
            key = (finding.rule, str(sorted(finding.labels.items())))
            assert finding.summary.isprintable()
            assert len(finding.summary) <= 500
            assert (key in standing) is not finding.active
            (standing.add if finding.active else standing.discard)(key)

    for who, level, text, pause_ms in said:
        take(reader.say(text, level=level, who=agent(who)))
        take(reader.after(pause_ms / 1000))
    take(reader.after(700))
    assert standing == set()


def test_templates_are_bounded_in_number_and_tree() -> None:
    templates = Templates(max_templates=20)
    for i in range(3_000):
        letters = "".join(chr(97 + int(digit)) for digit in str(i))
        templates.learn(f"{letters} {letters}x {letters}y")
    assert len(templates) == 20
    nodes, waiting = 0, [templates._drain.root_node]
    while waiting:
        node = waiting.pop()
        nodes += 1 + len(node.cluster_ids)
        waiting += node.key_to_child_node.values()
    assert nodes < 5 * MAX_TEMPLATES


def test_templates_outlive_a_restart_as_plain_json() -> None:
    templates = Templates()
    for line in ("disk 5 failed in rack 7", "disk 6 failed in rack 9", "Ünfug: böser Fehler"):
        templates.learn(line)
    encoded = encode(templates.texts())
    assert encoded.startswith(b'{"version":1,"templates":["disk <n> failed')
    again = Templates(decode(encoded))
    assert again.texts() == templates.texts()
    assert not again.changed
    assert again.learn("disk 99 failed in rack 1") is None
    assert again.learn("something else broke today") is not None


@given(st.binary(max_size=100) | st.just(b'{"version":1,"templates":[1]}'))
def test_a_damaged_store_is_an_empty_one(encoded: bytes) -> None:
    assert decode(encoded) == []


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=80), max_size=40))
def test_what_was_learnt_is_known(lines: list[str]) -> None:
    templates = Templates(max_templates=10)
    for line in lines:
        templates.learn(plain(line))
        assert templates.learn(plain(line)) is None
        assert len(templates) <= 10
