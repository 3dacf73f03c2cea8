"""Brings decisions to storage: in batches, repeated until answered, two calls at a time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import structlog

from muster.api.v1 import storage_pb2, storage_pb2_grpc, task_pb2
from muster.domain.errors import DeadlineExceeded, Unavailable
from muster.domain.task import TaskStatus
from muster.rpc import conversion
from muster.rpc.channels import ServiceChannel, full_jitter
from muster_scheduler import metrics
from muster_scheduler.core.records import Write
from muster_scheduler.core.tasks import Verdict

_LOG = structlog.get_logger("muster.scheduler")
_Store = storage_pb2_grpc.StorageServiceStub

MAX_BATCH = 500
# While one call is under way the next may gather and go; a task is never in both.
CONCURRENT_CALLS = 2
CALL_TIMEOUT_S = 5.0

Answer = tuple[Write, Verdict, TaskStatus | None]

_CREATED = {
    storage_pb2.CREATE_CODE_CREATED: Verdict.OK,
    storage_pb2.CREATE_CODE_EXISTS: Verdict.STALE,
}
_APPLIED = {
    storage_pb2.APPLY_CODE_OK: Verdict.OK,
    storage_pb2.APPLY_CODE_STALE: Verdict.STALE,
    storage_pb2.APPLY_CODE_NOT_FOUND: Verdict.GONE,
}


class Writer:
    """Bounded by the leader's open tasks: each has at most one write in here."""

    def __init__(
        self,
        storage: ServiceChannel,
        term: int,
        on_written: Callable[[Sequence[Answer]], None],
    ) -> None:
        self._storage = storage
        self._term = term
        self._on_written = on_written
        self._waiting: deque[Write] = deque()
        self._wake = asyncio.Event()

    def add(self, writes: Sequence[Write]) -> None:
        """Takes writes; each is answered once through `on_written`."""
        self._waiting.extend(writes)
        self._wake.set()

    async def run(self) -> None:
        """Writes until cancelled; raises StaleTerm when the term is lost."""
        async with asyncio.TaskGroup() as group:
            for _ in range(CONCURRENT_CALLS):
                group.create_task(self._work(), name="write")

    async def _work(self) -> None:
        while True:
            await self._wake.wait()
            while self._waiting:
                count = min(MAX_BATCH, len(self._waiting))
                batch = [self._waiting.popleft() for _ in range(count)]
                await self._write(batch)
            self._wake.clear()

    async def _write(self, batch: list[Write]) -> None:
        metrics.COMMIT_ITEMS.observe(len(batch))
        creates = [w for w in batch if w.expect is None]
        applies = [w for w in batch if w.expect is not None]
        with metrics.COMMIT_SECONDS.time():
            if creates and applies:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._create(creates))
                    group.create_task(self._apply(applies))
            elif creates:
                await self._create(creates)
            else:
                await self._apply(applies)

    async def _create(self, writes: list[Write]) -> None:
        request = storage_pb2.CreateRequest(
            term=self._term,
            tasks=[
                task_pb2.Task(
                    spec=w.task.wire,  # type: ignore[arg-type]
                    status=conversion.status_to_proto(w.status),
                )
                for w in writes
            ],
        )
        response = await self._call("Create", request)
        self._on_written(
            [
                (w, _CREATED[r.code], _standing(r.status, _CREATED[r.code]))
                for w, r in zip(writes, response.results, strict=True)
            ]
        )

    async def _apply(self, writes: list[Write]) -> None:
        request = storage_pb2.ApplyRequest(
            term=self._term, transitions=[_transition(w) for w in writes]
        )
        response = await self._call("Apply", request)
        self._on_written(
            [
                (w, _APPLIED[r.code], _standing(r.status, _APPLIED[r.code]))
                for w, r in zip(writes, response.results, strict=True)
            ]
        )

    async def _call(self, method: str, request: object) -> Any:
        """Repeats until storage answers: a write that got through before counts as done."""
        failures = 0
        while True:
            try:
                answer = await self._storage.call(_Store, method, request, timeout_s=CALL_TIMEOUT_S)
            except (Unavailable, DeadlineExceeded) as error:
                if failures == 0:
                    _LOG.warning("storage does not take writes", reason=str(error))
                failures += 1
                self._storage.rotate()
                await asyncio.sleep(full_jitter(failures))
            else:
                return answer


def _standing(status: task_pb2.TaskStatus, verdict: Verdict) -> TaskStatus | None:
    return conversion.status_from_proto(status) if verdict is Verdict.STALE else None


def _transition(write: Write) -> storage_pb2.Transition:
    assert write.expect is not None
    state, attempt = write.expect
    message = storage_pb2.Transition(
        tenant=write.task.spec.tenant,
        id=write.task.id,
        skill=write.task.spec.skill,
        expect_state=conversion.TASK_STATE_TO_PROTO[state],
        expect_attempt=attempt,
        status=conversion.status_to_proto(write.status),
    )
    if write.status.outcome is not None:
        message.outcome.CopyFrom(conversion.outcome_to_proto(write.status.outcome))
    return message
