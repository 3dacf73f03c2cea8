"""What agents may say of themselves, and who may register."""

from __future__ import annotations

import dataclasses
from typing import Any

import orjson
import pytest

from muster.domain.agent import MAX_SKILL_SCHEMA_BYTES, AgentSpec, SkillOffer
from muster.domain.errors import Conflict, InvalidInput, TooLarge
from muster.domain.ids import AgentId, TenantId
from muster.domain.resources import ResourceVector
from muster_registry import spec_rules
from muster_registry.admission import Admission, Holder, admit
from muster_registry.spec_rules import check_instance_key, check_schema, check_size, check_spec

A = AgentId("a-1")
SCHEMA = orjson.dumps({"type": "object", "properties": {"x": {"type": "integer"}}})
SPEC = AgentSpec(
    id=A,
    capacity=ResourceVector.of({"cpu": 4000, "memory": 2**30, "slots": 64}),
    skills=(SkillOffer("echo", "says it again", SCHEMA, b"", "0123456789abcdef"),),
    labels=(("zone", "a"),),
    host="machine-1",
    pid=17,
    version="0.1.0",
)


def skill(**fields: Any) -> AgentSpec:
    return dataclasses.replace(SPEC, skills=(dataclasses.replace(SPEC.skills[0], **fields),))


def test_a_sound_spec_is_taken() -> None:
    check_spec(SPEC)


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (dataclasses.replace(SPEC, id=AgentId("")), "spec.id"),
        (dataclasses.replace(SPEC, id=AgentId("A")), "spec.id"),
        (dataclasses.replace(SPEC, id=AgentId("a" * 64)), "spec.id"),
        (dataclasses.replace(SPEC, id=AgentId("a/b")), "spec.id"),
        (dataclasses.replace(SPEC, tenant=TenantId("No")), "tenant"),
        (dataclasses.replace(SPEC, capacity=ResourceVector()), "spec.capacity"),
        (
            dataclasses.replace(SPEC, capacity=ResourceVector.of({"cpu": 1})),
            "spec.capacity.slots",
        ),
        (
            dataclasses.replace(SPEC, capacity=ResourceVector.of({"slots": 10_001})),
            "spec.capacity.slots",
        ),
        (
            dataclasses.replace(
                SPEC, capacity=ResourceVector.of({f"r{n:02}": 1 for n in range(33)})
            ),
            "spec.capacity",
        ),
        (dataclasses.replace(SPEC, labels=(("Bad Key", "x"),)), "spec.labels"),
        (dataclasses.replace(SPEC, labels=(("zone", "a\nb"),)), "spec.labels.zone"),
        (dataclasses.replace(SPEC, host="a\x1b[31m"), "spec.host"),
        (dataclasses.replace(SPEC, version="1" * 65), "spec.version"),
        (dataclasses.replace(SPEC, pid=-1), "spec.pid"),
        (
            dataclasses.replace(SPEC, skills=tuple(SkillOffer(f"s{n}") for n in range(257))),
            "spec.skills",
        ),
        (
            dataclasses.replace(SPEC, skills=(SkillOffer("echo"), SkillOffer("echo"))),
            "spec.skills[1].name",
        ),
        (skill(name="Echo"), "spec.skills[0].name"),
        (skill(description="x" * 1025), "spec.skills[0].description"),
        (skill(schema_hash="xyz"), "spec.skills[0].schema_hash"),
        (skill(input_schema_json=b"{"), "spec.skills[0].input_schema_json"),
        (skill(output_schema_json=b"[]"), "spec.skills[0].output_schema_json"),
    ],
)
def test_a_bad_spec_is_refused_by_the_name_of_its_field(spec: AgentSpec, field: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        check_spec(spec)
    assert refused.value.field.startswith(field)
    assert refused.value.limit


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object"},
        {"$schema": "http://json-schema.org/draft-07/schema#"},
        {"$ref": "#/$defs/x", "$defs": {"x": {"type": "string"}}},
        {"properties": {"$ref": {"type": "string"}}},
    ],
)
def test_sound_schemas_are_taken(schema: dict[str, Any]) -> None:
    check_schema("s", orjson.dumps(schema))
    check_schema("s", b"")


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(depth):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "objekt"},
        {"properties": 3},
        {"pattern": "("},
        {"$ref": "http://127.0.0.1:1/x.json"},
        {"items": [{"properties": {"x": {"$ref": "file:///etc/passwd"}}}]},
        {"$dynamicRef": "other#x"},
        {"$schema": "http://127.0.0.1:1/meta"},
        {"$ref": "#/$defs/missing"},
        nested(80),
    ],
)
def test_bad_schemas_are_refused_without_asking_anybody(schema: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput) as refused:
        check_schema("s", orjson.dumps(schema))
    assert refused.value.field.startswith("s")


@pytest.mark.parametrize("encoded", [b"\xff", b"NaN", b"[" * 5000, b'"x"', b"null", b"true"])
def test_what_is_no_schema_is_refused(encoded: bytes) -> None:
    with pytest.raises(InvalidInput):
        check_schema("s", encoded)


def test_sizes_are_bounded() -> None:
    with pytest.raises(TooLarge):
        check_schema("s", b" " * (MAX_SKILL_SCHEMA_BYTES + 1))
    check_size(spec_rules.MAX_RECORD_BYTES)
    with pytest.raises(TooLarge):
        check_size(spec_rules.MAX_RECORD_BYTES + 1)


@pytest.mark.parametrize("size", [0, 31, 1025])
def test_an_instance_key_has_a_size_and_is_never_quoted(size: int) -> None:
    check_instance_key(b"k" * 32)
    with pytest.raises(InvalidInput) as refused:
        check_instance_key(b"k" * size)
    assert "kk" not in str(refused.value)


OURS, OTHERS = b"h" * 32, b"o" * 32


def test_a_new_start_gets_a_new_incarnation() -> None:
    assert admit(A, None, OURS, 0) == Admission(None)
    assert admit(A, Holder(4, OURS), OURS, 0) == Admission(None)


def test_a_living_runtime_keeps_its_incarnation() -> None:
    assert admit(A, None, OURS, 4) == Admission(4)
    assert admit(A, Holder(4, OURS), OURS, 4) == Admission(4)
    # etcd was restored to an older state: the runtime's word is newer.
    assert admit(A, Holder(3, OURS), OURS, 4) == Admission(4)


def test_another_instance_is_refused_by_the_agents_name() -> None:
    for incarnation in (0, 4, 9):
        with pytest.raises(Conflict, match="a-1"):
            admit(A, Holder(4, OTHERS), OURS, incarnation)


def test_a_replaced_runtime_is_told_so() -> None:
    with pytest.raises(Conflict, match="replaced by incarnation 5"):
        admit(A, Holder(5, OURS), OURS, 4)
