"""What a leader learns of its tasks outlives it: the window of attempts, and the model."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest
from tests.integration.scheduler_cluster import (
    Cluster,
    FakeAgent,
    PythonService,
    Servers,
    cluster_of,
    soon,
    until,
)

from muster.api.v1 import storage_pb2, storage_pb2_grpc, task_pb2
from muster.domain.ids import TaskId
from muster_scheduler.keeping import LEARNING_TENANT, Archive, StoredModel
from muster_scheduler.learning.bandit import Bandit
from muster_scheduler.placement.auto import CONTEXT_WIDTH

SHORT_TTL_S = 6
LEARNED = "what was learned is loaded"
JUDGED = "a choice is judged"
INSTALLED = "a run-time model is installed"
# More than the fewest that trees are made of.
ENOUGH = 260
BATCH = 20


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Servers]:
    made = Servers(tmp_path, leader_ttl_s=SHORT_TTL_S, learn_every_s=1, strategy="auto")
    yield made
    made.stop()


@pytest.fixture
async def cluster(servers: Servers) -> AsyncIterator[Cluster]:
    async with cluster_of(servers) as made:
        yield made


def seconds_of(agent: str, size: int) -> float:
    """Agent b takes three times as long."""
    return 0.1 * size * (3 if agent == "b" else 1)


async def work(cluster: Cluster, agents: list[FakeAgent], batches: int) -> int:
    """Batches of tasks that say how large they are, run as long as `seconds_of` says."""
    for number in range(batches):
        size = 1 + number % 9
        idents = await cluster.submit(BATCH, input_json=msgspec.json.encode({"n": size}))
        await taken(agents, idents)
        for ident in idents:
            agent = taker(agents, ident)
            assert agent is not None
            agent.start(ident)
            began_ms = 1_700_000_000_000
            took_ms = round(1000 * seconds_of(agent.name, size))
            agent.end(
                ident,
                outcome=task_pb2.Outcome(
                    kind=task_pb2.OUTCOME_KIND_SUCCEEDED,
                    output_json=b"1",
                    started_at_ms=began_ms,
                    ended_at_ms=began_ms + took_ms,
                ),
            )
        await acknowledged(agents, idents)
    return batches * BATCH


async def taken(agents: list[FakeAgent], idents: list[TaskId]) -> None:
    await soon(lambda: all(taker(agents, ident) is not None for ident in idents))


async def acknowledged(agents: list[FakeAgent], idents: list[TaskId]) -> None:
    await soon(lambda: all(any((i, 1) in a.acks for a in agents) for i in idents))


def taker(agents: list[FakeAgent], ident: TaskId) -> FakeAgent | None:
    return next((a for a in agents if (ident, 1) in a.assigned), None)


async def kept(cluster: Cluster) -> int:
    return len(await Archive(cluster.storage, 0).load_attempts(10_000))


async def models(cluster: Cluster) -> list[StoredModel]:
    request = storage_pb2.GetValueRequest(tenant=LEARNING_TENANT, key="models")
    answer = await cluster.storage.call(
        storage_pb2_grpc.DataServiceStub, "GetValue", request, timeout_s=10.0, retry=True
    )
    return msgspec.json.decode(answer.value, type=list[StoredModel]) if answer.found else []


async def kill_leader(cluster: Cluster) -> PythonService:
    """The next leader, once it leads."""
    old = await cluster.leader()
    cluster.process(old).kill()
    return cluster.process(await cluster.leader(but=old))


async def test_the_next_leader_has_the_window_and_the_model(
    cluster: Cluster, servers: Servers
) -> None:
    agents = [await cluster.join(name, slots=12, cpu=64_000) for name in "ab"]
    leader = cluster.process(await cluster.leader())
    done = 0
    while done < ENOUGH or INSTALLED not in leader.log_text():
        done += await work(cluster, agents, 1)
    await until(lambda: _has_models(cluster))
    while JUDGED not in leader.log_text():
        done += await work(cluster, agents, 1)
    await until(lambda: _has_choices(cluster))

    # What is noted and not written yet goes with a leader: some seconds of it.
    await until(lambda: _has_attempts(cluster, 200))
    assert await kept(cluster) <= done
    first = await kill_leader(cluster)
    await soon(lambda: LEARNED in first.log_text())
    newest = (await models(cluster))[0]
    loaded = next(line for line in first.log_text().splitlines() if LEARNED in line)
    assert f"model={newest.version}" in loaded or f'"model": {newest.version}' in loaded
    assert "muster_model_version 0.0" not in first.metrics()
    assert Bandit(CONTEXT_WIDTH).load_json(await choices(cluster)) is None

    # Every blob of a model is spoiled where it lies: tasks go on, and the log says what to do.
    for path in (servers.storage.folder / "blobs" / LEARNING_TENANT).rglob("*"):
        if path.is_file():
            path.write_bytes(b"x" * path.stat().st_size)
    next(s for s in servers.schedulers if s is not first).start()
    await soon(lambda: all(s.readiness()[0] == 200 for s in servers.schedulers))
    second = await kill_leader(cluster)
    await soon(lambda: "a stored run-time model is corrupt" in second.log_text())
    alarm = next(line for line in second.log_text().splitlines() if "model is corrupt" in line)
    assert "error" in alarm.lower()
    assert "declared estimates serve" in alarm
    agents = [await cluster.agent(name) for name in "ab"]
    await work(cluster, agents, 1)


async def choices(cluster: Cluster) -> bytes:
    """What `auto` has learned, as it is kept."""
    return await Archive(cluster.storage, 0).load_choices()


async def _has_choices(cluster: Cluster) -> bool:
    return bool(await choices(cluster))


async def _has_models(cluster: Cluster) -> bool:
    return bool(await models(cluster))


async def _has_attempts(cluster: Cluster, least: int) -> bool:
    return await kept(cluster) >= least
