"""YAML as plain values that know their line: small, without aliases or tags of its own. Pure.

Rules files are written by operators, but a broken or hostile one must neither run code nor eat the
monitor: size, depth and number of nodes are bounded before anything is built, aliases are refused
(a few lines of them describe gigabytes), and only strings, numbers, true/false and null exist.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import yaml

from muster.domain.errors import quoted

MAX_RULES_BYTES = 64 * 1024
# Rules need five levels.
MAX_RULES_DEPTH = 8
MAX_RULES_NODES = 10_000

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True, slots=True)
class Mistake:
    """`line` counts from 1; 0 = the file as a whole. `field` is where it stands."""

    line: int
    field: str
    value: object
    limit: str

    def __str__(self) -> str:
        where = f"line {self.line}: " if self.line else ""
        return f"{where}{self.field}: {quoted(self.value)} is not accepted; {self.limit}"


@dataclass(frozen=True, slots=True)
class Located:
    """A value, and the line (from 1) where it begins."""

    value: str | float | int | bool | list[Located] | dict[str, Located] | None
    line: int


class Unreadable(Exception):
    """The text is no YAML of ours; carries the one mistake."""

    def __init__(self, mistake: Mistake) -> None:
        self.mistake = mistake
        super().__init__(str(mistake))


def locate(encoded: bytes) -> Located:
    """Raises Unreadable. An empty file is an empty mapping."""
    if len(encoded) > MAX_RULES_BYTES:
        limit = f"at most {MAX_RULES_BYTES} bytes"
        raise Unreadable(Mistake(0, "file", f"{len(encoded)} bytes", limit))
    try:
        text = encoded.decode()
    except UnicodeDecodeError as error:
        line = encoded.count(b"\n", 0, error.start) + 1
        bad = encoded[error.start : error.start + 1]
        raise Unreadable(Mistake(line, "file", bad, "text in UTF-8")) from None
    try:
        _check_events(text)
        node = yaml.compose(text, Loader=_LOADER)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark is not None else 0
        said = error.problem or error.context or "it cannot be read"
        raise Unreadable(Mistake(line, "file", said, "YAML")) from None
    except yaml.YAMLError as error:
        raise Unreadable(Mistake(0, "file", str(error), "YAML")) from None
    if node is None:
        return Located({}, 1)
    return _located(node, "file")


def _check_events(text: str) -> None:
    """Bounds are looked at before nodes are made: what is refused costs nothing."""
    depth = nodes = 0
    for event in yaml.parse(text, Loader=_LOADER):
        mark = event.start_mark
        line = mark.line + 1 if mark is not None else 0
        if isinstance(event, yaml.AliasEvent):
            limit = "aliases (*name) are not read: write the value out"
            raise Unreadable(Mistake(line, "file", f"*{event.anchor}", limit))
        if isinstance(event, yaml.CollectionStartEvent | yaml.ScalarEvent):
            nodes += 1
            if event.tag is not None:
                raise Unreadable(Mistake(line, "file", event.tag, "values have no !tags"))
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_RULES_DEPTH:
            limit = f"at most {MAX_RULES_DEPTH} levels"
            raise Unreadable(Mistake(line, "file", f"{depth} levels", limit))
        if nodes > MAX_RULES_NODES:
            limit = f"at most {MAX_RULES_NODES} values"
            raise Unreadable(Mistake(line, "file", f"{nodes} values", limit))


def _located(node: Any, path: str) -> Located:
    line = node.start_mark.line + 1
    if isinstance(node, yaml.SequenceNode):
        items = [_located(item, f"{path}[{i}]") for i, item in enumerate(node.value)]
        return Located(items, line)
    if isinstance(node, yaml.MappingNode):
        return Located(_mapping(node, path), line)
    return Located(_scalar(node, path, line), line)


def _mapping(node: Any, path: str) -> dict[str, Located]:
    found: dict[str, Located] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise Unreadable(Mistake(line, path, "a key that is no word", "keys are words"))
        key = str(key_node.value)
        inner = key if path == "file" else f"{path}.{key}"
        if key in found:
            raise Unreadable(Mistake(line, inner, key, "each key once"))
        found[key] = _located(value_node, inner)
    return found


def _scalar(node: Any, path: str, line: int) -> str | float | int | bool | None:
    kind = node.tag.removeprefix("tag:yaml.org,2002:")
    text = str(node.value)
    match kind:
        case "str" | "timestamp":
            return text
        case "null":
            return None
        case "bool":
            return text.lower() in ("yes", "true", "on")
        case "int" | "float":
            return _number(text, path, line)
    limit = "only text, numbers, true, false and null"
    raise Unreadable(Mistake(line, path, node.tag, limit))


def _number(text: str, path: str, line: int) -> float | int:
    plain = text.replace("_", "").lower()
    special = {".nan": math.nan, ".inf": math.inf, "+.inf": math.inf, "-.inf": -math.inf}
    if plain in special:
        return special[plain]
    try:
        # A number of thousands of digits is refused by `float` and `int` in the same way.
        return int(plain) if plain.lstrip("+-").isdigit() and len(plain) < 20 else float(plain)
    except ValueError:
        raise Unreadable(Mistake(line, path, text, "a decimal number")) from None
