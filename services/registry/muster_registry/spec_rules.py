"""What an agent may say of itself. Pure; every breach names field, value and limit."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import orjson

from muster.domain.agent import MAX_SKILL_SCHEMA_BYTES, MAX_SKILLS, AgentSpec, SkillOffer
from muster.domain.errors import InvalidInput, TooLarge
from muster.domain.ids import parse_agent_id, parse_skill_name, parse_tenant_id
from muster.domain.resources import MAX_RESOURCE_NAMES
from muster.domain.task import MAX_JSON_DEPTH, parse_labels

# etcd takes 1.5 MiB in one request, and every registry and scheduler holds every record.
MAX_RECORD_BYTES = 1024 * 1024
MIN_INSTANCE_KEY_BYTES = 32
MAX_INSTANCE_KEY_BYTES = 1024
MAX_SLOTS = 10_000
_MAX_DESCRIPTION_CHARS = 1024
_MAX_HOST_CHARS = 255
_MAX_VERSION_CHARS = 64

_HASH = re.compile(r"([0-9a-f]{16})?")
_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
_DRAFTS = frozenset(
    {
        "https://json-schema.org/draft/2020-12/schema",
        "https://json-schema.org/draft/2019-09/schema",
        "http://json-schema.org/draft-07/schema",
        "http://json-schema.org/draft-06/schema",
        "http://json-schema.org/draft-04/schema",
    }
)


def check_instance_key(key: bytes) -> None:
    """Raises InvalidInput; never quotes the key."""
    if not MIN_INSTANCE_KEY_BYTES <= len(key) <= MAX_INSTANCE_KEY_BYTES:
        limit = f"{MIN_INSTANCE_KEY_BYTES} to {MAX_INSTANCE_KEY_BYTES} random bytes are needed"
        raise InvalidInput("instance_key", f"{len(key)} bytes", limit)


def check_spec(spec: AgentSpec) -> None:
    """Raises InvalidInput or TooLarge."""
    parse_agent_id(spec.id, "spec.id")
    parse_tenant_id(spec.tenant)
    _check_capacity(spec)
    parse_labels(dict(spec.labels), "spec.labels")
    _check_text("spec.host", spec.host, _MAX_HOST_CHARS)
    _check_text("spec.version", spec.version, _MAX_VERSION_CHARS)
    if spec.pid < 0:
        raise InvalidInput("spec.pid", spec.pid, "0 or more")
    _check_skills(spec.skills)


def check_size(size_bytes: int) -> None:
    """Of the whole record as it is stored; raises TooLarge."""
    if size_bytes > MAX_RECORD_BYTES:
        limit = f"at most {MAX_RECORD_BYTES} bytes, skills and their schemas included"
        raise TooLarge("spec", size_bytes, limit)


def _check_capacity(spec: AgentSpec) -> None:
    names = spec.capacity.names()
    if len(names) > MAX_RESOURCE_NAMES:
        raise InvalidInput("spec.capacity", len(names), f"at most {MAX_RESOURCE_NAMES} names")
    if not names:
        raise InvalidInput(
            "spec.capacity", dict(spec.capacity.items()), "at least one capacity above 0"
        )
    slots = spec.capacity.get("slots")
    if not 1 <= slots <= MAX_SLOTS:
        limit = f"1 to {MAX_SLOTS}: every task holds a slot"
        raise InvalidInput("spec.capacity.slots", slots, limit)


def _check_text(field: str, text: str, max_chars: int) -> None:
    if len(text) > max_chars or not text.isprintable():
        raise InvalidInput(field, text, f"at most {max_chars} printable characters")


def _check_skills(skills: Sequence[SkillOffer]) -> None:
    if len(skills) > MAX_SKILLS:
        raise InvalidInput("spec.skills", len(skills), f"at most {MAX_SKILLS} skills")
    seen = set()
    for index, skill in enumerate(skills):
        field = f"spec.skills[{index}]"
        parse_skill_name(skill.name, f"{field}.name")
        if skill.name in seen:
            raise InvalidInput(f"{field}.name", skill.name, "each skill is offered once")
        seen.add(skill.name)
        if len(skill.description) > _MAX_DESCRIPTION_CHARS:
            raise InvalidInput(
                f"{field}.description",
                f"{len(skill.description)} characters",
                f"at most {_MAX_DESCRIPTION_CHARS} characters",
            )
        if _HASH.fullmatch(skill.schema_hash) is None:
            limit = "16 lower-case hex digits, or nothing"
            raise InvalidInput(f"{field}.schema_hash", skill.schema_hash, limit)
        check_schema(f"{field}.input_schema_json", skill.input_schema_json)
        check_schema(f"{field}.output_schema_json", skill.output_schema_json)


def check_schema(field: str, encoded: bytes) -> None:
    """A JSON Schema that can be compiled without asking anybody else; empty = anything."""
    if not encoded:
        return
    if len(encoded) > MAX_SKILL_SCHEMA_BYTES:
        raise TooLarge(field, len(encoded), f"at most {MAX_SKILL_SCHEMA_BYTES} bytes")
    try:
        schema = orjson.loads(encoded)
    except orjson.JSONDecodeError as error:
        raise InvalidInput(field, _text(encoded), f"it must be JSON ({error})") from None
    if not isinstance(schema, dict):
        raise InvalidInput(field, _text(encoded), "a JSON Schema is an object")
    _check_references(field, schema)
    _compile(field, schema)


def _check_references(field: str, schema: dict[str, Any]) -> None:
    """Whoever compiles the schema would otherwise fetch what it refers to."""
    level: list[Any] = [schema]
    for _ in range(MAX_JSON_DEPTH):
        below: list[Any] = []
        for node in level:
            if isinstance(node, list):
                below.extend(node)
            elif isinstance(node, dict):
                _check_node(field, node)
                below.extend(node.values())
        level = [node for node in below if isinstance(node, dict | list)]
        if not level:
            return
    raise InvalidInput(field, "a deep schema", f"nested at most {MAX_JSON_DEPTH} deep")


def _check_node(field: str, node: dict[str, Any]) -> None:
    for key in _REFERENCES:
        target = node.get(key, "#")
        if isinstance(target, str) and not target.startswith("#"):
            raise InvalidInput(f"{field}.{key}", target, "only references within the schema (#…)")
    draft = node.get("$schema")
    if isinstance(draft, str) and draft.rstrip("#") not in _DRAFTS:
        limit = "a draft of json-schema.org from 4 to 2020-12"
        raise InvalidInput(f"{field}.$schema", draft, limit)


def _compile(field: str, schema: dict[str, Any]) -> None:
    import jsonschema_rs  # noqa: PLC0415  costs 50 ms that a registry's start need not wait for

    try:
        jsonschema_rs.meta.validate(schema)
        jsonschema_rs.validator_for(schema, offline=True)
    except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError) as error:
        why = str(getattr(error, "message", error))[:200]
        raise InvalidInput(
            field, _text(orjson.dumps(schema)), f"not a JSON Schema: {why}"
        ) from None


def _text(encoded: bytes) -> str:
    return encoded[:200].decode(errors="replace")
