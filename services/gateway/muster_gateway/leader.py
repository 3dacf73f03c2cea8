"""Calls to whichever scheduler leads, following hints and rotating while there is none."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

from muster.api.v1 import scheduler_pb2_grpc
from muster.domain.errors import NotLeader, StoreRolledBack, Unavailable
from muster.rpc.channels import ServiceChannel, full_jitter
from muster.rpc.clock import boot_s

# A leader's lease is 3 s: most failovers are not waited out by a submission, which has another
# way (storage), but the short ones are.
SEARCH_S: Final = 2.0
# After a search in vain the next ones try each scheduler once and give up at once.
_ABSENT_FOR_S: Final = 1.0


class LeaderClient:
    """One caller of `SchedulerService`; safe for concurrent use."""

    def __init__(self, addresses: Sequence[str], *, secret: str) -> None:
        self._channel = ServiceChannel(addresses, secret=secret, what="the scheduler's leader")
        self._absent_until_s = 0.0

    async def call(
        self,
        method: str,
        request: object,
        *,
        timeout_s: float,
        search_s: float = SEARCH_S,
        streamed: bool = True,
    ) -> Any:
        """A call that may be repeated: it may have acted before its answer was lost.

        Calls with large messages or long answers are better not `streamed` among the others.
        Raises Unavailable when no leader was found within `search_s`, DeadlineExceeded when
        the leader does not answer within `timeout_s`, and what the leader raises.
        """
        channel = self._channel
        now_s = boot_s()
        deadline_s = now_s if now_s < self._absent_until_s else now_s + search_s
        tries = 0
        while True:
            address = channel.address
            try:
                response = await channel.call(
                    scheduler_pb2_grpc.SchedulerServiceStub,
                    method,
                    request,
                    timeout_s=timeout_s,
                    streamed=streamed,
                )
            except StoreRolledBack:
                # It leads, and knows better than to go on.
                raise
            except NotLeader as error:
                failure: Unavailable = error
                # Another call may have turned elsewhere meanwhile; then that holds.
                if channel.address == address:
                    if error.leader and error.leader != address:
                        channel.prefer(error.leader)
                    else:
                        channel.rotate()
            except Unavailable as error:
                failure = error
                if channel.address == address:
                    channel.rotate()
            else:
                self._absent_until_s = 0.0
                return response
            tries += 1
            if tries < len(channel.addresses):
                continue
            pause_s = 0.01 + full_jitter(tries)
            if boot_s() + pause_s >= deadline_s:
                self._absent_until_s = boot_s() + _ABSENT_FOR_S
                try:
                    raise Unavailable(
                        "the scheduler's leader", str(failure), retry_after_s=1.0
                    ) from failure
                finally:
                    # Its traceback holds this frame: no ring may keep the request.
                    del failure
            await asyncio.sleep(pause_s)

    async def close(self) -> None:
        await self._channel.close()
