"""From type hints to schemas, and from a task's input to a call."""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pydantic
import pytest
from typing_extensions import TypedDict

from muster.agent.catalog import load_skills
from muster.agent.schema import BoundSkill, schema_hash
from muster.domain.errors import InvalidInput, SkillImportError
from muster.skill import SKILL_ATTRIBUTE, AsyncContext, Context, InputRejected, Skill, skill


class Document(pydantic.BaseModel):
    text: str
    pages: int = 1


@dataclasses.dataclass
class Point:
    x: float
    y: float = 0.0


class Options(TypedDict):
    fast: bool


class Colour(enum.Enum):
    RED = "red"


CONTEXT: Any = object()


def bound(function: Callable[..., Any]) -> BoundSkill:
    marked = function if hasattr(function, SKILL_ATTRIBUTE) else skill(function)
    return BoundSkill(getattr(marked, SKILL_ATTRIBUTE))


def call(function: Callable[..., Any], value: Any) -> Any:
    return bound(function).call(json.dumps(value).encode(), CONTEXT)


def test_an_object_maps_onto_the_parameters_by_name() -> None:
    def translate(text: str, to: str = "en", *, tone: str = "plain") -> list[str]:
        return [text, to, tone]

    assert call(translate, {"text": "hallo"}) == ["hallo", "en", "plain"]
    assert call(translate, {"tone": "warm", "text": "a", "to": "fr"}) == ["a", "fr", "warm"]
    schema = json.loads(bound(translate).input_schema)
    assert schema["required"] == ["text"]
    assert schema["properties"]["to"]["default"] == "en"
    assert schema["additionalProperties"] is False
    assert json.loads(bound(translate).output_schema)["items"]["type"] == "string"


def by_name(x: list[int]) -> Any:
    return x


def by_position(x: list[int], /) -> Any:
    return x


def by_its_name(input: list[int]) -> Any:  # noqa: A002
    return input


def a_model(document: Document) -> Any:
    return document


def a_dataclass(point: Point) -> Any:
    return point


def a_typed_dict(options: Options) -> Any:
    return options


def a_dict(anything: dict[str, int]) -> Any:
    return anything


@pytest.mark.parametrize(
    ("function", "value", "expected"),
    [
        (by_name, {"x": [1]}, [1]),
        (by_position, [1], [1]),
        (by_its_name, [1], [1]),
        (a_model, {"text": "a"}, Document(text="a")),
        (a_dataclass, {"x": 1}, Point(1.0)),
        (a_typed_dict, {"fast": True}, {"fast": True}),
        (a_dict, {"a": 1}, {"a": 1}),
    ],
)
def test_which_single_parameters_take_the_whole_input(
    function: Callable[..., Any], value: Any, expected: Any
) -> None:
    assert call(function, value) == expected


def test_values_are_turned_into_what_the_hints_say() -> None:
    def paint(colour: Colour, at: Point, of: Document | None = None) -> Any:
        return colour, at, of

    value = {"colour": "red", "at": {"x": 1}, "of": {"text": "t"}}
    assert call(paint, value) == (Colour.RED, Point(1.0), Document(text="t"))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"text": 3}, "input.text: Input should be a valid string"),
        ({}, "input.text: Field required"),
        ({"text": "a", "too": 1}, "input.too: Extra inputs are not permitted"),
        ([1], "Input should be an object"),
        (None, "Input should be an object"),
    ],
)
def test_an_input_that_breaks_the_hints_is_rejected(value: Any, words: str) -> None:
    def translate(text: str) -> str:
        return text

    with pytest.raises(InputRejected, match="skill translate needs") as caught:
        call(translate, value)
    assert words in str(caught.value)


def test_broken_json_is_rejected() -> None:
    with pytest.raises(InputRejected):
        bound(by_name).call(b'{"x":', CONTEXT)
    with pytest.raises(InputRejected):
        bound(skill(input_schema={})(by_its_name)).call(b"\xff", CONTEXT)


def test_a_skill_without_parameters_takes_nothing() -> None:
    def tick() -> int:
        return 1

    assert call(tick, None) == call(tick, {}) == 1
    with pytest.raises(InputRejected, match="takes no input"):
        call(tick, {"a": 1})


def test_a_skill_whose_parameters_all_have_defaults_runs_without_an_input() -> None:
    def paint(colour: Colour = Colour.RED, thick: int = 1, *, ctx: Any) -> Any:
        return [colour.value, thick]

    def print_it(document: Document = Document(text="nothing")) -> str:  # noqa: B008
        return document.text

    def count(input: int = 7) -> int:  # noqa: A002
        return input

    def keep(input: int | None = 7) -> int | None:  # noqa: A002
        return input

    for function, expected in (
        (paint, ["red", 1]),
        (print_it, "nothing"),
        (count, 7),
        (keep, None),
    ):
        assert call(function, None) == expected
        schema = json.loads(bound(function).input_schema)
        assert jsonschema_rs.is_valid(schema, None), function
        assert not jsonschema_rs.is_valid(schema, "red"), function
    assert call(paint, {"thick": 3}) == ["red", 3]
    assert call(print_it, {"text": "all"}) == "all"


def test_a_parameter_without_a_default_needs_an_input() -> None:
    def paint(colour: Colour, thick: int = 1) -> Any:
        return [colour, thick]

    with pytest.raises(InputRejected):
        call(paint, None)
    assert not jsonschema_rs.is_valid(json.loads(bound(paint).input_schema), None)


