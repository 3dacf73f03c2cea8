"""The registry as a process on a real etcd, with a stand-in for storage's incarnations."""

from __future__ import annotations

import asyncio
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.polling import HANG_S, eventually
from tests.real_servers import EtcdServer
from tests.service_process import SECRET, ServiceProcess

from muster.api.v1 import agent_pb2, registry_pb2_grpc, storage_pb2, storage_pb2_grpc
from muster.api.v1 import registry_pb2 as pb
from muster.domain.errors import Conflict, InvalidInput, MusterError, Unauthenticated, Unavailable
from muster.etcd.client import EtcdClient
from muster.etcd.keys import LEADER_KEY, agent_key
from muster.rpc.channels import ServiceChannel
from muster.rpc.clock import boot_s
from muster.rpc.server import RpcServer
from muster.rpc.status import rpc_errors

STUB = registry_pb2_grpc.RegistryServiceStub
KEY = b"k" * 32
# Leases that no stall of this machine ends; agents beat far more often than they are told to.
INTERVAL_MS, TTL_S = 9_000, 28
BEAT_S = 0.5
# For those tests that wait for the end of a lease.
SHORT_INTERVAL_MS, SHORT_TTL_S = 500, 3
OUTAGE_INTERVAL_MS, OUTAGE_TTL_S = 3_000, 10


class FakeStorage(storage_pb2_grpc.StorageServiceServicer):
    def __init__(self) -> None:
        self.given: Counter[str] = Counter()

    async def NextIncarnation(self, request: Any, context: Any) -> Any:
        self.given[request.agent] += 1
        return storage_pb2.NextIncarnationResponse(incarnation=self.given[request.agent])


@asynccontextmanager
async def storage_stand_in() -> AsyncIterator[str]:
    server = RpcServer("127.0.0.1:0", secret=SECRET, service="storage")
    storage = FakeStorage()  # type: ignore[abstract]
    server.add(storage_pb2_grpc.add_StorageServiceServicer_to_server, storage)
    port = await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


def spec(agent: str, **capacity: int) -> agent_pb2.AgentSpec:
    return agent_pb2.AgentSpec(
        id=agent,
        tenant="default",
        capacity=capacity or {"cpu": 1000, "slots": 8},
        skills=[agent_pb2.SkillOffer(name="echo", input_schema_json=b'{"type":"object"}')],
        labels={"zone": "a"},
        host="machine",
        pid=1,
    )


class Watcher:
    """Follows a registry's view of all agents, on one stream."""

    def __init__(self, channel: ServiceChannel, from_revision: int = 0) -> None:
        request = pb.WatchAgentsRequest(from_revision=from_revision)
        self._call = channel.stream(STUB, "WatchAgents", request)
        self._task = asyncio.create_task(self._read())
        self.messages: list[pb.WatchAgentsResponse] = []
        self.agents: dict[str, agent_pb2.AgentRecord] = {}
        self.removals: list[str] = []
        self.error: MusterError | None = None

    async def _read(self) -> None:
        try:
            with rpc_errors("registry"):
                async for message in self._call:
                    self.messages.append(message)
                    if message.snapshot:
                        self.agents.clear()
                    self.agents.update({record.spec.id: record for record in message.agents})
                    for agent in message.removed:
                        self.agents.pop(agent, None)
                        self.removals.append(agent)
        except MusterError as error:
            self.error = error

    def shows(self, agent: str, incarnation: int) -> bool:
        return agent in self.agents and self.agents[agent].incarnation == incarnation

    async def close(self) -> None:
        self._call.cancel()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


