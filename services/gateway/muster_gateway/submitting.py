"""Durable acceptance of tasks: by the leader, or by storage while no leader answers."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from typing import Final

from muster.api.v1 import scheduler_pb2, storage_pb2, storage_pb2_grpc, task_pb2
from muster.domain.errors import (
    Conflict,
    DeadlineExceeded,
    MusterError,
    Overloaded,
    StoreRolledBack,
    Unavailable,
)
from muster.domain.ids import request_prefix, task_id
from muster.rpc.batching import Batcher
from muster.rpc.channels import ServiceChannel
from muster.rpc.clock import wall_ms
from muster_gateway.leader import LeaderClient
from muster_gateway.metrics import TASKS_SUBMITTED
from muster_gateway.task_specs import CHUNK_BYTES, CHUNK_TASKS, CheckedTasks
from muster_gateway.watching import WatchBoard

# A healthy leader answers a chunk within tens of milliseconds; a stopped one is given up after
# this, and the tasks go to storage under the same ids.
_SUBMIT_TIMEOUT_S: Final = 3.0
_CREATE_TIMEOUT_S: Final = 5.0
_RESERVE_TIMEOUT_S: Final = 5.0
# So many chunks of a batch are under way at once: the leader is never idle, and a batch takes
# no more than its share of the leader's queue.
_CHUNKS_AT_ONCE: Final = 4
# Single submissions that wait while one call is under way.
_MAX_PENDING: Final = 10_000


class Submitter:
    """Accepts checked tasks. Ids are fixed before anything is sent, so repeating is safe."""

    def __init__(self, leader: LeaderClient, storage: ServiceChannel, board: WatchBoard) -> None:
        self._leader = leader
        self._storage = storage
        self._board = board
        self._singles: Batcher[task_pb2.TaskSpec, None] = Batcher(
            self._accept_specs,
            max_batch=CHUNK_TASKS,
            max_pending=_MAX_PENDING,
            what="submissions",
            concurrency=2,
        )

    async def submit(
        self, checked: CheckedTasks, *, key: str | None, body_hash: bytes
    ) -> list[str]:
        """The ids, once every task is durable.

        With an idempotency key, a repeated request gets the same ids, and whatever an earlier
        try had left out is created now; another body under the same key raises Conflict.
        Raises Unavailable when neither leader nor storage accepts: the same request with the
        same key completes it later.
        """
        tenant = checked.tenant
        if key is None:
            first_ms, fresh = wall_ms(), True
            prefix = request_prefix(tenant, secrets.token_hex(16), first_ms)
        else:
            first_ms, fresh = await self._reserve(tenant, key, body_hash)
            prefix = request_prefix(tenant, key, first_ms)
        count = len(checked.tasks)
        ids: list[str] = [task_id(prefix, index) for index in range(count)]
        chunks = checked.chunks(prefix, first_ms)
        if fresh:
            # Only ids that were never used before are known to be open.
            self._board.note_new(tenant, ids)
        if count == 1:
            await self._singles.submit(chunks[0].tasks[0])
        else:
            await self._accept_chunks(chunks)
        return ids

    async def close(self) -> None:
        await self._singles.close()

    async def _reserve(self, tenant: str, key: str, body_hash: bytes) -> tuple[int, bool]:
        request = storage_pb2.ReserveRequest(
            tenant=tenant, key=key, body_hash=body_hash, now_ms=wall_ms()
        )
        try:
            reserved: storage_pb2.ReserveResponse = await self._storage.call(
                storage_pb2_grpc.StorageServiceStub,
                "Reserve",
                request,
                timeout_s=_RESERVE_TIMEOUT_S,
                retry=True,
                streamed=True,
            )
        except DeadlineExceeded as error:
            raise Unavailable("storage", str(error)) from error
        if reserved.conflict:
            raise Conflict(
                "Idempotency-Key: it was used before with another body; use a new key, "
                "or send the same body"
            )
        if reserved.gone:
            raise Conflict(
                "Idempotency-Key: the tasks of this request have ended, and were removed by "
                "retention; to run them again, use a new key"
            )
        return reserved.first_ms, reserved.first

    async def _accept_chunks(self, chunks: Sequence[scheduler_pb2.SubmitRequest]) -> None:
        """Started in order, a few at a time; the first error stops those not yet started."""
        waiting = iter(chunks)

        async def work() -> None:
            for chunk in waiting:
                await self._accept(chunk)

        workers = [
            asyncio.create_task(work(), name="submit chunks")
            for _ in range(min(_CHUNKS_AT_ONCE, len(chunks)))
        ]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
            # An error's traceback holds this frame, and its workers the error: a ring that would
            # keep the whole batch until the collector comes.
            workers.clear()

    async def _accept_specs(self, specs: list[task_pb2.TaskSpec]) -> list[None]:
        """Single submissions that came together, in as few messages as their size allows."""
        start = size = 0
        for index, spec in enumerate(specs):
            size += len(spec.input_json)
            if size > CHUNK_BYTES:
                if index > start:
                    await self._accept(scheduler_pb2.SubmitRequest(tasks=specs[start:index]))
                start, size = index, len(spec.input_json)
        await self._accept(scheduler_pb2.SubmitRequest(tasks=specs[start:]))
        return [None] * len(specs)

    async def _accept(self, chunk: scheduler_pb2.SubmitRequest) -> None:
        """Durable when it returns."""
        try:
            await self._leader.call("Submit", chunk, timeout_s=_SUBMIT_TIMEOUT_S)
        except StoreRolledBack:
            # What is written now may be gone once the operator has put things right.
            raise
        except (Unavailable, DeadlineExceeded) as error:
            await self._create(chunk, error)
            TASKS_SUBMITTED.labels("storage").inc(len(chunk.tasks))
        else:
            TASKS_SUBMITTED.labels("leader").inc(len(chunk.tasks))

    async def _create(self, chunk: scheduler_pb2.SubmitRequest, reason: MusterError) -> None:
        """Writes the tasks as PENDING; a leader finds them there."""
        pending = task_pb2.TaskStatus(
            version=task_pb2.SCHEMA_VERSION_1, state=task_pb2.TASK_STATE_PENDING
        )
        request = storage_pb2.CreateRequest(
            tasks=[task_pb2.Task(spec=spec, status=pending) for spec in chunk.tasks]
        )
        try:
            await self._storage.call(
                storage_pb2_grpc.StorageServiceStub,
                "Create",
                request,
                timeout_s=_CREATE_TIMEOUT_S,
                retry=True,
            )
        except Overloaded:
            raise
        except (Unavailable, DeadlineExceeded) as error:
            raise Unavailable(
                "the cluster", f"{error}; {reason}; repeat the request", retry_after_s=2.0
            ) from error
