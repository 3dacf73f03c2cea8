"""An explanation as JSON: true to its document, and only what belongs to a change."""

from __future__ import annotations

from typing import Any

import jsonschema_rs
import msgspec
import pytest

from muster.api.v1 import scheduler_pb2, task_pb2
from muster_gateway.explain_view import explain_out
from muster_gateway.openapi import document

SCHEMAS = document()["components"]
EXPLANATION = jsonschema_rs.validator_for(
    {"$ref": "#/components/schemas/Explanation", "components": SCHEMAS}
)
MAX = task_pb2.Constraint(key="app", op="max", values=["2"])
CHANGES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (
        {"kind": "CUT", "resource": "memory", "from_amount": 1 << 30, "to_amount": 1 << 29},
        {"kind": "cut", "resource": "memory", "from": "1Gi", "to": "512Mi"},
    ),
    (
        {"kind": "RAISE_MAX", "from_amount": 2, "to_amount": 3, "constraint": MAX},
        {
            "kind": "raise_max",
            "from": 2,
            "to": 3,
            "constraint": {"key": "app", "op": "max", "values": ["2"]},
        },
    ),
    (
        {"kind": "LIFT_CONSTRAINT", "constraint": task_pb2.Constraint(key="zone", op="exists")},
        {"kind": "lift_constraint", "constraint": {"key": "zone", "op": "exists", "values": []}},
    ),
    ({"kind": "DROP_AVOID"}, {"kind": "drop_avoid"}),
    ({"kind": "UNCORDON", "agent": "a"}, {"kind": "uncordon", "agent": "a"}),
    (
        {"kind": "ADD_AGENT", "skill": "s", "labels": {"z": "a"}, "capacity": {"cpu": 500}},
        {"kind": "add_agent", "skill": "s", "labels": {"z": "a"}, "capacity": {"cpu": "500m"}},
    ),
]


@pytest.mark.parametrize(("change", "shown"), CHANGES, ids=lambda one: str(one["kind"]))
def test_a_change_has_the_fields_of_its_kind(change: dict[str, Any], shown: Any) -> None:
    kind = scheduler_pb2.ChangeKind.Value(f"CHANGE_KIND_{change.pop('kind')}")
    message = scheduler_pb2.PlacingChange(kind=kind, **change)
    answer = scheduler_pb2.ExplainResponse(state=task_pb2.TASK_STATE_PENDING, change=message)
    out = explain_out("i", answer, 0)
    assert out["change"] == shown
    EXPLANATION.validate(msgspec.json.decode(msgspec.json.encode(out)))


def test_starts_and_candidates() -> None:
    one = scheduler_pb2.CandidateScore(agent="a", rank=1, fits=True, terms={"score": 0.5})
    answer = scheduler_pb2.ExplainResponse(
        state=task_pb2.TASK_STATE_PENDING, eta_ms=1_500, eta_why="w", candidates=[one]
    )
    out = explain_out("i", answer, 1_700_000_000_000)
    assert out["expected_start"] == "2023-11-14T22:13:21.500Z"
    assert out["expected_start_why"] == "w"
    assert out["candidates"] == [{"agent": "a", "rank": 1, "fits": True, "terms": {"score": 0.5}}]
    assert out["change"] is None
    EXPLANATION.validate(msgspec.json.decode(msgspec.json.encode(out)))
    assert explain_out("i", scheduler_pb2.ExplainResponse(), 5)["expected_start"] is None
