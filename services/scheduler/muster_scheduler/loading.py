"""Reads open tasks from storage: all of them at first, then those that others create or change."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

import structlog

from muster.api.v1 import storage_pb2, storage_pb2_grpc, task_pb2
from muster.domain.errors import InvalidInput, MusterError, StaleTerm
from muster.domain.ids import TaskId, TenantId
from muster.domain.task_lifecycle import TaskState
from muster.rpc import conversion
from muster.rpc.channels import ServiceChannel, full_jitter
from muster.rpc.status import rpc_errors
from muster_scheduler.core import tasks
from muster_scheduler.core.records import Now
from muster_scheduler.core.state import ClusterState
from muster_scheduler.errors import passes

_LOG = structlog.get_logger("muster.scheduler")
_Store = storage_pb2_grpc.StorageServiceStub
_POLICY_CHANGED = storage_pb2.EVENT_KIND_POLICY_CHANGED

# Of all open tasks; a million take about a minute.
LOAD_TIMEOUT_S = 120.0
LOOK_UP_TIMEOUT_S = 5.0
# Tasks of one look-up; halved while their inputs do not fit in one answer.
MAX_LOOK_UP = 500


class Loader:
    """Fills the leader's state. `ready` is set once all open tasks have been loaded.

    `policy_changed` is called when the stored policy may be another one than it was.
    """

    def __init__(
        self,
        storage: ServiceChannel,
        term: int,
        state: ClusterState,
        now: Callable[[], Now],
        wake: Callable[[], None],
        policy_changed: Callable[[], None],
    ) -> None:
        self.ready = asyncio.Event()
        self._storage = storage
        self._term = term
        self._state = state
        self._now = now
        self._wake = wake
        self._policy_changed = policy_changed
        # (tenant, id, whether it may be one that an agent holds)
        self._wanted: deque[tuple[TenantId, TaskId, bool]] = deque()
        self._wanted_some = asyncio.Event()

    async def run(self) -> None:
        """Loads, then follows, until cancelled; raises StaleTerm when the term is lost."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._load_and_tail(), name="load and tail")
            group.create_task(self._look_up_wanted(), name="look up")

    def reload(self, idents: Sequence[tuple[TenantId, TaskId]]) -> None:
        """Has tasks looked up of which storage holds another state than was believed."""
        self._want([(tenant, ident, True) for tenant, ident in idents])

    async def find(self, tenant: TenantId, idents: Sequence[TaskId]) -> dict[TaskId, TaskState]:
        """Looks up tasks at once and takes over the open ones; unknown ids are left out."""
        found: dict[TaskId, TaskState] = {}
        for start in range(0, len(idents), MAX_LOOK_UP):
            messages = await self._fetch(tenant, idents[start : start + MAX_LOOK_UP])
            self._take_over(messages, held_too=False)
            for message in messages:
                if message.HasField("spec"):
                    state = conversion.state_from_proto(message.status.state)
                    found[TaskId(message.spec.id)] = state
        return found

    def _want(self, wanted: Sequence[tuple[TenantId, TaskId, bool]]) -> None:
        self._wanted.extend(w for w in wanted if w[1] not in self._state.tasks)
        if self._wanted:
            self._wanted_some.set()

    # ---------------------------------------------------------- all, and what follows

    async def _load_and_tail(self) -> None:
        failures = 0
        position = ""
        while True:
            address = self._storage.address
            try:
                if not position:
                    position = await self._load()
                    self.ready.set()
                    # What changed before `position` is in no event.
                    self._policy_changed()
                    self._wake()
                async with aclosing(self._tail(position)) as passed:
                    async for last_id in passed:
                        failures = 0
                        position = last_id
            except StaleTerm:
                raise
            except MusterError as error:
                if failures == 0:
                    _LOG.warning("reading from storage was interrupted", reason=str(error))
                self._storage.turn_from(address, error)
            failures += 1
            await asyncio.sleep(full_jitter(failures))

    async def _load(self) -> str:
        """Returns the position from which to tail. What storage holds while it is read for the
        first time stands still, for only a leader changes it."""
        position = ""
        count = 0
        first = not self.ready.is_set()
        call = self._storage.stream(
            _Store,
            "LoadOpen",
            storage_pb2.LoadOpenRequest(term=self._term),
            timeout_s=LOAD_TIMEOUT_S,
        )
        try:
            with rpc_errors("storage", LOAD_TIMEOUT_S):
                async for message in call:
                    position = message.tail_from or position
                    self._take_over(message.tasks, held_too=first)
                    count += len(message.tasks)
        finally:
            call.cancel()
        _LOG.info("open tasks are loaded", tasks=count, term=self._term)
        return position or "0"

    async def _tail(self, position: str) -> AsyncGenerator[str, None]:
        """Positions as they are passed; "" when events were missed and all must be loaded."""
        request = storage_pb2.TailRequest(
            from_id=position,
            kinds=[storage_pb2.EVENT_KIND_TASK_CREATED, _POLICY_CHANGED],
            only_term_zero=True,
        )
        call = self._storage.stream(_Store, "Tail", request)
        try:
            with rpc_errors("storage"):
                async for message in call:
                    if message.gap:
                        yield ""
                        return
                    created = [e for e in message.events if e.kind != _POLICY_CHANGED]
                    if len(created) < len(message.events):
                        self._policy_changed()
                    self._want([(TenantId(e.tenant), TaskId(e.task_id), False) for e in created])
                    yield message.last_id or position
        finally:
            call.cancel()

    # ------------------------------------------------------------------------ single ones

    async def _look_up_wanted(self) -> None:
        failures = 0
        while True:
            await self._wanted_some.wait()
            self._wanted_some.clear()
            while self._wanted:
                count = min(MAX_LOOK_UP, len(self._wanted))
                batch = [self._wanted.popleft() for _ in range(count)]
                address = self._storage.address
                try:
                    await self._look_up(batch)
                    failures = 0
                except MusterError as error:
                    if not passes(error):
                        raise
                    if failures == 0:
                        _LOG.warning("tasks cannot be looked up yet", reason=str(error))
                    failures += 1
                    self._wanted.extendleft(reversed(batch))
                    self._storage.turn_from(address, error)
                    await asyncio.sleep(full_jitter(failures))

    async def _look_up(self, batch: Sequence[tuple[TenantId, TaskId, bool]]) -> None:
        groups: dict[tuple[TenantId, bool], list[TaskId]] = {}
        for tenant, ident, held_too in batch:
            groups.setdefault((tenant, held_too), []).append(ident)
        for (tenant, held_too), idents in groups.items():
            messages = await self._fetch(tenant, idents)
            self._take_over(messages, held_too=held_too)
            found = {m.spec.id for m in messages}
            self._state.cancel_again.difference_update(i for i in idents if i not in found)

    async def _fetch(self, tenant: TenantId, idents: Sequence[TaskId]) -> list[task_pb2.Task]:
        request = storage_pb2.GetTasksRequest(tenant=tenant, ids=idents)
        try:
            answer = await self._storage.call(
                _Store, "GetTasks", request, timeout_s=LOOK_UP_TIMEOUT_S
            )
        except InvalidInput as error:
            if len(idents) > 1:
                # They do not fit in one answer (TooLarge), or one of them is at fault.
                half = len(idents) // 2
                first = await self._fetch(tenant, idents[:half])
                return first + await self._fetch(tenant, idents[half:])
            _LOG.error("a task cannot be looked up", task=list(idents), why=str(error))
            return []
        return list(answer.tasks)

    def _take_over(self, messages: Sequence[task_pb2.Task], *, held_too: bool) -> None:
        now = self._now()
        for message in messages:
            if not message.HasField("spec"):
                continue
            try:
                task = conversion.task_from_proto(message)
            except InvalidInput as error:
                # Written by a newer version: left alone for a leader that understands it.
                _LOG.error("a stored task is not understood", task=message.spec.id, why=str(error))
                continue
            tasks.load(self._state, task.spec, task.status, message.spec, now, held_too=held_too)
        self._wake()
