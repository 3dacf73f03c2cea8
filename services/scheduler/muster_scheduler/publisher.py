"""Events that change no task: progress, partial output, agents' states. Best effort, bounded."""

from __future__ import annotations

import asyncio
from collections import deque

import structlog

from muster.api.v1 import storage_pb2, storage_pb2_grpc
from muster.domain.errors import MusterError
from muster.rpc.channels import ServiceChannel, full_jitter
from muster.rpc.clock import wall_ms
from muster.rpc.conversion import AGENT_STATE_TO_PROTO
from muster_scheduler import metrics
from muster_scheduler.core.commands import AgentChanged, Stuck
from muster_scheduler.core.stragglers import Straggler
from muster_scheduler.errors import passes

_LOG = structlog.get_logger("muster.scheduler")

# When storage is slow the oldest progress is dropped; readers see it by its index.
MAX_WAITING = 20_000
MAX_WAITING_BYTES = 64 * 1024 * 1024
MAX_BATCH = 500
MAX_BATCH_BYTES = 4 * 1024 * 1024
CALL_TIMEOUT_S = 5.0
MAX_TRIES = 5


class Publisher:
    """Sends events to storage in batches."""

    def __init__(self, storage: ServiceChannel, term: int) -> None:
        self._storage = storage
        self._term = term
        self._waiting: deque[tuple[storage_pb2.Event, int]] = deque()
        self._waiting_bytes = 0
        self._wake = asyncio.Event()

    def add(self, event: storage_pb2.Event) -> None:
        """Takes an event; when there is no room the oldest is dropped and counted."""
        event.term = self._term
        size_bytes = event.ByteSize()
        while self._waiting and (
            len(self._waiting) >= MAX_WAITING
            or self._waiting_bytes + size_bytes > MAX_WAITING_BYTES
        ):
            self._waiting_bytes -= self._waiting.popleft()[1]
            metrics.EVENTS_DROPPED.inc()
        self._waiting.append((event, size_bytes))
        self._waiting_bytes += size_bytes
        self._wake.set()

    def agent_changed(self, change: AgentChanged) -> None:
        """An agent entered a state."""
        self.add(
            storage_pb2.Event(
                kind=storage_pb2.EVENT_KIND_AGENT_CHANGED,
                at_ms=wall_ms(),
                agent=change.agent,
                incarnation=change.incarnation,
                agent_state=AGENT_STATE_TO_PROTO[change.state],
                why=change.why,
            )
        )

    def agent_recovery(self, agent: str, incarnation: int, note: str, why: str) -> None:
        """A recovery began, has another action or is over; `note`: its id, action, outcome."""
        self.add(
            storage_pb2.Event(
                kind=storage_pb2.EVENT_KIND_AGENT_RECOVERY,
                at_ms=wall_ms(),
                agent=agent,
                incarnation=incarnation,
                note=note,
                why=why,
            )
        )

    def straggler(self, late: Straggler, why: str) -> None:
        """An attempt takes far longer than was expected."""
        self.add(
            storage_pb2.Event(
                kind=storage_pb2.EVENT_KIND_TASK_STRAGGLER,
                tenant=late.task.spec.tenant,
                at_ms=wall_ms(),
                task_id=late.task.id,
                attempt=late.attempt,
                agent=late.agent,
                skill=late.task.spec.skill,
                why=why,
            )
        )

    def stuck(self, stuck: Stuck) -> None:
        """An attempt shows no progress and is being ended."""
        self.add(
            storage_pb2.Event(
                kind=storage_pb2.EVENT_KIND_TASK_STUCK,
                tenant=stuck.task.spec.tenant,
                at_ms=wall_ms(),
                task_id=stuck.task.id,
                attempt=stuck.attempt,
                agent=stuck.agent,
                skill=stuck.task.spec.skill,
                why=stuck.why,
            )
        )

    async def run(self) -> None:
        """Publishes until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                await self._send(self._next_batch())

    def _next_batch(self) -> list[storage_pb2.Event]:
        batch: list[storage_pb2.Event] = []
        bytes_left = MAX_BATCH_BYTES
        while self._waiting and len(batch) < MAX_BATCH:
            event, size_bytes = self._waiting[0]
            if batch and size_bytes > bytes_left:
                break
            bytes_left -= size_bytes
            self._waiting_bytes -= size_bytes
            self._waiting.popleft()
            batch.append(event)
        return batch

    async def _send(self, batch: list[storage_pb2.Event]) -> None:
        request = storage_pb2.PublishRequest(events=batch)
        last = ""
        for attempt in range(MAX_TRIES):
            try:
                await self._storage.call(
                    storage_pb2_grpc.StorageServiceStub,
                    "Publish",
                    request,
                    timeout_s=CALL_TIMEOUT_S,
                )
            except MusterError as error:
                last = str(error)
                if not passes(error):
                    break
                await asyncio.sleep(full_jitter(attempt + 2))
            else:
                return
        metrics.EVENTS_DROPPED.inc(len(batch))
        _LOG.warning("events were dropped", events=len(batch), reason=last)
