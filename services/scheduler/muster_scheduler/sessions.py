"""One open session of an agent's runtime or supervisor: what is to be sent, merged until it is."""

from __future__ import annotations

import asyncio
from collections import deque

from muster.api.v1 import scheduler_pb2
from muster.domain.ids import AgentId
from muster.domain.task import Wish
from muster.rpc.conversion import WISH_TO_PROTO
from muster_scheduler import metrics
from muster_scheduler.core.commands import Push
from muster_scheduler.core.deadlines import timeout_for
from muster_scheduler.core.records import AttemptRef

# An agent that reads nothing for so many merged items is cut off; it dials again and reconciles.
MAX_UNSENT = 20_000
# Of one message; gRPC's bound is 16 MiB, and inputs of 1 MiB would pass it.
MAX_MESSAGE_BYTES = 4 * 1024 * 1024
# About what an assignment has besides its input, and what a reference to an attempt takes.
_ASSIGNMENT_BYTES = 500
_REF_BYTES = 64
# More outcomes than this are acknowledged at once, so that an agent's outbox stays short.
MAX_PATIENT_ACKS = 32


class Session:
    """Messages merge while the agent's flow control holds them back, so none waits for another."""

    def __init__(self, agent: AgentId, incarnation: int, *, supervisor: bool) -> None:
        self.agent = agent
        self.incarnation = incarnation
        self.supervisor = supervisor
        self.closed = False
        # The last one is filled, the first one is sent next.
        self._messages: deque[scheduler_pb2.SessionResponse] = deque()
        self._last_bytes = 0
        self._unsent = 0
        self._wake = asyncio.Event()

    def push(self, push: Push, clock_ms: int, *, prompt: bool = False) -> None:
        """Adds what the core wants this runtime to be told.

        A few acknowledgements alone need no message of their own: they go with what comes next,
        at the latest with the answer to a beat, unless `prompt` says that somebody waits for them.
        """
        items = len(push.assign) + len(push.acks) + len(push.drop) + len(push.cancel)
        if self.closed or not (items or push.drain):
            return
        if self._unsent > MAX_UNSENT:
            self.close()
            return
        for task in push.assign:
            message = self._filling(_ASSIGNMENT_BYTES + len(task.spec.input_json))
            assignment = message.assign.add()
            assignment.spec.CopyFrom(task.wire)  # type: ignore[arg-type]
            assignment.attempt = task.status.attempt
            assignment.incarnation = task.status.incarnation
            assignment.timeout_ms = timeout_for(task.spec, task.status, clock_ms)
            for resource, indices in task.status.devices:
                assignment.devices.add(resource=resource, indices=indices)
        only_acks = not (push.assign or push.cancel or push.drop or push.drain)
        patient = only_acks and not prompt and self._unsent + items <= MAX_PATIENT_ACKS
        message = self._filling(wake=not patient)
        for ref, wish in push.cancel:
            cancel = message.cancel.add(wish=WISH_TO_PROTO[wish or Wish.CANCEL])
            _fill_ref(cancel.ref, ref)
        for ref, recorded in push.acks:
            ack = message.outcome_acks.add()
            ack.code = scheduler_pb2.ACK_CODE_RECORDED if recorded else scheduler_pb2.ACK_CODE_STALE
            _fill_ref(ack.ref, ref)
        for ref in push.drop:
            _fill_ref(message.drop.add(), ref)
        if push.drain:
            message.drain = True
        self._unsent += items
        self._last_bytes += items * _REF_BYTES

    def welcome(self, clock_ms: int) -> None:
        """The first message."""
        self._filling().welcome.clock_ms = clock_ms

    def answer_beat(self, seq: int) -> None:
        """Answers the newest beat; older ones need no answer of their own."""
        self._filling().beat_ack.seq = seq

    def restart(self, incarnation: int, why: str) -> None:
        """Tells a supervisor to restart its runtime."""
        message = self._filling()
        message.restart.incarnation = incarnation
        message.restart.why = why

    def _filling(self, size_bytes: int = 0, *, wake: bool = True) -> scheduler_pb2.SessionResponse:
        """The message that takes the next item. Within one, an agent looks at assignments first:
        whatever else is said of an attempt follows its assignment."""
        if not self._messages or (self._last_bytes + size_bytes > MAX_MESSAGE_BYTES):
            self._messages.append(scheduler_pb2.SessionResponse())
            self._last_bytes = 0
        self._last_bytes += size_bytes
        if wake:
            self._wake.set()
        return self._messages[-1]

    def close(self) -> None:
        """Ends the session; the peer dials again if it lives."""
        self.closed = True
        self._messages.clear()
        self._wake.set()

    async def next(self, term: int) -> scheduler_pb2.SessionResponse | None:
        """What gathered since the last call, as much of it as one message holds; None once
        closed."""
        await self._wake.wait()
        if self.closed:
            return None
        message = self._messages.popleft()
        if not self._messages:
            self._unsent = 0
            self._wake.clear()
        message.term = term
        metrics.SAID.inc()
        return message


def _fill_ref(message: scheduler_pb2.AttemptRef, ref: AttemptRef) -> None:
    message.task_id = ref.task_id
    message.attempt = ref.attempt
    message.tenant = ref.tenant
