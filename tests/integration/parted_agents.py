"""Real agents behind proxies, with a real leader: the network between them is the test's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.agent_cluster import Agent
from tests.integration.scheduler_cluster import SECRET, Cluster, FakeRegistry, Servers, until
from tests.tcp_proxy import TcpProxy

from muster.api.v1 import agent_pb2, registry_pb2, registry_pb2_grpc
from muster.rpc.server import RpcServer


class OpenRegistry(FakeRegistry):
    """Takes every agent, and names each of them the way to the leader that it may use."""

    def __init__(self, storage: str) -> None:
        super().__init__()
        self.incarnations: dict[str, int] = {}
        self.leader_of: dict[str, str] = {}
        self._storage = storage

    async def Register(self, request: Any, context: Any) -> Any:
        name = request.spec.id
        given = request.incarnation or self.incarnations.get(name, 0) + 1
        self.incarnations[name] = max(given, self.incarnations.get(name, 0))
        self.shown[name] = agent_pb2.AgentRecord(spec=request.spec, incarnation=given)
        self._tell(registry_pb2.WatchAgentsResponse(agents=[self.shown[name]]))
        return registry_pb2.RegisterResponse(
            incarnation=given,
            lease_id=1,
            lease_ttl_ms=10_000,
            heartbeat_interval_ms=300,
            endpoints=self._endpoints(name),
        )

    async def Heartbeat(
        self, request_iterator: Any, context: Any
    ) -> AsyncIterator[registry_pb2.HeartbeatResponse]:
        async for request in request_iterator:
            yield registry_pb2.HeartbeatResponse(
                seq=request.seq,
                registered=request.agent in self.shown,
                superseded=request.incarnation < self.incarnations.get(request.agent, 0),
                heartbeat_interval_ms=300,
                endpoints=self._endpoints(request.agent),
            )

    async def Deregister(self, request: Any, context: Any) -> Any:
        self.hide(request.agent)
        return registry_pb2.DeregisterResponse()

    def _endpoints(self, name: str) -> registry_pb2.Endpoints:
        return registry_pb2.Endpoints(leader=self.leader_of[name], storage=[self._storage])


@dataclass
class Parted:
    """A leader, and agents that can be cut off from it and from the registry."""

    cluster: Cluster
    registry: OpenRegistry
    folder: Path
    stack: AsyncExitStack
    agents: dict[str, Agent] = field(default_factory=dict)
    proxies: dict[str, tuple[TcpProxy, TcpProxy]] = field(default_factory=dict)

    async def start(self, name: str, skills: str, **env: str) -> Agent:
        """An agent in its own process tree, once the leader can place on it."""
        leader = await self.stack.enter_async_context(TcpProxy(await self.cluster.leader()))
        address = f"127.0.0.1:{self.cluster.servers.registry_port}"
        registry = await self.stack.enter_async_context(TcpProxy(address))
        self.registry.leader_of[name] = leader.endpoint
        self.proxies[name] = (leader, registry)
        where: Any = SimpleNamespace(address=registry.endpoint)
        agent = self.agents[name] = Agent(where, self.folder / name)
        await agent.start(skills, {"MUSTER_JOIN_SECRET": SECRET, **env})
        await self.cluster.sees(name, agent_pb2.AGENT_STATE_READY)
        return agent

    def part(self, name: str) -> None:
        """Nothing of the agent arrives any more, nor does anything arrive at it."""
        for proxy in self.proxies[name]:
            proxy.blackhole()
            proxy.refuse(True)

    def heal(self, name: str) -> None:
        for proxy in self.proxies[name]:
            proxy.cut()
            proxy.refuse(False)

    async def placed_on(self, ident: str, name: str) -> None:
        async def there() -> bool:
            status = (await self.cluster.task(ident)).status
            return status.agent == name

        await until(there)


@asynccontextmanager
async def parted_cluster(servers: Servers, folder: Path) -> AsyncIterator[Parted]:
    """Of servers with one scheduler."""
    registry = OpenRegistry(servers.storage.endpoint)
    server = RpcServer(f"127.0.0.1:{servers.registry_port}", secret=SECRET, service="registry")
    server.add(registry_pb2_grpc.add_RegistryServiceServicer_to_server, registry)
    await server.start()
    cluster = Cluster(servers, registry)
    async with AsyncExitStack() as stack:
        made = Parted(cluster, registry, folder, stack)
        try:
            await cluster.leader()
            yield made
        finally:
            await asyncio.gather(*(agent.end() for agent in made.agents.values()))
            await cluster.close()
            registry.close()
            await server.stop(0.5)
