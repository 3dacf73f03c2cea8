"""One open session of an agent's runtime or supervisor: what is to be sent, merged until it is."""

from __future__ import annotations

import asyncio

from muster.api.v1 import scheduler_pb2
from muster.domain.ids import AgentId
from muster.domain.task import Wish
from muster.rpc.conversion import WISH_TO_PROTO
from muster_scheduler.core.commands import Push
from muster_scheduler.core.deadlines import timeout_for
from muster_scheduler.core.records import AttemptRef

# An agent that reads nothing for so many merged items is cut off; it dials again and reconciles.
MAX_UNSENT = 20_000


class Session:
    """Messages merge while the agent's flow control holds them back, so none waits for another."""

    def __init__(self, agent: AgentId, incarnation: int, *, supervisor: bool) -> None:
        self.agent = agent
        self.incarnation = incarnation
        self.supervisor = supervisor
        self.closed = False
        self._next = scheduler_pb2.SessionResponse()
        self._size = 0
        self._wake = asyncio.Event()

    def push(self, push: Push, clock_ms: int) -> None:
        """Adds what the core wants this runtime to be told."""
        message = self._next
        for task in push.assign:
            message.assign.append(
                scheduler_pb2.Assignment(
                    spec=task.wire,  # type: ignore[arg-type]
                    attempt=task.status.attempt,
                    incarnation=task.status.incarnation,
                    timeout_ms=timeout_for(task.spec, task.status, clock_ms),
                )
            )
        for ref, wish in push.cancel:
            message.cancel.append(
                scheduler_pb2.CancelAttempt(ref=_ref(ref), wish=WISH_TO_PROTO[wish or Wish.CANCEL])
            )
        for ref, recorded in push.acks:
            code = scheduler_pb2.ACK_CODE_RECORDED if recorded else scheduler_pb2.ACK_CODE_STALE
            message.outcome_acks.append(scheduler_pb2.OutcomeAck(ref=_ref(ref), code=code))
        for ref in push.drop:
            message.drop.append(_ref(ref))
        if push.drain:
            message.drain = True
        self._grew(len(push.assign) + len(push.acks) + len(push.drop) + len(push.cancel) + 1)

    def welcome(self, clock_ms: int) -> None:
        """The first message."""
        self._next.welcome.clock_ms = clock_ms
        self._grew(1)

    def answer_beat(self, seq: int) -> None:
        """Answers the newest beat; older ones need no answer of their own."""
        self._next.beat_ack.seq = seq
        self._grew(1)

    def restart(self, incarnation: int, why: str) -> None:
        """Tells a supervisor to restart its runtime."""
        self._next.restart.incarnation = incarnation
        self._next.restart.why = why
        self._grew(1)

    def _grew(self, items: int) -> None:
        self._size += items
        if self._size > MAX_UNSENT:
            self.close()
        self._wake.set()

    def close(self) -> None:
        """Ends the session; the peer dials again if it lives."""
        self.closed = True
        self._wake.set()

    async def next(self, term: int) -> scheduler_pb2.SessionResponse | None:
        """All that gathered since the last call, or None once closed."""
        await self._wake.wait()
        if self.closed:
            return None
        self._wake.clear()
        message, self._next = self._next, scheduler_pb2.SessionResponse()
        self._size = 0
        message.term = term
        return message


def _ref(ref: AttemptRef) -> scheduler_pb2.AttemptRef:
    return scheduler_pb2.AttemptRef(task_id=ref.task_id, attempt=ref.attempt, tenant=ref.tenant)
