"""Policies that are stored while a leader places: each takes effect, and outlives its readers."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.scheduler_cluster import Cluster, FakeAgent, Servers, cluster_of, until

from muster.api.v1 import storage_pb2, storage_pb2_grpc
from muster.domain.policy import DEFAULT_STRATEGY, STRATEGIES

_SLOTS = 3
_TASKS = 12


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Servers]:
    made = Servers(tmp_path, schedulers=1, leader_ttl_s=6)
    yield made
    made.stop()


@pytest.fixture
async def cluster(servers: Servers) -> AsyncIterator[Cluster]:
    async with cluster_of(servers) as made:
        yield made


async def put(cluster: Cluster, document: dict[str, Any]) -> str:
    """Stores the policy; returns its ETag."""
    answer: storage_pb2.PutPolicyResponse = await cluster.storage.call(
        storage_pb2_grpc.StorageServiceStub,
        "PutPolicy",
        storage_pb2.PutPolicyRequest(policy_json=json.dumps(document).encode()),
        timeout_s=20.0,
    )
    return answer.etag


async def in_force(cluster: Cluster, etag: str, strategy: str) -> None:
    async def holds() -> bool:
        status = await cluster.status()
        return status is not None and (status.policy_etag, status.strategy) == (etag, strategy)

    await until(holds)


async def run_to_the_end(cluster: Cluster, agents: list[FakeAgent], count: int) -> None:
    """More tasks than there is room for, so that some wait and take what comes free."""
    idents = set(await cluster.submit(count))
    ended: set[str] = set()

    async def all_acknowledged() -> bool:
        for agent in agents:
            for ident, attempt in list(agent.assigned):
                del agent.assigned[ident, attempt]
                agent.end(ident, attempt)
            ended.update(ident for ident, _ in agent.acks)
        return idents <= ended

    await until(all_acknowledged)


async def test_every_strategy_takes_effect_without_a_restart(cluster: Cluster) -> None:
    agents = [await cluster.join(name, slots=_SLOTS) for name in "ab"]
    for strategy in STRATEGIES:
        etag = await put(cluster, {"strategy": strategy, "budget": "20ms"})
        await in_force(cluster, etag, strategy)
        await run_to_the_end(cluster, agents, _TASKS)
    assert (await cluster.standing()).term == 1, "one leader placed by all of them"


async def test_a_policy_outlives_storage_and_leader_and_nonsense_leaves_the_default(
    cluster: Cluster, servers: Servers
) -> None:
    etag = await put(cluster, {"strategy": "best_fit", "bounds": {"B": 0.2}})
    await in_force(cluster, etag, "best_fit")
    servers.schedulers[0].kill()
    servers.storage.kill()
    servers.storage.start()
    servers.schedulers[0].start()
    await in_force(cluster, etag, "best_fit")
    agents = [await cluster.join("c", slots=_SLOTS)]
    await run_to_the_end(cluster, agents, _TASKS)
    etag = await put(cluster, {"strategy": "of a later version"})
    await in_force(cluster, etag, DEFAULT_STRATEGY)
    assert "the stored policy is not understood" in servers.schedulers[0].log_text()
    await run_to_the_end(cluster, agents, _TASKS)
