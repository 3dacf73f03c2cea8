"""From a skill's type hints to its JSON schemas, and from a task's input to its arguments.

pydantic is imported only when a hint needs it: an agent of built-in skills stays small.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import hashlib
import inspect
import types
import typing
from typing import Any, Final

import orjson

from muster.domain.agent import MAX_SKILL_SCHEMA_BYTES
from muster.domain.errors import SkillImportError
from muster.skill import AsyncContext, Context, InputRejected, Skill

# Of all that is wrong with an input, this many places are named.
_MAX_NAMED_FAULTS: Final = 5
_NO_INPUT: Final = {"type": ["object", "null"], "maxProperties": 0}
_REST: Final = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_ITERATORS: Final = (
    collections.abc.Generator,
    collections.abc.Iterator,
    collections.abc.Iterable,
    collections.abc.AsyncGenerator,
    collections.abc.AsyncIterator,
    collections.abc.AsyncIterable,
)


def schema_hash(input_schema: bytes, output_schema: bytes) -> str:
    """The first 16 hex digits of SHA-256 over both schemas: a skill is name@hash."""
    return hashlib.sha256(input_schema + b"\0" + output_schema).hexdigest()[:16]


class BoundSkill:
    """A skill with its schemas and the way from an input to a call."""

    def __init__(self, skill: Skill) -> None:
        self.skill = skill
        self._adapter: Any = None
        signature = inspect.signature(skill.function)
        hints = _hints(skill)
        self._context_parameter = ""
        parameters = []
        for parameter in signature.parameters.values():
            hint = hints.get(parameter.name, Any)
            if _is_context(parameter.name, hint):
                self._context_parameter = parameter.name
            else:
                parameters.append((parameter, hint))
        self._positional = tuple(
            p.name for p in signature.parameters.values() if p.kind is p.POSITIONAL_ONLY
        )
        self._whole = parameters[0][0].name if _takes_whole(parameters) else ""
        # A task that was submitted without an input has null.
        self._needs_input = any(p.default is p.empty for p, _ in parameters if p.kind not in _REST)
        self._names = frozenset(p.name for p, _ in parameters)
        schema = self._prepare(parameters)
        if skill.input_schema is not None:
            schema = dict(skill.input_schema)
        self.input_schema = _encoded(skill, schema)
        self.output_schema = _encoded(skill, self._output_schema(hints.get("return", Any)))

    def _prepare(self, parameters: list[tuple[inspect.Parameter, Any]]) -> dict[str, Any] | None:
        explicit = self.skill.input_schema is not None
        if not parameters:
            return dict(_NO_INPUT)
        if self._whole:
            if explicit or parameters[0][1] is Any:
                return None
            self._adapter = _adapter(self.skill, parameters[0][1])
        else:
            self._adapter = _adapter(self.skill, _arguments_type(self.skill.name, parameters))
        try:
            schema: dict[str, Any] = self._adapter.json_schema()
        except Exception as error:
            raise SkillImportError(
                f"skill {self.skill.name}: its parameters have no JSON schema ({error})"
            ) from error
        return schema if self._needs_input else _or_null(schema)

    def _output_schema(self, hint: Any) -> dict[str, Any] | None:
        if self.skill.output_schema is not None:
            return dict(self.skill.output_schema)
        if self.skill.generator:
            hint = _generator_result(hint)
        if hint is Any or hint is inspect.Signature.empty:
            return None
        import pydantic  # noqa: PLC0415  see the module's docstring

        try:
            return pydantic.TypeAdapter(hint).json_schema(mode="serialization")
        except pydantic.errors.PydanticUserError:
            # A hint that JSON Schema cannot express promises nothing.
            return None

    def call(self, input_json: bytes, context: Context | AsyncContext) -> Any:
        """Calls the function; raises InputRejected before that when the input does not fit."""
        values = self._values(input_json)
        if self._context_parameter:
            values[self._context_parameter] = context
        args = [values.pop(name) for name in self._positional if name in values]
        return self.skill.function(*args, **values)

    def _values(self, input_json: bytes) -> dict[str, Any]:
        if self._adapter is None:
            value = _loaded(input_json)
            if self._whole:
                return {self._whole: value}
            if value is not None and value != {}:
                raise InputRejected("input", value, f"skill {self.skill.name} takes no input")
            return {}
        import pydantic  # noqa: PLC0415  imported already, by the adapter

        try:
            value = self._adapter.validate_json(input_json or b"null")
        except pydantic.ValidationError as error:
            if not self._needs_input and (input_json or b"null") == b"null":
                return {}
            raise _rejected(self.skill.name, error) from None
        return {self._whole: value} if self._whole else typing.cast("dict[str, Any]", value)


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema that takes null, too; definitions stay where references look for them."""
    if schema.get("type") == "object":
        return {**schema, "type": ["object", "null"]}
    inner = {key: value for key, value in schema.items() if key != "$defs"}
    either: dict[str, Any] = {"anyOf": [inner, {"type": "null"}]}
    return either | ({"$defs": schema["$defs"]} if "$defs" in schema else {})


