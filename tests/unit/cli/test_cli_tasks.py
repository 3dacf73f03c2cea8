"""`tasks`, `task`, `result`, `cancel`, `explain`."""

from __future__ import annotations

import json

import pytest
from tests.unit.cli.conftest import TASK_ID, Muster, a_task, answer, problem

OTHER_ID = "01jd1111111111111111111111"
NOT_FOUND = problem(404, f"there is no task '{OTHER_ID}'")


def test_tasks_fit_80_columns(muster: Muster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("muster.cli.show._FILE_WIDTH", 80)
    long = a_task("PENDING", agent=None, why="no agent has the skill 'translate-the-whole-library'")
    muster.on("GET /v1/tasks", answer({"items": [a_task(), long], "next": None}))
    ran = muster("tasks")
    lines = ran.out.splitlines()
    assert ran.code == 0
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == ["TASK", "STATE", "AGE", "TOOK", "AGENT", "SKILL"]
    assert lines[1].startswith(f"{TASK_ID}  SUCCEEDED")
    assert "2.5s" in lines[1]
    assert len(lines) == 3


def test_where_there_is_room_tasks_say_why(muster: Muster) -> None:
    waiting = a_task("PENDING", agent=None, why="no agent offers the skill 'chat'")
    muster.on("GET /v1/tasks", answer({"items": [waiting], "next": None}))
    assert "no agent offers the skill 'chat'" in muster("tasks").out


def test_tasks_filters_are_the_gateways(muster: Muster) -> None:
    muster.on("GET /v1/tasks", answer({"items": [], "next": None}))
    ran = muster(
        *("tasks", "--state", "failed", "--skill", "echo", "--agent", "agent-1"),
        *("--label", "a=1", "--label", "b=2", "--limit", "7"),
    )
    assert ran.out == "no tasks\n"
    params = muster.requests[0].url.params
    assert params["state"] == "FAILED"
    assert (params["skill"], params["agent"], params["limit"]) == ("echo", "agent-1", "7")
    assert params.get_list("label") == ["a=1", "b=2"]


def test_tasks_stop_at_the_limit(muster: Muster) -> None:
    page = {"items": [a_task(), a_task(), a_task()], "next": "c"}
    muster.on("GET /v1/tasks", answer(page))
    assert len(muster("tasks", "--limit", "2").out.splitlines()) == 3
    assert len(muster.requests) == 1


def test_all_tasks_are_all_pages(muster: Muster) -> None:
    muster.on(
        "GET /v1/tasks",
        answer({"items": [a_task()], "next": "cursor-1"}),
        answer({"items": [], "next": "cursor-2"}),
        answer({"items": [a_task("FAILED")], "next": None}),
    )
    ran = muster("tasks", "--all", "--json")
    assert [item["state"] for item in ran.json["items"]] == ["SUCCEEDED", "FAILED"]
    assert [r.url.params.get("cursor") for r in muster.requests] == [None, "cursor-1", "cursor-2"]


def test_tasks_json_is_one_page_as_it_came(muster: Muster) -> None:
    page = {"items": [a_task()], "next": "c"}
    muster.on("GET /v1/tasks", answer(page))
    assert muster("tasks", "--json").json == page


def test_task_shows_what_is_set(muster: Muster) -> None:
    task = a_task(
        "RUNNING",
        ended_at=None,
        labels={"team": "docs"},
        progress={"fraction": 0.25, "note": "page 3"},
        input={"text": "x"},
    )
    muster.on(f"GET /v1/tasks/{TASK_ID}", answer(task))
    ran = muster("task", TASK_ID)
    shown = dict(line.split(None, 1) for line in ran.out.splitlines() if " " in line.strip())
    assert shown["state"] == "RUNNING"
    assert shown["labels"] == "team=docs"
    assert shown["progress"] == "25% page 3"
    assert shown["input"] == '{"text": "x"}'
    assert "parent" not in shown
    assert muster.requests[0].url.params["include"] == "input"


def test_task_json(muster: Muster) -> None:
    muster.on(f"GET /v1/tasks/{TASK_ID}", answer(a_task()))
    assert muster("task", TASK_ID, "--json").json == a_task()


@pytest.mark.parametrize("command", ["task", "result", "cancel", "logs", "explain"])
def test_an_unknown_task_is_exit_code_1(muster: Muster, command: str) -> None:
    suffix = "" if command == "task" else f"/{command}"
    method = "POST" if command == "cancel" else "GET"
    muster.on(f"{method} /v1/tasks/{OTHER_ID}{suffix}", NOT_FOUND)
    ran = muster(command, OTHER_ID)
    assert (ran.code, ran.out) == (1, "")
    assert ran.err == f"muster: there is no task '{OTHER_ID}'\n"


def test_an_id_cannot_leave_its_path(muster: Muster) -> None:
    muster.on("GET /v1/tasks/../agents", problem(404, "no"))
    assert muster("task", "../agents").code == 1
    assert muster.asked == ["GET /v1/tasks/..%2Fagents?include=input"]


def test_result_is_json_on_stdout(muster: Muster) -> None:
    muster.on(f"GET /v1/tasks/{TASK_ID}/result", answer(a_task(result=["ä", 1])))
    ran = muster("result", TASK_ID)
    assert (ran.code, json.loads(ran.out)) == (0, ["ä", 1])


def test_result_of_an_open_task_fails_without_wait(muster: Muster) -> None:
    muster.on(f"GET /v1/tasks/{TASK_ID}/result", answer(a_task("RUNNING"), 202))
    ran = muster("result", TASK_ID)
    assert (ran.code, ran.out) == (1, "")
    assert "is RUNNING; --wait" in ran.err


def test_result_waits(muster: Muster) -> None:
    muster.on(
        f"GET /v1/tasks/{TASK_ID}/result",
        answer(a_task("RUNNING"), 202),
        answer(a_task(result=None)),
    )
    ran = muster("result", TASK_ID, "--wait")
    assert (ran.code, ran.out) == (0, "null\n")


def test_result_json_of_a_failed_task_fails_and_prints(muster: Muster) -> None:
    failed = a_task("TIMED_OUT", error={"kind": "timed_out", "message": "after 60 s"})
    muster.on(f"GET /v1/tasks/{TASK_ID}/result", answer(failed))
    ran = muster("result", TASK_ID, "--json")
    assert (ran.code, ran.json["state"], ran.err) == (1, "TIMED_OUT", "")


def test_cancel_says_what_became_of_it(muster: Muster) -> None:
    muster.on(f"POST /v1/tasks/{TASK_ID}/cancel", answer({"id": TASK_ID, "state": "RUNNING"}, 202))
    ran = muster("cancel", TASK_ID)
    assert (ran.code, ran.out) == (0, f"{TASK_ID} RUNNING (it is told to stop)\n")


def test_cancel_goes_on_after_one_that_is_refused(muster: Muster) -> None:
    ended = problem(409, f"task {OTHER_ID} has ended already; its state is SUCCEEDED")
    muster.on(f"POST /v1/tasks/{OTHER_ID}/cancel", ended)
    muster.on(f"POST /v1/tasks/{TASK_ID}/cancel", answer({"id": TASK_ID, "state": "CANCELLED"}))
    ran = muster("cancel", OTHER_ID, TASK_ID)
    assert (ran.code, ran.out) == (1, f"{TASK_ID} CANCELLED\n")
    assert "has ended already" in ran.err


def test_cancel_json(muster: Muster) -> None:
    muster.on(f"POST /v1/tasks/{TASK_ID}/cancel", answer({"id": TASK_ID, "state": "CANCELLED"}))
    assert muster("cancel", TASK_ID, "--json").json == {"id": TASK_ID, "state": "CANCELLED"}


def test_explain_tells_the_reasons(muster: Muster) -> None:
    explanation = {
        "id": TASK_ID,
        "state": "PENDING",
        "summary": "no agent offers the skill 'chat'",
        "queue_position": 2,
        "queue_length": 5,
        "agents": 4,
        "excluded": {"skill": 4},
        "smallest_change": "one more agent with skill chat",
    }
    muster.on(f"GET /v1/tasks/{TASK_ID}/explain", answer(explanation))
    ran = muster("explain", TASK_ID)
    assert ran.code == 0
    for text in ("no agent offers", "2 of 5", "4 excluded", "one more agent with skill chat"):
        assert text in ran.out
    assert muster("explain", TASK_ID, "--json").json == explanation


def test_explain_shows_scores_and_the_start(muster: Muster) -> None:
    scores = {"score": 0.25, "free_share_after": 0.25, "health": 1.0}
    told = {
        "id": TASK_ID,
        "state": "PENDING",
        "summary": "no agent can take it now",
        "candidates": [
            {"agent": "a", "rank": 1, "fits": False, "terms": scores},
            {"agent": "b", "rank": 2, "fits": False, "terms": {"score": 0.125}},
        ],
        "expected_start": "2026-01-31T12:00:00.123Z",
        "expected_start_why": "if 1 task of unknown length take no longer",
    }
    explain = f"GET /v1/tasks/{TASK_ID}/explain"
    unknown = {**told, "expected_start": None, "expected_start_why": "nobody knows"}
    muster.on(explain, answer(told), answer(unknown))
    lines = muster("explain", TASK_ID).out.splitlines()
    assert lines[-3].split() == [
        "AGENT",
        "RANK",
        "FITS",
        "SCORE",
        "FREE",
        "SHARE",
        "AFTER",
        "HEALTH",
    ]
    assert lines[-2].split() == ["a", "1", "no", "0.25", "0.25", "1"]
    assert lines[-1].split() == ["b", "2", "no", "0.125"]
    assert any("should start" in line and "of unknown length" in line for line in lines)
    assert "unknown: nobody knows" in muster("explain", TASK_ID).out


def test_of_the_first_tasks_that_wait_the_reason_is_asked(muster: Muster) -> None:
    waiting = a_task("PENDING", agent=None, started_at=None, ended_at=None)
    muster.on("GET /v1/tasks", answer({"items": [a_task(), *[waiting] * 12], "next": None}))
    muster.on(f"GET /v1/tasks/{TASK_ID}", answer({**waiting, "why": "no agent offers it"}))
    lines = muster("tasks").out.splitlines()
    assert ["no agent offers it" in line for line in lines] == [False] * 2 + [True] * 10 + [
        False
    ] * 2
    assert len(muster.requests) == 11


def test_what_has_ended_is_not_said_to_wait_for_agents(muster: Muster) -> None:
    told = {"id": TASK_ID, "state": "SUCCEEDED", "summary": "it does not wait", "agents": 0}
    muster.on(f"GET /v1/tasks/{TASK_ID}/explain", answer(told))
    assert "agents" not in muster("explain", TASK_ID).out
