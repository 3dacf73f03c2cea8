"""Takes the fields of one mapping of a rules file; notes each mistake and does not raise. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import re2

from muster_monitor.rules.located import Located, Mistake
from muster_monitor.rules.schema import (
    MAX_RULE_DURATION_S,
    MAX_RULE_PATTERN_CHARS,
    MAX_SELECTOR_KEYS,
    MAX_SELECTOR_WORDS,
    Matcher,
    Selector,
)

# What one pattern's automata may take; RE2 slows down rather than take more.
PATTERN_MEMORY_BYTES = 1024 * 1024
_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,6})?) ?(ms|s|m|h|d)?")
_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, None: 1.0}
_KEY = re.compile(r"[A-Za-z][A-Za-z0-9_./-]{0,62}")
_MAX_WORD_CHARS = 200


def compile_pattern(pattern: str) -> object:
    """RE2: linear in the text, whatever the pattern. Raises ValueError with RE2's sentence."""
    options = re2.Options()
    options.max_mem = PATTERN_MEMORY_BYTES
    options.log_errors = False
    options.never_capture = True
    try:
        return re2.compile(pattern, options)
    except re2.error as error:
        said = error.args[0] if error.args else "it cannot be compiled"
        text = said.decode(errors="replace") if isinstance(said, bytes) else str(said)
        raise ValueError(text) from None


