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
from muster_scheduler.core.commands import AgentChanged

_LOG = structlog.get_logger("muster.scheduler")

# When storage is slow the oldest progress is dropped; readers see it by its index.
MAX_WAITING = 20_000
MAX_BATCH = 500
CALL_TIMEOUT_S = 5.0
MAX_TRIES = 5


class Publisher:
    """Sends events to storage in batches."""

    def __init__(self, storage: ServiceChannel, term: int) -> None:
        self._storage = storage
        self._term = term
        self._waiting: deque[storage_pb2.Event] = deque()
        self._wake = asyncio.Event()

    def add(self, event: storage_pb2.Event) -> None:
        """Takes an event; when there is no room the oldest is dropped and counted."""
        if len(self._waiting) >= MAX_WAITING:
            self._waiting.popleft()
            metrics.EVENTS_DROPPED.inc()
        event.term = self._term
        self._waiting.append(event)
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

    async def run(self) -> None:
        """Publishes until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                count = min(MAX_BATCH, len(self._waiting))
                batch = [self._waiting.popleft() for _ in range(count)]
                await self._send(batch)

    async def _send(self, batch: list[storage_pb2.Event]) -> None:
        request = storage_pb2.PublishRequest(events=batch)
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
                await asyncio.sleep(full_jitter(attempt + 2))
            else:
                return
        metrics.EVENTS_DROPPED.inc(len(batch))
        _LOG.warning("events were dropped", events=len(batch), reason=last)
