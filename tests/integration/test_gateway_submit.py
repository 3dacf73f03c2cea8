"""Submission and reading of tasks over HTTP, in front of fakes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.gateway_fakes import Cluster, running_cluster, skill_agent, until
from tests.polling import HANG_S

from muster.api.v1 import task_pb2
from muster.domain.errors import NotLeader, Overloaded, Unavailable


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with running_cluster() as running:
        yield running


def batch(count: int, **fields: Any) -> dict[str, Any]:
    return {"tasks": [{"skill": "echo", "input": n, **fields} for n in range(count)]}


async def test_one_task_goes_all_the_way(cluster: Cluster) -> None:
    client = cluster.client()
    response = await client.post("/v1/tasks", json={"skill": "echo", "input": {"a": [1, "ä"]}})
    assert response.status_code == 202
    ident = response.json()["id"]
    assert list(response.json()) == ["id"]
    open_task = (await client.get(f"/v1/tasks/{ident}")).json()
    assert (open_task["state"], open_task["attempt"], open_task["agent"]) == ("PENDING", 0, None)
    assert "result" not in open_task
    assert "error" not in open_task
    early = await client.get(f"/v1/tasks/{ident}/result")
    assert (early.status_code, early.json()["state"]) == (202, "PENDING")
    await cluster.storage.end(ident, b'{"a":[1,"\xc3\xa4"]}')
    task = (await client.get(f"/v1/tasks/{ident}")).json()
    assert (task["state"], task["attempt"], task["agent"]) == ("SUCCEEDED", 1, "agent-1")
    assert task["result"] == {"a": [1, "ä"]}
    assert task["submitted_at"].endswith("Z")
    assert task["ended_at"] == "2023-11-14T22:13:21.000Z"
    assert task["resources"] == {"cpu": "100m", "memory": "64Mi"}
    assert (task["priority"], task["max_attempts"], task["timeout"]) == (50, 3, None)
    assert "input" not in task
    whole = (await client.get(f"/v1/tasks/{ident}?include=input")).json()
    assert whole["input"] == {"a": [1, "ä"]}
    result = await client.get(f"/v1/tasks/{ident}/result")
    assert result.status_code == 200
    assert result.json() == {
        "id": ident,
        "state": "SUCCEEDED",
        "attempt": 1,
        "agent": "agent-1",
        "result": {"a": [1, "ä"]},
    }


async def test_a_failure_is_told_by_kind_message_and_exit_code(cluster: Cluster) -> None:
    client = cluster.client()
    ident = (await client.post("/v1/tasks", json={"skill": "command"})).json()["id"]
    await cluster.storage.end(
        ident,
        b'{"stderr":"no"}',
        state=task_pb2.TASK_STATE_FAILED,
        error="it ended with exit code 3",
        error_kind="exit_code",
        exit_code=3,
    )
    result = (await client.get(f"/v1/tasks/{ident}/result")).json()
    assert result["state"] == "FAILED"
    assert result["error"] == {
        "kind": "exit_code",
        "message": "it ended with exit code 3",
        "exit_code": 3,
        "output": {"stderr": "no"},
    }
    assert "result" not in result


async def test_a_batch_keeps_its_order_and_goes_in_chunks(cluster: Cluster) -> None:
    client = cluster.client()
    response = await client.post("/v1/tasks", json=batch(1_200))
    assert response.status_code == 202
    ids = response.json()["ids"]
    assert len(set(ids)) == 1_200
    assert ids == sorted(ids)
    assert sorted(cluster.scheduler.submits) == [200, 500, 500]
    stored = [cluster.storage.tasks["default", ident].spec.input_json for ident in ids]
    assert stored == [str(n).encode() for n in range(1_200)]


async def test_lines_are_a_batch(cluster: Cluster) -> None:
    lines = "\n".join(json.dumps({"skill": "echo", "input": n}) for n in range(3))
    response = await cluster.client().post(
        "/v1/tasks", content=lines, headers={"Content-Type": "application/x-ndjson; charset=utf-8"}
    )
    assert response.status_code == 202
    assert len(response.json()["ids"]) == 3


async def test_concurrent_single_submissions_travel_together(cluster: Cluster) -> None:
    client = cluster.client()
    responses = await asyncio.gather(
        *(client.post("/v1/tasks", json={"skill": "echo", "input": n}) for n in range(60))
    )
    assert {r.status_code for r in responses} == {202}
    assert len({r.json()["id"] for r in responses}) == 60
    assert sum(cluster.scheduler.submits) == 60
    assert len(cluster.scheduler.submits) < 60


async def test_the_same_key_and_body_give_the_same_ids(cluster: Cluster) -> None:
    client = cluster.client()
    headers = {"Idempotency-Key": "order-1"}
    first = await client.post("/v1/tasks", json=batch(3), headers=headers)
    again = await client.post("/v1/tasks", json=batch(3), headers=headers)
    assert first.json() == again.json()
    assert len(cluster.storage.tasks) == 3
    other = await client.post("/v1/tasks", json=batch(4), headers=headers)
    assert other.status_code == 409
    assert other.headers["content-type"] == "application/problem+json"
    assert "Idempotency-Key" in other.json()["detail"]
    assert len(cluster.storage.tasks) == 3


async def test_a_key_belongs_to_its_tenant(cluster: Cluster) -> None:
    headers = {"Idempotency-Key": "k"}
    one = await cluster.client().post("/v1/tasks", json=batch(1), headers=headers)
    two = await cluster.client(tenant="other").post("/v1/tasks", json=batch(2), headers=headers)
    assert (one.status_code, two.status_code) == (202, 202)
    assert not set(one.json()["ids"]) & set(two.json()["ids"])


async def test_a_half_created_batch_is_completed_under_the_same_ids(cluster: Cluster) -> None:
    client = cluster.client()
    cluster.scheduler.broken = Unavailable("scheduler")

    def fail_from_the_second(call: int) -> None:
        if call > 1:
            raise Unavailable("redis", "its disk is full")

    cluster.storage.on_create = fail_from_the_second
    headers = {"Idempotency-Key": "big"}
    broken = await client.post("/v1/tasks", json=batch(1_001), headers=headers)
    assert broken.status_code == 503
    assert broken.headers["retry-after"]
    assert len(cluster.storage.tasks) in (1, 500), "one chunk of three was written"
    cluster.storage.on_create = None
    cluster.scheduler.broken = None
    whole = await client.post("/v1/tasks", json=batch(1_001), headers=headers)
    assert whole.status_code == 202
    ids = whole.json()["ids"]
    assert {ident for _, ident in cluster.storage.tasks} == set(ids)


async def test_without_a_leader_storage_accepts(cluster: Cluster) -> None:
    client = cluster.client()
    cluster.scheduler.broken = NotLeader("")
    response = await client.post("/v1/tasks", json={"skill": "echo"})
    assert response.status_code == 202
    assert cluster.scheduler.asked_to_submit > 1, "it was searched for"
    ident = response.json()["id"]
    assert cluster.storage.tasks["default", ident].status.state == task_pb2.TASK_STATE_PENDING
    leader = cluster.gateway.gateway.leader
    assert leader._absent_until_s > 0
    # However long this machine takes for the next one.
    leader._absent_until_s += 1_000
    asked = cluster.scheduler.asked_to_submit
    assert (await client.post("/v1/tasks", json=batch(3))).status_code == 202
    assert cluster.scheduler.asked_to_submit == asked + 1, "the next one need not search again"
    cluster.scheduler.broken = None
    await client.post("/v1/tasks", json={"skill": "echo"})
    assert cluster.scheduler.submits == [1], "the leader is found again"


async def test_a_dead_leader_is_no_loss(cluster: Cluster) -> None:
    client = cluster.client()
    await cluster.servers["scheduler"].stop(0)
    response = await client.post("/v1/tasks", json=batch(3))
    assert response.status_code == 202
    assert len(cluster.storage.tasks) == 3


async def test_a_standby_names_the_leader() -> None:
    async with running_cluster(standbys=2) as cluster:
        response = await cluster.client().post("/v1/tasks", json={"skill": "echo"})
        assert response.status_code == 202
        assert cluster.scheduler.submits == [1]
        assert "Create" not in cluster.storage.calls


async def test_without_leader_and_storage_nothing_is_claimed(cluster: Cluster) -> None:
    client = cluster.client()
    await client.get("/v1/cluster")
    cluster.scheduler.broken = Unavailable("scheduler")
    cluster.storage.on_create = _refuse
    response = await client.post("/v1/tasks", json={"skill": "echo"})
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) >= 1
    assert response.json()["type"] == "urn:muster:problem:unavailable"
    assert not cluster.storage.tasks


def _refuse(_calls: int) -> None:
    raise Unavailable("redis", "it does not answer")


async def test_an_overloaded_leader_is_told_as_429(cluster: Cluster) -> None:
    cluster.scheduler.broken = Overloaded("the queue is full")
    response = await cluster.client().post("/v1/tasks", json={"skill": "echo"})
    assert response.status_code == 429
    assert "retry-after" in response.headers
    assert not cluster.storage.tasks


async def test_a_long_poll_is_woken_by_the_end(cluster: Cluster) -> None:
    client = cluster.client()
    ident = (await client.post("/v1/tasks", json={"skill": "echo"})).json()["id"]
    polls = [
        asyncio.create_task(client.get(f"/v1/tasks/{ident}{part}?wait=10m"))
        for part in ("", "/result")
    ]
    await until(lambda: len(cluster.gateway.gateway.board._watches.get(ident, ())) == 2, *polls)
    await cluster.storage.end(ident, b"42")
    for poll in polls:
        assert (await poll).json()["result"] == 42


async def test_a_long_poll_of_an_ended_or_unknown_task_answers_at_once(cluster: Cluster) -> None:
    client = cluster.client()
    cluster.scheduler.echo = True
    ident = (await client.post("/v1/tasks", json={"skill": "echo", "input": 1})).json()["id"]
    assert (await client.get(f"/v1/tasks/{ident}?wait=10m")).json()["result"] == 1
    unknown = await client.get(f"/v1/tasks/{'0' * 26}?wait=10m")
    assert unknown.status_code == 404


async def test_a_long_poll_ends_with_its_time(cluster: Cluster) -> None:
    client = cluster.client()
    ident = (await client.post("/v1/tasks", json={"skill": "echo"})).json()["id"]
    response = await client.get(f"/v1/tasks/{ident}?wait=50ms")
    assert (response.status_code, response.json()["state"]) == (200, "PENDING")
    response = await client.get(f"/v1/tasks/{ident}/result?wait=50ms")
    assert (response.status_code, response.json()["state"]) == (202, "PENDING")


async def test_waiters_are_answered_when_the_gateway_stops(cluster: Cluster) -> None:
    client = cluster.client()
    ids = (await client.post("/v1/tasks", json=batch(2))).json()["ids"]
    poll = asyncio.create_task(client.get(f"/v1/tasks/{ids[0]}?wait=10m"))
    gathering = asyncio.create_task(client.post("/v1/results", json={"ids": ids, "wait": "10m"}))
    board = cluster.gateway.gateway.board
    await until(lambda: len(board._watches.get(ids[0], ())) == 2, poll, gathering)
    cluster.gateway.gateway.end_streams()
    assert (await asyncio.wait_for(poll, HANG_S)).json()["state"] == "PENDING"
    assert json.loads((await asyncio.wait_for(gathering, HANG_S)).text) == {"open": ids}


async def test_an_end_during_a_break_of_the_tail_is_not_missed(cluster: Cluster) -> None:
    client = cluster.client()
    ident = (await client.post("/v1/tasks", json={"skill": "echo"})).json()["id"]
    poll = asyncio.create_task(client.get(f"/v1/tasks/{ident}?wait=10m"))
    await until(lambda: ident in cluster.gateway.gateway.board._watches, poll)
    cluster.storage.drop_tails()
    await cluster.storage.end(ident, b"1")
    assert (await asyncio.wait_for(poll, HANG_S)).json()["state"] == "SUCCEEDED"


async def test_an_end_that_was_trimmed_from_the_events_is_not_missed(cluster: Cluster) -> None:
    client = cluster.client()
    storage = cluster.storage
    ident = (await client.post("/v1/tasks", json={"skill": "echo"})).json()["id"]
    poll = asyncio.create_task(client.get(f"/v1/tasks/{ident}?wait=10m"))
    await until(lambda: ident in cluster.gateway.gateway.board._watches, poll)
    # Ended, and its event is gone before the tail comes back.
    storage.drop_tails()
    task = storage.tasks["default", ident]
    task.status.state = task_pb2.TASK_STATE_SUCCEEDED
    storage.trimmed += len(storage.events) + 10
    storage.events.clear()
    assert (await asyncio.wait_for(poll, HANG_S)).json()["state"] == "SUCCEEDED"


async def test_tasks_are_listed_with_filters_and_pages(cluster: Cluster) -> None:
    client = cluster.client()
    ids = (await client.post("/v1/tasks", json=batch(5, labels={"team": "a"}))).json()["ids"]
    (other,) = (await client.post("/v1/tasks", json={"tasks": [{"skill": "sleep"}]})).json()["ids"]
    await cluster.storage.end(ids[0])

    async def listed(query: str) -> list[str]:
        response = await client.get(f"/v1/tasks?{query}")
        assert response.status_code == 200, response.text
        return [item["id"] for item in response.json()["items"]]

    assert await listed("") == [other, *reversed(ids)]
    assert await listed("state=SUCCEEDED") == [ids[0]]
    assert await listed("skill=sleep") == [other]
    assert await listed("agent=agent-1") == [ids[0]]
    assert await listed("label=team=a&state=PENDING") == list(reversed(ids[1:]))
    pages: list[str] = []
    cursor = ""
    while True:
        page = (await client.get(f"/v1/tasks?limit=4{cursor}")).json()
        pages += [item["id"] for item in page["items"]]
        if page["next"] is None:
            break
        cursor = f"&cursor={page['next']}"
    assert pages == [other, *reversed(ids)]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("state=DONE", "state"),
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=x", "limit"),
        ("cursor=x", "cursor"),
        ("label=team", "label"),
        ("label=a=1&label=a=2", "label"),
        ("skill=A+B", "skill"),
        ("agent=_", "agent"),
        ("stat=PENDING", "stat"),
    ],
)
async def test_a_bad_filter_is_named(cluster: Cluster, query: str, field: str) -> None:
    response = await cluster.client().get(f"/v1/tasks?{query}")
    assert response.status_code == 422
    assert response.json()["field"] == field


async def test_storage_may_answer_a_read_in_parts(cluster: Cluster) -> None:
    client = cluster.client()
    cluster.scheduler.echo = True
    ids = (await client.post("/v1/tasks", json=batch(30))).json()["ids"]
    cluster.storage.reads_per_answer = 7
    response = await client.post("/v1/results", json={"ids": ids, "wait": "10m"})
    *lines, last = [json.loads(line) for line in response.text.splitlines()]
    assert {line["id"]: line["result"] for line in lines} == {i: n for n, i in enumerate(ids)}
    assert last == {"open": []}


async def test_results_come_as_tasks_end_and_the_open_ones_last(cluster: Cluster) -> None:
    client = cluster.client()
    ids = (await client.post("/v1/tasks", json=batch(4))).json()["ids"]
    await cluster.storage.end(ids[2], b'"two"')
    unknown = "0" * 26
    seen: list[dict[str, Any]] = []
    asked = {"ids": [*ids, unknown, ids[0]], "wait": "10m"}
    async with client.stream("POST", "/v1/results", json=asked) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("application/x-ndjson")
        async for line in response.aiter_lines():
            seen.append(json.loads(line))
            if len(seen) == 2:
                await cluster.storage.end(ids[0], b'"zero"')
            if len(seen) == 3:
                await cluster.storage.end(
                    ids[3], b"", state=task_pb2.TASK_STATE_DEAD, error="three agents died"
                )
            if len(seen) == 4:
                cluster.gateway.gateway.end_streams()
    assert {line["id"] for line in seen[:2]} == {ids[2], unknown}
    by_id = {line["id"]: line for line in seen[:-1]}
    assert by_id[ids[2]]["result"] == "two"
    assert by_id[ids[2]]["agent"] == "agent-1"
    assert by_id[unknown]["state"] is None
    assert by_id[unknown]["error"]["kind"] == "not_found"
    assert seen[2]["result"] == "zero"
    assert seen[3]["state"] == "DEAD"
    assert seen[3]["error"] == {"kind": "dead", "message": "three agents died"}
    assert seen[4:] == [{"open": [ids[1]]}]


async def test_results_end_with_their_time(cluster: Cluster) -> None:
    client = cluster.client()
    ids = (await client.post("/v1/tasks", json=batch(2))).json()["ids"]
    response = await client.post("/v1/results", json={"ids": ids, "wait": "50ms"})
    assert json.loads(response.text) == {"open": ids}


async def test_results_without_wait_are_those_that_are_there(cluster: Cluster) -> None:
    client = cluster.client()
    ids = (await client.post("/v1/tasks", json=batch(600))).json()["ids"]
    for ident in ids[:300]:
        await cluster.storage.end(ident)
    lines = (await client.post("/v1/results", json={"ids": ids})).text.splitlines()
    assert len(lines) == 301
    assert json.loads(lines[-1]) == {"open": ids[300:]}


async def test_a_large_result_is_streamed_in_wherever_it_is_asked_for(cluster: Cluster) -> None:
    client = cluster.client()
    ident = (await client.post("/v1/tasks", json={"skill": "echo"})).json()["id"]
    value = ["x" * 1_000] * 1_000
    blob = (await client.post("/v1/blobs", content=json.dumps(value))).json()
    await cluster.storage.end(
        ident, b"", output_blob=blob["sha256"], output_bytes=blob["size_bytes"]
    )
    assert (await client.get(f"/v1/tasks/{ident}/result")).json()["result"] == value
    assert (await client.get(f"/v1/tasks/{ident}?wait=10m")).json()["result"] == value
    lines = (await client.post("/v1/results", json={"ids": [ident]})).text.splitlines()
    assert json.loads(lines[0])["result"] == value
    (item,) = (await client.get("/v1/tasks")).json()["items"]
    assert item["result_blob"] == {"sha256": blob["sha256"], "size_bytes": blob["size_bytes"]}
    del cluster.storage.blobs["default", blob["sha256"]]
    assert (await client.get(f"/v1/tasks/{ident}/result")).status_code == 404
    lines = (await client.post("/v1/results", json={"ids": [ident]})).text.splitlines()
    assert json.loads(lines[0])["error"]["kind"] == "not_found"


async def test_a_known_schema_refuses_and_an_unknown_skill_waits(cluster: Cluster) -> None:
    client = cluster.client()
    schema = b'{"type":"object","required":["text"]}'
    cluster.registry.agents = [skill_agent("a", "translate", schema)]
    cluster.registry.changed.set()
    await until(lambda: cluster.gateway.gateway.skills.needs_check("default", "translate"))
    bad = {"tasks": [{"skill": "echo"}, {"skill": "translate", "input": {"txt": 1}}]}
    response = await client.post("/v1/tasks", json=bad)
    assert response.status_code == 422
    assert response.json()["field"] == "tasks[1].input"
    assert "text" in response.json()["limit"]
    assert not cluster.storage.tasks
    good = {"skill": "translate", "input": {"text": "x"}}
    assert (await client.post("/v1/tasks", json=good)).status_code == 202
    assert (await client.post("/v1/tasks", json={"skill": "nobody"})).status_code == 202
