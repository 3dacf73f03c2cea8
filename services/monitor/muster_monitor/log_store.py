"""Moves task logs between memory and storage, and tries again for as long as storage is away."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable

import structlog

from muster.api.v1 import storage_pb2 as pb
from muster.api.v1 import storage_pb2_grpc
from muster.domain.errors import DeadlineExceeded, MusterError, NotFound, Overloaded, Unavailable
from muster.domain.ids import TaskId, TenantId
from muster.rpc.channels import ServiceChannel, full_jitter
from muster.rpc.listeners import wait_for
from muster_monitor import metrics
from muster_monitor.log_lines import Line, decode_all
from muster_monitor.state import MonitorState
from muster_monitor.task_logs import Flush, LogKey

_LOG = structlog.get_logger("muster.monitor")

# One log is at most 1 MiB: even a slow disk takes that in time.
_BLOB_TIMEOUT_S = 10.0
_CALL_TIMEOUT_S = 5.0
# A log that is read while it is stored must not take the memory of many.
_CHUNK_BYTES = 256 * 1024
_AT_ONCE = 4
_PER_ROUND = 64
# How often growing logs are looked at; ended ones are stored as soon as they end.
_LOOK_EVERY_S = 1.0
_TEMPORARY = (Unavailable, DeadlineExceeded, Overloaded)


class LogStore:
    """The only part of the monitor that speaks to storage about logs."""

    def __init__(
        self, state: MonitorState, storage: ServiceChannel, boot_ms: Callable[[], int]
    ) -> None:
        self._state = state
        self._storage = storage
        self._boot_ms = boot_ms
        self._slots = asyncio.Semaphore(_AT_ONCE)

    async def run(self) -> None:
        """Stores what is due until cancelled."""
        failures = 0
        with self._state.logs_ended.listening() as ended:
            while True:
                due = self._state.logs.due(self._boot_ms(), _PER_ROUND)
                if not due:
                    await wait_for(ended, _LOOK_EVERY_S)
                    continue
                try:
                    await self._store(due)
                    failures = 0
                except MusterError as error:
                    if failures == 0:
                        _LOG.warning("task logs cannot be stored", reason=str(error))
                    failures += 1
                    await asyncio.sleep(full_jitter(failures, 0.1, 2.0))

    async def drain(self, within_s: float) -> None:
        """Stores all that storage does not hold yet, at the end of the process."""
        try:
            async with asyncio.timeout(within_s):
                while keys := self._state.logs.all_dirty()[:_PER_ROUND]:
                    await self._store(keys)
        except (TimeoutError, MusterError) as error:
            left = self._state.logs.dirty_count
            _LOG.warning("logs stay with their agents", logs=left, reason=str(error))

    async def refs(self, tenant: TenantId, task: TaskId) -> dict[int, pb.TaskLogRef]:
        """Attempts of the task whose logs storage holds."""
        answer = await self._storage.call(
            storage_pb2_grpc.DataServiceStub,
            "GetTaskLogs",
            pb.GetTaskLogsRequest(tenant=tenant, task_id=task),
            timeout_s=_CALL_TIMEOUT_S,
            retry=True,
        )
        return {ref.attempt: ref for ref in answer.logs}

    async def read(self, tenant: TenantId, sha256: str) -> list[Line]:
        """The lines of a stored log; empty when the blob is gone."""
        blob = bytearray()
        call = self._storage.stream(
            storage_pb2_grpc.DataServiceStub,
            "GetBlob",
            pb.GetBlobRequest(tenant=tenant, sha256=sha256),
            timeout_s=_BLOB_TIMEOUT_S,
        )
        try:
            with self._storage.errors(_BLOB_TIMEOUT_S):
                async for message in call:
                    blob += message.chunk
        except NotFound:
            return []
        finally:
            call.cancel()
        return decode_all(bytes(blob))

    async def load_older(self, key: LogKey) -> None:
        """Brings the stored part of a log back under the lines that came since."""
        ref = (await self.refs(key.tenant, key.task)).get(key.attempt)
        older = await self.read(key.tenant, ref.sha256) if ref is not None else []
        self._state.logs.merge_older(key, older)

    async def _store(self, keys: list[LogKey]) -> None:
        started_s = time.perf_counter()
        results = await asyncio.gather(*(self._put(key) for key in keys), return_exceptions=True)
        stored = [item for item in results if isinstance(item, tuple)]
        if stored:
            await self._storage.call(
                storage_pb2_grpc.DataServiceStub,
                "SetTaskLogs",
                pb.SetTaskLogsRequest(logs=[ref for _, ref in stored]),
                timeout_s=_CALL_TIMEOUT_S,
                retry=True,
            )
            now_ms = self._boot_ms()
            for flush, _ in stored:
                self._state.logs.stored(flush, now_ms)
            metrics.STORES.labels("ok").inc(len(stored))
            metrics.STORE_SECONDS.observe(time.perf_counter() - started_s)
        self._state.logs_stored.fire()
        for key, result in zip(keys, results, strict=True):
            if isinstance(result, BaseException):
                self._failed(key, result)
        for result in results:
            if isinstance(result, _TEMPORARY):
                raise result

    def _failed(self, key: LogKey, error: BaseException) -> None:
        if not isinstance(error, MusterError):
            raise error
        metrics.STORES.labels(error.code).inc()
        if not isinstance(error, _TEMPORARY):
            _LOG.error("a log is given up", task=key.task, attempt=key.attempt, why=str(error))
            self._state.logs.give_up(key)
            self._state.logs_stored.fire()

    async def _put(self, key: LogKey) -> tuple[Flush, pb.TaskLogRef] | None:
        """Stores one log's blob; None when there was nothing to store."""
        async with self._slots:
            log = self._state.logs.get(key)
            if log is not None and log.wants_older:
                await self.load_older(key)
            flush = self._state.logs.flush_of(key)
            if flush is None:
                return None
            if not flush.blob:
                # The end of a log of which nothing was kept anywhere.
                self._state.logs.give_up(key)
                return None
            sha256 = hashlib.sha256(flush.blob).hexdigest()
            call = self._storage.stream(
                storage_pb2_grpc.DataServiceStub,
                "PutBlob",
                _parts(key.tenant, sha256, flush.blob),
                timeout_s=_BLOB_TIMEOUT_S,
            )
            with self._storage.errors(_BLOB_TIMEOUT_S):
                answer = await call
        ref = pb.TaskLogRef(
            tenant=key.tenant,
            task_id=key.task,
            attempt=key.attempt,
            sha256=answer.sha256,
            size_bytes=answer.size_bytes,
            complete=flush.complete,
            next_index=flush.next_index,
        )
        return flush, ref


async def _parts(tenant: TenantId, sha256: str, blob: bytes) -> AsyncIterator[pb.PutBlobRequest]:
    yield pb.PutBlobRequest(header=pb.BlobHeader(tenant=tenant, sha256=sha256))
    for start in range(0, len(blob), _CHUNK_BYTES):
        yield pb.PutBlobRequest(chunk=blob[start : start + _CHUNK_BYTES])
