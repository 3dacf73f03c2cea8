"""Whom the other monitors hear: an agent that has gone over to one of them is not silent.

An agent reports to one monitor at a time. The one that it has left comes to suspect it; the leader
weighs both words, and what is told to people has to do the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable
from typing import Any

import structlog

from muster.api.v1 import monitor_pb2 as pb
from muster.api.v1 import monitor_pb2_grpc
from muster.domain.errors import MusterError
from muster.domain.ids import AgentId
from muster.rpc.channels import ServiceChannel, full_jitter

_LOG = structlog.get_logger("muster.monitor")

# A monitor gives a sign of life each 5 s: one that does not is not listened to any longer.
WATCH_SILENCE_S = 15.0
MAX_HEARD_ELSEWHERE = 100_000


class OverruledSuspicions:
    """Suspicions of this monitor that another one has contradicted. Pure.

    One that was overruled stays so until it ends here, also when the other monitor dies: its
    agents will turn up somewhere, and until then nobody knows more.
    """

    def __init__(self) -> None:
        self._heard: dict[str, set[AgentId]] = {}
        self._overruled: set[AgentId] = set()

    def hears(self, monitor: str, agents: Iterable[AgentId], lost: Iterable[AgentId] = ()) -> None:
        """`monitor` hears these agents, and does not (or not any more) hear `lost`."""
        heard = self._heard.setdefault(monitor, set())
        heard.difference_update(lost)
        if len(heard) < MAX_HEARD_ELSEWHERE:
            heard.update(agents)

    def gone(self, monitor: str) -> None:
        """The monitor does not answer: it hears nobody."""
        self._heard.pop(monitor, None)

    def among(self, suspects: Collection[AgentId]) -> set[AgentId]:
        """Those of all present suspects who are heard elsewhere, or were since."""
        self._overruled.intersection_update(suspects)
        for heard in self._heard.values():
            self._overruled.update(agent for agent in suspects if agent in heard)
        return set(self._overruled)


async def follow_monitor(
    address: str, secret: str, overruled: OverruledSuspicions, silence_s: float = WATCH_SILENCE_S
) -> None:
    """Follows one other monitor until cancelled."""
    channel = ServiceChannel((address,), secret=secret, what="another monitor")
    failures = 0
    try:
        while True:
            call: Any = channel.stream(
                monitor_pb2_grpc.MonitorServiceStub, "WatchFailures", pb.WatchFailuresRequest()
            )
            try:
                with channel.errors(silence_s):
                    while True:
                        async with asyncio.timeout(silence_s):
                            message = await call.read()
                        if not isinstance(message, pb.WatchFailuresResponse):
                            break
                        failures = 0
                        _take(address, overruled, message)
            except (MusterError, TimeoutError) as error:
                if failures == 0:
                    _LOG.warning("another monitor does not answer", at=address, reason=str(error))
            finally:
                call.cancel()
            overruled.gone(address)
            failures += 1
            await asyncio.sleep(full_jitter(failures))
    finally:
        await channel.close()


def _take(address: str, overruled: OverruledSuspicions, message: pb.WatchFailuresResponse) -> None:
    if message.snapshot:
        overruled.gone(address)
    alive = {AgentId(s.agent) for s in message.suspicions if not s.suspected and not s.unheard}
    lost = {AgentId(s.agent) for s in message.suspicions if s.suspected or s.unheard}
    overruled.hears(address, alive, lost)
