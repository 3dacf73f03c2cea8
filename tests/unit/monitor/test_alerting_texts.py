"""Matchers, silences, the document of receivers, bodies, events, and who speaks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muster.domain.agent_lifecycle import AgentState
from muster.domain.errors import InvalidInput, Overloaded
from muster_monitor.alerting import silences as silences_module
from muster_monitor.alerting.alerts import Alert, AlertState
from muster_monitor.alerting.claim import STALE_MS, ClaimWatch
from muster_monitor.alerting.grouping import MAX_SHOWN, Notification
from muster_monitor.alerting.happenings import CLOCKS_APART_MS, of_agent, of_alarm, of_stuck_task
from muster_monitor.alerting.matching import all_hold, labels_of, parse_matcher, parse_matchers
from muster_monitor.alerting.messages import alertmanager_body, webhook_body
from muster_monitor.alerting.sending import MAX_RETRIES_PER_HOUR, RetryBudget, pause_s
from muster_monitor.alerting.settings import check
from muster_monitor.alerting.silences import Silence, SilenceCover, check_silence, with_silence
from muster_monitor.findings import Severity

T0 = 1_700_000_000_000
ALERT = Alert(
    fingerprint="0123456789abcdef",
    rule="cpu_high",
    labels={"agent": "a-1", "zone": "z"},
    severity=Severity.WARNING,
    summary="hot",
    value=0.97,
    for_s=0.0,
    tenant="default",
    state=AlertState.FIRING,
    started_at_ms=T0,
    fired_at_ms=T0,
)


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("agent=a-1", True),
        ('agent = "a-1"', True),
        ("agent=a", False),
        ("agent!=a-1", False),
        ("agent=~a-.*", True),
        ("agent=~a", False),
        ("agent!~b.*", True),
        ("rule=cpu_high", True),
        ("alertname=cpu_high", True),
        ("severity=warning", True),
        ("nothing=", True),
        ("nothing!=", False),
    ],
)
def test_matchers_are_as_users_of_alertmanager_know_them(text: str, holds: bool) -> None:
    assert parse_matcher(text, "m").holds(labels_of(ALERT)) is holds


@pytest.mark.parametrize(
    "text", ["", "agent", "=a", "a-b c=d", "agent=~(", "agent=~(?=a)", "agent=~(a{1000}){1000}"]
)
def test_what_is_no_matcher_is_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(InvalidInput, match=r"^m: "):
        parse_matcher(text, "m")


def silence(**fields: object) -> Silence:
    usual = Silence(
        "s", "default", False, parse_matchers(["agent=a-1"], "m"), T0, T0 + 1000, "k", "", T0
    )
    return msgspec.structs.replace(usual, **fields)


def test_a_silence_hides_its_tenants_alerts_in_its_time() -> None:
    cover = SilenceCover()
    cover.replace([silence()])
    assert cover.hiding(ALERT, T0) == ["s"]
    assert cover.hiding(ALERT, T0 + 999) == ["s"]
    assert cover.hiding(ALERT, T0 + 1000) == cover.hiding(ALERT, T0 - 1) == []
    for tenant, cluster, hidden in (("", False, []), ("", True, ["s"]), ("other", True, [])):
        cover.replace([silence(cluster=cluster)])
        other = msgspec.structs.replace(ALERT, tenant=tenant)
        assert cover.hiding(other, T0) == hidden


@pytest.mark.parametrize(
    "fields",
    [
        {"ends_at_ms": T0},
        {"starts_at_ms": 0},
        {"starts_at_ms": T0 - 5000, "ends_at_ms": T0 - 1},
        {"comment": "x" * 501},
        {"comment": "a\nb"},
        {"matchers": parse_matchers(["agent!=b", "zone=~.*"], "m")},
    ],
)
def test_a_silence_without_sense_is_refused(fields: dict[str, object]) -> None:
    check_silence(silence(), T0)
    with pytest.raises(InvalidInput):
        check_silence(silence(**fields), T0)


def test_silences_are_bounded_and_those_that_are_over_make_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(silences_module, "MAX_SILENCES", 2)
    known = with_silence([silence(id="old")], silence(id="a", ends_at_ms=T0 + 9000), T0 + 1000)
    known = with_silence(known, silence(id="b", ends_at_ms=T0 + 9000), T0 + 1000)
    assert [s.id for s in known] == ["a", "b"]
    with pytest.raises(Overloaded, match="2 silences"):
        with_silence(known, silence(id="c"), T0)


GOOD = {
    "name": "pager",
    "match": ["severity=critical"],
    "group_by": ["agent"],
    "webhook": {"url": "https://x.example/y", "secret_file": "/s", "timeout": "2s"},
}


def test_a_document_is_read() -> None:
    other = {"name": "am", "alertmanager": {"url": "http://am:9093/", "resend": "30s"}}
    settings, mistakes = check(json.dumps({"receivers": [GOOD, other], "group_wait": "3s"}))
    assert mistakes == []
    assert settings is not None
    pager, am = settings.receivers
    assert (pager.rhythm.wait_ms, pager.rhythm.group_by) == (3000, ("agent",))
    assert pager.timeout_s == 2.0
    assert (am.target.url, am.rhythm.parts) == ("http://am:9093/api/v2/alerts", True)
    assert check("") == (check("{}")[0], [])


def test_info_goes_to_alertmanager_and_to_webhooks_that_ask_for_it() -> None:
    hook = {"webhook": GOOD["webhook"]}
    am = {"name": "am", "alertmanager": {"url": "http://am:9093/"}}
    wishes = [{"name": "all", "match": []}, {"name": "own", "match": ["severity=~info|warning"]}]
    receivers = [{"name": "usual", **hook}, am, *({**wish, **hook} for wish in wishes)]
    settings, mistakes = check(json.dumps({"receivers": receivers}))
    assert mistakes == []
    assert settings is not None
    heard = {
        receiver.name: [
            severity
            for severity in ("info", "warning", "critical")
            if all_hold(receiver.rhythm.match, {"severity": severity})
        ]
        for receiver in settings.receivers
    }
    every = ["info", "warning", "critical"]
    assert heard == {"usual": every[1:], "am": every, "all": every, "own": every[:2]}


def test_the_document_of_the_operators_page_is_taken() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "operating.md").read_text()
    settings, mistakes = check(page.partition("```yaml\n")[2].partition("```")[0])
    assert mistakes == []
    assert settings is not None
    assert [receiver.name for receiver in settings.receivers] == ["alertmanager", "pager"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "P"}, "receivers[0].name"),
        ({"webhook": {"url": "ftp://x"}}, "receivers[0].webhook.url"),
        ({"webhook": {}}, "receivers[0].webhook.url"),
        ({"webhook": {"url": "http://x", "urls": 1}}, "'urls'"),
        ({"webhook": {"url": "http://x", "headers": {"Host": "y"}}}, "headers.Host"),
        ({"webhook": {"url": "http://x", "timeout": "1h"}}, "webhook.timeout"),
        ({"webhook": {"url": "http://x", "secret_file": "s"}}, "secret_file"),
        ({"alertmanager": {"url": "http://x"}}, "exactly one of webhook and alertmanager"),
        ({"match": ["("]}, "receivers[0].match[0]"),
        ({"match": "severity=critical"}, "a list of texts"),
        ({"group_by": ["a b"]}, "receivers[0].group_by"),
        ({"group_interval": 5}, "receivers[0].group_interval"),
        ({"repeat_interval": "0s"}, "receivers[0].repeat_interval"),
        ({"colour": "red"}, "'colour'"),
    ],
)
def test_each_mistake_is_one_sentence_with_its_place(change: dict[str, object], said: str) -> None:
    settings, mistakes = check(json.dumps({"receivers": [{**GOOD, **change}]}))
    assert settings is None
    assert len(mistakes) == 1
    assert said in mistakes[0]


@pytest.mark.parametrize(
    "text",
    [
        "a: [",
        "- 1",
        "a: &a [1]\nb: *a",
        "allow: [x]\nallow: [y]",
        "receivers: 3",
        "[" * 5000,
        "receivers: [" + json.dumps(GOOD) + "," + json.dumps(GOOD) + "]",
        "x" * 300000,
        json.dumps({"receivers": [{**GOOD, "name": f"n{n}"} for n in range(9)]}),
    ],
)
def test_what_is_no_document_is_refused(text: str) -> None:
    settings, mistakes = check(text)
    assert settings is None
    assert mistakes


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["receivers", "name", "webhook", "url", "match", "allow", "group_wait"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(JSON)
def test_whatever_is_written_there_is_taken_or_refused(document: object) -> None:
    settings, mistakes = check(json.dumps(document))
    assert (settings is None) == bool(mistakes)


def test_bodies_say_what_fires_and_what_ended() -> None:
    ended = msgspec.structs.replace(ALERT, state=AlertState.RESOLVED, resolved_at_ms=T0 + 1)
    many = (ALERT,) * (MAX_SHOWN + 3)
    message = Notification("g", "g-1", {"rule": "cpu_high"}, many, (ended,))
    body = json.loads(webhook_body(message, "r", T0))
    assert (body["status"], body["firing"], body["resolved"]) == ("firing", MAX_SHOWN + 3, 1)
    assert (len(body["alerts"]), body["left_out"]) == (MAX_SHOWN, 4)
    only = Notification("g", "g-1", {}, (), (ended,))
    assert json.loads(webhook_body(only, "r", T0))["status"] == "resolved"
    first, second = json.loads(alertmanager_body(Notification("g", "k", {}, (ALERT,), (ended,))))
    assert first["endsAt"] == "2023-11-14T22:13:20.001Z"
    assert "endsAt" not in second


def said(state: AgentState) -> dict[str, bool]:
    return {h.finding.rule: h.finding.active for h in of_agent("a", state, "why", T0)}


def test_what_the_leader_says_of_agents() -> None:
    assert said(AgentState.DOWN) == {"agent_down": True}
    assert said(AgentState.RESTARTING) == said(AgentState.JOINING) == {}
    assert said(AgentState.READY) == {"agent_down": False, "agent_quarantined": False}
    assert said(AgentState.QUARANTINED) == {"agent_quarantined": True}
    assert said(AgentState.PAROLE)["agent_quarantined"]
    assert of_alarm("store_rolled_back", "why", T0).finding.active
    assert not of_alarm("store_rolled_back", "", T0).finding.active


def test_what_lapsed_long_ago_is_not_told_but_clocks_may_differ() -> None:
    stuck = of_stuck_task("t", "task", "a", "s", "", T0)
    assert not stuck.is_past(T0 + stuck.hold_ms + CLOCKS_APART_MS)
    assert stuck.is_past(T0 + stuck.hold_ms + CLOCKS_APART_MS + 1)
    assert not stuck.is_past(T0 - 3_600_000)
    assert "tenant" in replace(stuck.finding).labels


def test_a_claim_is_taken_when_it_is_free_stale_or_ones_own_from_before() -> None:
    watch = ClaimWatch("me")
    assert watch.may_take("", "", 0)
    assert watch.may_take("me", "1", 0)
    assert not watch.may_take("other", "2", 0)
    assert not watch.may_take("other", "3", STALE_MS)
    assert not watch.may_take("other", "3", 2 * STALE_MS - 1)
    assert watch.may_take("other", "3", 2 * STALE_MS)
    watch.lost(2 * STALE_MS)
    assert not watch.may_take("me", "3", 2 * STALE_MS)


def test_retries_grow_apart_and_have_a_budget() -> None:
    assert [pause_s(n, 0.999) for n in (1, 2, 3)] == pytest.approx([1, 2, 4], rel=0.01)
    assert pause_s(500, 0.0) == 30.0
    budget = RetryBudget()
    waits = [budget.wait_s(1) for _ in range(MAX_RETRIES_PER_HOUR // 10 + 1)]
    assert waits[-2] == 0.0
    assert waits[-1] == pytest.approx(3600 / MAX_RETRIES_PER_HOUR)
    assert budget.wait_s(3_600_001) == 0.0
