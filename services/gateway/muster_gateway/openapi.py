"""The OpenAPI 3.1 document, written by FastAPI from the table of routes."""

from __future__ import annotations

from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import msgspec
from fastapi import APIRouter
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, TypeAdapter
from starlette.responses import Response

from muster_gateway import documents
from muster_gateway.problems import MEDIA_TYPE
from muster_gateway.roles import ACCESS
from muster_gateway.routes import ROUTES
from muster_gateway.table import Answer, Body, Query, Route

_PROBLEM_TEXT = {
    400: "The body cannot be read: syntax, encoding or depth.",
    401: "No API key, or a wrong, expired or revoked one.",
    403: "The key's role does not allow it.",
    404: "There is no such object in the key's tenant.",
    409: "The object's state forbids it.",
    412: "The object has changed.",
    413: "The body is too large.",
    415: "The body is of a type that is not taken.",
    422: "A value is not accepted; `field`, `value` and `limit` name it.",
    429: "Too much is asked at once; see Retry-After.",
    503: "A part of the cluster does not answer; see Retry-After. Nothing is half done.",
}
_ABOUT = (
    "Muster runs tasks on agents. Every request but those for /healthz and /readyz needs "
    "`Authorization: Bearer mst_<id>_<secret>`; objects are those of the key's tenant. Errors are "
    "problem documents (RFC 9457). Lists are `{items, next}`: pass `next` as `cursor`. Times are "
    "RFC 3339 in UTC, quantities as in Kubernetes."
)


@lru_cache(maxsize=1)
def document_json() -> bytes:
    """The document in JSON."""
    return msgspec.json.encode(document())


def document(routes: tuple[Route, ...] = ROUTES) -> dict[str, Any]:
    """The document."""
    router = APIRouter()
    for route in routes:
        _describe(router, route)
    described = get_openapi(
        title="Muster",
        version=_version(),
        openapi_version="3.1.0",
        summary="A cluster manager for AI agents.",
        description=_ABOUT,
        routes=router.routes,
    )
    for route in routes:
        # Afterwards, because FastAPI leaves out what is null, which examples show on purpose.
        operation = described["paths"][route.path][route.method.lower()]
        for answer in route.answers:
            operation["responses"][str(answer.status)] = _answer(answer)
        if route.body is not None:
            operation["requestBody"] = _body(route.body)
    schemes = described.setdefault("components", {}).setdefault("securitySchemes", {})
    schemes["key"] = {"type": "http", "scheme": "bearer", "bearerFormat": "mst_<id>_<secret>"}
    described["components"].setdefault("schemas", {}).update(_body_schemas(routes))
    return described


def _version() -> str:
    try:
        return version("muster-cluster")
    except PackageNotFoundError:
        return "0"


def _describe(router: APIRouter, route: Route) -> None:
    async def endpoint() -> Response:
        raise AssertionError("this route only describes")

    least = ACCESS[route.method, route.path]
    needs = f"Needs the role {least.text}." if least is not None else "Needs no credential."
    responses: dict[int | str, dict[str, Any]] = {}
    statuses = {*route.problems, 503} | ({401, 403, 429} if least is not None else set())
    for status in sorted(statuses):
        responses[status] = {
            "description": _PROBLEM_TEXT[status],
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
    first = route.answers[0]
    name = route.answer.__name__ if route.answer.__name__ != "act" else route.path.rsplit("/")[-1]
    router.add_api_route(
        route.path,
        endpoint,
        methods=[route.method],
        status_code=first.status,
        summary=route.summary,
        description=f"{route.about} {needs}".strip(),
        tags=[route.tag],
        operation_id=f"{route.tag}_{name}",
        response_class=Response,
        responses=responses,
        openapi_extra=_extra(route, secured=least is not None),
    )


def _extra(route: Route, *, secured: bool) -> dict[str, Any]:
    parameters = [
        {
            "name": part[1:-1],
            "in": "path",
            "required": True,
            "schema": {"type": "string"},
            "example": _path_example(route, part[1:-1]),
        }
        for part in route.path.split("/")
        if part.startswith("{")
    ]
    parameters += [_parameter(query) for query in route.queries]
    extra: dict[str, Any] = {"parameters": parameters} if parameters else {}
    extra["security"] = [{"key": []}] if secured else []
    return extra


def _path_example(route: Route, name: str) -> str:
    if name == "id":
        by_tag = {"agents": documents.AGENT, "keys": "0a1b2c3d4e5f", "alerts": "0a1b2c3d4e5f6071"}
        return by_tag.get(route.tag, documents.TASK_ID)
    return {"key": "models/current", "sha256": "9f86d081884c7d65" * 4}[name]


def _parameter(query: Query) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "name": query.name,
        "in": query.where,
        "required": False,
        "description": query.about,
        "schema": {"type": query.kind},
    }
    if query.name == "label":
        shown["schema"] = {"type": "array", "items": {"type": "string"}}
        shown["example"] = [query.example]
    elif query.example is not None:
        shown["example"] = query.example
    return shown


def _answer(answer: Answer) -> dict[str, Any]:
    shown: dict[str, Any] = {"description": answer.about}
    content: dict[str, Any] = {}
    if isinstance(answer.model, type) and issubclass(answer.model, BaseModel):
        content["schema"] = {"$ref": f"#/components/schemas/{answer.model.__name__}"}
    elif answer.model is dict:
        content["schema"] = {"type": "object"}
    elif answer.media_type != "application/json":
        content["schema"] = {"type": "string"}
    else:
        return shown
    content["example"] = _example(answer)
    if content["example"] is None:
        del content["example"]
    shown["content"] = {answer.media_type: content}
    return shown


def _example(answer: Answer) -> Any:
    if answer.example is not None or answer.model is None:
        return answer.example
    return documents.EXAMPLES.get(getattr(answer.model, "__name__", ""))


def _body(body: Body) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for media_type in body.media_types:
        if body.model is None:
            content[media_type] = {"schema": {}}
        else:
            content[media_type] = {
                "schema": TypeAdapter(body.model).json_schema(ref_template=_REF)
                if not isinstance(body.model, type)
                else {"$ref": f"#/components/schemas/{body.model.__name__}"},
                "examples": {name: {"value": value} for name, value in body.examples.items()},
            }
            content[media_type]["schema"].pop("$defs", None)
    return {"required": body.required, "content": content}


_REF = "#/components/schemas/{model}"


def _body_schemas(routes: tuple[Route, ...]) -> dict[str, Any]:
    """Schemas of all models in the table, with what they refer to."""
    models: list[Any] = [documents.Problem]
    for route in routes:
        models += [a.model for a in route.answers]
        models += [route.body.model] if route.body is not None else []
    schemas: dict[str, Any] = {}
    for model in models:
        if model in (None, dict):
            continue
        schema = TypeAdapter(model).json_schema(ref_template=_REF)
        schemas.update(schema.pop("$defs", {}))
        if isinstance(model, type):
            schemas[model.__name__] = schema
    return schemas
