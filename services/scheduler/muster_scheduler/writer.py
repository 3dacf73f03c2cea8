"""Brings decisions to storage: in batches, repeated until answered, one call of each kind."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import structlog

from muster.api.v1 import storage_pb2, storage_pb2_grpc, task_pb2
from muster.domain.errors import InvalidInput, MusterError
from muster.domain.task import TaskStatus
from muster.rpc import conversion
from muster.rpc.channels import ServiceChannel, full_jitter
from muster_scheduler import metrics
from muster_scheduler.core.records import Write
from muster_scheduler.core.tasks import Verdict
from muster_scheduler.errors import passes

_LOG = structlog.get_logger("muster.scheduler")
_Store = storage_pb2_grpc.StorageServiceStub

MAX_BATCH = 500
# Of one kind: while Redis syncs one, storage takes the next apart. They are about different tasks,
# for each has at most one write under way, so their order does not matter.
CALLS_AT_ONCE = 2
# Half of what a message may hold; inputs of 1 MiB and outputs of 64 KiB would pass it.
MAX_BATCH_BYTES = 8 * 1024 * 1024
# Of a status and a specification without the input, an outcome without output and error.
_OTHER_BYTES = 500
CALL_TIMEOUT_S = 5.0

Answer = tuple[Write, Verdict, TaskStatus | None]

_CREATED: Mapping[int, Verdict] = {
    storage_pb2.CREATE_CODE_CREATED: Verdict.OK,
    storage_pb2.CREATE_CODE_EXISTS: Verdict.STALE,
}
_APPLIED: Mapping[int, Verdict] = {
    storage_pb2.APPLY_CODE_OK: Verdict.OK,
    storage_pb2.APPLY_CODE_STALE: Verdict.STALE,
    storage_pb2.APPLY_CODE_NOT_FOUND: Verdict.GONE,
}


class _Lane:
    """One kind of call, a few at a time: what comes meanwhile goes together with the next."""

    def __init__(self, call: Callable[[list[Write]], Awaitable[None]]) -> None:
        self._call = call
        self._waiting: deque[Write] = deque()
        self._wake = asyncio.Event()
        self._busy = 0

    @property
    def idle(self) -> bool:
        """Whether what is added now goes out at once."""
        return self._busy < CALLS_AT_ONCE and not self._waiting

    def add(self, writes: list[Write]) -> None:
        if writes:
            self._waiting.extend(writes)
            self._wake.set()

    async def work(self) -> None:
        """One of the CALLS_AT_ONCE that do this at a time."""
        while True:
            while not self._waiting:
                self._wake.clear()
                await self._wake.wait()
            batch = self._next_batch()
            metrics.COMMIT_ITEMS.observe(len(batch))
            self._busy += 1
            try:
                with metrics.COMMIT_SECONDS.time():
                    await self._call(batch)
            finally:
                self._busy -= 1

    def _next_batch(self) -> list[Write]:
        waiting = self._waiting
        batch: list[Write] = []
        size = 0
        while waiting and len(batch) < MAX_BATCH:
            size += _size_bytes(waiting[0])
            if batch and size > MAX_BATCH_BYTES:
                break
            batch.append(waiting.popleft())
        return batch


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
        self._creates = _Lane(self._create)
        self._applies = _Lane(self._apply)

    @property
    def idle(self) -> bool:
        """Whether a compare-and-set would go out at once."""
        return self._applies.idle

    def add(self, writes: Sequence[Write]) -> None:
        """Takes writes; each is answered once through `on_written`."""
        self._creates.add([w for w in writes if w.expect is None])
        self._applies.add([w for w in writes if w.expect is not None])

    async def run(self) -> None:
        """Writes until cancelled; raises StaleTerm when the term is lost."""
        async with asyncio.TaskGroup() as group:
            for _ in range(CALLS_AT_ONCE):
                group.create_task(self._creates.work(), name="create")
                group.create_task(self._applies.work(), name="apply")

    async def _create(self, writes: list[Write]) -> None:
        request = storage_pb2.CreateRequest(term=self._term, brief=True)
        add = request.tasks.add
        for write in writes:
            task = add()
            task.spec.CopyFrom(write.task.wire)  # type: ignore[arg-type]
            conversion.fill_status(task.status, write.status)
        try:
            response = await self._call("Create", request)
        except InvalidInput as error:
            await self._one_by_one(writes, self._create, error)
            return
        self._on_written(_answers(writes, response.results, _CREATED))

    async def _apply(self, writes: list[Write]) -> None:
        request = storage_pb2.ApplyRequest(term=self._term, brief=True)
        add = request.transitions.add
        for write in writes:
            _fill_transition(add(), write)
        try:
            response = await self._call("Apply", request)
        except InvalidInput as error:
            await self._one_by_one(writes, self._apply, error)
            return
        self._on_written(_answers(writes, response.results, _APPLIED))

    async def _one_by_one(
        self,
        writes: list[Write],
        again: Callable[[list[Write]], Awaitable[None]],
        error: InvalidInput,
    ) -> None:
        """Storage takes a batch whole or not at all: one that it refuses is found by halving, so
        that it stops nobody else's."""
        if len(writes) > 1:
            half = len(writes) // 2
            await again(writes[:half])
            await again(writes[half:])
            return
        _LOG.error("storage refuses a write", task=writes[0].task.id, why=str(error))
        self._on_written([(writes[0], Verdict.GONE, None)])

    async def _call(self, method: str, request: object) -> Any:
        """Repeats until storage answers: a write that got through before counts as done."""
        failures = 0
        while True:
            address = self._storage.address
            try:
                answer = await self._storage.call(
                    _Store, method, request, timeout_s=CALL_TIMEOUT_S, streamed=True
                )
            except MusterError as error:
                if not passes(error):
                    raise
                if failures == 0:
                    _LOG.warning("storage does not take writes", reason=str(error))
                failures += 1
                self._storage.turn_from(address, error)
                await asyncio.sleep(full_jitter(failures))
            else:
                return answer


def _size_bytes(write: Write) -> int:
    """About what it adds to a message."""
    size = _OTHER_BYTES
    if write.expect is None:
        size += len(write.task.spec.input_json)
    outcome = write.status.outcome
    return size if outcome is None else size + len(outcome.output_json) + len(outcome.error)


def _answers(
    writes: list[Write], results: Sequence[Any], verdicts: Mapping[int, Verdict]
) -> list[Answer]:
    if not results:
        # The brief answer: all that was asked for is done.
        return [(write, Verdict.OK, None) for write in writes]
    answers: list[Answer] = []
    for write, result in zip(writes, results, strict=True):
        verdict = verdicts[result.code]
        standing = _standing(result.status) if verdict is Verdict.STALE else None
        answers.append((write, verdict, standing))
    return answers


def _standing(status: task_pb2.TaskStatus) -> TaskStatus | None:
    try:
        return conversion.status_from_proto(status)
    except InvalidInput as error:
        # Written by a newer version; the task is looked up, and left alone then.
        _LOG.error("a stored status is not understood", why=str(error))
        return None


def _fill_transition(message: storage_pb2.Transition, write: Write) -> None:
    assert write.expect is not None
    state, attempt = write.expect
    spec = write.task.spec
    message.tenant = spec.tenant
    message.id = spec.id
    message.skill = spec.skill
    message.expect_state = conversion.TASK_STATE_TO_PROTO[state]
    message.expect_attempt = attempt
    conversion.fill_status(message.status, write.status)
    if write.status.outcome is not None:
        conversion.fill_outcome(message.outcome, write.status.outcome)
