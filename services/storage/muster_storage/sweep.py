"""Removes what is no longer kept: ended tasks, requests without tasks, blobs that nobody needs.

Ages are cluster time, so nothing grows old while no leader is there. Several services may sweep at
once: every step is one script that looks again before it removes.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass

import structlog

from muster.api.v1 import task_pb2
from muster.domain.errors import MusterError, Unavailable
from muster.domain.ids import TenantId, request_prefix
from muster_storage.blobs import BlobFiles
from muster_storage.intake import labels_of
from muster_storage.metrics import SWEPT
from muster_storage.records import Expired, Removal
from muster_storage.task_store import Store

# Of one round trip; Redis is left to others between two of them.
BATCH = 100
# However many there are: who submits a hundred thousand tasks must find the first result when he
# comes to read it, and a repeated request the tasks that it made.
KEPT_AT_LEAST_MS = 600_000
# A request whose tasks are still there is looked at again after this much cluster time.
LOOK_AGAIN_MS = 3_600_000
# A file that another service took to delete and has not deleted by then is deleted by us.
BURIAL_MS = 60_000
# No upload takes this long; what is older was left by a process that died.
PART_AGE_S = 24 * 3600.0

_LOG = structlog.get_logger("muster.storage")


@dataclass(frozen=True, slots=True)
class Swept:
    tasks: int
    requests: int
    blobs: int


class Sweeper:
    """`retention_ms` after their end tasks go, `grace_ms` after its last use a blob goes.

    Of ended tasks beyond `retain_tasks` the oldest go before that, once they are
    KEPT_AT_LEAST_MS old.
    """

    def __init__(
        self,
        store: Store,
        files: BlobFiles,
        *,
        retention_ms: int,
        retain_tasks: int,
        request_retention_ms: int,
        grace_ms: int,
    ) -> None:
        self._store = store
        self._files = files
        self._retention_ms = retention_ms
        self._retain_tasks = retain_tasks
        self._request_retention_ms = request_retention_ms
        self._grace_ms = grace_ms

    async def run(self, interval_s: float) -> None:
        """Sweeps every `interval_s` (jittered, so that services take turns) until cancelled."""
        while True:
            await asyncio.sleep(interval_s * random.uniform(0.5, 1.0))  # noqa: S311  jitter
            try:
                swept = await self.sweep()
            except Unavailable:
                # /readyz says so already; the next turn does the work.
                continue
            except MusterError as error:
                _LOG.error("a sweep failed", why=str(error))
                continue
            if swept != Swept(0, 0, 0):
                _LOG.info("swept", tasks=swept.tasks, requests=swept.requests, blobs=swept.blobs)

    async def sweep(self) -> Swept:
        """One sweep of all that is due now."""
        clock_ms = await self._store.cluster.clock_ms()
        swept = Swept(
            await self._sweep_tasks(clock_ms),
            await self._sweep_requests(clock_ms),
            await self._sweep_blobs(clock_ms),
        )
        await self._files.discard_parts(PART_AGE_S)
        return swept

    async def _sweep_tasks(self, clock_ms: int) -> int:
        tasks, total = self._store.tasks, 0
        while old := await tasks.expired(clock_ms - self._retention_ms, BATCH):
            total += await self._remove(old)
        settled_ms = clock_ms - min(KEPT_AT_LEAST_MS, self._retention_ms)
        while many := await tasks.surplus(self._retain_tasks, settled_ms, BATCH):
            total += await self._remove(many)
        SWEPT.labels("task").inc(total)
        return total

    async def _remove(self, tasks: list[Expired]) -> int:
        removals = []
        for task in tasks:
            spec = task_pb2.TaskSpec.FromString(task.spec)
            removals.append(Removal(task.tenant, task.id, spec.skill, labels_of(spec)))
        return await self._store.tasks.remove(removals)

    async def _sweep_requests(self, clock_ms: int) -> int:
        total = 0
        before_ms = clock_ms - self._request_retention_ms
        while old := await self._store.tasks.old_requests(before_ms, BATCH):
            with_prefixes = [
                (request, request_prefix(TenantId(request.tenant), request.key, request.first_ms))
                for request in old
            ]
            total += await self._store.tasks.forget_requests(
                with_prefixes, before_ms + LOOK_AGAIN_MS
            )
        SWEPT.labels("request").inc(total)
        return total

    async def _sweep_blobs(self, clock_ms: int) -> int:
        total = 0
        while doomed := await self._store.blobs.doom_blobs(
            clock_ms - self._grace_ms, clock_ms - BURIAL_MS, BATCH
        ):
            await self._files.bury(doomed)
            total += len(doomed)
        SWEPT.labels("blob").inc(total)
        return total
