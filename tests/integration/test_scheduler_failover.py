"""Schedulers that are killed, stopped or cut off from etcd and Redis."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from tests.integration.scheduler_cluster import Cluster, Servers, cluster_of, soon, until

from muster.api.v1 import agent_pb2, scheduler_pb2, scheduler_pb2_grpc, task_pb2
from muster.domain.errors import MusterError, NotLeader
from muster.rpc.clock import boot_s

ASSIGNED, RUNNING = task_pb2.TASK_STATE_ASSIGNED, task_pb2.TASK_STATE_RUNNING
SUCCEEDED, PENDING = task_pb2.TASK_STATE_SUCCEEDED, task_pb2.TASK_STATE_PENDING
QUEUED_THERE, RUNS_THERE, ENDED_THERE = 1, 2, 3
TAKEOVER_S = 5.0


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Servers]:
    made = Servers(tmp_path)
    yield made
    made.stop()


@pytest.fixture
async def cluster(servers: Servers) -> AsyncIterator[Cluster]:
    async with cluster_of(servers) as made:
        yield made


async def test_a_standby_takes_over_within_5_s_and_nothing_is_lost(cluster: Cluster) -> None:
    first = await cluster.join("a")
    running, lost, ended, wished = await cluster.submit(4)
    await soon(lambda: len(first.assigned) == 4)
    first.start(running)
    await cluster.stored(running, RUNNING)
    await cluster.cancel(wished)
    old = await cluster.leader()
    term = first.term

    cluster.process(old).kill()
    began_s = boot_s()
    # No leader answers: gateways write on their own.
    (meanwhile,) = await cluster.create_as_gateway()
    new = await cluster.leader(but=old)
    assert boot_s() - began_s < TAKEOVER_S
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
    await until(lambda: _ready(cluster, old), 10.0)
    assert await cluster.leader() == new


async def _ready(cluster: Cluster, address: str) -> bool:
    status, _ = await asyncio.to_thread(cluster.process(address).readiness)
    return status == 200


async def test_a_leader_that_is_told_to_stop_lets_the_next_one_in_at_once(
    cluster: Cluster,
) -> None:
    await cluster.join("a")
    (ident,) = await cluster.submit(skill="nobody")
    old = await cluster.leader()
    began_s = boot_s()
    process = cluster.process(old)
    process._signal(signal.SIGTERM)
    new = await cluster.leader(but=old)
    assert boot_s() - began_s < 2.0
    await soon(lambda: not process.running)
    assert process._process is not None
    assert process._process.returncode == 0
    assert await cluster.leader() == new
    assert (await cluster.task(ident)).status.state == PENDING
    assert "skill nobody" in (await cluster.explain(ident))


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
        new = await cluster.leader(10.0, but=old)
        agent = await cluster.agent("a", address=new, held=[(ident, 1, RUNS_THERE)])
        # An outcome reaches the frozen one; nobody else has heard of it.
        stale.end(ident)
        await asyncio.sleep(0.2)
    finally:
        process.resume()
    await stale.ends(10.0)
    assert stale.acks == {}
    assert (await cluster.task(ident)).status.state in (ASSIGNED, RUNNING)
    agent.end(ident)
    await cluster.stored(ident, SUCCEEDED)
    assert await cluster.leader() == new
    assert "another scheduler has taken the lead" in process.log_text()


async def test_redis_that_is_down_for_3_s_costs_nothing(cluster: Cluster) -> None:
    agent = await cluster.join("a", slots=64)
    before = await cluster.submit(10)
    await soon(lambda: len(agent.assigned) == 10)
    leader = await cluster.leader()
    cluster.servers.redis.kill()
    for ident in before[:5]:
        agent.end(ident)
    refused = asyncio.create_task(cluster.submit(1))
    await asyncio.sleep(3.0)
    assert agent.acks == {}
    await asyncio.to_thread(cluster.servers.redis.start)
    await soon(lambda: len(agent.acks) == 5, 10.0)
    # Accepted late, or refused and to be repeated: either is sound.
    with suppress(MusterError):
        await refused
    for ident in before[:5]:
        assert (await cluster.task(ident)).status.state == SUCCEEDED
    after = await cluster.submit(5)
    await soon(lambda: {(i, 1) for i in after} <= agent.assigned.keys(), 10.0)
    for ident in (*before[5:], *after):
        agent.end(ident)
    for ident in (*before, *after):
        task = await cluster.stored(ident, SUCCEEDED)
        assert task.status.attempt == 1
    assert await cluster.leader() == leader
    assert not agent.over


async def test_while_redis_is_frozen_submissions_are_refused_and_the_clock_stands_still(
    cluster: Cluster,
) -> None:
    agent = await cluster.join("a")
    (ident,) = await cluster.submit(total_deadline_ms=60_000)
    await soon(lambda: (ident, 1) in agent.assigned)
    status = await cluster.status()
    assert status is not None
    began_s = boot_s()
    await asyncio.to_thread(cluster.servers.redis.pause)
    await asyncio.sleep(8.0)
    with pytest.raises(MusterError):
        await cluster.submit()
    await asyncio.to_thread(cluster.servers.redis.resume)
    (later,) = await until_submitted(cluster)
    await soon(lambda: (later, 1) in agent.assigned)
    after = await cluster.status()
    assert after is not None
    assert after.clock_ms - status.clock_ms <= (boot_s() - began_s) * 1_000 + 500
    assert after.term == status.term


async def until_submitted(cluster: Cluster) -> list[str]:
    made: list[str] = []

    async def submitted() -> bool:
        try:
            made.extend(await cluster.submit())
        except MusterError:
            return False
        return True

    await until(submitted, 15.0)
    return made


async def test_without_etcd_nothing_new_is_placed_and_what_runs_ends(cluster: Cluster) -> None:
    agent = await cluster.join("a", slots=10_000, cpu=1 << 40)
    (running,) = await cluster.submit()
    await soon(lambda: (running, 1) in agent.assigned)
    cluster.servers.etcd.kill()

    async def restricted() -> bool:
        (ident,) = await cluster.submit()
        return "etcd does not confirm" in await cluster.explain(ident)

    await until(restricted, 15.0)
    answered, given = agent.answered, len(agent.assigned)
    agent.end(running)
    await cluster.stored(running, SUCCEEDED)
    await soon(lambda: agent.answered > answered)
    (waiting,) = await cluster.submit()
    assert (await cluster.task(waiting)).status.state == PENDING
    assert len(agent.assigned) == given
    await asyncio.to_thread(cluster.servers.etcd.start)
    # It leads on, or the other one does; what waits is placed.
    await until(lambda: _placed(cluster, waiting), 20.0)


async def _placed(cluster: Cluster, ident: str) -> bool:
    if (await cluster.task(ident)).status.state == ASSIGNED:
        return True
    view = await cluster.view("a")
    if view is None or view.state != agent_pb2.AGENT_STATE_READY:
        await cluster.agent("a")
    return False


async def test_a_scheduler_says_what_it_waits_for(tmp_path: Path) -> None:
    """Everything but the scheduler is down at first; no order of starting is needed."""
    servers = Servers(tmp_path, schedulers=1)
    try:
        (scheduler,) = servers.schedulers
        for server in (scheduler, servers.storage, servers.etcd):
            server.kill()
        scheduler.start()

        async def says(sentence: str) -> bool:
            return sentence in (await asyncio.to_thread(scheduler.readiness))[1]

        await until(lambda: says("etcd does not answer"), 10.0)
        await asyncio.to_thread(servers.etcd.start)
        await until(lambda: says("storage has not given it a term yet"), 15.0)
        await asyncio.to_thread(servers.storage.start)
        await until(lambda: says("ready"), 15.0)
        async with cluster_of(servers) as cluster:
            await cluster.join("a")
    finally:
        servers.stop()


async def test_standbys_name_the_leader(cluster: Cluster) -> None:
    leader = await cluster.leader()
    standby = next(a for a in cluster.channels if a != leader)
    with pytest.raises(NotLeader) as refused:
        await cluster.channels[standby].call(
            scheduler_pb2_grpc.SchedulerServiceStub,
            "Submit",
            scheduler_pb2.SubmitRequest(tasks=cluster.specs()),
            timeout_s=2.0,
        )
    assert refused.value.leader == leader
    turned_away = await cluster.agent("a", address=standby, beats=False)
    await turned_away.ends()
    assert isinstance(turned_away.error, NotLeader)
    assert turned_away.error.leader == leader
