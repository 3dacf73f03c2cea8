"""Errors as problem documents."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muster.domain import errors
from muster.domain.errors import MusterError
from muster_gateway.problems import (
    MalformedBody,
    MethodNotAllowed,
    NoSuchRoute,
    UnsupportedMediaType,
    problem_response,
)


def problem(error: MusterError) -> tuple[int, dict[str, Any], dict[str, str]]:
    response = problem_response(error, "req-1")
    assert response.media_type == "application/problem+json"
    return response.status_code, msgspec.json.decode(response.body), dict(response.headers)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.InvalidInput("a", 1, "b"), 422),
        (errors.TooLarge("a", 1, "b"), 413),
        (MalformedBody("body", "x", "y"), 400),
        (UnsupportedMediaType("a", "b", "c"), 415),
        (errors.NotFound("task", "x"), 404),
        (NoSuchRoute("x"), 404),
        (MethodNotAllowed("PUT", "/x", ("GET",)), 405),
        (errors.Conflict("x"), 409),
        (errors.PreconditionFailed("x"), 412),
        (errors.Unauthenticated("x"), 401),
        (errors.PermissionDenied("x"), 403),
        (errors.Overloaded("x"), 429),
        (errors.Unavailable("x"), 503),
        (errors.NotLeader("x"), 503),
        (errors.DeadlineExceeded("x", 1.0), 504),
        (errors.StaleTerm(1, 2), 500),
        (MusterError("x"), 500),
    ],
)
def test_every_error_has_its_status(error: MusterError, status: int) -> None:
    code, document, headers = problem(error)
    assert (code, document["status"]) == (status, status)
    assert document["type"].startswith("urn:muster:problem:")
    assert document["title"]
    assert document["request_id"] == "req-1"
    assert ("retry-after" in headers) == (status in (429, 503, 504))
    assert ("www-authenticate" in headers) == (status == 401)
    assert (headers.get("allow") == "GET") == (status == 405)


def test_a_bad_value_is_named_with_field_and_limit() -> None:
    _, document, _ = problem(errors.InvalidInput("tasks[17].resources.cpu", "-1", "at least 0"))
    assert (document["field"], document["value"]) == ("tasks[17].resources.cpu", "-1")
    assert document["limit"] == "at least 0"


def test_the_inside_is_not_told() -> None:
    _, document, _ = problem(MusterError("storage: INTERNAL: /secret/path"))
    assert "secret" not in str(document)


@given(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=()))
    | st.binary()
    | st.lists(st.integers())
)
def test_any_value_can_be_quoted(value: object) -> None:
    _, document, _ = problem(errors.InvalidInput("f", value, "l"))
    assert len(str(document["value"])) <= 100
