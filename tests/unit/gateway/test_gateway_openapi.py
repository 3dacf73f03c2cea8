"""The OpenAPI document: valid, complete, and true to what is sent."""

from __future__ import annotations

import re
from typing import Any

import jsonschema_rs
import msgspec
import pytest
from fastapi.openapi.models import OpenAPI

from muster_gateway import documents, problems, routes_keys, routes_results, task_body, views
from muster_gateway.openapi import document
from muster_gateway.roles import ACCESS
from muster_gateway.routes import ROUTES

DOCUMENT = document()
OPERATIONS = {
    (method.upper(), path): operation
    for path, operations in DOCUMENT["paths"].items()
    for method, operation in operations.items()
}


def test_it_has_the_shape_of_openapi_3_1() -> None:
    assert DOCUMENT["openapi"] == "3.1.0"
    OpenAPI.model_validate(DOCUMENT)


def test_every_route_is_in_it_and_nothing_else() -> None:
    assert set(OPERATIONS) == {(route.method, route.path) for route in ROUTES}


def test_operation_ids_are_unique() -> None:
    ids = [operation["operationId"] for operation in OPERATIONS.values()]
    assert len(ids) == len(set(ids))


def test_every_reference_leads_somewhere() -> None:
    text = msgspec.json.encode(DOCUMENT).decode()
    names = set(re.findall(r"#/components/schemas/([A-Za-z0-9_]+)", text))
    assert "Task" in names
    for name in names:
        assert name in DOCUMENT["components"]["schemas"], name


def test_every_schema_is_a_json_schema() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    assert {"Task", "Result", "Problem"} <= set(schemas)
    for schema in schemas.values():
        jsonschema_rs.meta.validate(schema)


def _with_components(schema: dict[str, Any]) -> Any:
    return jsonschema_rs.validator_for({**schema, "components": DOCUMENT["components"]})


@pytest.mark.parametrize("key", sorted(OPERATIONS), ids=" ".join)
def test_an_operation_says_what_it_takes_and_gives(key: tuple[str, str]) -> None:
    operation = OPERATIONS[key]
    secured = ACCESS[key] is not None
    assert operation["security"] == ([{"key": []}] if secured else [])
    assert operation["summary"]
    assert ("401" in operation["responses"]) == secured
    in_path = {p["name"] for p in operation.get("parameters", []) if p["in"] == "path"}
    assert in_path == set(re.findall(r"{(\w+)}", key[1]))
    shown = 0
    for response in operation["responses"].values():
        assert response["description"]
        for content in response.get("content", {}).values():
            if "example" in content and content["schema"]:
                shown += 1
                _with_components(content["schema"]).validate(content["example"])
    for parameter in operation.get("parameters", []):
        shown += "example" in parameter
    for content in operation.get("requestBody", {}).get("content", {}).values():
        for example in content.get("examples", {}).values():
            shown += 1
            _with_components(content["schema"]).validate(example["value"])
    without = {"/metrics", "/openapi.json"}
    assert shown or key[1] in without, "it has no example"


def test_examples_of_requests_are_taken() -> None:
    (body,) = (r.body for r in ROUTES if r.path == "/v1/tasks" and r.body is not None)
    taken = {
        name: task_body.decode_submission(msgspec.json.encode(example), ndjson=False)
        for name, example in body.examples.items()
    }
    assert {name: (len(tasks), batch) for name, (tasks, batch) in taken.items()} == {
        "one": (1, False),
        "smallest": (1, False),
        "batch": (3, True),
    }


@pytest.mark.parametrize(
    ("documented", "real"),
    [
        (documents.NewTask, task_body.TaskIn),
        (documents.NewTasks, task_body.BatchIn),
        (documents.Constraint, task_body.ConstraintIn),
        (documents.Task, views.TaskOut),
        (documents.Result, views.ResultOut),
        (documents.TaskError, views.ErrorOut),
        (documents.Progress, views.ProgressOut),
        (documents.NewKey, routes_keys.KeyIn),
        (documents.Gather, routes_results.GatherIn),
        (documents.Problem, problems.Problem),
    ],
)
def test_documented_fields_are_the_real_ones(documented: Any, real: Any) -> None:
    assert set(documented.model_fields) == set(real.__struct_fields__)


def test_documented_defaults_are_the_real_ones() -> None:
    real = {f.name: f for f in msgspec.structs.fields(task_body.TaskIn)}
    for name, field in documents.NewTask.model_fields.items():
        if name not in ("skill", "input"):
            assert field.default == real[name].default, name
