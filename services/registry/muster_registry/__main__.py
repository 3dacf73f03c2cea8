"""The registry process: one view of etcd, one lease keeper, one servicer."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

import structlog
from prometheus_client import REGISTRY, CollectorRegistry

from muster.api.v1 import storage_pb2
from muster.api.v1.registry_pb2_grpc import add_RegistryServiceServicer_to_server
from muster.api.v1.storage_pb2_grpc import StorageServiceStub
from muster.domain.ids import AgentId
from muster.etcd.client import EtcdClient
from muster.etcd.lease import LeaseKeeper
from muster.etcd.vetting import vet
from muster.rpc.channels import ServiceChannel
from muster.rpc.clock import boot_ms, wall_ms
from muster.rpc.metrics_http import serve_metrics
from muster.rpc.process import run
from muster.rpc.server import RpcServer
from muster_registry.cluster import Cluster
from muster_registry.config import Config
from muster_registry.membership import Membership
from muster_registry.metrics import ClusterCollector
from muster_registry.service import RegistryService

_LOG = structlog.get_logger("muster.registry")

# Within an agent's patience for its registration; it tries again by itself.
_INCARNATION_TIMEOUT_S = 3.0


class Ports(NamedTuple):
    rpc: int
    metrics: int


@asynccontextmanager
async def serving(config: Config, figures: CollectorRegistry = REGISTRY) -> AsyncIterator[Ports]:
    """Serves while the block runs; etcd and storage may come later, and go."""
    cluster = Cluster(boot_ms)
    storage = ServiceChannel(config.storage, secret=config.secret, what="storage")

    async def next_incarnation(agent: AgentId, above: int) -> int:
        # Repeating it skips numbers, which harms nobody: incarnations only have to grow.
        answer = await storage.call(
            StorageServiceStub,
            "NextIncarnation",
            storage_pb2.NextIncarnationRequest(agent=agent, above=above),
            timeout_s=_INCARNATION_TIMEOUT_S,
            retry=True,
        )
        return int(answer.incarnation)

    async with EtcdClient(config.etcd) as client, LeaseKeeper(client) as keeper:
        service = RegistryService(
            cluster,
            Membership(client, keeper, cluster.view, next_incarnation),
            config.policy,
            storage=config.storage,
            monitors=config.monitors,
            chance=random.random,
            wall_ms=wall_ms,
        )
        server = RpcServer(config.listen, secret=config.secret, service="registry")
        server.add(add_RegistryServiceServicer_to_server, service)
        metrics = serve_metrics(config.metrics_listen, cluster.why_not_ready, figures)
        collector = ClusterCollector(cluster)
        async with asyncio.TaskGroup() as group:
            # Its error ends the process: nothing is written to a bad etcd for longer than that.
            vetted = vet(client, asyncio.Event(), embedded=config.etcd_embedded)
            work = [
                group.create_task(vetted, name="etcd's version"),
                group.create_task(cluster.follow_agents(client), name="agents"),
                group.create_task(cluster.follow_leader(client), name="leader"),
                group.create_task(cluster.probe(client), name="probe"),
            ]
            figures.register(collector)
            try:
                ports = Ports(await server.start(), await metrics.start())
                _LOG.info("listening", port=ports.rpc, metrics_port=ports.metrics)
                yield ports
            finally:
                await server.stop()
                await metrics.stop()
                for task in work:
                    task.cancel()
                figures.unregister(collector)
                await storage.close()


async def serve(stop: asyncio.Event) -> None:
    """Serves as the environment says until `stop` is set."""
    async with serving(Config.from_env(os.environ)):
        await stop.wait()


def main() -> None:
    """Entry point of `muster service registry`."""
    run(serve, service="registry")


if __name__ == "__main__":
    main()
