"""Tasks from storage: concurrent reads travel together, long-polls wait for the end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Final, TypeGuard

from muster.api.v1 import storage_pb2, storage_pb2_grpc, task_pb2
from muster.domain.errors import MusterError, NotFound, Unavailable
from muster.rpc.batching import Batcher
from muster.rpc.channels import ServiceChannel
from muster.rpc.clock import boot_s
from muster_gateway.tail import ENDED, TailFeed
from muster_gateway.watching import Watch, WatchBoard

_READ_TIMEOUT_S: Final = 5.0
# Results of 64 KiB fill 13 of the 16 MiB of a message; an answer that does not fit is halved.
MAX_READ: Final = 200
# With inputs of 1 MiB.
_MAX_READ_WHOLE: Final = 12
_MAX_PENDING: Final = 10_000
# A long-poll looks this often whether its client is still there.
_CLIENT_CHECK_S: Final = 5.0


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


class TaskReader:
    """Reads single tasks in batches, and waits for their ends."""

    def __init__(self, storage: ServiceChannel, feed: TailFeed, board: WatchBoard) -> None:
        self._storage = storage
        self._feed = feed
        self._board = board
        self._lean: Batcher[tuple[str, str], task_pb2.Task] = Batcher(
            self._read_lean,
            max_batch=MAX_READ,
            max_pending=_MAX_PENDING,
            what="reads of tasks",
            concurrency=2,
        )
        self._whole: Batcher[tuple[str, str], task_pb2.Task] = Batcher(
            self._read_whole,
            max_batch=_MAX_READ_WHOLE,
            max_pending=_MAX_PENDING,
            what="reads of tasks with input",
        )

    async def get(self, tenant: str, ident: str, *, with_input: bool = False) -> task_pb2.Task:
        """Raises NotFound, also for a task of another tenant."""
        batcher = self._whole if with_input else self._lean
        task = await batcher.submit((tenant, ident))
        if not task.HasField("spec"):
            raise NotFound("task", ident)
        return task

    async def get_ended(
        self,
        tenant: str,
        ident: str,
        wait_s: float,
        gone: Callable[[], Awaitable[bool]],
        *,
        with_input: bool = False,
        only_ending: bool = False,
    ) -> task_pb2.Task:
        """The task when it has ended, or as it is after `wait_s` seconds.

        With `only_ending` all but state, attempt, agent and outcome may be left out of it. Raises
        ClientGone when `gone()` says so.
        """
        if wait_s <= 0:
            return await self.get(tenant, ident, with_input=with_input)
        deadline_s = boot_s() + wait_s
        with self._board.watch((ident,)) as watch:
            surely_open = self._feed.live and self._board.standing(tenant, ident) is False
            while True:
                if not surely_open:
                    task = await self.get(tenant, ident, with_input=with_input)
                    if task.status.state in ENDED or boot_s() >= deadline_s or self._feed.closed:
                        return task
                await self._wait(watch, deadline_s)
                taken = watch.take_ended(1)
                if only_ending and taken and _tells(taken[0][1], tenant):
                    return _ended_task(taken[0][1])
                woken = bool(taken) or boot_s() >= deadline_s
                surely_open = not woken and self._feed.live
                if not woken and await gone():
                    raise ClientGone

    async def ended_tasks(
        self, tenant: str, ids: Sequence[str], wait_s: float
    ) -> AsyncIterator[list[tuple[str, task_pb2.Task | None]]]:
        """Ended tasks in the order in which they end, each once; None = there is no such task.

        Ends when all have, or after `wait_s` seconds; what never came is still open.
        """
        deadline_s = boot_s() + wait_s
        board = self._board
        with board.watch(ids) as watch:
            unread = [
                i for i in ids if not (self._feed.live and board.standing(tenant, i) is False)
            ]
            left = set(ids)
            last_look = False
            while left:
                # A first reading of all, then whatever the events point at.
                batch, unread = unread[:MAX_READ], unread[MAX_READ:]
                batch = [i for i in batch if i in left]
                ended: list[tuple[str, task_pb2.Task | None]] = []
                if not batch:
                    for ident, event in watch.take_ended(MAX_READ):
                        if _tells(event, tenant):
                            left.discard(ident)
                            watch.forget(ident)
                            ended.append((ident, _ended_task(event)))
                        else:
                            batch.append(ident)
                if batch or ended:
                    found = await self._read(tenant, batch) if batch else ()
                    for ident, task in zip(batch, found, strict=True):
                        unknown = not task.HasField("spec")
                        if unknown or task.status.state in ENDED:
                            left.discard(ident)
                            watch.forget(ident)
                            ended.append((ident, None if unknown else task))
                    if ended:
                        yield ended
                elif not unread:
                    if last_look:
                        return
                    before_s = boot_s()
                    await self._wait(watch, deadline_s)
                    last_look = boot_s() >= deadline_s or self._feed.closed
                    blind_s = self._feed.reread_s
                    if last_look or (blind_s is not None and boot_s() - before_s >= blind_s):
                        unread = list(left)

    async def list_tasks(
        self, request: storage_pb2.ListTasksRequest
    ) -> storage_pb2.ListTasksResponse:
        """One page; a shorter one where the tasks are too big for a message."""
        while True:
            try:
                page: storage_pb2.ListTasksResponse = await self._storage.call(
                    storage_pb2_grpc.StorageServiceStub,
                    "ListTasks",
                    request,
                    timeout_s=_READ_TIMEOUT_S,
                    retry=True,
                )
            except MusterError as error:
                if type(error) is not MusterError or request.limit <= 1:
                    raise
                request.limit = max(1, request.limit // 4)
            else:
                return page

    async def close(self) -> None:
        await self._lean.close()
        await self._whole.close()

    async def _wait(self, watch: Watch, deadline_s: float) -> None:
        slice_s = self._feed.reread_s or _CLIENT_CHECK_S
        await watch.wait(min(slice_s, deadline_s - boot_s()))

    async def _read_lean(self, wanted: list[tuple[str, str]]) -> list[task_pb2.Task]:
        return await self._read_mixed(wanted, with_input=False)

    async def _read_whole(self, wanted: list[tuple[str, str]]) -> list[task_pb2.Task]:
        return await self._read_mixed(wanted, with_input=True)

    async def _read_mixed(
        self, wanted: list[tuple[str, str]], *, with_input: bool
    ) -> list[task_pb2.Task]:
        """One call for each tenant."""
        by_tenant: dict[str, dict[str, task_pb2.Task]] = {}
        for tenant, ident in wanted:
            by_tenant.setdefault(tenant, {})[ident] = task_pb2.Task()
        for tenant, tasks in by_tenant.items():
            ids = list(tasks)
            found = await self._read(tenant, ids, with_input=with_input)
            by_tenant[tenant] = dict(zip(ids, found, strict=True))
        return [by_tenant[tenant][ident] for tenant, ident in wanted]

    async def _read(
        self, tenant: str, ids: Sequence[str], *, with_input: bool = False
    ) -> Sequence[task_pb2.Task]:
        """In the order of `ids`; one without spec stands for an unknown id."""
        tasks: list[task_pb2.Task] = []
        # Storage may end an answer early, where it would grow too large.
        while len(tasks) < len(ids):
            found = await self._read_some(tenant, ids[len(tasks) :], with_input=with_input)
            if not found:
                raise Unavailable("storage", "it answered a read of tasks with none")
            tasks.extend(found)
        return tasks

    async def _read_some(
        self, tenant: str, ids: Sequence[str], *, with_input: bool
    ) -> Sequence[task_pb2.Task]:
        request = storage_pb2.GetTasksRequest(tenant=tenant, ids=ids, without_input=not with_input)
        try:
            response: storage_pb2.GetTasksResponse = await self._storage.call(
                storage_pb2_grpc.StorageServiceStub,
                "GetTasks",
                request,
                timeout_s=_READ_TIMEOUT_S,
                retry=True,
            )
        except MusterError as error:
            # What gRPC itself says of an answer above its size.
            if type(error) is not MusterError or len(ids) == 1:
                raise
            return await self._read_some(tenant, ids[: len(ids) // 2], with_input=with_input)
        return response.tasks


def _tells(event: storage_pb2.Event | None, tenant: str) -> TypeGuard[storage_pb2.Event]:
    """Whether the event alone answers what came of the task, and to this tenant."""
    return event is not None and event.tenant == tenant


def _ended_task(event: storage_pb2.Event) -> task_pb2.Task:
    """The part of an ended task that its last event holds."""
    return task_pb2.Task(
        spec=task_pb2.TaskSpec(id=event.task_id, tenant=event.tenant, skill=event.skill),
        status=task_pb2.TaskStatus(
            state=event.state, attempt=event.attempt, agent=event.agent, why=event.why
        ),
        outcome=event.outcome,
    )
