"""What a command that waits for a task says meanwhile."""

from __future__ import annotations

from tests.unit.cli.conftest import TASK_ID, Muster, a_task, answer


def test_result_wait_says_why_the_task_waits_once(muster: Muster) -> None:
    pending = {"id": TASK_ID, "state": "PENDING", "attempt": 0, "agent": None}
    ended = {"id": TASK_ID, "state": "SUCCEEDED", "attempt": 1, "agent": "a", "result": 7}
    waiting = a_task("PENDING", agent=None, why="no agent is registered")
    muster.on(f"GET /v1/tasks/{TASK_ID}/result", *map(answer, (pending, pending, ended)))
    muster.on(f"GET /v1/tasks/{TASK_ID}", answer(waiting))
    ran = muster("result", TASK_ID, "--wait")
    assert (ran.code, ran.out) == (0, "7\n")
    assert ran.err == f"muster: task {TASK_ID} waits: no agent is registered\n"
    waits = [r.url.params["wait"] for r in muster.requests if "wait" in r.url.params]
    assert waits == ["2s", "60s", "60s"]


def test_submit_wait_says_each_new_reason(muster: Muster) -> None:
    muster.on("POST /v1/tasks", answer({"id": TASK_ID}, 202))
    muster.on(
        f"GET /v1/tasks/{TASK_ID}",
        answer(a_task("PENDING", agent=None, why="no agent has room")),
        answer(a_task("PENDING", agent=None, why="no agent is registered")),
        answer(a_task("RUNNING", why="")),
        answer(a_task(result="done")),
    )
    ran = muster("submit", "echo", "--wait")
    assert (ran.code, ran.out) == (0, '"done"\n')
    assert [line.rpartition(": ")[2] for line in ran.err.splitlines()] == [
        "no agent has room",
        "no agent is registered",
    ]