def _loaded(input_json: bytes) -> Any:
    try:
        return orjson.loads(input_json or b"null")
    except orjson.JSONDecodeError as error:
        raise InputRejected("input", input_json[:40], f"JSON is needed ({error})") from None


def _rejected(name: str, error: Any) -> InputRejected:
    faults = error.errors(include_url=False, include_context=False)
    named = [
        ".".join(("input", *(str(part) for part in fault["loc"]))) + ": " + fault["msg"]
        for fault in faults[:_MAX_NAMED_FAULTS]
    ]
    if len(faults) > _MAX_NAMED_FAULTS:
        named.append(f"and {len(faults) - _MAX_NAMED_FAULTS} more")
    first = faults[0]
    field = ".".join(("input", *(str(part) for part in first["loc"])))
    return InputRejected(field, first.get("input"), f"skill {name} needs: " + "; ".join(named))


def _hints(skill: Skill) -> dict[str, Any]:
    try:
        return typing.get_type_hints(skill.function, include_extras=True)
    except Exception as error:
        raise SkillImportError(
            f"skill {skill.name}: its type hints cannot be resolved "
            f"({type(error).__name__}: {error})"
        ) from error


def _is_context(name: str, hint: Any) -> bool:
    if isinstance(hint, type) and issubclass(hint, Context | AsyncContext):
        return True
    # `ctx: Context | AsyncContext`, for a function that is used as both.
    members = typing.get_args(hint) if isinstance(hint, types.UnionType) else ()
    return (bool(members) and all(_is_context("", m) for m in members)) or name == "ctx"


def _takes_whole(parameters: list[tuple[inspect.Parameter, Any]]) -> bool:
    if len(parameters) != 1:
        return False
    parameter, hint = parameters[0]
    if parameter.kind is parameter.VAR_KEYWORD:
        return False
    if parameter.kind is parameter.POSITIONAL_ONLY or parameter.name == "input":
        return True
    if typing.get_origin(hint) is typing.Annotated:
        hint = typing.get_args(hint)[0]
    bare = typing.get_origin(hint) or hint
    return (
        bare in (dict, collections.abc.Mapping, collections.abc.MutableMapping)
        # A TypedDict, of typing or of typing_extensions, whose metaclasses differ.
        or (isinstance(bare, type) and issubclass(bare, dict) and hasattr(bare, "__total__"))
        or (isinstance(bare, type) and dataclasses.is_dataclass(bare))
        or hasattr(bare, "model_validate")
    )


def _arguments_type(name: str, parameters: list[tuple[inspect.Parameter, Any]]) -> Any:
    """A TypedDict with the parameters as keys: unlike a model, it has no names of its own."""
    import pydantic  # noqa: PLC0415  see the module's docstring
    import typing_extensions  # noqa: PLC0415  comes with pydantic, which needs its TypedDict

    fields: dict[str, Any] = {}
    extra: typing.Literal["allow", "forbid"] = "forbid"
    for parameter, hint in parameters:
        if parameter.kind is parameter.VAR_KEYWORD:
            extra = "allow"
        elif parameter.default is parameter.empty:
            fields[parameter.name] = hint
        else:
            default = pydantic.Field(default=parameter.default)
            fields[parameter.name] = typing.NotRequired[typing.Annotated[hint, default]]
    typed_dict: Any = typing_extensions.TypedDict
    made = typed_dict(f"{name}_input", fields)
    made.__pydantic_config__ = pydantic.ConfigDict(extra=extra)
    return made


def _adapter(skill: Skill, hint: Any) -> Any:
    import pydantic  # noqa: PLC0415  see the module's docstring

    try:
        return pydantic.TypeAdapter(hint)
    except Exception as error:
        raise SkillImportError(
            f"skill {skill.name}: a parameter's hint cannot be checked ({error})"
        ) from error


def _generator_result(hint: Any) -> Any:
    """The type of a generator's result: what it returns, else the list of its yields."""
    arguments = typing.get_args(hint)
    origin = typing.get_origin(hint)
    if origin not in _ITERATORS or not arguments:
        return Any
    if origin is collections.abc.Generator and len(arguments) == 3:
        returned = arguments[2]
        if returned not in (None, types.NoneType, Any):
            return returned
    return list[arguments[0]]  # type: ignore[valid-type]


def _encoded(skill: Skill, schema: dict[str, Any] | None) -> bytes:
    if schema is None:
        return b""
    encoded = orjson.dumps(schema, default=repr)
    if len(encoded) > MAX_SKILL_SCHEMA_BYTES:
        raise SkillImportError(
            f"skill {skill.name}: its schema has {len(encoded)} bytes, "
            f"at most {MAX_SKILL_SCHEMA_BYTES} are accepted"
        )
    return encoded