class Agent:
    """Registers and beats as an agent does: again on a new stream when one breaks."""

    def __init__(self, channel: ServiceChannel, name: str, key: bytes = KEY) -> None:
        self._channel = channel
        self.name, self.key = name, key
        self.registration = pb.RegisterResponse()
        self.answers: list[pb.HeartbeatResponse] = []
        self.registrations = 0
        # When the last beat was sent that has been answered.
        self.renewed_boot_s = 0.0
        self._sent_boot_s: dict[int, float] = {}
        self._task: asyncio.Task[None] | None = None

    async def register(self, incarnation: int = 0) -> pb.RegisterResponse:
        request = pb.RegisterRequest(
            spec=spec(self.name), instance_key=self.key, incarnation=incarnation
        )
        self.registration = await self._channel.call(
            STUB, "Register", request, timeout_s=HANG_S, retry=True
        )
        self.registrations += 1
        return self.registration

    def start(self) -> None:
        self._task = asyncio.create_task(self._live())

    @property
    def last(self) -> pb.HeartbeatResponse:
        return self.answers[-1]

    def was_pushed(self, leader: str) -> bool:
        return any(
            a.seq == 0 and a.registered and a.endpoints.leader == leader for a in self.answers
        )

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _requests(self) -> AsyncIterator[pb.HeartbeatRequest]:
        seq = 0
        while True:
            seq += 1
            self._sent_boot_s[seq] = boot_s()
            yield pb.HeartbeatRequest(
                agent=self.name,
                incarnation=self.registration.incarnation,
                lease_id=self.registration.lease_id,
                seq=seq,
            )
            await asyncio.sleep(BEAT_S)

    async def _live(self) -> None:
        while True:
            call = self._channel.stream(STUB, "Heartbeat", self._requests())
            try:
                with rpc_errors("registry"):
                    async for answer in call:
                        self.answers.append(answer)
                        if answer.seq:
                            self.renewed_boot_s = self._sent_boot_s[answer.seq]
                        if answer.superseded:
                            return
                        if not answer.registered:
                            await self.register(self.registration.incarnation)
                            break
            except MusterError:
                await asyncio.sleep(0.05)
            finally:
                call.cancel()


class World:
    def __init__(self, tmp_path: Path, etcd: EtcdServer, storage: str) -> None:
        self._tmp_path, self.etcd, self._storage = tmp_path, etcd, storage
        self._closers: list[Callable[[], Any]] = []
        self.processes: list[ServiceProcess] = []
        self.channels: list[ServiceChannel] = []

    async def start_registry(self, interval_ms: int = INTERVAL_MS) -> ServiceProcess:
        env = {
            "MUSTER_ETCD_ENDPOINTS": self.etcd.endpoint,
            "MUSTER_ETCD_EMBEDDED": "1",
            "MUSTER_STORAGE": self._storage,
            "MUSTER_MONITORS": "127.0.0.1:7105,127.0.0.1:7106",
            "MUSTER_HEARTBEAT_INTERVAL_MS": str(interval_ms),
        }
        number = len(self.processes)
        process = ServiceProcess("registry", self._tmp_path / f"registry-{number}", env)
        self.processes.append(process)
        await asyncio.to_thread(process.start)
        self.channels.append(ServiceChannel([process.endpoint], secret=SECRET, what="registry"))
        return process

    @property
    def registry(self) -> ServiceProcess:
        return self.processes[0]

    def agent(self, name: str, key: bytes = KEY, registry: int = 0) -> Agent:
        agent = Agent(self.channels[registry], name, key)
        self._closers.append(agent.stop)
        return agent

    async def living(self, name: str, registry: int = 0) -> Agent:
        agent = self.agent(name, registry=registry)
        await agent.register()
        agent.start()
        return agent

    def watch(self, from_revision: int = 0, registry: int = 0) -> Watcher:
        watcher = Watcher(self.channels[registry], from_revision)
        self._closers.append(watcher.close)
        return watcher

    async def call(self, method: str, request: object, registry: int = 0) -> Any:
        return await self.channels[registry].call(STUB, method, request, timeout_s=HANG_S)

    async def ready(self) -> None:
        await eventually(lambda: self.registry.get("/readyz")[0] == 200)

    async def close(self) -> None:
        for closer in reversed(self._closers):
            await closer()
        for channel in self.channels:
            await channel.close()
        for process in self.processes:
            process.stop()


@pytest.fixture
async def world(tmp_path: Path, etcd_server: EtcdServer) -> AsyncIterator[World]:
    async with storage_stand_in() as storage:
        world = World(tmp_path, etcd_server, storage)
        try:
            await world.start_registry()
            await world.ready()
            yield world
        finally:
            await world.close()


