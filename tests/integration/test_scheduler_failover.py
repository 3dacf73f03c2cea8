"""Schedulers that are killed, stopped or cut off from etcd and Redis."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from tests.integration.scheduler_cluster import Cluster, Servers, cluster_of, soon, until
from tests.polling import HANG_S

from muster.api.v1 import agent_pb2, scheduler_pb2, scheduler_pb2_grpc, task_pb2
from muster.domain.errors import MusterError, NotLeader, Unavailable
from muster.domain.ids import TaskId
from muster.rpc.clock import boot_s

ASSIGNED, RUNNING = task_pb2.TASK_STATE_ASSIGNED, task_pb2.TASK_STATE_RUNNING
SUCCEEDED, PENDING = task_pb2.TASK_STATE_SUCCEEDED, task_pb2.TASK_STATE_PENDING
QUEUED_THERE, RUNS_THERE, ENDED_THERE = 1, 2, 3
# The lease of a leader that shall be lost here; a machine that stalls for less does not end it.
SHORT_TTL_S = 6


@pytest.fixture
def servers(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Servers]:
    made = Servers(tmp_path, **getattr(request, "param", {}))
    yield made
    made.stop()


@pytest.fixture
async def cluster(servers: Servers) -> AsyncIterator[Cluster]:
    async with cluster_of(servers) as made:
        yield made


short_lease = pytest.mark.parametrize(
    "servers", [{"leader_ttl_s": SHORT_TTL_S}], indirect=True, ids=[""]
)
brisk_storage = pytest.mark.parametrize(
    "servers", [{"redis_timeout_s": 2}], indirect=True, ids=[""]
)


@short_lease
async def test_a_standby_takes_over_and_nothing_is_lost(cluster: Cluster) -> None:
    first = await cluster.join("a")
    running, lost, ended, wished = await cluster.submit(4)
    await soon(lambda: len(first.assigned) == 4)
    first.start(running)
    await cluster.stored(running, RUNNING)
    await cluster.cancel(wished)
    old = await cluster.leader()
    term = first.term

    cluster.process(old).kill()
    # No leader answers: gateways write on their own.
    (meanwhile,) = await cluster.create_as_gateway()
    new = await cluster.leader(but=old)
    await first.ends()

    agent = await cluster.agent(
        "a",
        address=new,
        term=term,
        held=[
            (running, 1, RUNS_THERE),
            (ended, 1, ENDED_THERE),
            (wished, 1, QUEUED_THERE),
        ],
    )
    assert agent.term > term
    agent.end(ended)
    await soon(lambda: (lost, 1) in agent.assigned)
    await soon(lambda: (meanwhile, 1) in agent.assigned)
    await soon(lambda: [c[0] for c in agent.cancels] == [wished])
    assert not {(running, 1), (ended, 1)} & agent.assigned.keys()
    assert agent.drops == []
    for ident in (running, lost, meanwhile):
        agent.end(ident)
    for ident in (running, lost, ended, meanwhile):
        task = await cluster.stored(ident, SUCCEEDED)
        assert (task.status.attempt, task.status.failures, task.status.agent_deaths) == (1, 0, 0)

    # The one that was killed comes back as a standby.
    cluster.process(old).start()
    await until(lambda: _ready(cluster, old))
    assert await cluster.leader() == new


async def _ready(cluster: Cluster, address: str) -> bool:
    status, _ = await asyncio.to_thread(cluster.process(address).readiness)
    return status == 200


async def test_a_leader_that_is_told_to_stop_lets_the_next_one_in_at_once(
    cluster: Cluster,
) -> None:
    """Nobody here could wait for the end of its lease."""
    await cluster.join("a")
    (ident,) = await cluster.submit(skill="nobody")
    old = await cluster.leader()
    process = cluster.process(old)
    process._signal(signal.SIGTERM)
    new = await cluster.leader(but=old)
    await soon(lambda: not process.running)
    assert process._process is not None
    assert process._process.returncode == 0
    assert await cluster.leader() == new
    assert (await cluster.task(ident)).status.state == PENDING
    assert "skill nobody" in (await cluster.explain(ident))


@short_lease
async def test_a_leader_that_was_frozen_writes_and_tells_nothing_afterwards(
    cluster: Cluster,
) -> None:
    stale = await cluster.join("a")
    (ident,) = await cluster.submit()
    await soon(lambda: (ident, 1) in stale.assigned)
    old = await cluster.leader()
    process = cluster.process(old)
    process.pause()
    try:
        new = await cluster.leader(but=old)
        agent = await cluster.agent("a", address=new, held=[(ident, 1, RUNS_THERE)])
        # An outcome reaches the frozen one; nobody else has heard of it.
        stale.end(ident)
        await asyncio.sleep(0.2)
    finally:
        process.resume()
    await stale.ends()
    assert stale.acks == {}
    assert (await cluster.task(ident)).status.state in (ASSIGNED, RUNNING)
    agent.end(ident)
    await cluster.stored(ident, SUCCEEDED)
    assert await cluster.leader() == new
    await soon(lambda: "another scheduler has taken the lead" in process.log_text())


async def test_redis_that_is_down_for_3_s_costs_nothing(cluster: Cluster) -> None:
    agent = await cluster.join("a", slots=64)
    before = await cluster.submit(10)
    await soon(lambda: len(agent.assigned) == 10)
    leader = await cluster.leader()
    cluster.servers.redis.kill()
    for ident in before[:5]:
        agent.end(ident)
    request = scheduler_pb2.SubmitRequest(tasks=cluster.specs())
    refused = asyncio.create_task(cluster.call_once("Submit", request))
    await asyncio.sleep(3.0)
    assert agent.acks == {}
    await asyncio.to_thread(cluster.servers.redis.start)
    await soon(lambda: len(agent.acks) == 5)
    # Accepted late, or refused and to be repeated: either is sound.
    with suppress(MusterError):
        await refused
    for ident in before[:5]:
        assert (await cluster.task(ident)).status.state == SUCCEEDED
    after = await until_submitted(cluster, 5)
    await soon(lambda: {(i, 1) for i in after} <= agent.assigned.keys())
    for ident in (*before[5:], *after):
        agent.end(ident)
    for ident in (*before, *after):
        task = await cluster.stored(ident, SUCCEEDED)
        assert task.status.attempt == 1
    assert await cluster.leader() == leader
    assert not agent.over


@brisk_storage
async def test_while_redis_is_frozen_submissions_are_refused_and_the_clock_stands_still(
    cluster: Cluster,
) -> None:
    agent = await cluster.join("a")
    (ident,) = await cluster.submit(total_deadline_ms=60_000)
    await soon(lambda: (ident, 1) in agent.assigned)
    began_s = boot_s()
    status = await cluster.standing()
    await asyncio.to_thread(cluster.servers.redis.pause)
    await asyncio.sleep(8.0)
    request = scheduler_pb2.SubmitRequest(tasks=cluster.specs())
    with pytest.raises(MusterError):
        await cluster.call_once("Submit", request)
    await asyncio.to_thread(cluster.servers.redis.resume)
    (later,) = await until_submitted(cluster)
    await soon(lambda: (later, 1) in agent.assigned)
    after = await cluster.standing()
    assert after.clock_ms - status.clock_ms <= (boot_s() - began_s) * 1_000 + 500
    assert after.term == status.term


async def until_submitted(cluster: Cluster, count: int = 1) -> list[TaskId]:
    made: list[TaskId] = []

    async def submitted() -> bool:
        with suppress(MusterError):
            made.extend(await cluster.submit(count))
        return bool(made)

    await until(submitted)
    return made


@short_lease
async def test_without_etcd_nothing_new_is_placed_and_what_runs_ends(cluster: Cluster) -> None:
    agent = await cluster.join("a", slots=10_000, cpu=1 << 40)
    (running,) = await cluster.submit()
    await soon(lambda: (running, 1) in agent.assigned)
    cluster.servers.etcd.kill()

    refused: list[str] = []

    async def restricted() -> bool:
        (ident,) = await cluster.submit()
        if "etcd does not confirm" in await cluster.explain(ident):
            refused.append(ident)
        return bool(refused)

    await until(restricted)
    answered = agent.answered
    agent.end(running)
    await cluster.stored(running, SUCCEEDED)
    await soon(lambda: agent.answered > answered)
    (waiting,) = await cluster.submit()
    assert (await cluster.task(waiting)).status.state == PENDING
    assert not {(waiting, 1), (refused[0], 1)} & agent.assigned.keys()
    await asyncio.to_thread(cluster.servers.etcd.start)
    # It leads on, or the other one does; what waits is placed.
    await until(lambda: _placed(cluster, waiting))


async def _placed(cluster: Cluster, ident: str) -> bool:
    if (await cluster.task(ident)).status.state == ASSIGNED:
        return True
    with suppress(MusterError):
        view = await cluster.view("a")
        if view is None or view.state != agent_pb2.AGENT_STATE_READY:
            await cluster.agent("a")
    return False


async def test_a_scheduler_says_what_it_waits_for(tmp_path: Path) -> None:
    """Everything but the scheduler is down at first; no order of starting is needed."""
    # A short lease: the one of the scheduler's first life is waited for.
    servers = Servers(tmp_path, schedulers=1, leader_ttl_s=3)
    try:
        (scheduler,) = servers.schedulers
        for server in (scheduler, servers.storage, servers.etcd):
            server.kill()
        scheduler.start()

        async def says(sentence: str) -> bool:
            return sentence in (await asyncio.to_thread(scheduler.readiness))[1]

        await until(lambda: says("etcd does not answer"))
        await asyncio.to_thread(servers.etcd.start)
        await until(lambda: says("storage has not given it a term yet"))
        await asyncio.to_thread(servers.storage.start)
        await until(lambda: says("ready"))
        async with cluster_of(servers) as cluster:
            await cluster.join("a")
    finally:
        servers.stop()


async def test_standbys_name_the_leader(cluster: Cluster) -> None:
    leader = await cluster.leader()
    standby = next(a for a in cluster.channels if a != leader)

    async def named() -> bool:
        with pytest.raises(Unavailable) as refused:
            await cluster.channels[standby].call(
                scheduler_pb2_grpc.SchedulerServiceStub,
                "Submit",
                scheduler_pb2.SubmitRequest(tasks=cluster.specs()),
                timeout_s=HANG_S,
            )
        # It may not have heard yet who won.
        return isinstance(refused.value, NotLeader) and refused.value.leader == leader

    await until(named)
    turned_away = await cluster.agent("a", address=standby, beats=False)
    await turned_away.ends()
    assert isinstance(turned_away.error, NotLeader)
    assert turned_away.error.leader == leader
