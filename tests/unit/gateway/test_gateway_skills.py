"""Inputs against what agents say of their skills."""

from __future__ import annotations

import pytest

from muster.api.v1 import agent_pb2
from muster.domain.errors import InvalidInput
from muster_gateway.skills import SkillCatalog

NEEDS_TEXT = b'{"type":"object","properties":{"text":{"type":"string"}},"required":["text"]}'
NEEDS_NUMBER = b'{"type":"integer"}'


def agent(
    ident: str, schema: bytes, skill: str = "s", tenant: str = "default"
) -> agent_pb2.AgentRecord:
    offer = agent_pb2.SkillOffer(name=skill, input_schema_json=schema)
    return agent_pb2.AgentRecord(spec=agent_pb2.AgentSpec(id=ident, tenant=tenant, skills=[offer]))


def catalog(*agents: agent_pb2.AgentRecord) -> tuple[SkillCatalog, list[str]]:
    complaints: list[str] = []
    made = SkillCatalog(lambda skill, why: complaints.append(f"{skill}: {why}"))
    made.replace_all(agents)
    return made, complaints


def test_unknown_and_unrestricted_skills_need_no_check() -> None:
    skills, _ = catalog(agent("a", b""), agent("b", b"{}", "t"), agent("c", NEEDS_TEXT, "u"))
    assert not skills.needs_check("default", "nobody")
    assert not skills.needs_check("default", "s")
    assert not skills.needs_check("default", "t")
    assert skills.needs_check("default", "u")
    assert not skills.needs_check("other", "u")


def test_the_spot_in_the_input_is_named() -> None:
    skills, _ = catalog(agent("a", NEEDS_TEXT))
    skills.check("default", "s", b'{"text":"x"}', "input")
    with pytest.raises(InvalidInput) as caught:
        skills.check("default", "s", b'{"text":1}', "tasks[4].input")
    assert caught.value.field == "tasks[4].input.text"
    assert "string" in caught.value.limit


def test_an_input_that_is_missing_is_called_missing() -> None:
    skills, _ = catalog(agent("a", NEEDS_TEXT))
    with pytest.raises(InvalidInput, match="skill s needs an input"):
        skills.check("default", "s", b"null", "input")
    for value in (b"{}", b'{"text":null}'):
        with pytest.raises(InvalidInput, match="takes no such input"):
            skills.check("default", "s", value, "input")


def test_one_schema_that_takes_the_input_is_enough() -> None:
    skills, _ = catalog(agent("a", NEEDS_TEXT), agent("b", NEEDS_NUMBER))
    skills.check("default", "s", b"7", "input")
    skills.check("default", "s", b'{"text":"x"}', "input")
    with pytest.raises(InvalidInput):
        skills.check("default", "s", b'"neither"', "input")


def test_an_agent_that_takes_anything_lifts_the_check() -> None:
    skills, _ = catalog(agent("a", NEEDS_TEXT), agent("b", b""))
    assert not skills.needs_check("default", "s")
    skills.update([], ["b"])
    assert skills.needs_check("default", "s")
    skills.update([agent("a", b"")], [])
    assert not skills.needs_check("default", "s")


@pytest.mark.parametrize(
    "schema",
    [b"not json", b"3", b'{"type":"nonsense"}', b'{"$ref":"http://127.0.0.1:1/x.json"}'],
)
def test_a_schema_that_cannot_be_used_refuses_nothing_and_is_told_once(schema: bytes) -> None:
    skills, complaints = catalog(agent("a", schema))
    skills.check("default", "s", b"1", "input")
    skills.check("default", "s", b"1", "input")
    assert len(complaints) == 1
    assert complaints[0].startswith("s: ")


def test_a_schema_is_compiled_once() -> None:
    compiled: list[bytes] = []

    class Never:
        def iter_errors(self, instance: object) -> list[object]:
            return []

    def compile_schema(schema: bytes) -> Never:
        compiled.append(schema)
        return Never()

    skills = SkillCatalog(lambda _skill, _why: None, compile_schema)
    skills.replace_all([agent("a", NEEDS_TEXT), agent("b", NEEDS_TEXT)])
    for _ in range(3):
        skills.check("default", "s", b"1", "input")
    assert compiled == [NEEDS_TEXT]
