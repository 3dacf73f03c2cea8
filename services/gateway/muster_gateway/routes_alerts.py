"""Routes: alerts, and silences of them."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Any

import msgspec
from starlette.responses import Response

from muster.api.v1 import monitor_pb2, monitor_pb2_grpc
from muster.domain.durations import parse_duration_ms
from muster.domain.errors import InvalidInput, MusterError, Unavailable
from muster.rpc.clock import wall_ms
from muster_gateway import alert_documents as documents
from muster_gateway.gateway import Gateway
from muster_gateway.requests import (
    JSON,
    MAX_PAGE,
    known_queries,
    limit_of,
    read_body,
    require_json,
)
from muster_gateway.roles import Role
from muster_gateway.table import Answer, Body, Call, Query, Route
from muster_gateway.task_body import decode_bounded
from muster_gateway.views import encode, rfc3339

_TIMEOUT_S = 5.0
_MAX_BODY_BYTES = 64 * 1024
_FILTERS = ("state", "severity", "rule", "agent")


class SilenceIn(msgspec.Struct, forbid_unknown_fields=True):
    """The body."""

    matchers: list[str]
    duration: str | None = None
    starts_at: str | None = None
    ends_at: str | None = None
    comment: str = ""


async def list_alerts(call: Call) -> Response:
    known_queries(call.request, *_FILTERS, "limit", "cursor")
    queries = call.request.query_params
    limit, cursor = limit_of(call.request), queries.get("cursor", "")
    request = monitor_pb2.ListAlertsRequest(
        tenant=call.tenant, **{name: queries.get(name, "") for name in _FILTERS}
    )
    answers = await _ask_all(call.gateway, "ListAlerts", request)
    # The one that speaks knows best; others know what it has written.
    found: dict[str, monitor_pb2.Alert] = {}
    for answer in sorted(answers, key=lambda answer: answer.speaking):
        if answer.speaking:
            found.clear()
        found |= {alert.fingerprint: alert for alert in answer.alerts}
    chosen = [found[key] for key in sorted(found) if key > cursor]
    following = chosen[limit - 1].fingerprint if len(chosen) > limit else None
    items = [alert_out(alert) for alert in chosen[:limit]]
    return Response(encode({"items": items, "next": following}), media_type=JSON)


async def create_silence(call: Call) -> Response:
    known_queries(call.request)
    require_json(call.request)
    wanted: SilenceIn = decode_bounded(await read_body(call.request, _MAX_BODY_BYTES), SilenceIn)
    starts_at_ms = _time("starts_at", wanted.starts_at) or wall_ms()
    silence = monitor_pb2.Silence(
        tenant=call.tenant,
        # An operator hides what is of his tenant; what concerns all is an administrator's.
        cluster=call.caller.role is Role.ADMIN,
        matchers=wanted.matchers,
        starts_at_ms=starts_at_ms,
        ends_at_ms=_end_of(wanted, starts_at_ms),
        author=call.caller.key_id,
        comment=wanted.comment,
    )
    request = monitor_pb2.CreateSilenceRequest(silence=silence)
    answer: monitor_pb2.CreateSilenceResponse = await _ask_one(
        call.gateway, "CreateSilence", request
    )
    return Response(encode(silence_out(answer.silence)), 201, media_type=JSON)


async def list_silences(call: Call) -> Response:
    known_queries(call.request)
    answer: monitor_pb2.ListSilencesResponse = await _ask_one(
        call.gateway, "ListSilences", monitor_pb2.ListSilencesRequest(tenant=call.tenant)
    )
    items = [silence_out(silence) for silence in answer.silences]
    return Response(encode({"items": items, "next": None}), media_type=JSON)


async def end_silence(call: Call) -> Response:
    known_queries(call.request)
    request = monitor_pb2.EndSilenceRequest(
        tenant=call.tenant, id=call.request.path_params["id"][:64]
    )
    answer: monitor_pb2.EndSilenceResponse = await _ask_one(call.gateway, "EndSilence", request)
    return Response(encode(silence_out(answer.silence)), media_type=JSON)


def alert_out(alert: monitor_pb2.Alert) -> dict[str, Any]:
    """An alert as clients see it."""
    return {
        "fingerprint": alert.fingerprint,
        "rule": alert.rule,
        "state": alert.state,
        "severity": alert.severity,
        "labels": dict(alert.labels),
        "summary": alert.summary,
        "value": alert.value if alert.HasField("value") else None,
        "started_at": rfc3339(alert.started_at_ms),
        "fired_at": rfc3339(alert.fired_at_ms),
        "resolved_at": rfc3339(alert.resolved_at_ms),
        "silenced_by": list(alert.silenced_by),
    }


def silence_out(silence: monitor_pb2.Silence) -> dict[str, Any]:
    """A silence as clients see it; `state` is pending, active or expired."""
    now_ms = wall_ms()
    state = "pending" if now_ms < silence.starts_at_ms else "active"
    return {
        "id": silence.id,
        "state": "expired" if silence.ends_at_ms <= now_ms else state,
        "matchers": list(silence.matchers),
        "starts_at": rfc3339(silence.starts_at_ms),
        "ends_at": rfc3339(silence.ends_at_ms),
        "author": silence.author,
        "comment": silence.comment,
        "created_at": rfc3339(silence.created_at_ms),
    }


def _end_of(wanted: SilenceIn, starts_at_ms: int) -> int:
    if (wanted.duration is None) == (wanted.ends_at is None):
        raise InvalidInput("duration", wanted.duration, "exactly one of duration and ends_at")
    if wanted.duration is not None:
        return starts_at_ms + parse_duration_ms(wanted.duration, field="duration")
    return _time("ends_at", wanted.ends_at)


def _time(field: str, text: str | None) -> int:
    """Unix milliseconds of a time with its offset from UTC; 0 for None. Raises InvalidInput."""
    if text is None:
        return 0
    try:
        at = datetime.fromisoformat(text)
        at_ms = int(at.timestamp() * 1000) if at.tzinfo is not None else -1
    except (ValueError, OverflowError):
        at_ms = -1
    if at_ms < 0:
        raise InvalidInput(field, text, "a time such as 2026-01-31T12:00:00Z")
    return at_ms


async def _ask_all(gateway: Gateway, method: str, request: object) -> list[Any]:
    """What the monitors answer that do; raises when none does, or when one refuses."""
    answers = await asyncio.gather(
        *(
            monitor.call(monitor_pb2_grpc.MonitorServiceStub, method, request, timeout_s=_TIMEOUT_S)
            for monitor in gateway.monitors
        ),
        return_exceptions=True,
    )
    found, errors = [], []
    for answer in answers:
        if not isinstance(answer, BaseException):
            found.append(answer)
        elif isinstance(answer, MusterError):
            errors.append(answer)
        else:
            raise answer
    for error in errors:
        if isinstance(error, InvalidInput) or not found:
            raise error
    if not found:
        raise Unavailable("the monitor", "this gateway knows none")
    return found


async def _ask_one(gateway: Gateway, method: str, request: object) -> Any:
    """The first monitor that can be reached: they share what they write."""
    last: MusterError = Unavailable("the monitor", "this gateway knows none")
    for monitor in gateway.monitors:
        try:
            return await monitor.call(
                monitor_pb2_grpc.MonitorServiceStub, method, request, timeout_s=_TIMEOUT_S
            )
        except Unavailable as error:
            last = error
    raise last


_TAG = "alerts"

ROUTES: tuple[Route, ...] = (
    Route(
        "GET",
        "/v1/alerts",
        list_alerts,
        "Alerts of the tenant's agents and tasks, and of the whole cluster",
        _TAG,
        (Answer(200, "By fingerprint.", documents.AlertPage, documents.ALERT_PAGE),),
        queries=(
            Query("state", "pending, firing or resolved.", "firing"),
            Query("severity", "info, warning or critical.", "critical"),
            Query("rule", "The rule's name.", "agent_down"),
            Query("agent", "The label `agent`.", "agent-1"),
            Query("limit", f"1 to {MAX_PAGE}, default 100.", 100, kind="integer"),
            Query("cursor", "`next` of the page before."),
        ),
        problems=(422,),
    ),
    Route(
        "GET",
        "/v1/silences",
        list_silences,
        "The tenant's silences; those that are over for a day",
        _TAG,
        (Answer(200, "All of them.", documents.SilencePage, documents.SILENCE_PAGE),),
    ),
    Route(
        "POST",
        "/v1/silences",
        create_silence,
        "Let nobody be told of the alerts that all matchers match",
        _TAG,
        (Answer(201, "The silence.", documents.Silence, documents.SILENCE),),
        about="Alerts of the whole cluster are hidden by an admin's silence only.",
        body=Body(
            documents.NewSilence,
            {"repair": {"matchers": ["agent=agent-1"], "duration": "2h", "comment": "new disk"}},
        ),
        problems=(400, 413, 415, 422),
        audited=True,
    ),
    Route(
        "DELETE",
        "/v1/silences/{id}",
        end_silence,
        "End a silence now",
        _TAG,
        (Answer(200, "The silence, which is over.", documents.Silence, documents.SILENCE),),
        problems=(404,),
        audited=True,
    ),
)
