"""Waits for the end of tasks that skills have submitted: one poll of storage for all of them."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass
from typing import Final

from muster.agent.peers import Peers
from muster.api.v1 import storage_pb2
from muster.api.v1.storage_pb2_grpc import StorageServiceStub
from muster.domain.errors import DeadlineExceeded, MusterError, NotFound, Overloaded, Unavailable
from muster.domain.ids import TaskId, TenantId
from muster.domain.task_lifecycle import TaskState, is_ended
from muster.rpc.conversion import state_from_proto

_FIRST_PAUSE_S: Final = 0.02
_LAST_PAUSE_S: Final = 0.5
_GROWTH: Final = 1.5
_CALL_S: Final = 10.0
# Results of up to 64 KiB come with the answer, which must stay below gRPC's message size.
_MAX_IDS: Final = 100


@dataclass(frozen=True, slots=True)
class EndedChild:
    """How a child ended."""

    state: TaskState
    output_json: bytes
    output_blob: str
    error: str


class ChildWatch:
    """Polls while somebody waits, the faster the shorter ago something changed."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers
        self._waiting: dict[tuple[TenantId, TaskId], list[asyncio.Future[EndedChild]]] = {}
        self._pause_s = _FIRST_PAUSE_S
        self._poller: asyncio.Task[None] | None = None

    async def ended(self, tenant: TenantId, ident: TaskId) -> EndedChild:
        """Waits for the task's end; raises NotFound."""
        future: asyncio.Future[EndedChild] = asyncio.get_running_loop().create_future()
        key = (tenant, ident)
        self._waiting.setdefault(key, []).append(future)
        self._pause_s = _FIRST_PAUSE_S
        if self._poller is None or self._poller.done():
            self._poller = asyncio.create_task(self._poll())
        try:
            return await future
        finally:
            futures = self._waiting.get(key, [])
            if future in futures:
                futures.remove(future)
            if not futures:
                self._waiting.pop(key, None)

    async def close(self) -> None:
        """Ends the poll."""
        if self._poller is not None:
            self._poller.cancel()
            await asyncio.gather(self._poller, return_exceptions=True)

    async def _poll(self) -> None:
        while self._waiting:
            await asyncio.sleep(self._pause_s)
            self._pause_s = min(_LAST_PAUSE_S, self._pause_s * _GROWTH)
            by_tenant: dict[TenantId, list[TaskId]] = defaultdict(list)
            for tenant, ident in self._waiting:
                by_tenant[tenant].append(ident)
            for tenant, idents in by_tenant.items():
                for start in range(0, len(idents), _MAX_IDS):
                    try:
                        await self._ask(tenant, idents[start : start + _MAX_IDS])
                    except (Unavailable, DeadlineExceeded, Overloaded):
                        self._pause_s = _LAST_PAUSE_S
                    except MusterError as error:
                        self._fail(tenant, idents[start : start + _MAX_IDS], error)

    def _fail(self, tenant: TenantId, idents: list[TaskId], error: MusterError) -> None:
        for ident in idents:
            for future in self._waiting.get((tenant, ident), []):
                if not future.done():
                    future.set_exception(error)

    async def _ask(self, tenant: TenantId, idents: list[TaskId]) -> None:
        request = storage_pb2.GetTasksRequest(tenant=tenant, ids=idents, without_input=True)
        answer = await self._peers.storage().call(
            StorageServiceStub, "GetTasks", request, timeout_s=_CALL_S, retry=True
        )
        for ident, task in zip(idents, answer.tasks, strict=True):
            futures = self._waiting.get((tenant, ident), [])
            if not task.spec.id:
                self._fail(tenant, [ident], NotFound("task", ident))
                continue
            state = state_from_proto(task.status.state)
            if not is_ended(state):
                continue
            self._pause_s = _FIRST_PAUSE_S
            outcome = task.outcome
            why = outcome.error or task.status.why
            ended = EndedChild(state, outcome.output_json, outcome.output_blob, why)
            for future in futures:
                if not future.done():
                    future.set_result(ended)
