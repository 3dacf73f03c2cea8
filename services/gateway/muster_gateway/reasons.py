"""Why a waiting task waits: known to the leader alone, since it changes without a write."""

from __future__ import annotations

from typing import Final

from muster.api.v1 import scheduler_pb2, task_pb2
from muster.domain.errors import MusterError
from muster_gateway.leader import LeaderClient

# A task that is younger is most likely on its way to an agent.
_YOUNG_MS: Final = 250
# Reads must not weigh on the leader: beyond this, and without a leader, they go without.
_MAX_ASKING: Final = 8
_TIMEOUT_S: Final = 0.5


class WaitingReasons:
    """Completes what storage knows of a task, when that is cheap."""

    def __init__(self, leader: LeaderClient) -> None:
        self._leader = leader
        self._asking = 0

    async def complete(self, task: task_pb2.Task, now_ms: int) -> None:
        """Puts the reason into `status.why` of a task that has been waiting for a while."""
        status, spec = task.status, task.spec
        if status.state != task_pb2.TASK_STATE_PENDING or status.why:
            return
        if now_ms - spec.submitted_at_ms < _YOUNG_MS or self._asking >= _MAX_ASKING:
            return
        self._asking += 1
        try:
            answer: scheduler_pb2.ExplainResponse = await self._leader.call(
                "Explain",
                scheduler_pb2.ExplainRequest(tenant=spec.tenant, id=spec.id, brief=True),
                timeout_s=_TIMEOUT_S,
                search_s=0.0,
            )
        except MusterError:
            # The task is right without it; /explain says what is wrong with the leader.
            return
        finally:
            self._asking -= 1
        if answer.found and answer.state == task_pb2.TASK_STATE_PENDING:
            status.why = answer.summary
