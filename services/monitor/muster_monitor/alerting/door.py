"""Alerts and silences on the wire: what the monitor's service answers of them."""

from __future__ import annotations

import secrets
from collections.abc import Callable

import msgspec

from muster.api.v1 import monitor_pb2 as pb
from muster.domain.errors import InvalidInput
from muster.domain.ids import parse_tenant_id
from muster_monitor.alerting.alerts import Alert, AlertState
from muster_monitor.alerting.desk import AlertDesk
from muster_monitor.alerting.matching import parse_matchers
from muster_monitor.alerting.silences import Silence
from muster_monitor.alerting.silencing import Silencing
from muster_monitor.findings import Severity

_ID_BYTES = 8


class AlertDoor:
    """Methods raise MusterErrors."""

    def __init__(self, desk: AlertDesk, wall_ms: Callable[[], int]) -> None:
        self._desk, self._wall_ms = desk, wall_ms
        self._silencing = Silencing(desk, wall_ms)

    async def list(self, request: pb.ListAlertsRequest) -> pb.ListAlertsResponse:
        """The tenant's alerts and the cluster's, by fingerprint."""
        tenant = parse_tenant_id(request.tenant)
        _known("state", request.state, [str(s) for s in AlertState])
        _known("severity", request.severity, [str(s) for s in Severity])
        wall_ms = self._wall_ms()
        chosen = [
            alert
            for alert in await self._desk.listed()
            if alert.tenant in ("", tenant)
            and request.state in ("", alert.state)
            and request.severity in ("", alert.severity)
            and request.rule in ("", alert.rule)
            and request.agent in ("", alert.labels.get("agent", ""))
        ]
        return pb.ListAlertsResponse(
            alerts=[
                _alert(alert, self._desk.cover.hiding(alert, wall_ms))
                for alert in sorted(chosen, key=lambda a: a.fingerprint)
            ],
            speaking=self._desk.is_speaking,
        )

    async def create_silence(self, request: pb.CreateSilenceRequest) -> pb.CreateSilenceResponse:
        wanted = request.silence
        silence = Silence(
            id=secrets.token_hex(_ID_BYTES),
            tenant=parse_tenant_id(wanted.tenant),
            cluster=wanted.cluster,
            matchers=parse_matchers(list(wanted.matchers), "matchers"),
            starts_at_ms=wanted.starts_at_ms or self._wall_ms(),
            ends_at_ms=wanted.ends_at_ms,
            author=wanted.author,
            comment=wanted.comment,
            created_at_ms=self._wall_ms(),
        )
        await self._silencing.silence(silence)
        return pb.CreateSilenceResponse(silence=_silence(silence))

    async def list_silences(self, request: pb.ListSilencesRequest) -> pb.ListSilencesResponse:
        found = await self._silencing.silences_of(parse_tenant_id(request.tenant))
        return pb.ListSilencesResponse(silences=[_silence(silence) for silence in found])

    async def end_silence(self, request: pb.EndSilenceRequest) -> pb.EndSilenceResponse:
        tenant = parse_tenant_id(request.tenant)
        ended = await self._silencing.end_silence(request.id, tenant)
        return pb.EndSilenceResponse(silence=_silence(ended))


def _known(field: str, given: str, accepted: list[str]) -> None:
    if given and given not in accepted:
        raise InvalidInput(field, given, "one of " + ", ".join(accepted))


def _alert(alert: Alert, silenced_by: list[str]) -> pb.Alert:
    return pb.Alert(
        fingerprint=alert.fingerprint,
        rule=alert.rule,
        labels=alert.labels,
        severity=str(alert.severity),
        state=str(alert.state),
        summary=alert.summary,
        value=alert.value,
        started_at_ms=alert.started_at_ms,
        fired_at_ms=alert.fired_at_ms,
        resolved_at_ms=alert.resolved_at_ms,
        silenced_by=silenced_by,
        tenant=alert.tenant,
    )


def _silence(silence: Silence) -> pb.Silence:
    fields = msgspec.structs.asdict(silence)
    fields["matchers"] = [str(matcher) for matcher in silence.matchers]
    return pb.Silence(**fields)
