"""Routes: health, metrics, and the OpenAPI document."""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import Response

from muster.domain.errors import Unavailable
from muster_gateway.requests import JSON
from muster_gateway.table import Answer, Call, Route

_TEXT = "text/plain; charset=utf-8"


async def healthz(_call: Call) -> Response:
    return Response(b"ok\n", media_type=_TEXT)


async def readyz(call: Call) -> Response:
    why_not = call.gateway.readiness.why_not
    if why_not is not None:
        raise Unavailable("this gateway", why_not)
    return Response(b"ready\n", media_type=_TEXT)


async def metrics(_call: Call) -> Response:
    return Response(generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})


async def openapi(_call: Call) -> Response:
    from muster_gateway.openapi import document_json  # noqa: PLC0415  100 ms, for who asks

    return Response(document_json(), media_type=JSON)


_TAG = "service"

ROUTES: tuple[Route, ...] = (
    Route(
        "GET",
        "/healthz",
        healthz,
        "Whether the process runs",
        _TAG,
        (Answer(200, "It does.", media_type="text/plain", example="ok\n"),),
    ),
    Route(
        "GET",
        "/readyz",
        readyz,
        "Whether the gateway can serve, or why not",
        _TAG,
        (Answer(200, "It can.", media_type="text/plain", example="ready\n"),),
    ),
    Route(
        "GET",
        "/metrics",
        metrics,
        "Prometheus metrics of this gateway",
        _TAG,
        (Answer(200, "In Prometheus' text format.", media_type="text/plain"),),
    ),
    Route(
        "GET",
        "/openapi.json",
        openapi,
        "This document",
        _TAG,
        (Answer(200, "OpenAPI 3.1.", dict),),
    ),
)