async def test_an_agent_joins_beats_and_leaves(world: World) -> None:
    watcher = world.watch()
    agent = await world.living("a")
    first = agent.registration
    assert (first.incarnation, first.lease_ttl_ms) == (1, TTL_S * 1000)
    assert INTERVAL_MS <= first.heartbeat_interval_ms < 2 * INTERVAL_MS
    assert first.endpoints.leader == ""
    assert sorted(first.endpoints.monitors) == ["127.0.0.1:7105", "127.0.0.1:7106"]
    await eventually(lambda: len(agent.answers) >= 2)
    assert agent.last.registered
    assert agent.last.heartbeat_interval_ms == INTERVAL_MS
    listed = await world.call("ListAgents", pb.ListAgentsRequest())
    (record,) = listed.agents
    assert record.spec == spec("a")
    assert record.instance_key_hash == b""
    assert record.lease_id == first.lease_id
    assert 0 < record.revision <= listed.revision
    await eventually(lambda: "a" in watcher.agents)

    await agent.stop()
    for _ in range(2):
        await world.call("Deregister", pb.DeregisterRequest(agent="a", incarnation=1))
    await eventually(lambda: watcher.removals == ["a"])
    async with EtcdClient([world.etcd.endpoint], timeout_s=HANG_S) as etcd:
        assert not await etcd.revoke(first.lease_id)


async def test_the_same_instance_replaces_its_old_registration_at_once(world: World) -> None:
    old = await world.living("a")
    watcher = world.watch()
    await eventually(lambda: "a" in watcher.agents)
    new = await world.living("a")
    assert new.registration.incarnation == 2
    await eventually(lambda: bool(old.answers) and old.last.superseded)
    await eventually(lambda: bool(new.answers) and new.last.registered)
    assert watcher.removals == []
    assert watcher.agents["a"].incarnation == 2
    async with EtcdClient([world.etcd.endpoint], timeout_s=HANG_S) as etcd:
        assert not await etcd.revoke(old.registration.lease_id)
    # The replaced runtime cannot come back, nor remove its successor.
    with pytest.raises(Conflict, match="replaced"):
        await old.register(incarnation=1)
    await world.call("Deregister", pb.DeregisterRequest(agent="a", incarnation=1))
    assert (await world.call("ListAgents", pb.ListAgentsRequest())).agents[0].incarnation == 2


async def test_bad_registrations_are_refused(world: World) -> None:
    await world.living("a")
    with pytest.raises(Conflict, match="agent a is alive"):
        await world.agent("a", b"o" * 32).register()
    for request, field in (
        (pb.RegisterRequest(spec=spec("b", cpu=0, slots=0), instance_key=KEY), "capacity"),
        (pb.RegisterRequest(spec=spec("b", cpu=-1), instance_key=KEY), "cpu"),
        (pb.RegisterRequest(spec=spec("b"), instance_key=b"short"), "instance_key"),
        (pb.RegisterRequest(spec=spec("B"), instance_key=KEY), "spec.id"),
        (pb.RegisterRequest(spec=spec("b"), instance_key=KEY, incarnation=-1), "incarnation"),
    ):
        with pytest.raises(InvalidInput) as refused:
            await world.call("Register", request)
        assert field in refused.value.field
    stranger = ServiceChannel([world.registry.endpoint], secret="x" * 20, what="registry")
    with pytest.raises(Unauthenticated):
        await stranger.call(
            STUB,
            "Register",
            pb.RegisterRequest(spec=spec("b"), instance_key=KEY),
            timeout_s=HANG_S,
        )
    await stranger.close()
    assert [r.spec.id for r in (await world.call("ListAgents", pb.ListAgentsRequest())).agents] == [
        "a"
    ]


async def test_a_silent_agent_is_removed_when_its_lease_ends(world: World) -> None:
    await world.start_registry(SHORT_INTERVAL_MS)
    watcher = world.watch()
    agent, other = await world.living("a", registry=1), await world.living("b")
    assert agent.registration.lease_ttl_ms == SHORT_TTL_S * 1000
    await eventually(lambda: len(agent.answers) >= 2)
    await agent.stop()
    # A machine that stalls for its TTL may have cost it a registration before.
    await eventually(lambda: watcher.removals[-1:] == ["a"] and "a" not in watcher.agents)
    assert boot_s() - agent.renewed_boot_s >= SHORT_TTL_S
    assert set(watcher.removals) == {"a"}
    assert other.last.registered
    assert set(watcher.agents) == {"b"}


