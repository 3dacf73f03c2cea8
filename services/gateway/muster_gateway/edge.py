"""The outermost layer: request ids, the bound on requests in flight, headers, figures."""

from __future__ import annotations

import itertools
import os
import re
import time
from typing import Any, Final

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from muster.domain.errors import Overloaded
from muster_gateway.metrics import IN_FLIGHT, REQUEST_SECONDS, REQUESTS, SUBMISSIONS_TURNED_AWAY
from muster_gateway.problems import problem_response
from muster_gateway.turning_away import TurningAway

_LOG = structlog.get_logger("muster.gateway.access")

# Waiting requests are cheap (about 20 KiB each), so this bounds memory to some 100 MiB.
MAX_IN_FLIGHT: Final = 4_096
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
# Probes must be answered by a gateway that is busy, too.
_ALWAYS: Final = frozenset({"/healthz", "/readyz"})
_SUBMISSIONS: Final = "/v1/tasks"

# Answers are data, never pages: whatever a browser makes of them must not run or be framed.
SECURITY_HEADERS: Final[tuple[tuple[bytes, bytes], ...]] = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)


class Edge:
    """Wraps the application. Routes put their pattern into scope["muster.route"]."""

    def __init__(
        self,
        app: ASGIApp,
        turning_away: TurningAway,
        *,
        max_in_flight: int = MAX_IN_FLIGHT,
        log_access: bool = False,
    ) -> None:
        self._app = app
        self._turning_away = turning_away
        self._max_in_flight = max_in_flight
        self._log_access = log_access
        self._in_flight = 0
        # Unique without a draw of randomness for each request.
        self._prefix = os.urandom(6).hex()
        self._numbers = itertools.count(1)
        self._children: dict[tuple[str, str, int], tuple[Any, Any]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            # No websockets are served, and uvicorn runs without lifespan.
            return
        request_id = self._request_id(scope)
        scope["muster.request_id"] = request_id
        id_header = (b"x-request-id", request_id.encode())
        started = time.perf_counter()
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], id_header, *SECURITY_HEADERS]
                self._count(scope, status, time.perf_counter() - started)
            await send(message)

        submission = scope["path"] == _SUBMISSIONS and scope["method"] == "POST"
        error = self._refusal(scope, submission)
        if error is not None:
            await problem_response(error, request_id)(scope, receive, send_with_headers)
            return
        self._in_flight += 1
        self._turning_away.under_way += submission
        try:
            await self._app(scope, receive, send_with_headers)
        finally:
            self._in_flight -= 1
            self._turning_away.under_way -= submission
            IN_FLIGHT.set(self._in_flight)
            if self._log_access:
                _LOG.debug(
                    "request",
                    method=scope["method"],
                    path=scope["path"],
                    status=status,
                    request_id=request_id,
                    ms=round((time.perf_counter() - started) * 1000, 2),
                )

    def _refusal(self, scope: Scope, submission: bool) -> Overloaded | None:
        if self._in_flight >= self._max_in_flight and scope["path"] not in _ALWAYS:
            if submission:
                SUBMISSIONS_TURNED_AWAY.labels("in_flight").inc()
            return Overloaded(f"{self._max_in_flight} requests are being answered already")
        if not submission:
            return None
        error = self._turning_away.refusal()
        if error is not None:
            scope["muster.route"] = _SUBMISSIONS
        return error

    def _request_id(self, scope: Scope) -> str:
        for name, value in scope["headers"]:
            if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
                return str(value, "ascii")
        return f"{self._prefix}-{next(self._numbers):x}"

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        # Unknown methods and paths are the clients' choice and must not become labels.
        route = scope.get("muster.route", "other")
        method = scope["method"] if route != "other" else "other"
        children = self._children.get((method, route, status))
        if children is None:
            children = self._children[method, route, status] = (
                REQUESTS.labels(method, route, str(status)),
                REQUEST_SECONDS.labels(method, route),
            )
        children[0].inc()
        children[1].observe(seconds)
