"""The FastAPI application: every route behind its key, its role and the table of problems."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import structlog
from fastapi import FastAPI
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route as StarletteRoute
from starlette.types import Receive, Scope, Send

from muster.domain.errors import MusterError
from muster_gateway.auth import require
from muster_gateway.edge import Edge
from muster_gateway.gateway import Gateway
from muster_gateway.problems import MethodNotAllowed, NoSuchRoute, problem_response, status_of
from muster_gateway.reading import ClientGone
from muster_gateway.roles import ACCESS, Role
from muster_gateway.routes import ROUTES
from muster_gateway.table import Call, Route, access_of

_LOG = structlog.get_logger("muster.gateway")
_AUDIT = structlog.get_logger("muster.audit")

# Never sent: who would have read it has hung up. The number is nginx's.
_CLIENT_CLOSED = 499


class _Path:
    """All methods of one path, as an ASGI application."""

    def __init__(
        self,
        gateway: Gateway,
        routes: Sequence[Route],
        access: Mapping[tuple[str, str], Role | None],
    ) -> None:
        self._gateway = gateway
        self._path = routes[0].path
        self._routes = {r.method: (r, access_of(r, access)) for r in routes}
        if "GET" in self._routes:
            self._routes["HEAD"] = self._routes["GET"]
        self._methods = tuple(sorted(self._routes))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["muster.route"] = self._path
        request = Request(scope, receive, send)
        response = await self._answer(request, scope["muster.request_id"])
        if scope["method"] == "HEAD" and isinstance(response, StreamingResponse):
            # Its stream is not begun: it may have no end.
            response = Response(None, response.status_code, dict(response.headers))
        await response(scope, receive, send)

    async def _answer(self, request: Request, request_id: str) -> Response:
        method = request.method
        try:
            route, least = self._route(method)
            identity = None
            if least is not None:
                identity = await self._gateway.auth.caller(request.headers.get("authorization"))
                require(identity, least, method, self._path)
            call = Call(self._gateway, request, request_id, identity)
            response = await route.answer(call)
        except MusterError as error:
            return _problem(error, request, request_id)
        except (ClientDisconnect, ClientGone):
            return Response(None, _CLIENT_CLOSED)
        except Exception as error:  # noqa: BLE001  logged, and told as a problem
            return _problem(error, request, request_id)
        if route.audited:
            _audit(call, route, response.status_code)
        return response

    def _route(self, method: str) -> tuple[Route, Role | None]:
        found = self._routes.get(method)
        if found is None:
            raise MethodNotAllowed(method, self._path, self._methods)
        return found


def _problem(error: Exception, request: Request, request_id: str) -> Response:
    known = error if isinstance(error, MusterError) else MusterError(type(error).__name__)
    if status_of(known) == 500:
        _LOG.error(
            "a request failed unexpectedly",
            request_id=request_id,
            method=request.method,
            path=request.url.path,
            exc_info=error,
        )
    return problem_response(known, request_id)


def _audit(call: Call, route: Route, status: int) -> None:
    """Who did what to which object, from where. What was refused changed nothing."""
    client = call.request.client
    _AUDIT.info(
        "audit",
        action=f"{route.method} {route.path}",
        object=dict(call.request.path_params),
        key_id=call.caller.key_id,
        tenant=call.tenant,
        role=call.caller.role.text,
        client=client.host if client else None,
        status=status,
        request_id=call.request_id,
    )


async def _nothing_there(scope: Scope, receive: Receive, send: Send) -> None:
    request = Request(scope, receive, send)
    error = NoSuchRoute(f"there is nothing at {request.url.path[:200]!r}")
    await _problem(error, request, scope["muster.request_id"])(scope, receive, send)


def build_app(
    gateway: Gateway,
    routes: Sequence[Route] = ROUTES,
    access: Mapping[tuple[str, str], Role | None] = ACCESS,
    **edge_options: Any,
) -> Edge:
    """The application to serve. Raises LookupError when a route has no entry in `access`.

    Routes are plain ASGI applications in FastAPI's router, entered without FastAPI's middleware
    (errors, body and bounds are seen to here): checking a body field by field, building an
    answer's model and five layers around both would cost more than all else that a task costs.
    FastAPI writes the OpenAPI document from the same table, see `openapi`.
    """
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.router.default = _nothing_there
    by_pattern: dict[str, list[Route]] = {}
    for route in routes:
        by_pattern.setdefault(route.pattern, []).append(route)
    for pattern, group in by_pattern.items():
        path_app = _Path(gateway, group, access)
        app.router.routes.append(StarletteRoute(pattern, path_app, include_in_schema=False))
    return Edge(app.router.app, gateway.turning_away, **edge_options)
