"""`muster alerts`, and the silences below it."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from tests.unit.cli.conftest import Muster, Ran, answer, problem


def ago(days: int) -> str:
    """So many days and five hours ago, far from the next hour."""
    return (datetime.now(UTC) - timedelta(days=days, hours=5, minutes=30)).isoformat()


def an_alert(rule: str, state: str = "firing", severity: str = "warning", **more: Any) -> Any:
    return {
        "fingerprint": rule,
        "rule": rule,
        "state": state,
        "severity": severity,
        "labels": {"agent": "agent-1", "zone": "north"},
        "summary": f"{rule} is so",
        "value": None,
        "started_at": ago(4),
        "fired_at": ago(3) if state != "pending" else None,
        "resolved_at": ago(1) if state == "resolved" else None,
        "silenced_by": [],
        **more,
    }


SILENCE = {
    "id": "s-1",
    "state": "active",
    "matchers": ["agent=agent-1", "rule=~cpu_.*"],
    "starts_at": "2026-01-31T12:00:00.000Z",
    "ends_at": "2026-01-31T14:00:00.000Z",
    "author": "k1",
    "comment": "new disk",
    "created_at": "2026-01-31T12:00:00.000Z",
}


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("muster.cli.show._FILE_WIDTH", 300)


def rows(ran: Ran) -> list[list[str]]:
    """Cells of each line; an empty one is left out."""
    assert (ran.code, ran.err) == (0, "")
    return [re.split(r" {2,}", line) for line in ran.out.splitlines()]


def test_the_most_urgent_comes_first_with_its_age_in_its_state(muster: Muster) -> None:
    alerts = [
        an_alert("over", "resolved", "critical"),
        an_alert("soon", "pending", "critical"),
        an_alert("older"),
        an_alert("newer", fired_at=ago(2)),
        an_alert("hidden", severity="critical", silenced_by=["s-1"]),
        an_alert("small", severity="info", labels={}),
    ]
    muster.on("GET /v1/alerts", answer({"items": alerts, "next": None}))
    head, *found = rows(muster("alerts"))
    assert head == ["STATE", "SEVERITY", "RULE", "FOR", "ABOUT", "SUMMARY"]
    about = "agent-1 north"
    assert found == [
        ["firing (silenced)", "critical", "hidden", "3d5h", about, "hidden is so"],
        ["firing", "warning", "newer", "2d5h", about, "newer is so"],
        ["firing", "warning", "older", "3d5h", about, "older is so"],
        ["firing", "info", "small", "3d5h", "small is so"],
        # Of a pending one since it began, of a resolved one since it ended.
        ["pending", "critical", "soon", "4d5h", about, "soon is so"],
        ["resolved", "critical", "over", "1d5h", about, "over is so"],
    ]


def test_filters_are_passed_on_and_every_page_is_read(muster: Muster) -> None:
    first, second = an_alert("a"), an_alert("b")
    muster.on(
        "GET /v1/alerts",
        answer({"items": [first], "next": "a"}),
        answer({"items": [second], "next": None}),
    )
    options = ("--state", "firing", "--severity", "warning", "--rule", "r", "--agent", "agent-1")
    assert muster("alerts", *options, "--json").json == {"items": [first, second], "next": None}
    asked = "GET /v1/alerts?state=firing&severity=warning&rule=r&agent=agent-1&limit=1000"
    assert muster.asked == [asked, f"{asked}&cursor=a"]


def test_without_alerts_it_says_so(muster: Muster) -> None:
    muster.on("GET /v1/alerts", answer({"items": [], "next": None}))
    assert muster("alerts").out == "no alerts\n"


def test_a_silence_is_made_and_its_id_printed(muster: Muster) -> None:
    muster.on("POST /v1/silences", answer(SILENCE, 201))
    matchers = ("agent=agent-1", "rule=~cpu_.*")
    ran = muster("alerts", "silence", *matchers, "--for", "2h", "--comment", "new disk")
    assert (ran.code, ran.out, ran.err) == (0, "s-1\n", "")
    # The list is not asked for beside it.
    assert muster.asked == ["POST /v1/silences"]
    assert muster.sent() == {"matchers": list(matchers), "duration": "2h", "comment": "new disk"}
    assert muster("alerts", "silence", "agent=a", "--json").json == SILENCE
    assert muster.sent(1) == {"matchers": ["agent=a"], "duration": "1h", "comment": ""}


def test_a_silence_that_may_have_been_made_is_not_made_twice(muster: Muster) -> None:
    lost = httpx.ReadTimeout("the answer was lost")
    muster.on("POST /v1/silences", lost)
    ran = muster("alerts", "silence", "agent=a")
    assert ran.code != 0
    assert "the answer was lost" in ran.err
    assert muster.asked == ["POST /v1/silences"]


def test_silences_are_listed(muster: Muster) -> None:
    over = SILENCE | {"id": "s-2", "state": "expired", "comment": ""}
    muster.on("GET /v1/silences", answer({"items": [SILENCE, over], "next": None}))
    head, first, second = rows(muster("alerts", "silences"))
    assert head == ["SILENCE", "STATE", "ENDS", "BY", "MATCHERS", "COMMENT"]
    matchers = "agent=agent-1 rule=~cpu_.*"
    assert (first[:2], first[3:]) == (["s-1", "active"], ["k1", matchers, "new disk"])
    assert (second[:2], second[3:]) == (["s-2", "expired"], ["k1", matchers])
    # The end, not the beginning, by the user's clock.
    ends = datetime(2026, 1, 31, 14, tzinfo=UTC).astimezone()
    assert first[2] == ends.strftime("%Y-%m-%d %H:%M:%S")


def test_without_silences_it_says_so(muster: Muster) -> None:
    muster.on("GET /v1/silences", answer({"items": [], "next": None}))
    assert muster("alerts", "silences").out == "no silences\n"
    assert muster("alerts", "silences", "--json").json == {"items": [], "next": None}


def test_a_silence_is_ended(muster: Muster) -> None:
    muster.on("DELETE /v1/silences/s-1", answer(SILENCE | {"state": "expired"}))
    assert muster("alerts", "unsilence", "s-1").out == "s-1 ended\n"
    assert muster("alerts", "unsilence", "s-1", "--json").json["state"] == "expired"
    muster.on("DELETE /v1/silences/s/2", problem(404, "no silence s/2"))
    ran = muster("alerts", "unsilence", "s/2")
    assert (ran.code, ran.out, ran.err) == (1, "", "muster: no silence s/2\n")
    assert muster.asked[-1] == "DELETE /v1/silences/s%2F2"
