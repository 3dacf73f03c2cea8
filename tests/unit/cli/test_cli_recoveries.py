"""`muster recoveries`: the table, and one recovery with what was weighed."""

from __future__ import annotations

import re
from typing import Any

import pytest
from tests.unit.cli.conftest import Muster, Ran, answer, problem

IDENT = "1769860800123-agent-1"
SENTENCE = "agent-1 was down with 3 tasks: its runtime died; 2 tasks moved."
WEIGHED = "a restart works out in 2 of 10 cases"


def a_recovery(ident: str = IDENT, **more: Any) -> dict[str, Any]:
    """A recovery as the list has it."""
    return {
        "id": ident,
        "agent": "agent-1",
        "incarnation": 4,
        "term": 2,
        "kind": "died",
        "evidence": "the supervisor says: signal 9",
        "policy": "planned",
        "began_at": "2026-01-31T12:00:00.123Z",
        "silent_s": 0.4,
        "tasks": 3,
        "kept": 0,
        "rerun": 1,
        "moved": 2,
        "waiting": 0,
        "action": "restart",
        "restarts": 1,
        "restart_took_s": 2.5,
        "back_after_s": 3.25,
        "longest_wait_s": 6.75,
        "expected_cost_task_s": 1012.34,
        "realised_cost_task_s": 2040.56,
        "outcome": "moved",
        "ended_at": "2026-01-31T12:00:09.000Z",
        "sentence": SENTENCE,
        **more,
    }


def an_action(**more: Any) -> dict[str, Any]:
    return {
        "at": "2026-01-31T12:00:00.456Z",
        "action": "migrate",
        "expected_cost_task_s": 12.5,
        "alternatives": {"restart": 17.25, "wait": 1900.0},
        "excluded": {},
        "sentence": WEIGHED,
        **more,
    }


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    # Nothing that is looked for is folded or cut.
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setattr("muster.cli.show._FILE_WIDTH", 400)


def cells(line: str) -> list[str]:
    return re.split(r" {2,}", line)


def values(ran: Ran) -> dict[str, str]:
    """The names and values above the table of one recovery."""
    lines = ran.out.split("\n\n")[0].splitlines()
    return {name.strip(): value.strip() for name, value in (re.split(r" {2,}", x) for x in lines)}


def test_the_table_says_what_was_done_and_what_it_cost(muster: Muster) -> None:
    open_ = a_recovery(
        "1769860900000-agent-1",
        kind="unreachable",
        action="wait",
        rerun=0,
        moved=0,
        kept=1,
        waiting=2,
        outcome="open",
        realised_cost_task_s=None,
    )
    muster.on("GET /v1/recoveries", answer({"items": [open_, a_recovery()], "next": None}))
    ran = muster("recoveries")
    assert (ran.code, ran.err) == (0, "")
    head, first, second = (cells(line) for line in ran.out.splitlines())
    assert head == [
        "BEGAN",
        "RECOVERY",
        "KIND",
        "ACTION",
        "OUTCOME",
        "TASKS",
        "LOST",
        "WHAT HAPPENED",
    ]
    # It is still open: nothing is known of its cost, and the cell is empty.
    assert first[1:] == [
        "1769860900000-agent-1",
        "unreachable",
        "wait",
        "open",
        "1 kept, 2 waiting",
        SENTENCE,
    ]
    lost = "2,040.6 task-s"
    assert second[1:] == [IDENT, "died", "restart", "moved", "1 again, 2 moved", lost, SENTENCE]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", second[0])
    assert muster.asked == ["GET /v1/recoveries?limit=20"]


def test_where_nothing_was_done_it_says_so(muster: Muster) -> None:
    muster.on("GET /v1/recoveries", answer({"items": [], "next": None}))
    assert muster("recoveries").out == "no agent was down\n"


def test_no_more_than_the_limit_is_shown_page_by_page(muster: Muster) -> None:
    pages = [
        answer({"items": [a_recovery(f"{page}{n:02}") for n in range(100)], "next": f"{page}99"})
        for page in (1, 2)
    ]
    muster.on("GET /v1/recoveries", *pages)
    ran = muster("recoveries", "--limit", "150", "--agent", "agent-1", "--json")
    assert [row["id"] for row in ran.json["items"]][99:] == [
        "199",
        *(f"2{n:02}" for n in range(50)),
    ]
    assert muster.asked == [
        "GET /v1/recoveries?limit=100&agent=agent-1",
        "GET /v1/recoveries?limit=100&agent=agent-1&cursor=199",
    ]


