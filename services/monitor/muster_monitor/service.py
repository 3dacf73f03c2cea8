"""MonitorService: reports in, suspicions, logs and metrics out."""

# The contract names the methods and gives each a context.

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from muster.api.v1 import monitor_pb2 as pb
from muster.api.v1 import monitor_pb2_grpc
from muster.domain.errors import NotFound, Overloaded
from muster.domain.ids import AgentId, parse_agent_id
from muster.rpc.listeners import wait_for
from muster_monitor import metrics
from muster_monitor.alerting.desk import AlertDesk
from muster_monitor.alerting.door import AlertDoor
from muster_monitor.intake import STREAM_VALUES, Intake
from muster_monitor.log_reader import LogReader
from muster_monitor.rings import Sample
from muster_monitor.state import MonitorState
from muster_monitor.suspicions import Bulletin

# More agents than one monitor is meant for; each holds a stream.
MAX_STREAMS = 10_000
MAX_WATCHERS = 100
# A watcher that hears nothing this long gets an empty message, so that it can tell silence from
# a dead connection.
_SIGN_OF_LIFE_S = 5.0
# An agent that has sent its last report waits this long for its lines to be stored.
_LAST_ACK_S = 5.0


class MonitorService(monitor_pb2_grpc.MonitorServiceServicer):
    """Every method may raise any MusterError, which the server turns into a status."""

    def __init__(
        self,
        state: MonitorState,
        reader: LogReader,
        desk: AlertDesk,
        boot_ms: Callable[[], int],
        wall_ms: Callable[[], int],
    ) -> None:
        self._state = state
        self._reader = reader
        self._alerts = AlertDoor(desk, wall_ms)
        self._boot_ms = boot_ms
        self._wall_ms = wall_ms
        self._streams = 0
        self._watchers = 0

    async def Report(
        self, request_iterator: AsyncIterator[pb.ReportRequest], context: Any
    ) -> AsyncIterator[pb.ReportResponse]:
        """Answers with the seq up to which all is kept, also when storage has taken lines."""
        if self._streams >= MAX_STREAMS:
            raise Overloaded(f"{MAX_STREAMS} agents report to this monitor already")
        intake = Intake(self._state)
        self._streams += 1
        metrics.STREAMS.set(self._streams)
        with self._state.logs_stored.listening() as news:
            reading = asyncio.create_task(self._read(request_iterator, intake, news))
            context.add_done_callback(lambda _: reading.cancel())
            try:
                while not reading.done():
                    await news.wait()
                    news.clear()
                    yield pb.ReportResponse(seq=intake.advance())
                await reading
                async for seq in self._last_acks(intake, news):
                    yield pb.ReportResponse(seq=seq)
            finally:
                reading.cancel()
                self._streams -= 1
                metrics.STREAMS.set(self._streams)

    async def WatchFailures(
        self, request: pb.WatchFailuresRequest, context: Any
    ) -> AsyncIterator[pb.WatchFailuresResponse]:
        if self._watchers >= MAX_WATCHERS:
            raise Overloaded(f"{MAX_WATCHERS} watch this monitor already")
        self._watchers += 1
        metrics.WATCHERS.set(self._watchers)
        try:
            with self._state.suspicions_changed.listening() as changed:
                bulletin = self._state.board.snapshot()
                while True:
                    yield _bulletin(bulletin)
                    await wait_for(changed, _SIGN_OF_LIFE_S)
                    bulletin = self._state.board.since(bulletin.position)
        finally:
            self._watchers -= 1
            metrics.WATCHERS.set(self._watchers)

    async def ReadLog(
        self, request: pb.ReadLogRequest, context: Any
    ) -> AsyncIterator[pb.ReadLogResponse]:
        pages = self._reader.read(
            request.tenant, request.task_id, request.attempt, follow=request.follow
        )
        task_id = "" if "/" in request.task_id else request.task_id
        async for page in pages:
            lines = [
                pb.LogLine(
                    tenant=request.tenant,
                    task_id=task_id,
                    attempt=page.attempt,
                    at_ms=line.at_ms,
                    stream=STREAM_VALUES.get(line.stream, pb.LOG_STREAM_UNSPECIFIED),
                    level=line.level,
                    text=line.text,
                    index=line.index,
                )
                for line in page.lines
            ]
            yield pb.ReadLogResponse(lines=lines, truncated=page.truncated)

    async def GetMetrics(
        self, request: pb.GetMetricsRequest, context: Any
    ) -> pb.GetMetricsResponse:
        if not request.agent:
            known = sorted({*self._state.rings.agents(), *self._state.table.agents()})
            return pb.GetMetricsResponse(agents=[self._newest(agent) for agent in known])
        agent = parse_agent_id(request.agent)
        samples = self._state.rings.since(agent, request.since_ms)
        if not samples and agent not in self._state.last_seen_ms:
            raise NotFound("agent", agent)
        return pb.GetMetricsResponse(agents=[self._samples(agent, samples)])

    async def ListAlerts(
        self, request: pb.ListAlertsRequest, context: Any
    ) -> pb.ListAlertsResponse:
        return await self._alerts.list(request)

    async def CreateSilence(
        self, request: pb.CreateSilenceRequest, context: Any
    ) -> pb.CreateSilenceResponse:
        return await self._alerts.create_silence(request)

    async def ListSilences(
        self, request: pb.ListSilencesRequest, context: Any
    ) -> pb.ListSilencesResponse:
        return await self._alerts.list_silences(request)

    async def EndSilence(
        self, request: pb.EndSilenceRequest, context: Any
    ) -> pb.EndSilenceResponse:
        return await self._alerts.end_silence(request)

    async def _read(
        self,
        requests: AsyncIterator[pb.ReportRequest],
        intake: Intake,
        news: asyncio.Event,
    ) -> None:
        try:
            async for report in requests:
                intake.take(report, self._boot_ms(), self._wall_ms())
                news.set()
        finally:
            news.set()

    async def _last_acks(self, intake: Intake, news: asyncio.Event) -> AsyncIterator[int]:
        """After the agent's last report: what is still being stored, for a bounded time."""
        ends_ms = self._boot_ms() + int(_LAST_ACK_S * 1000)
        yield intake.advance()
        while intake.acks.waiting and (left_ms := ends_ms - self._boot_ms()) > 0:
            if await wait_for(news, left_ms / 1000):
                yield intake.advance()

    def _newest(self, agent: AgentId) -> pb.AgentSamples:
        sample = self._state.rings.newest(agent)
        return self._samples(agent, [sample] if sample is not None else [])

    def _samples(self, agent: AgentId, samples: list[Sample]) -> pb.AgentSamples:
        return pb.AgentSamples(
            agent=agent,
            incarnation=self._state.table.incarnation(agent),
            phi=self._state.table.phi(agent, self._boot_ms()) or 0.0,
            last_seen_at_ms=self._state.last_seen_ms.get(agent, 0),
            samples=[pb.MetricSample(at_ms=s.at_ms, values=s.values) for s in samples],
        )


def _bulletin(bulletin: Bulletin) -> pb.WatchFailuresResponse:
    return pb.WatchFailuresResponse(
        snapshot=bulletin.snapshot,
        suspicions=[
            pb.Suspicion(
                agent=posted.verdict.agent,
                incarnation=posted.verdict.incarnation,
                suspected=posted.verdict.suspected,
                phi=posted.verdict.phi,
                why=posted.verdict.why,
                at_ms=posted.at_ms,
                unheard=not posted.heard,
            )
            for posted in bulletin.posted
        ],
    )
