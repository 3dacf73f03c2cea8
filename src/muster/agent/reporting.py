"""The runtime's stream to a monitor: a heartbeat with figures each second, log lines at once."""

from __future__ import annotations

import asyncio
import hashlib
import math
import random
from collections.abc import Callable
from typing import Any, Final

from muster.agent.conversion import add_logs
from muster.agent.journal import Journal
from muster.agent.logbook import LogBook
from muster.agent.peers import Peers
from muster.api.v1 import monitor_pb2 as pb
from muster.api.v1.monitor_pb2_grpc import MonitorServiceStub
from muster.domain.errors import MusterError, Unavailable
from muster.domain.ids import AgentId
from muster.rpc.channels import ServiceChannel, full_jitter
from muster.rpc.clock import boot_ms, wall_ms
from muster.rpc.status import rpc_errors

_INTERVAL_MS: Final = 1_000
# A monitor that takes nothing for so long is left for another.
_WRITE_S: Final = 5.0
# Lines of this time share a report; a task that prints slowly would else make one per line.
_GATHER_S: Final = 0.05
_LEAVING_S: Final = 2.0
_MOVING_S: Final = 1.0
# Away from the monitor that it belongs to; about as long, so that not all come back at once.
_AWAY_S: Final = 60.0
_FIRST_PAUSE_S: Final = 0.1
_LAST_PAUSE_S: Final = 2.0


def preferred_monitor(agent: AgentId, monitors: tuple[str, ...], failures: int) -> str:
    """Rendezvous hashing: each agent has its own order of monitors; failures walk down it."""
    order = sorted(
        monitors, key=lambda m: hashlib.sha256(f"{agent}\0{m}".encode()).digest(), reverse=True
    )
    return order[failures % len(order)]


class MonitorLink:
    """`sample` gives the figures, `incarnation` who this is."""

    def __init__(
        self,
        *,
        agent: AgentId,
        peers: Peers,
        secret: str,
        logs: LogBook,
        journal: Journal,
        sample: Callable[[], dict[str, float]],
        incarnation: Callable[[], int],
    ) -> None:
        self._agent, self._peers, self._secret = agent, peers, secret
        self._logs, self._journal = logs, journal
        self._sample, self._incarnation = sample, incarnation
        self._wake = asyncio.Event()
        self._seq = 0
        self._next_figures_ms = 0
        self._leaving = self._said_goodbye = self._moving = False
        self._away_over_ms = math.inf
        self._left = asyncio.Event()

    def wake(self) -> None:
        """There are lines to be sent."""
        self._wake.set()

    async def run(self) -> None:
        """For ever, until `leave`."""
        failures = 0
        while not self._left.is_set():
            monitors = self._peers.endpoints.monitors
            if not monitors:
                await asyncio.sleep(0.2)
                continue
            address = preferred_monitor(self._agent, monitors, failures)
            channel = ServiceChannel(
                (address,), secret=self._secret, what="the monitor", brisk=len(monitors) > 1
            )
            began_ms = boot_ms()
            # Where it does not belong it stays for a while; each its own while.
            at_home = address == preferred_monitor(self._agent, monitors, 0)
            away_s = math.inf if at_home else _AWAY_S * random.uniform(0.5, 1.5)  # noqa: S311
            try:
                await self._report(channel, began_ms + away_s * 1000)
                failures = 0
            except MusterError as error:
                self._logs.lost()
                if failures == 0:
                    self._journal.warning("the monitor was lost", monitor=address, why=str(error))
                failures = failures + 1 if boot_ms() - began_ms < 10_000 else 1
                await asyncio.sleep(full_jitter(failures, _FIRST_PAUSE_S, _LAST_PAUSE_S))
            finally:
                await channel.close()

    async def _report(self, channel: ServiceChannel, until_ms: float) -> None:
        """Until `leave`, or until all is said at `until_ms`; raises when the monitor is lost."""
        self._away_over_ms = until_ms
        stream: Any = channel.stream(MonitorServiceStub, "Report")
        reader = asyncio.create_task(self._read(stream), name="monitor answers")
        # When the answers end, so does the stream, and with it the next write.
        reader.add_done_callback(lambda _: stream.cancel())
        try:
            with rpc_errors("the monitor"):
                while not self._left.is_set():
                    await self._say(stream)
                    if self._moving:
                        await stream.done_writing()
                        await asyncio.wait((reader,), timeout=_MOVING_S)
                        # What is not confirmed is sent again, to the other one.
                        self._logs.lost()
                        return
                    await self._pause()
        except (asyncio.CancelledError, asyncio.InvalidStateError):
            this = asyncio.current_task()
            if this is not None and this.cancelling():
                raise
            raise Unavailable("the monitor", "the stream ended") from None
        finally:
            stream.cancel()
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    async def _read(self, stream: Any) -> None:
        """Confirmations come when the lines are safe, which may be long after the beat."""
        while isinstance(answer := await stream.read(), pb.ReportResponse):
            self._logs.confirmed(answer.seq)
            if self._said_goodbye and answer.seq >= self._seq:
                self._left.set()
                self._wake.set()

    async def _say(self, stream: Any) -> None:
        self._seq += 1
        now_ms = boot_ms()
        request = pb.ReportRequest(
            agent=self._agent, incarnation=self._incarnation(), seq=self._seq, at_ms=wall_ms()
        )
        if now_ms >= self._next_figures_ms:
            request.metrics.update(self._sample())
            self._next_figures_ms = now_ms + _INTERVAL_MS
        add_logs(request, self._logs.take(self._seq))
        self._moving = not self._leaving and now_ms >= self._away_over_ms
        self._said_goodbye = self._leaving and not self._logs.has_pending
        # To this monitor both are a farewell: the silence that follows is no failure.
        request.leaving = self._moving or self._said_goodbye
        try:
            async with asyncio.timeout(_WRITE_S):
                await stream.write(request)
        except TimeoutError:
            raise Unavailable("the monitor", f"it takes nothing for {_WRITE_S:g} s") from None

    async def _pause(self) -> None:
        """Until the next figures are due; shortly, when lines wait or may follow."""
        if not self._said_goodbye:
            await asyncio.sleep(_GATHER_S)
            if self._logs.has_pending or self._leaving:
                return
        self._wake.clear()
        try:
            async with asyncio.timeout(max(0, self._next_figures_ms - boot_ms()) / 1000):
                await self._wake.wait()
        except TimeoutError:
            return

    async def leave(self) -> None:
        """Sends what is left and says goodbye, as far as a monitor takes it."""
        self._leaving = True
        self._wake.set()
        try:
            async with asyncio.timeout(_LEAVING_S):
                await self._left.wait()
        except TimeoutError:
            self._journal.warning("the monitor was not told of the end")
