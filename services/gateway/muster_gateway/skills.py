"""What input each skill takes, as the agents that offer it say."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol

import msgspec

from muster.api.v1 import agent_pb2
from muster.domain.errors import InvalidInput

# Compiled schemas are kept for as long as an agent offers them; this bounds what a swarm of
# agents with ever new schemas can hold. Beyond it an input is not checked here.
_MAX_SCHEMAS: Final = 1_024
# A long message of the validator quotes the whole input.
_MAX_WHY_CHARS: Final = 300


class Validator(Protocol):
    """The part of jsonschema_rs's validators that is used."""

    def iter_errors(self, instance: Any) -> Iterable[Any]: ...


def compile_schema(schema_json: bytes) -> Validator:
    """Raises ValueError on what is no schema, or refers to another document."""
    import jsonschema_rs  # noqa: PLC0415  costs 50 ms, and not every cluster has a schema

    # Offline: a schema comes from an agent, and must not make the gateway fetch anything.
    return jsonschema_rs.validator_for(msgspec.json.decode(schema_json), offline=True)


class SkillCatalog:
    """Skills by name with all schemas under which living agents offer them."""

    def __init__(
        self,
        on_bad_schema: Callable[[str, str], None],
        compile_schema: Callable[[bytes], Validator] = compile_schema,
    ) -> None:
        """`on_bad_schema(skill, why)` hears of schemas that cannot be compiled."""
        self._on_bad_schema = on_bad_schema
        self._compile = compile_schema
        # Agent → ((tenant, skill), schema) of each offer; an empty schema takes anything.
        self._offers: dict[str, list[tuple[tuple[str, str], bytes]]] = {}
        self._schemas: dict[tuple[str, str], set[bytes]] = {}
        self._validators: dict[bytes, Validator | None] = {}

    def replace_all(self, agents: Iterable[agent_pb2.AgentRecord]) -> None:
        """`agents` are all there are."""
        self._offers = {a.spec.id: _offers_of(a) for a in agents}
        self._rebuild()

    def update(self, changed: Iterable[agent_pb2.AgentRecord], removed: Iterable[str]) -> None:
        """Some agents are new or have changed, others are gone."""
        before = dict(self._offers)
        for agent in changed:
            self._offers[agent.spec.id] = _offers_of(agent)
        for ident in removed:
            self._offers.pop(ident, None)
        if self._offers != before:
            self._rebuild()

    def needs_check(self, tenant: str, skill: str) -> bool:
        """Whether every agent that offers the skill restricts its input."""
        schemas = self._schemas.get((tenant, skill))
        return schemas is not None and b"" not in schemas

    def check(self, tenant: str, skill: str, input_json: bytes, field: str) -> None:
        """Raises InvalidInput when no offered schema takes the input.

        Agents of different versions may offer different schemas: one that takes it is enough.
        """
        value = msgspec.json.decode(input_json)
        refusal: InvalidInput | None = None
        for schema in sorted(self._schemas.get((tenant, skill), ())):
            validator = self._validator(skill, schema)
            if validator is None:
                return
            first = next(iter(validator.iter_errors(value)), None)
            if first is None:
                return
            if refusal is None:
                refusal = _refusal(first, skill, field)
        if refusal is not None:
            raise refusal

    def _rebuild(self) -> None:
        self._schemas = {}
        for offers in self._offers.values():
            for key, schema in offers:
                self._schemas.setdefault(key, set()).add(schema)
        offered = {schema for schemas in self._schemas.values() for schema in schemas}
        self._validators = {s: v for s, v in self._validators.items() if s in offered}

    def _validator(self, skill: str, schema: bytes) -> Validator | None:
        if schema in self._validators:
            return self._validators[schema]
        if len(self._validators) >= _MAX_SCHEMAS:
            return None
        compiled: Validator | None = None
        try:
            compiled = self._compile(schema)
        except (ValueError, msgspec.DecodeError) as error:
            self._on_bad_schema(skill, str(error)[:_MAX_WHY_CHARS])
        self._validators[schema] = compiled
        return compiled


def _offers_of(agent: agent_pb2.AgentRecord) -> list[tuple[tuple[str, str], bytes]]:
    tenant = agent.spec.tenant or "default"
    return [((tenant, s.name), _restricting(s.input_schema_json)) for s in agent.spec.skills]


def _restricting(schema: bytes) -> bytes:
    return b"" if schema.strip() in (b"", b"{}", b"true", b"null") else schema


def _refusal(error: Any, skill: str, field: str) -> InvalidInput:
    where = field
    for step in error.instance_path:
        where += f"[{step}]" if isinstance(step, int) else f".{step}"
    if error.instance is None and where == field:
        return InvalidInput(field, None, f"skill {skill} needs an input")
    why = str(error.message)
    if len(why) > _MAX_WHY_CHARS:
        why = why[: _MAX_WHY_CHARS - 1] + "…"
    return InvalidInput(where[:200], error.instance, f"skill {skill} takes no such input: {why}")