def test_one_recovery_has_its_evidence_and_its_costs(muster: Muster) -> None:
    found = a_recovery(actions=[])
    muster.on(f"GET /v1/recoveries/{IDENT}", answer(found))
    ran = muster("recoveries", IDENT)
    assert (ran.code, ran.err) == (0, "")
    shown = values(ran)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", shown.pop("began"))
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", shown.pop("ended"))
    assert shown == {
        "recovery": IDENT,
        "agent": "agent-1 (incarnation 4)",
        "what": SENTENCE,
        "evidence": "the supervisor says: signal 9",
        "policy": "planned",
        "outcome": "moved",
        "tasks": "3: 1 again, 2 moved",
        "restarts": "1",
        "restart took": "2.5 s",
        "back after": "3.25 s",
        "longest wait": "6.75 s",
        "expected": "1,012.3 task-seconds",
        "lost": "2,040.6 task-s",
    }


def test_one_that_is_open_leaves_out_what_is_not_known(muster: Muster) -> None:
    unknown: dict[str, Any] = {"ended_at": None, "realised_cost_task_s": None, "back_after_s": None}
    never: dict[str, Any] = {
        "restarts": 0,
        "restart_took_s": None,
        "longest_wait_s": 0.0,
        "tasks": 0,
    }
    muster.on(f"GET /v1/recoveries/{IDENT}", answer(a_recovery(**unknown, **never)))
    shown = values(muster("recoveries", IDENT))
    absent = {"ended", "lost", "back after", "restarts", "restart took", "longest wait"}
    assert not absent & set(shown)
    assert shown["tasks"] == "none"
    assert shown["expected"] == "1,012.3 task-seconds"


def test_each_choice_stands_with_what_was_to_be_had_instead_and_why(muster: Muster) -> None:
    excluded = {"restart": "its supervisor is not heard", "migrate": "B would rise by 0.3"}
    second = an_action(
        at="2026-01-31T12:00:04.789Z",
        action="wait",
        expected_cost_task_s=2100.0,
        alternatives={},
        excluded=excluded,
        sentence="waiting is all there is",
    )
    muster.on(f"GET /v1/recoveries/{IDENT}", answer(a_recovery(actions=[an_action(), second])))
    lines = muster("recoveries", IDENT).out.split("\n\n")[1].splitlines()
    head, *rows = lines
    assert cells(head) == ["WHEN", "ACTION", "EXPECTED", "INSTEAD", "NOT TO BE HAD", "WHY"]
    # By columns, for an empty cell leaves no trace between two blanks.
    at = [head.index(name) for name in cells(head)]
    shown = [[row[a:b].strip() for a, b in zip(at, [*at[1:], None], strict=True)] for row in rows]
    assert [re.fullmatch(r"\d\d:\d\d:\d\d\.(\d{3})", row[0]) is not None for row in shown] == [
        True,
        True,
    ]
    assert [row[0][-3:] for row in shown] == ["456", "789"]
    assert [row[1:] for row in shown] == [
        ["migrate", "12.5", "restart 17.2, wait 1,900.0", "", WEIGHED],
        [
            "wait",
            "2,100.0",
            "",
            "restart: its supervisor is not heard, migrate: B would rise by 0.3",
            "waiting is all there is",
        ],
    ]


def test_as_json_it_is_the_rest_interfaces_answer(muster: Muster) -> None:
    found = a_recovery(actions=[an_action()])
    muster.on(f"GET /v1/recoveries/{IDENT}", answer(found))
    assert muster("recoveries", IDENT, "--json").json == found


def test_one_that_is_not_known_is_one_sentence(muster: Muster) -> None:
    muster.on("GET /v1/recoveries/a/b", problem(404, "no recovery a/b"))
    ran = muster("recoveries", "a/b")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err == "muster: no recovery a/b\n"
    # An id is one segment of the path, whatever is in it.
    assert muster.asked == ["GET /v1/recoveries/a%2Fb"]


@pytest.mark.parametrize("limit", ["0", "501", "x"])
def test_a_limit_out_of_range_asks_nobody(muster: Muster, limit: str) -> None:
    ran = muster("recoveries", "--limit", limit)
    assert ran.code == 2
    assert "limit" in ran.err
    assert muster.asked == []
