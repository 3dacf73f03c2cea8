"""What a route is: where it lies, what answers it, how the OpenAPI document tells of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from muster_gateway.auth import Caller
from muster_gateway.gateway import Gateway
from muster_gateway.roles import Role


@dataclass(frozen=True, slots=True)
class Call:
    """One request on its way to its answer."""

    gateway: Gateway
    request: Request
    request_id: str
    # None on the routes that are open.
    identity: Caller | None

    @property
    def caller(self) -> Caller:
        assert self.identity is not None, "an open route asked who calls"
        return self.identity

    @property
    def tenant(self) -> str:
        return self.caller.tenant


@dataclass(frozen=True, slots=True)
class Query:
    """A query or header parameter, for the documentation."""

    name: str
    about: str
    example: Any = None
    where: str = "query"
    kind: str = "string"


@dataclass(frozen=True, slots=True)
class Answer:
    """One documented answer. `model` is a pydantic model of a JSON body, or None."""

    status: int
    about: str
    model: Any = None
    example: Any = None
    media_type: str = "application/json"


@dataclass(frozen=True, slots=True)
class Body:
    """A documented request body: named examples, and a model or a media type for raw bytes."""

    model: Any = None
    examples: Mapping[str, Any] = field(default_factory=dict)
    media_types: tuple[str, ...] = ("application/json",)
    required: bool = True


@dataclass(frozen=True, slots=True)
class Route:
    """`path` in Starlette's syntax without converters; a converter stands in `converters`."""

    method: str
    path: str
    answer: Callable[[Call], Awaitable[Response]]
    summary: str
    tag: str
    answers: tuple[Answer, ...]
    about: str = ""
    queries: tuple[Query, ...] = ()
    body: Body | None = None
    # E.g. {"key": "path"} where a parameter may hold slashes.
    converters: Mapping[str, str] = field(default_factory=dict)
    # Statuses of problem documents besides those that every route has.
    problems: tuple[int, ...] = ()
    # Changes what others see, and goes into the audit log.
    audited: bool = False

    @property
    def pattern(self) -> str:
        """The path as Starlette matches it."""
        pattern = self.path
        for name, converter in self.converters.items():
            pattern = pattern.replace(f"{{{name}}}", f"{{{name}:{converter}}}")
        return pattern


def access_of(route: Route, access: Mapping[tuple[str, str], Role | None]) -> Role | None:
    """The least role; None = open. A route without an entry is our own bug and stops the start."""
    key = (route.method, route.path)
    if key not in access:
        raise LookupError(f"{route.method} {route.path} has no entry in the table of roles")
    return access[key]
