"""What a leader did about agents that were down outlives it: the records and what was learned."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.integration.scheduler_cluster import TENANT, Cluster, Servers, cluster_of, soon, until

from muster.api.v1 import agent_pb2, scheduler_pb2, storage_pb2, storage_pb2_grpc, task_pb2
from muster_scheduler.recovery_keeping import RECOVERY_TENANT

SHORT_TTL_S = 6


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Servers]:
    made = Servers(tmp_path, leader_ttl_s=SHORT_TTL_S)
    yield made
    made.stop()


@pytest.fixture
async def cluster(servers: Servers) -> AsyncIterator[Cluster]:
    async with cluster_of(servers) as made:
        yield made


async def records(cluster: Cluster, **asked: Any) -> list[dict[str, Any]]:
    answer = await cluster.call(
        "ListRecoveries",
        scheduler_pb2.ListRecoveriesRequest(**{"tenant": TENANT, **asked}),
    )
    return [msgspec.json.decode(record) for record in answer.records_json]


async def kept(cluster: Cluster, key: str) -> dict[str, Any]:
    answer = await cluster.storage.call(
        storage_pb2_grpc.DataServiceStub,
        "GetValue",
        storage_pb2.GetValueRequest(tenant=RECOVERY_TENANT, key=key),
        timeout_s=20.0,
    )
    found: dict[str, Any] = msgspec.json.decode(answer.value) if answer.found else {}
    return found


async def test_a_recovery_is_recorded_and_the_next_leader_knows_of_it(cluster: Cluster) -> None:
    first = await cluster.join("a")
    supervisor = await cluster.agent("a", supervisor=True)
    (ident,) = await cluster.submit()
    await soon(lambda: (ident, 1) in first.assigned)
    first.start(ident)
    await cluster.stored(ident, task_pb2.TASK_STATE_RUNNING)
    ref = scheduler_pb2.AttemptRef(task_id=ident, attempt=1, tenant=TENANT)
    supervisor.say(
        runtime_died=scheduler_pb2.RuntimeDied(
            incarnation=1, started=[ref], started_known=True, why="signal 9"
        )
    )
    await cluster.sees("a", agent_pb2.AGENT_STATE_DOWN)
    # No other agent is there: its task waits for it.
    (open_,) = await records(cluster)
    assert (open_["outcome"], open_["action"], open_["kind"]) == ("open", "restart", "died")
    assert (await cluster.task(ident)).status.attempt == 1
    await first.close()
    second = await cluster.join("a", 2)
    await soon(lambda: (ident, 2) in second.assigned)
    second.start(ident, 2)

    async def over() -> bool:
        (one,) = await records(cluster, agent="a", id=open_["id"])
        return bool(one["outcome"] == "rerun")

    await until(over)
    (before,) = await records(cluster)
    assert (before["rerun"], before["restarts"]) == (1, 1)
    assert not await records(cluster, agent="b")
    assert not await records(cluster, tenant="other")
    assert not await records(cluster, before_id=before["id"])

    async def written() -> bool:
        record = await kept(cluster, f"records/{before['id']}")
        learned = await kept(cluster, "learned")
        return bool(record.get("outcome") == "rerun" and learned.get("budgets", {}).get("a"))

    await until(written)

    # And one in the midst of which the leader is lost.
    third = await cluster.agent("a", supervisor=True)
    third.say(runtime_died=scheduler_pb2.RuntimeDied(incarnation=2, started_known=True, why="oom"))
    await cluster.sees("a", agent_pb2.AGENT_STATE_DOWN)

    async def begun() -> bool:
        newest = (await records(cluster))[0]
        return bool(newest["id"] != before["id"] and await kept(cluster, f"records/{newest['id']}"))

    await until(begun)
    old = await cluster.leader()
    cluster.process(old).kill()
    await cluster.leader(but=old)

    async def known() -> bool:
        return [r["outcome"] for r in await records(cluster)] == ["interrupted", "rerun"]

    await until(known)
    assert (await records(cluster))[1] == before
    # The task is nobody's loss: the next incarnation has it, under the new leader.
    cluster.registry.show("a", 3)
    newest = await cluster.agent("a", 3)
    await soon(lambda: any(task == ident for task, _ in newest.assigned))
    attempt = max(attempt for task, attempt in newest.assigned if task == ident)
    newest.start(ident, attempt)
    newest.end(ident, attempt)
    await cluster.stored(ident, task_pb2.TASK_STATE_SUCCEEDED)
