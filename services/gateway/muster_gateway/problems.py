"""Errors as RFC 9457 problem documents: the one table from Muster's errors to HTTP."""

from __future__ import annotations

import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import msgspec
from starlette.responses import Response

from muster.domain import errors
from muster.domain.errors import InvalidInput, MusterError, quoted

MEDIA_TYPE = "application/problem+json"


class MalformedBody(InvalidInput):
    """The body is no JSON text that Muster reads: syntax, encoding or depth."""

    code = "malformed_body"


class UnsupportedMediaType(InvalidInput):
    """The body is of a type that this route does not take."""

    code = "unsupported_media_type"


class NoSuchRoute(MusterError):
    """No resource has this path."""

    code = "no_such_route"


class MethodNotAllowed(MusterError):
    """The resource has no such method; `allowed` are those that it has."""

    code = "method_not_allowed"

    def __init__(self, method: str, path: str, allowed: tuple[str, ...]) -> None:
        self.allowed = allowed
        super().__init__(f"{path} has no method {method[:20]}; it has {', '.join(allowed)}")


# The nearest class in the error's family decides.
_STATUS: Mapping[type[MusterError], HTTPStatus] = {
    MalformedBody: HTTPStatus.BAD_REQUEST,
    UnsupportedMediaType: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    NoSuchRoute: HTTPStatus.NOT_FOUND,
    MethodNotAllowed: HTTPStatus.METHOD_NOT_ALLOWED,
    errors.TooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    errors.InvalidInput: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.NotFound: HTTPStatus.NOT_FOUND,
    errors.PreconditionFailed: HTTPStatus.PRECONDITION_FAILED,
    errors.Conflict: HTTPStatus.CONFLICT,
    errors.Unauthenticated: HTTPStatus.UNAUTHORIZED,
    errors.PermissionDenied: HTTPStatus.FORBIDDEN,
    errors.Overloaded: HTTPStatus.TOO_MANY_REQUESTS,
    errors.Unavailable: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.DeadlineExceeded: HTTPStatus.GATEWAY_TIMEOUT,
}

_TITLE: Mapping[str, str] = {
    "invalid_input": "A value is not accepted",
    "malformed_body": "The body cannot be read",
    "unsupported_media_type": "The body is of another type",
    "too_large": "It is too large",
    "not_found": "There is no such object",
    "no_such_route": "There is no such resource",
    "method_not_allowed": "The resource has no such method",
    "conflict": "The object's state forbids it",
    "precondition_failed": "The object has changed",
    "unauthenticated": "A valid API key is needed",
    "permission_denied": "The API key's role does not allow it",
    "overloaded": "Too much is asked at once",
    "unavailable": "A part of the cluster does not answer",
    "not_leader": "The cluster has no leader at the moment",
    "store_rolled_back": "The store was rolled back, and an operator must decide",
    "deadline_exceeded": "A part of the cluster answered too late",
    "internal": "Something went wrong inside",
}


class Problem(msgspec.Struct, omit_defaults=True):
    """The document. `field`, `value` and `limit` are there when one value is to blame."""

    type: str
    title: str
    status: int
    detail: str
    field: str | msgspec.UnsetType = msgspec.UNSET
    value: str | int | float | msgspec.UnsetType = msgspec.UNSET
    limit: str | msgspec.UnsetType = msgspec.UNSET
    request_id: str = ""


def status_of(error: MusterError) -> HTTPStatus:
    """The HTTP status that an error of the tree is answered with."""
    for cls in type(error).__mro__:
        found = _STATUS.get(cls)
        if found is not None:
            return found
    return HTTPStatus.INTERNAL_SERVER_ERROR


def _shown(value: object) -> str | int | float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return quoted(value)
    if isinstance(value, int):
        return value if abs(value) < 2**53 else quoted(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else quoted(value)
    return value if len(value) <= 80 else value[:79] + "…"


def problem_response(error: MusterError, request_id: str) -> Response:
    """The answer to a request that failed with `error`."""
    status = status_of(error)
    # An error of the tree that is no fault of the request must not tell about the inside.
    internal = status is HTTPStatus.INTERNAL_SERVER_ERROR
    code = "internal" if internal else type(error).code
    detail = "the gateway's log has the details under this request_id" if internal else str(error)
    problem = Problem(
        type=f"urn:muster:problem:{code}",
        title=_TITLE.get(code, status.phrase),
        status=status.value,
        detail=detail,
        request_id=request_id,
    )
    if isinstance(error, InvalidInput):
        problem.field, problem.limit = error.field, error.limit
        problem.value = _shown(error.value)
    headers: dict[str, str] = {}
    if isinstance(error, errors.Unauthenticated):
        headers["WWW-Authenticate"] = 'Bearer realm="muster"'
    if isinstance(error, MethodNotAllowed):
        headers["Allow"] = ", ".join(error.allowed)
    if isinstance(error, errors.Overloaded | errors.Unavailable):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    elif isinstance(error, errors.DeadlineExceeded):
        headers["Retry-After"] = "1"
    if isinstance(error, errors.TooLarge):
        # What is left of the body is not read.
        headers["Connection"] = "close"
    return Response(_encode(problem), status.value, headers, MEDIA_TYPE)


def _encode(problem: Problem) -> bytes:
    try:
        return msgspec.json.encode(problem)
    except UnicodeEncodeError:
        # A lone surrogate came in through a path or a query and is quoted back.
        clean: dict[str, Any] = {
            key: text.encode("utf-8", "replace").decode() if isinstance(text, str) else text
            for key, text in msgspec.structs.asdict(problem).items()
            if text is not msgspec.UNSET
        }
        return msgspec.json.encode(clean)
