"""A Redis that was set back under a cluster of real processes."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tests.integration.scheduler_cluster import Cluster, Servers, cluster_of, until

from muster.api.v1 import scheduler_pb2, scheduler_pb2_grpc, storage_pb2, storage_pb2_grpc
from muster.domain.errors import Conflict, MusterError, StoreRolledBack
from muster_scheduler.store_halt import HALTED


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Servers]:
    made = Servers(tmp_path, 1, redis_timeout_s=2)
    yield made
    made.stop()


@pytest.fixture
async def cluster(servers: Servers) -> AsyncIterator[Cluster]:
    async with cluster_of(servers) as made:
        yield made


def _put(servers: Servers, data: Path) -> None:
    """Gives Redis other data."""
    folder = servers.redis.folder
    servers.redis.kill()
    shutil.rmtree(folder / "appendonlydir", ignore_errors=True)
    for old in folder.glob("appendonly*"):
        old.unlink()
    for path in data.glob("appendonly*"):
        (shutil.copytree if path.is_dir() else shutil.copy)(path, folder / path.name)
    servers.redis.start()


def _copy(servers: Servers, to: Path) -> Path:
    to.mkdir()
    for path in servers.redis.folder.glob("appendonly*"):
        (shutil.copytree if path.is_dir() else shutil.copy)(path, to / path.name)
    return to


async def _halted(cluster: Cluster) -> bool:
    status = await cluster.status()
    return status is not None and bool(status.halted)


async def test_an_older_store_halts_scheduling_until_it_is_accepted_or_put_right(
    cluster: Cluster, servers: Servers, tmp_path: Path
) -> None:
    agent = await cluster.join("a")
    await cluster.submit()
    old = _copy(servers, tmp_path / "old")
    # What etcd has been told must be later than the copy.
    before = (await cluster.standing()).clock_ms

    async def noted() -> bool:
        return (await cluster.standing()).clock_ms > before + 2_500

    await until(noted)
    term = (await cluster.standing()).term
    (last,) = await cluster.submit()
    servers.redis.kill()
    new = _copy(servers, tmp_path / "new")

    _put(servers, old)
    await until(lambda: _halted(cluster))
    with pytest.raises(StoreRolledBack, match=r"rolled back by \d"):
        await cluster.call_once("Submit", scheduler_pb2.SubmitRequest(tasks=cluster.specs()))
    code, said = servers.schedulers[0].readiness()
    assert (code, said[: len(HALTED)]) == (503, HALTED)
    assert 'muster_cluster_alarm{name="store_rolled_back"} 1.0' in servers.schedulers[0].metrics()

    # The right one is put back: nobody has to be asked.
    _put(servers, new)
    await until(lambda: _leads(cluster))
    assert (await cluster.task(last)).HasField("spec")
    with pytest.raises(Conflict, match="nothing to accept"):
        await _accept(cluster)

    _put(servers, old)
    await until(lambda: _halted(cluster))
    await _accept(cluster)
    await until(lambda: _leads(cluster))
    assert (await cluster.standing()).term > term
    assert not (await cluster.task(last)).HasField("spec")
    await cluster.submit()
    assert "is accepted" in servers.schedulers[0].log_text()
    kinds = await _alarms(cluster)
    assert ("store_rolled_back", False) in kinds
    assert agent.over


async def _leads(cluster: Cluster) -> bool:
    status = await cluster.status()
    return status is not None and not status.halted


async def _accept(cluster: Cluster) -> None:
    channel = cluster.channels[cluster.servers.schedulers[0].endpoint]
    await channel.call(
        scheduler_pb2_grpc.SchedulerServiceStub,
        "AcceptStore",
        scheduler_pb2.AcceptStoreRequest(who="the test"),
        timeout_s=30.0,
    )


async def _alarms(cluster: Cluster) -> set[tuple[str, bool]]:
    """Names of alarms in the log, and whether they were over."""
    found: set[tuple[str, bool]] = set()
    call = cluster.storage.stream(
        storage_pb2_grpc.StorageServiceStub, "Tail", storage_pb2.TailRequest(from_id="0")
    )
    try:
        async for message in call:
            for event in message.events:
                if event.kind == storage_pb2.EVENT_KIND_CLUSTER_ALARM:
                    found.add((event.note, not event.why))
            if found:
                return found
    except MusterError:
        pass
    finally:
        call.cancel()
    return found
