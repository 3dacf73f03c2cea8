"""The scheduler with the real registry: agents that join, beat, move with the leader, vanish."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.integration.scheduler_cluster import (
    SECRET,
    Cluster,
    FakeRegistry,
    PythonService,
    Servers,
    soon,
    until,
)
from tests.real_servers import free_port

from muster.api.v1 import agent_pb2, registry_pb2, registry_pb2_grpc, task_pb2
from muster.domain.errors import MusterError
from muster.rpc.channels import ServiceChannel
from muster.rpc.status import rpc_errors

SUCCEEDED = task_pb2.TASK_STATE_SUCCEEDED
READY, SUSPECT = agent_pb2.AGENT_STATE_READY, agent_pb2.AGENT_STATE_SUSPECT


class Member:
    """An agent's membership: registered, and beating until it is closed."""

    def __init__(self, name: str, registry: str) -> None:
        self.name = name
        self.incarnation = 0
        self.leader = ""
        self.registrations = 0
        self._lease_id = 0
        self._key = secrets.token_bytes(32)
        self._channel = ServiceChannel([registry], secret=SECRET, what="the registry")
        self._work = asyncio.create_task(self._run(), name=f"member {name}")

    async def finds_leader(self) -> None:
        await soon(lambda: self.leader != "")

    async def close(self) -> None:
        """As when the process is killed."""
        self._work.cancel()
        await asyncio.gather(self._work, return_exceptions=True)
        await self._channel.close()

    async def _run(self) -> None:
        while True:
            try:
                await self._register()
                await self._beat()
            except MusterError:
                await asyncio.sleep(0.1)

    async def _register(self) -> None:
        spec = agent_pb2.AgentSpec(
            id=self.name,
            tenant="default",
            capacity={"cpu": 4_000, "memory": 1 << 30, "slots": 8},
            skills=[agent_pb2.SkillOffer(name="echo")],
        )
        answer = await self._channel.call(
            registry_pb2_grpc.RegistryServiceStub,
            "Register",
            registry_pb2.RegisterRequest(
                spec=spec, instance_key=self._key, incarnation=self.incarnation
            ),
            timeout_s=20.0,
        )
        self.registrations += 1
        self.incarnation, self._lease_id = answer.incarnation, answer.lease_id
        self.leader = answer.endpoints.leader or self.leader

    async def _beat(self) -> None:
        async def beats() -> AsyncIterator[registry_pb2.HeartbeatRequest]:
            seq = 0
            while True:
                seq += 1
                yield registry_pb2.HeartbeatRequest(
                    agent=self.name,
                    incarnation=self.incarnation,
                    lease_id=self._lease_id,
                    seq=seq,
                )
                await asyncio.sleep(0.5)

        call = self._channel.stream(registry_pb2_grpc.RegistryServiceStub, "Heartbeat", beats())
        try:
            with rpc_errors("the registry"):
                async for answer in call:
                    self.leader = answer.endpoints.leader or self.leader
                    if not answer.registered:
                        return
        finally:
            call.cancel()


@asynccontextmanager
async def whole_cluster(folder: Path) -> AsyncIterator[tuple[Cluster, PythonService]]:
    # The leader is killed: its lease is short, and yet longer than this machine may stall.
    servers = await asyncio.to_thread(Servers, folder, leader_ttl_s=6)
    registry = PythonService(
        folder / "registry",
        "muster_registry",
        {
            "MUSTER_ETCD_ENDPOINTS": servers.etcd.endpoint,
            "MUSTER_ETCD_EMBEDDED": "1",
            "MUSTER_STORAGE": servers.storage.endpoint,
        },
    )
    registry.port, registry.metrics_port = servers.registry_port, free_port()
    cluster = Cluster(servers, FakeRegistry())
    try:
        await asyncio.to_thread(registry.start)
        await cluster.leader()
        yield cluster, registry
    finally:
        await cluster.close()
        registry.kill()
        servers.stop()


async def test_agents_follow_the_leader_and_survive_the_registry(tmp_path: Path) -> None:
    async with whole_cluster(tmp_path) as (cluster, registry):
        member = Member("a", registry.endpoint)
        try:
            await member.finds_leader()
            agent = await cluster.agent("a", member.incarnation, address=member.leader)
            await cluster.sees("a", READY)
            first, second = await cluster.submit(2)
            await soon(lambda: {(first, 1), (second, 1)} <= agent.assigned.keys())
            agent.end(first)
            await cluster.stored(first, SUCCEEDED)

            # The registry dies: nobody is moved, and new work goes on being placed.
            incarnation = member.incarnation
            registry.kill()
            (third,) = await cluster.submit()
            await soon(lambda: (third, 1) in agent.assigned)
            await asyncio.to_thread(registry.start)
            await soon(lambda: member.registrations > 1)
            assert member.incarnation == incarnation
            await cluster.sees("a", READY)

            # The leader dies: the registry tells the agent of the next one.
            old = await cluster.leader()
            cluster.process(old).kill()
            await soon(lambda: member.leader not in ("", old))
            held = [(second, 1, 2), (third, 1, 3)]
            moved = await cluster.agent(
                "a", member.incarnation, address=await cluster.leader(but=old), held=held
            )
            moved.end(second)
            moved.end(third)
            for ident in (second, third):
                task = await cluster.stored(ident, SUCCEEDED)
                assert task.status.attempt == 1
            assert moved.assigned == {}
        finally:
            await member.close()


async def test_an_agent_that_vanishes_is_given_up_and_a_new_start_takes_over(
    tmp_path: Path,
) -> None:
    async with whole_cluster(tmp_path) as (cluster, registry):
        members = [Member(name, registry.endpoint) for name in "ab"]
        try:
            for member in members:
                await member.finds_leader()
            agents = [await cluster.agent(m.name, m.incarnation) for m in members]
            for member in members:
                await cluster.sees(member.name, READY)
            (ident,) = await cluster.submit()
            await soon(lambda: any((ident, 1) in a.assigned for a in agents))
            gone, other = sorted(agents, key=lambda a: (ident, 1) not in a.assigned)
            gone.start(ident)

            await next(m for m in members if m.name == gone.name).close()
            await gone.close()
            given_up_s = await soon(lambda: (ident, 2) in other.assigned)
            assert given_up_s > 5.0
            other.end(ident, 2)
            task = await cluster.stored(ident, SUCCEEDED)
            assert (task.status.attempt, task.status.agent_deaths) == (2, 1)

            again = Member(gone.name, registry.endpoint)
            members.append(again)
            await until(lambda: _joined(cluster, again))
            assert again.incarnation > gone.incarnation
        finally:
            for member in members:
                await member.close()


async def _joined(cluster: Cluster, member: Member) -> bool:
    if not member.leader:
        return False
    view = await cluster.view(member.name)
    if view is not None and view.state == READY and view.record.incarnation == member.incarnation:
        return True
    await cluster.agent(member.name, member.incarnation)
    return False