class Fields:
    """`path` is where the mapping stands (`rules[3]`). Call `close` to have unknown keys noted."""

    def __init__(self, node: Located, path: str, mistakes: list[Mistake]) -> None:
        self._mistakes = mistakes
        self.path, self.line = path, node.line
        self._taken: set[str] = set()
        self._found: dict[str, Located] = {}
        if isinstance(node.value, dict):
            self._found = node.value
        else:
            self.note(path, node, "a mapping (key: value)")

    def note(self, field: str, node: Located | None, limit: str) -> None:
        """Notes a mistake at `node`, or at the mapping's first line for what is missing."""
        value = _shown(node) if node is not None else "nothing"
        self._mistakes.append(Mistake(node.line if node else self.line, field, value, limit))

    def has(self, key: str) -> bool:
        return key in self._found

    def node(self, key: str) -> Located | None:
        self._taken.add(key)
        return self._found.get(key)

    def at(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key

    def mistaken(self, *keys: str) -> bool:
        """Whether a mistake was noted at one of these fields: nothing follows from their values."""
        fields = {self.at(key) for key in keys}
        return any(mistake.field in fields for mistake in self._mistakes)

    def close(self) -> None:
        """Every key that nobody asked for is a mistake."""
        known = ", ".join(sorted(self._taken))
        for key, node in self._found.items():
            if key not in self._taken:
                limit = f"there is no such key here; known are {known}"
                self._mistakes.append(Mistake(node.line, self.at(key), key, limit))

    def number(
        self, key: str, default: float | None, least: float = -1e300, most: float = 1e300
    ) -> float:
        """`default` None: the field is needed."""
        node = self.node(key)
        limit = "a finite number" if most >= 1e300 else f"a number from {least:g} to {most:g}"
        if node is None:
            if default is None:
                self.note(self.at(key), None, f"{limit} is needed")
            return default or 0.0
        value = _as_number(node.value)
        if not math.isfinite(value) or not least <= value <= most:
            self.note(self.at(key), node, limit)
            return default or 0.0
        return value

    def whole(self, key: str, default: int, least: int, most: int) -> int:
        value = self.number(key, default, least, most)
        if value != int(value):
            self.note(self.at(key), self.node(key), f"a whole number from {least} to {most}")
        return int(value)

    def seconds(
        self, key: str, default: float, least: float = 0.0, most: float = MAX_RULE_DURATION_S
    ) -> float:
        """A number of seconds, or a text such as `500ms`, `30s`, `5m`, `2h`, `1d`."""
        node = self.node(key)
        if node is None:
            return default
        limit = f"seconds from {least:g} to {most:g}, as 90, 500ms, 30s, 5m, 2h or 1d"
        value = node.value
        if isinstance(value, str) and (match := _DURATION.fullmatch(value)) is not None:
            given = float(match[1]) * _UNIT_S[match[2]]
        else:
            given = _as_number(value)
        if not least <= given <= most:
            self.note(self.at(key), node, limit)
            return default
        return given

    def choice(self, key: str, choices: Sequence[str], default: str | None) -> str:
        """`default` None: the field is needed."""
        node = self.node(key)
        limit = "one of " + ", ".join(choices)
        if node is None:
            if default is None:
                self.note(self.at(key), None, f"{limit} is needed")
            return default or choices[0]
        if node.value not in choices:
            self.note(self.at(key), node, limit)
            return default or choices[0]
        return str(node.value)

    def flag(self, key: str, default: bool) -> bool:
        node = self.node(key)
        if node is None:
            return default
        if not isinstance(node.value, bool):
            self.note(self.at(key), node, "true or false")
            return default
        return node.value

    def text(self, key: str, default: str | None, most: int, what: re.Pattern[str] | None) -> str:
        """`default` None: the field is needed. `what` matches the whole of it."""
        node = self.node(key)
        shape = f" of the form {what.pattern}" if what is not None else " on one line"
        limit = f"a text of 1 to {most} characters{shape}"
        if node is None:
            if default is None:
                self.note(self.at(key), None, f"{limit} is needed")
            return default or ""
        value = node.value
        fits = isinstance(value, str) and 0 < len(value) <= most and value.isprintable()
        if not fits or (what is not None and what.fullmatch(str(value)) is None):
            self.note(self.at(key), node, limit)
            return default or ""
        return str(value)

    def pattern(self, key: str) -> object:
        """A needed regular expression, compiled."""
        node = self.node(key)
        if node is None:
            self.note(self.at(key), None, "a regular expression is needed")
            return None
        return self._compiled(self.at(key), node, node.value)

    def selector(self, key: str = "where") -> Selector:
        """`key: word`, `key: [word, …]` or `key: ~pattern`."""
        node = self.node(key)
        if node is None:
            return Selector()
        if not isinstance(node.value, dict):
            self.note(self.at(key), node, "a mapping of labels to words")
            return Selector()
        if len(node.value) > MAX_SELECTOR_KEYS:
            self.note(self.at(key), node, f"at most {MAX_SELECTOR_KEYS} keys")
            return Selector()
        matchers = []
        for name, inner in node.value.items():
            where = f"{self.at(key)}.{name}"
            if _KEY.fullmatch(name) is None:
                self.note(where, Located(name, inner.line), "a label's name")
                continue
            matchers.append((name, self._matcher(where, inner)))
        return Selector(tuple(matchers))

    def _matcher(self, where: str, node: Located) -> Matcher:
        items = node.value if isinstance(node.value, list) else [node]
        if not 0 < len(items) <= MAX_SELECTOR_WORDS:
            self.note(where, node, f"1 to {MAX_SELECTOR_WORDS} words")
            return Matcher()
        words = set()
        for item in items:
            value = item.value
            if isinstance(value, int | float) and not isinstance(value, bool):
                value = f"{value:g}"
            if not isinstance(value, str) or len(value) > _MAX_WORD_CHARS:
                self.note(where, item, f"a word of at most {_MAX_WORD_CHARS} characters")
                continue
            if value.startswith("~"):
                if len(items) > 1:
                    self.note(where, item, "a ~pattern stands alone")
                    continue
                return Matcher(pattern=self._compiled(where, node, value[1:]))
            words.add(value)
        return Matcher(frozenset(words))

    def _compiled(self, where: str, node: Located, value: object) -> object:
        if not isinstance(value, str) or not 0 < len(value) <= MAX_RULE_PATTERN_CHARS:
            limit = f"a regular expression of 1 to {MAX_RULE_PATTERN_CHARS} characters"
            self.note(where, node, limit)
            return None
        try:
            return compile_pattern(value)
        except ValueError as error:
            self.note(where, node, f"a regular expression of RE2 ({error})")
            return None


def _as_number(value: object) -> float:
    """NaN for what is none. YAML reads 1e9 as text, and a person as a number."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return math.nan
    try:
        return float(value)
    except ValueError:
        return math.nan


def _shown(node: Located) -> object:
    if isinstance(node.value, list):
        return f"a list of {len(node.value)}"
    if isinstance(node.value, dict):
        return f"a mapping of {len(node.value)}"
    return node.value
