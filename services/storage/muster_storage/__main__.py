"""The storage process: one store, one event feed, two servicers, one sweep."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

import structlog

from muster.api.v1.storage_pb2_grpc import (
    add_DataServiceServicer_to_server,
    add_StorageServiceServicer_to_server,
)
from muster.rpc.metrics_http import serve_metrics
from muster.rpc.process import run
from muster.rpc.server import RpcServer
from muster_storage.blobs import BlobFiles
from muster_storage.config import Config
from muster_storage.data_service import DataService
from muster_storage.event_feed import EventFeed
from muster_storage.redis_store import RedisStore
from muster_storage.service import StorageService
from muster_storage.sweep import Sweeper

_LOG = structlog.get_logger("muster.storage")


class Ports(NamedTuple):
    rpc: int
    metrics: int


@asynccontextmanager
async def serving(config: Config) -> AsyncIterator[Ports]:
    """Serves while the block runs; it need not be ready yet when the block begins."""
    store = RedisStore(
        config.redis_url,
        timeout_s=config.redis_timeout_s,
        events_kept=config.events_kept,
        allow_weak=config.allow_weak_redis,
    )
    feed = EventFeed(store.events)
    files = BlobFiles(config.blob_dir, store.blobs, config.blob_max_bytes)
    sweeper = Sweeper(
        store,
        files,
        retention_ms=config.retention_s * 1000,
        retain_tasks=config.retain_tasks,
        request_retention_ms=config.request_retention_s * 1000,
        grace_ms=config.blob_grace_s * 1000,
    )
    server = RpcServer(config.listen, secret=config.secret, service="storage")
    server.add(add_StorageServiceServicer_to_server, StorageService(store, feed))
    server.add(add_DataServiceServicer_to_server, DataService(store, files))
    metrics = serve_metrics(config.metrics_listen, store.why_not_ready)
    async with asyncio.TaskGroup() as group:
        work = [
            group.create_task(store.run(), name="store"),
            group.create_task(feed.run(), name="event feed"),
            group.create_task(sweeper.run(config.sweep_interval_s), name="sweep"),
        ]
        try:
            ports = Ports(await server.start(), await metrics.start())
            _LOG.info("listening", port=ports.rpc, metrics_port=ports.metrics)
            yield ports
        finally:
            feed.close()
            await server.stop()
            await metrics.stop()
            for task in work:
                task.cancel()


async def serve(stop: asyncio.Event) -> None:
    """Serves as the environment says until `stop` is set."""
    async with serving(Config.from_env(os.environ)):
        await stop.wait()


def main() -> None:
    """Entry point of `muster service storage`."""
    run(serve, service="storage")


if __name__ == "__main__":
    main()
