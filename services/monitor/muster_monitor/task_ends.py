"""Tells log readers when the tasks that they follow have ended.

One batched read per tenant and half second while somebody follows: that costs the followed tasks
only, where a tail of all events would cost every task of the cluster.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict

import structlog

from muster.api.v1 import storage_pb2 as pb
from muster.api.v1 import storage_pb2_grpc
from muster.domain.errors import MusterError
from muster.domain.ids import TaskId, TenantId
from muster.domain.task_lifecycle import is_ended
from muster.rpc.channels import ServiceChannel, full_jitter
from muster.rpc.conversion import state_from_proto

_LOG = structlog.get_logger("muster.monitor")

_EVERY_S = 0.5
_CALL_TIMEOUT_S = 5.0


class TaskEnds:
    """Counts who follows which task; what is known of a task nobody follows is forgotten."""

    def __init__(self, storage: ServiceChannel) -> None:
        self._storage = storage
        self._followed: Counter[tuple[TenantId, TaskId]] = Counter()
        self._ended: dict[tuple[TenantId, TaskId], int] = {}
        self._work = asyncio.Event()

    def follow(self, tenant: TenantId, task: TaskId) -> None:
        self._followed[(tenant, task)] += 1
        self._work.set()

    def unfollow(self, tenant: TenantId, task: TaskId) -> None:
        self._followed[(tenant, task)] -= 1
        if not self._followed[(tenant, task)]:
            del self._followed[(tenant, task)]
            self._ended.pop((tenant, task), None)

    def ended_at_ms(self, tenant: TenantId, task: TaskId) -> int | None:
        """Unix ms of the end of a followed task; None while it has not ended (or is unknown)."""
        return self._ended.get((tenant, task))

    async def find(self, tenant: TenantId, task: TaskId) -> int | None:
        """Unix ms of the task's end, 0 while it is open; None when there is no such task."""
        found = await self._ask(tenant, [task])
        return found[task]

    async def run(self) -> None:
        """Asks while somebody follows, until cancelled."""
        failures = 0
        while True:
            if not self._followed:
                self._work.clear()
                await self._work.wait()
            try:
                await self._look()
                failures = 0
                await asyncio.sleep(_EVERY_S)
            except MusterError as error:
                if failures == 0:
                    _LOG.warning("storage does not say which tasks ended", reason=str(error))
                failures += 1
                await asyncio.sleep(_EVERY_S + full_jitter(failures))

    async def _look(self) -> None:
        by_tenant: defaultdict[TenantId, list[TaskId]] = defaultdict(list)
        for tenant, task in self._followed:
            if (tenant, task) not in self._ended:
                by_tenant[tenant].append(task)
        for tenant, tasks in by_tenant.items():
            for task, ended_at_ms in (await self._ask(tenant, tasks)).items():
                # A task that is gone will write no more.
                if ended_at_ms != 0 and (tenant, task) in self._followed:
                    self._ended[(tenant, task)] = ended_at_ms or 1

    async def _ask(self, tenant: TenantId, tasks: list[TaskId]) -> dict[TaskId, int | None]:
        answer = await self._storage.call(
            storage_pb2_grpc.StorageServiceStub,
            "GetTasks",
            pb.GetTasksRequest(tenant=tenant, ids=tasks, without_input=True, without_output=True),
            timeout_s=_CALL_TIMEOUT_S,
            retry=True,
        )
        found: dict[TaskId, int | None] = {}
        for ident, task in zip(tasks, answer.tasks, strict=True):
            if not task.HasField("spec"):
                found[ident] = None
            elif is_ended(state_from_proto(task.status.state)):
                found[ident] = task.status.ended_at_ms or 1
            else:
                found[ident] = 0
        return found
