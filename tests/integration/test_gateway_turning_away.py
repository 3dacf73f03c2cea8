"""A late gateway turns submissions away at its edge, and nothing else."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack

import httpx
import pytest
from prometheus_client import REGISTRY
from tests.gateway_fakes import Cluster, running_cluster
from tests.polling import eventually

from muster_gateway.lateness import FEW, LATE_S, LEAST_TAKEN, LONG_S
from muster_gateway.turning_away import LOOK_EVERY_S, TurningAway

TASK = {"skill": "echo"}
ENOUGH = round(2 / LEAST_TAKEN)


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with running_cluster() as running:
        yield running


def make_late(cluster: Cluster) -> TurningAway:
    """The gateway takes as little as it ever does, and looks no more."""
    away = cluster.gateway.gateway.turning_away
    away.stop()
    away.lateness.taken = LEAST_TAKEN
    away.under_way += FEW
    return away


def counted(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def of_late() -> tuple[float, float]:
    """What the figures say about submissions that were turned away."""
    return (
        counted("muster_submissions_turned_away_total", reason="late"),
        counted("muster_http_requests_total", method="POST", route="/v1/tasks", status="429"),
    )


async def submitted(client: httpx.AsyncClient, times: int) -> list[httpx.Response]:
    return [await client.post("/v1/tasks", json=TASK) for _ in range(times)]


async def test_submissions_are_refused_with_a_time_to_come_back(cluster: Cluster) -> None:
    make_late(cluster)
    before = of_late()
    answers = await submitted(cluster.client(), 20)
    refused = [answer for answer in answers if answer.status_code == 429]
    assert len(refused) >= 19
    assert {answer.status_code for answer in answers} <= {202, 429}
    for answer in refused:
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.json()["request_id"] == answer.headers["x-request-id"]
        assert answer.json()["type"] == "urn:muster:problem:overloaded"
        assert "late" in answer.json()["detail"]
    assert of_late() == (before[0] + len(refused), before[1] + len(refused))
    assert len(cluster.storage.tasks) == len(answers) - len(refused)


async def test_some_are_taken_all_the_same(cluster: Cluster) -> None:
    make_late(cluster)
    answers = await submitted(cluster.client(), ENOUGH)
    assert sum(answer.status_code == 202 for answer in answers) in (1, 2, 3)


async def test_reads_and_cancels_pass(cluster: Cluster) -> None:
    client = cluster.client()
    ident = (await client.post("/v1/tasks", json=TASK)).json()["id"]
    make_late(cluster)
    for _ in range(3):
        assert (await client.get(f"/v1/tasks/{ident}")).status_code == 200
        assert (await client.get("/v1/tasks")).status_code == 200
        assert (await client.get("/healthz")).status_code == 200
        assert (await client.post("/v1/results", json={"ids": [ident]})).status_code == 200
    assert (await client.post(f"/v1/tasks/{ident}/cancel")).status_code in (200, 202)


async def test_the_answer_does_not_wait_for_the_body(cluster: Cluster) -> None:
    away = make_late(cluster)
    host, port = cluster.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    body = json.dumps(TASK).encode()
    head = (
        f"POST /v1/tasks HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode()
    for _ in range(2):
        # The connection stays good, whatever is sent of the body and when.
        writer.write(head)
        answer = await reader.readuntil(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 429 ")
        length = int(answer.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        await reader.readexactly(length)
        writer.write(body)
    away.lateness.taken = 1.0
    writer.write(head + body)
    # Nobody said who they are.
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 401 ")
    writer.close()


async def test_those_under_way_are_counted_until_their_answer(cluster: Cluster) -> None:
    away = cluster.gateway.gateway.turning_away
    client = cluster.client()
    answers = [
        await client.post("/v1/tasks", json=TASK),
        await client.post("/v1/tasks", content=b"{"),
        await client.get("/v1/tasks"),
        await client.post("/v1/tasks", json=TASK, headers={"Authorization": "Bearer nobody"}),
    ]
    assert [answer.status_code for answer in answers] == [202, 400, 200, 401]
    await eventually(lambda: away.under_way == 0)


async def test_a_loop_that_is_kept_busy_turns_away_until_it_is_not() -> None:
    away = TurningAway()
    away.under_way = FEW
    away.start()
    loop = asyncio.get_running_loop()
    busy = True

    def work() -> None:
        time.sleep(LATE_S + LOOK_EVERY_S)
        if busy:
            loop.call_soon(work)

    work()
    await eventually(lambda: away.lateness.taken < 1.0)
    assert counted("muster_submissions_taken_share") == away.lateness.taken
    await eventually(lambda: away.refusal() is not None)
    busy = False
    await eventually(lambda: away.lateness.taken == 1.0)
    assert away.refusal() is None
    assert counted("muster_submissions_taken_share") == 1.0
    away.stop()


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def looked(away: TurningAway, clock: Clock, seconds: float, ends_per_s: float = 0.0) -> None:
    """Looks for a while; at each some end their wait and as many begin."""
    owed = 0.0
    for _ in range(round(seconds / LOOK_EVERY_S)):
        clock.now_s += LOOK_EVERY_S
        owed += ends_per_s * LOOK_EVERY_S
        for _ in range(int(owed)):
            with away.waiting():
                owed -= 1
        away.look(0.0)


@pytest.mark.parametrize(("waiting", "refusing"), [(50, False), (500, True)])
def test_a_crowd_behind_the_leader_turns_away(waiting: int, refusing: bool) -> None:
    """A hundred come through in a second: the last of fifty waits half a second."""
    assert 50 / 100 < LONG_S / 2 < LONG_S < 500 / 100
    clock = Clock()
    away = TurningAway(now_s=clock)
    looked(away, clock, 2.0, ends_per_s=100.0)
    with ExitStack() as crowd:
        for _ in range(waiting):
            crowd.enter_context(away.waiting())
        looked(away, clock, 3.0, ends_per_s=100.0)
        assert (away.lateness.taken < 1.0) == refusing
    looked(away, clock, 15.0, ends_per_s=100.0)
    assert away.lateness.taken == 1.0


def test_a_burst_that_comes_through_turns_nobody_away() -> None:
    clock = Clock()
    away = TurningAway(now_s=clock)
    looked(away, clock, 10.0)
    with ExitStack() as burst:
        for _ in range(200):
            burst.enter_context(away.waiting())
        looked(away, clock, 2 * LOOK_EVERY_S)
    looked(away, clock, 1.0)
    assert away.lateness.taken == 1.0
