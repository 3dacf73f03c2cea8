"""`muster submit`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.unit.cli.conftest import TASK_ID, Muster, a_task, answer, problem, stream

from muster.cli import submit_command, task_body


def ids(count: int, start: int = 0) -> list[str]:
    return [f"01jd{number:022d}" for number in range(start, start + count)]


def ended(ident: str, state: str = "SUCCEEDED", **more: Any) -> str:
    return json.dumps({"id": ident, "state": state, "attempt": 1, **more})


def test_prints_the_id_alone(muster: Muster) -> None:
    muster.on("POST /v1/tasks", answer({"id": TASK_ID}, 202))
    ran = muster("submit", "echo", "--input", '{"a": 1}')
    assert (ran.code, ran.out, ran.err) == (0, f"{TASK_ID}\n", "")
    assert muster.sent() == {"skill": "echo", "input": {"a": 1}}
    headers = muster.requests[0].headers
    assert headers["authorization"] == "Bearer mst_key_secret"
    assert len(headers["idempotency-key"]) > 20


def test_json_is_the_answer_of_the_gateway(muster: Muster) -> None:
    muster.on("POST /v1/tasks", answer({"id": TASK_ID}, 202))
    assert muster("submit", "echo", "--json").json == {"id": TASK_ID}


def test_every_option_reaches_the_task(muster: Muster) -> None:
    muster.on("POST /v1/tasks", answer({"id": TASK_ID}, 202))
    ran = muster(
        *("submit", "work", "--cpu", "500m", "--memory", "1Gi", "--network", "10M", "--gpu", "0.5"),
        *("--label", "team=docs", "--label", "x=a=b", "--constraint", "zone in a, b"),
        *("--constraint", "disk==ssd", "--priority", "70", "--timeout", "60s"),
        *("--start-deadline", "10m", "--max-attempts", "2", "--on-disconnect", "stop"),
        *("--estimate", "2s", "--idempotency-key", "order-1", "--resource", "slots=2"),
        *("--resource", "tokens_per_minute=90000", "--total-deadline", "1h"),
        *("--lifetime", "service"),
    )
    assert ran.code == 0
    assert muster.sent() == {
        "skill": "work",
        "resources": {
            "cpu": "500m",
            "memory": "1Gi",
            "network": "10M",
            "gpu": "0.5",
            "slots": "2",
            "tokens_per_minute": "90000",
        },
        "labels": {"team": "docs", "x": "a=b"},
        "constraints": [
            {"key": "zone", "op": "in", "values": ["a", "b"]},
            {"key": "disk", "op": "==", "values": ["ssd"]},
        ],
        "priority": 70,
        "timeout": "60s",
        "start_deadline": "10m",
        "total_deadline": "1h",
        "lifetime": "service",
        "max_attempts": 2,
        "on_disconnect": "stop",
        "estimate": "2s",
    }
    assert muster.requests[0].headers["idempotency-key"] == "order-1"


def test_input_from_a_file(muster: Muster, tmp_path: Path) -> None:
    (tmp_path / "in.json").write_text("[1, 2]")
    muster.on("POST /v1/tasks", answer({"id": TASK_ID}, 202))
    assert muster("submit", "echo", "-i", f"@{tmp_path / 'in.json'}").code == 0
    assert muster.sent()["input"] == [1, 2]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--input", "{"], "--input is not JSON"),
        (["--input", "NaN"], "NaN is no number of JSON"),
        (["--input", "[" * 100_000], "--input is"),
        (["--input", "@/no/such"], "--input /no/such: No such file"),
        (["--label", "x"], "--label 'x'"),
        (["--constraint", "zone ~ a"], "--constraint 'zone ~ a'"),
        (["--priority", "high"], "--priority"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_a_wrong_option_is_named_and_nothing_is_sent(
    muster: Muster, argv: list[str], said: str
) -> None:
    ran = muster("submit", "echo", *argv)
    assert ran.code == 2
    assert ran.err.startswith("muster: ")
    assert said in ran.err
    assert ran.err.count("\n") == 1
    assert muster.requests == []


def test_a_skill_or_a_file_is_needed(muster: Muster) -> None:
    ran = muster("submit")
    assert (ran.code, ran.err) == (2, "muster: submit needs a SKILL or --file\n")


def test_what_the_gateway_refuses_is_told_in_its_words(muster: Muster) -> None:
    muster.on("POST /v1/tasks", problem(422, "resources.cpu: '-1' is not accepted; at least 0"))
    ran = muster("submit", "echo", "--cpu=-1")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == "muster: resources.cpu: '-1' is not accepted; at least 0\n"


def test_wait_prints_the_result(muster: Muster) -> None:
    muster.on("POST /v1/tasks", answer({"id": TASK_ID}, 202))
    muster.on(
        f"GET /v1/tasks/{TASK_ID}", answer(a_task("RUNNING")), answer(a_task(result={"ü": 1}))
    )
    ran = muster("submit", "echo", "--wait")
    assert (ran.code, json.loads(ran.out)) == (0, {"ü": 1})
    assert muster.requests[1].url.params["wait"] == "2s"
    assert len(muster.requests) == 3


def test_wait_fails_with_the_task(muster: Muster) -> None:
    muster.on("POST /v1/tasks", answer({"id": TASK_ID}, 202))
    failed = a_task("FAILED", error={"kind": "exception", "message": "ValueError: no\x1b[31m"})
    muster.on(f"GET /v1/tasks/{TASK_ID}", answer(failed))
    ran = muster("submit", "echo", "-w")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err == f"muster: task {TASK_ID} ended as FAILED: ValueError: no\\x1b[31m\n"


def test_a_broken_connection_is_repeated_under_the_same_key(muster: Muster) -> None:
    muster.on(
        "POST /v1/tasks",
        httpx.ConnectError("refused"),
        httpx.ReadError("reset"),
        problem(503, "storage is not available"),
        answer({"id": TASK_ID}, 202),
    )
    assert muster("submit", "echo").out == f"{TASK_ID}\n"
    keys = {request.headers["idempotency-key"] for request in muster.requests}
    assert (len(muster.requests), len(keys)) == (4, 1)


def write_tasks(path: Path, count: int) -> None:
    path.write_text("".join(f'{{"skill": "echo", "input": {n}}}\n' for n in range(count)))


def test_a_file_is_sent_in_batches(
    muster: Muster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_body, "BATCH_TASKS", 2)
    write_tasks(tmp_path / "t.jsonl", 5)
    muster.on(
        "POST /v1/tasks",
        answer({"ids": ids(2)}, 202),
        answer({"ids": ids(2, 2)}, 202),
        answer({"ids": ids(1, 4)}, 202),
    )
    ran = muster("submit", "--file", str(tmp_path / "t.jsonl"), "--idempotency-key", "k")
    assert ran.code == 0
    assert ran.out.split() == ids(5)
    bodies = [muster.sent(index)["tasks"] for index in range(3)]
    assert [task["input"] for batch in bodies for task in batch] == [0, 1, 2, 3, 4]
    assert [r.headers["idempotency-key"] for r in muster.requests] == ["k-0", "k-1", "k-2"]


def test_options_are_the_defaults_of_a_file(muster: Muster, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"input": 1}\n\n{"skill": "b", "priority": 9}\n')
    muster.on("POST /v1/tasks", answer({"ids": ids(2)}, 202))
    ran = muster("submit", "a", "-f", str(tmp_path / "t.jsonl"), "--priority", "5", "--json")
    assert ran.json == {"ids": ids(2)}
    assert muster.sent()["tasks"] == [
        {"priority": 5, "skill": "a", "input": 1},
        {"priority": 9, "skill": "b"},
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"skill": "a"}\n{oops\n', "line 2, is not JSON"),
        ('{"skill": "a"}\n3\n', "line 2, is not an object"),
        ('{"input": 1}\n', "line 1, names no skill"),
        ("\n \n", "holds no task"),
    ],
)
def test_one_wrong_line_and_nothing_is_sent(
    muster: Muster, tmp_path: Path, text: str, said: str
) -> None:
    (tmp_path / "t.jsonl").write_text(text)
    ran = muster("submit", "--file", str(tmp_path / "t.jsonl"))
    assert ran.code == 2
    assert said in ran.err
    assert muster.requests == []


def test_a_file_that_is_not_utf8_is_refused(muster: Muster, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_bytes(b'{"skill": "\xff"}')
    ran = muster("submit", "--file", str(tmp_path / "t.jsonl"))
    assert (ran.code, "byte 11 is not UTF-8" in ran.err) == (2, True)


def test_waiting_for_a_file_counts_and_names_the_failures(muster: Muster, tmp_path: Path) -> None:
    write_tasks(tmp_path / "t.jsonl", 3)
    first, second, third = ids(3)
    muster.on("POST /v1/tasks", answer({"ids": ids(3)}, 202))
    error = {"kind": "exit_code", "message": "exit code 3"}
    muster.on(
        "POST /v1/results",
        stream(ended(third, result=3), json.dumps({"open": [first, second]})),
        stream(ended(first, "FAILED", error=error), ended(second, result=2), '{"open": []}'),
    )
    ran = muster("submit", "--file", str(tmp_path / "t.jsonl"), "--wait")
    assert ran.code == 1
    assert ran.out == f"1 FAILED, 2 SUCCEEDED\n{first} FAILED: exit code 3\n"
    assert muster.sent(1) == {"ids": ids(3), "wait": "60s"}
    assert muster.sent(2)["ids"] == [first, second]


def test_a_person_sees_the_progress(
    muster: Muster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submit_command, "_is_watched", lambda: True)
    write_tasks(tmp_path / "t.jsonl", 2)
    first, second = ids(2)
    muster.on("POST /v1/tasks", answer({"ids": ids(2)}, 202))
    muster.on("POST /v1/results", stream(ended(first, "FAILED"), ended(second, result=2)))
    ran = muster("submit", "--file", str(tmp_path / "t.jsonl"), "--wait")
    bars = [" ".join(line.split()) for line in ran.err.splitlines() if line]
    assert bars[0].startswith("submitted ━")
    assert "2/2" in bars[0]
    assert bars[1].startswith("ended ━")
    assert bars[1].endswith("1 failed")


def test_waiting_with_json_keeps_the_order_of_the_file(muster: Muster, tmp_path: Path) -> None:
    write_tasks(tmp_path / "t.jsonl", 2)
    first, second = ids(2)
    muster.on("POST /v1/tasks", answer({"ids": ids(2)}, 202))
    muster.on("POST /v1/results", stream(ended(second, result=2), ended(first, result=1)))
    ran = muster("submit", "--file", str(tmp_path / "t.jsonl"), "--wait", "--json")
    assert ran.code == 0
    assert [(item["id"], item["result"]) for item in ran.json["items"]] == [(first, 1), (second, 2)]


def test_results_may_hold_what_other_texts_end_lines_with(muster: Muster, tmp_path: Path) -> None:
    write_tasks(tmp_path / "t.jsonl", 1)
    muster.on("POST /v1/tasks", answer({"ids": ids(1)}, 202))
    line = {"id": ids(1)[0], "state": "SUCCEEDED", "result": "a\u2028b\u0085c"}
    muster.on("POST /v1/results", stream(json.dumps(line, ensure_ascii=False), '{"open": []}'))
    ran = muster("submit", "--file", str(tmp_path / "t.jsonl"), "--wait", "--json")
    assert [item["result"] for item in ran.json["items"]] == ["a\u2028b\u0085c"]


def test_gathering_survives_a_stream_that_breaks(muster: Muster, tmp_path: Path) -> None:
    write_tasks(tmp_path / "t.jsonl", 2)
    first, second = ids(2)
    muster.on("POST /v1/tasks", answer({"ids": ids(2)}, 202))
    cut = httpx.Response(200, text=ended(first, result=1) + '\n{"id": "01')
    broken = json.dumps({"open": [second], "error": {"kind": "unavailable", "message": "storage"}})
    muster.on(
        "POST /v1/results", cut, stream(broken), stream(ended(second, result=2), '{"open": []}')
    )
    ran = muster("submit", "--file", str(tmp_path / "t.jsonl"), "--wait")
    assert (ran.code, ran.out) == (0, "2 SUCCEEDED\n")
    assert [muster.sent(index)["ids"] for index in (1, 2, 3)] == [ids(2), [second], [second]]


def test_gathering_gives_up_on_a_stream_that_never_holds(muster: Muster, tmp_path: Path) -> None:
    write_tasks(tmp_path / "t.jsonl", 1)
    muster.on("POST /v1/tasks", answer({"ids": ids(1)}, 202))
    muster.on("POST /v1/results", httpx.Response(200, text='{"id'))
    ran = muster("submit", "--file", str(tmp_path / "t.jsonl"), "--wait")
    assert ran.code == 3
    assert "broke off" in ran.err


def test_a_word_as_input_gets_the_advice_to_quote_it(muster: Muster) -> None:
    ran = muster("submit", "echo", "--input", "Ada")
    assert (ran.code, ran.out) == (2, "")
    assert "--input '\"Ada\"'" in ran.err
    assert "of its own" not in muster("submit", "echo", "--input", "{1}").err