async def test_a_leader_change_is_pushed_to_open_streams(world: World) -> None:
    agents = [await world.living(name) for name in ("a", "b")]
    await eventually(lambda: all(agent.answers for agent in agents))
    async with EtcdClient([world.etcd.endpoint], timeout_s=HANG_S) as etcd:
        for leader in ("127.0.0.1:7001", "127.0.0.1:7002"):
            await etcd.put(LEADER_KEY, leader.encode())
            for agent in agents:
                await eventually(partial(agent.was_pushed, leader))
        assert (await world.agent("c").register()).endpoints.leader == "127.0.0.1:7002"
        await etcd.delete(LEADER_KEY)
        await eventually(lambda: agents[0].last.endpoints.leader == "")


async def test_agents_outlive_a_killed_registry(world: World) -> None:
    killed = await world.start_registry(OUTAGE_INTERVAL_MS)
    agents = [await world.living(name, registry=1) for name in ("a", "b", "c")]
    assert {a.registration.lease_ttl_ms for a in agents} == {OUTAGE_TTL_S * 1000}
    await eventually(lambda: all(agent.answers for agent in agents))
    async with EtcdClient([world.etcd.endpoint], timeout_s=HANG_S) as etcd:
        _, before = await etcd.list("muster/agents/")
        killed_s = boot_s()
        await asyncio.to_thread(killed.restart)
        marks = [len(agent.answers) for agent in agents]
        await eventually(
            lambda: all(len(a.answers) > m for a, m in zip(agents, marks, strict=True))
        )
        if boot_s() - killed_s > OUTAGE_TTL_S - OUTAGE_INTERVAL_MS / 1000:
            pytest.skip("this machine is too busy to restart a registry within the leases")
        # Past the old leases' end: nobody was removed and nobody had to register again.
        await eventually(lambda: boot_s() > killed_s + OUTAGE_TTL_S + 1)
        kvs, _ = await etcd.list("muster/agents/")
    assert len(kvs) == 3
    assert all(kv.mod_revision <= before for kv in kvs)
    assert [agent.registrations for agent in agents] == [1, 1, 1]


async def test_a_restarted_etcd_breaks_no_watch_and_no_registration(world: World) -> None:
    watcher = world.watch()
    agent = await world.living("a")
    await eventually(lambda: "a" in watcher.agents)
    await world.etcd.commit()
    await asyncio.to_thread(world.etcd.restart)
    await world.agent("b").register()
    await eventually(lambda: set(watcher.agents) == {"a", "b"})
    assert watcher.error is None
    assert watcher.removals == []
    assert agent.registrations == 1


async def test_without_etcd_nobody_is_declared_gone(world: World) -> None:
    watcher = world.watch()
    agent = await world.living("a")
    await eventually(lambda: "a" in watcher.agents)
    await world.etcd.commit()
    world.etcd.kill()
    mark = len(agent.answers)
    await eventually(lambda: len(agent.answers) > mark + 1)
    assert all(answer.registered for answer in agent.answers)
    with pytest.raises(Unavailable):
        await world.call("Register", pb.RegisterRequest(spec=spec("b"), instance_key=KEY))
    await eventually(lambda: world.registry.get("/readyz") == (503, "etcd does not answer\n"))
    assert [r.spec.id for r in (await world.call("ListAgents", pb.ListAgentsRequest())).agents] == [
        "a"
    ]
    await asyncio.to_thread(world.etcd.start)
    await world.ready()
    assert watcher.removals == []
    assert agent.registrations == 1


async def test_agents_come_back_with_their_incarnation_when_etcd_was_emptied(
    world: World,
) -> None:
    watcher = world.watch()
    # A second incarnation, so that a new one would be told apart.
    await world.agent("a").register()
    agent = await world.living("a")
    await eventually(lambda: "a" in watcher.agents and bool(agent.answers))
    world.etcd.kill()
    await asyncio.to_thread(shutil.rmtree, world.etcd.data_dir)
    await asyncio.to_thread(world.etcd.start)
    await eventually(lambda: agent.registrations >= 2)
    assert agent.registration.incarnation == 2
    await eventually(lambda: agent.last.registered)
    await eventually(
        lambda: (
            "a" in watcher.agents and watcher.agents["a"].lease_id == agent.registration.lease_id
        )
    )
    assert watcher.messages[-1].revision < 100
    assert watcher.error is None