def test_the_context_is_found_by_hint_or_name_and_is_not_part_of_the_input() -> None:
    def hinted(text: str, c: Context) -> Any:
        return c

    def either(input: Any, c: Context | AsyncContext) -> Any:  # noqa: A002
        return c

    def named(text: str, ctx) -> Any:  # type: ignore[no-untyped-def]
        return ctx

    assert call(hinted, {"text": ""}) is call(named, {"text": ""}) is CONTEXT
    assert call(either, 3) is CONTEXT
    assert list(json.loads(bound(hinted).input_schema)["properties"]) == ["text"]


def test_keyword_catchers_let_unknown_keys_in() -> None:
    def loose(a: int, **rest: Any) -> Any:
        return a, rest

    assert call(loose, {"a": 1, "b": 2}) == (1, {"b": 2})


def test_the_result_of_a_generator_is_described() -> None:
    def yields(n: int) -> Iterator[int]:
        yield n

    def returns(n: int) -> Generator[int, None, str]:
        yield n
        return ""

    async def flows(n: int) -> AsyncIterator[str]:
        yield ""

    schemas = [json.loads(bound(f).output_schema) for f in (yields, returns, flows)]
    assert schemas == [
        {"type": "array", "items": {"type": "integer"}},
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}},
    ]


def test_explicit_schemas_replace_those_from_hints() -> None:
    @skill(name="x.y", description="d", input_schema={"type": "string"}, output_schema={})
    def own(input: int) -> int:  # noqa: A002
        return input

    found = bound(own)
    assert (found.skill.name, found.skill.description) == ("x.y", "d")
    assert (found.input_schema, found.output_schema) == (b'{"type":"string"}', b"{}")
    assert found.call(b'"text"', CONTEXT) == "text"


def test_the_decorated_function_is_still_the_function() -> None:
    @skill
    async def twice(n: int) -> int:
        """Doubles. And more."""
        return 2 * n

    assert asyncio.run(twice(2)) == 4
    mark: Skill = getattr(twice, SKILL_ATTRIBUTE)
    assert (mark.name, mark.mode, mark.description) == ("twice", "async", "Doubles. And more.")


def test_what_cannot_be_a_skill_is_refused_at_the_decorator() -> None:
    with pytest.raises(InvalidInput, match="skill name"):
        skill(name="Bad Name")(by_name)
    with pytest.raises(TypeError, match="functions"):
        skill(Point)

    def star(*args: int) -> None: ...

    with pytest.raises(TypeError, match="JSON"):
        skill(star)


def test_the_hash_depends_on_both_schemas() -> None:
    assert len({schema_hash(a, b) for a in (b"", b"x") for b in (b"", b"x")}) == 4


# --- modules ------------------------------------------------------------------------------------


def load(tmp_path: Path, source: str, name: str) -> dict[str, BoundSkill]:
    path = tmp_path / f"{name}.py"
    path.write_text(source)
    try:
        return load_skills([str(path)], builtin=False)
    finally:
        sys.modules.pop(name, None)
        if str(tmp_path) in sys.path:
            sys.path.remove(str(tmp_path))


def test_skills_are_found_in_a_file(tmp_path: Path) -> None:
    source = "from muster.skill import skill\n@skill\ndef hello(a: int) -> int: return a\nx = 1\n"
    assert list(load(tmp_path, source, "bots_found")) == ["hello"]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("1/0", "does not import: ZeroDivisionError: division by zero ("),
        ("import sys; sys.exit(4)", "does not import: SystemExit: 4"),
        ("def broken(:", "does not import: SyntaxError"),
        ("import no_such_module_at_all", "ModuleNotFoundError"),
        ("x = 1", "holds no @skill function"),
        (
            "from muster.skill import skill\n@skill\ndef f(a: 'Missing'): ...",
            "its type hints cannot be resolved",
        ),
        (
            "from muster.skill import skill\nclass C: ...\n@skill\ndef f(a: C, b: int): ...",
            "cannot be checked",
        ),
        (
            "from muster.skill import skill\n@skill(name='n')\ndef f(): ...\n"
            "@skill(name='n')\ndef g(): ...",
            "there is another skill called 'n'",
        ),
    ],
)
def test_a_module_that_cannot_serve_is_one_clear_sentence(
    tmp_path: Path, source: str, words: str
) -> None:
    with pytest.raises(SkillImportError) as caught:
        load(tmp_path, source, "bots_broken")
    assert words in str(caught.value)


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(SkillImportError, match="no such file"):
        load_skills(["/nowhere/bots.py"], builtin=False)


def test_built_in_skills_need_no_pydantic_and_the_decorator_needs_nothing() -> None:
    script = (
        "import sys, muster.skill; assert 'pydantic' not in sys.modules, 1;"
        "assert 'orjson' not in sys.modules and 'asyncio' not in sys.modules, 2;"
        "from muster.agent.catalog import load_skills;"
        "assert sorted(load_skills([], builtin=True)) == ['command', 'echo', 'http', 'sleep'];"
        "assert 'pydantic' not in sys.modules, 3; assert 'grpc' not in sys.modules, 4;"
        "assert 'httpx' not in sys.modules, 5"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=150)