async def test_a_deleted_registration_is_noticed_at_the_next_beat(world: World) -> None:
    agent = await world.living("a")
    async with EtcdClient([world.etcd.endpoint], timeout_s=HANG_S) as etcd:
        await etcd.delete(agent_key("a"))
    await eventually(lambda: agent.registrations >= 2)
    assert agent.registration.incarnation == 1


async def test_fifty_agents_join_at_once(world: World) -> None:
    # With leases of 20 s: on a busy machine fifty processes' worth of beats may be late by seconds,
    # and a lease that has run out by then is no fault of the registry.
    await world.start_registry(interval_ms=6000)
    watcher = world.watch(registry=1)
    agents = [world.agent(f"agent-{number}", registry=1) for number in range(50)]
    answers = await asyncio.gather(*(agent.register() for agent in agents))
    assert len({answer.lease_id for answer in answers}) == 50
    intervals = {answer.heartbeat_interval_ms for answer in answers}
    assert len(intervals) > 20, "their first beats are spread"
    for agent in agents:
        agent.start()
    await eventually(lambda: len(watcher.agents) == 50)
    await eventually(lambda: all(agent.answers for agent in agents))
    assert all(answer.registered for agent in agents for answer in agent.answers)
    assert watcher.removals == []


async def test_two_registries_agree_on_who_holds_an_id(world: World) -> None:
    await world.start_registry()
    watchers = [world.watch(registry=number) for number in (0, 1)]
    agents = [world.agent("a", registry=number % 2) for number in range(6)]
    answers = await asyncio.gather(*(agent.register() for agent in agents))
    incarnations = sorted(answer.incarnation for answer in answers)
    assert len(set(incarnations)) == 6
    async with EtcdClient([world.etcd.endpoint], timeout_s=HANG_S) as etcd:
        kv = await etcd.get(agent_key("a"))
        assert kv is not None
        # All leases but the holder's are gone.
        for answer in answers:
            if answer.lease_id != kv.lease_id:
                assert not await etcd.revoke(answer.lease_id)
    holder = agent_pb2.AgentRecord.FromString(kv.value).incarnation
    for watcher in watchers:
        await eventually(partial(watcher.shows, "a", holder))
    # Rivals with different keys, one at each: exactly one gets in.
    rivals = [world.agent("b", bytes([number]) * 32, registry=number) for number in (0, 1)]
    results = await asyncio.gather(*(r.register() for r in rivals), return_exceptions=True)
    assert [isinstance(r, Conflict) for r in results].count(True) == 1


async def test_a_watcher_resumes_where_it_was(world: World) -> None:
    await world.agent("a").register()
    first = world.watch()
    await eventually(lambda: "a" in first.agents)
    seen = first.messages[-1].revision
    await first.close()
    await world.agent("b").register()
    resumed = world.watch(from_revision=seen)
    await eventually(lambda: "b" in resumed.agents)
    assert not any(message.snapshot for message in resumed.messages)
    assert set(resumed.agents) == {"b"}
    stranger = world.watch(from_revision=10**9)
    await eventually(lambda: set(stranger.agents) == {"a", "b"})
    assert stranger.messages[0].snapshot


async def test_a_registry_waits_for_etcd_and_storage(tmp_path: Path) -> None:
    etcd = EtcdServer(tmp_path / "etcd")
    etcd.start()
    etcd.kill()
    world = World(tmp_path, etcd, "127.0.0.1:1")
    try:
        registry = await world.start_registry()
        assert registry.get("/readyz") == (503, "etcd does not answer\n")
        with pytest.raises(Unavailable, match="etcd"):
            await world.call("ListAgents", pb.ListAgentsRequest())
        await asyncio.to_thread(etcd.start)
        await world.ready()
        with pytest.raises(Unavailable, match="storage"):
            await world.call("Register", pb.RegisterRequest(spec=spec("a"), instance_key=KEY))
        assert (await world.call("ListAgents", pb.ListAgentsRequest())).agents == []
        _, text = registry.get("/metrics")
        assert "muster_registry_etcd_up 1.0" in text
        assert 'muster_registry_registrations_total{result="unavailable"} 1.0' in text
    finally:
        await world.close()
        etcd.stop()
