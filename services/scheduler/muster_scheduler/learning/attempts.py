"""What is known of an attempt before it starts, how long it took, and the window of those kept."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping

import msgspec

from muster.domain.errors import InvalidInput

# An input may be a megabyte of numbers; the first few fields by name are what a model can use.
MAX_FIELDS = 8
MAX_FIELD_CHARS = 64
# Of a larger input only its size is looked at; reading it would take longer than placing the task.
MAX_PARSED_BYTES = 16 * 1024
# The window of a model: older attempts say less about today's agents.
MAX_ATTEMPTS_KEPT = 10_000


class TaskFeatures(msgspec.Struct, frozen=True):
    """A task as a model sees it.

    declared_s   the client's estimate, seconds; 0 = none
    input_bytes  size of the input's JSON, ≥ 0
    fields       finite numbers by name, from the top level of the input: at most MAX_FIELDS
    """

    skill: str
    declared_s: float = 0.0
    input_bytes: int = 0
    fields: tuple[tuple[str, float], ...] = ()


class AgentFeatures(msgspec.Struct, frozen=True):
    """An agent as a model sees it when an attempt starts there.

    labels    (key, value), sorted by key
    capacity  amounts of (cpu, memory, network, slots) in base units
    load      dominant share in use, 0 (idle) to 1
    """

    agent_id: str
    labels: tuple[tuple[str, str], ...] = ()
    capacity: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)
    load: float = 0.0


class Attempt(msgspec.Struct, frozen=True):
    """One attempt that succeeded. `run_s` is start to end, above 0; `predicted_s` 0 = none was."""

    task: TaskFeatures
    agent: AgentFeatures
    run_s: float
    predicted_s: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.run_s) and self.run_s > 0):
            raise InvalidInput("run_s", self.run_s, "must be a finite number of seconds above 0")


def task_features(skill: str, input_json: bytes, declared_s: float) -> TaskFeatures:
    """From a task's input; one that is no JSON object, or too large a one, only has a size."""
    if len(input_json) > MAX_PARSED_BYTES:
        return TaskFeatures(skill, declared_s, len(input_json))
    try:
        parsed = msgspec.json.decode(input_json)
    except msgspec.DecodeError:
        parsed = None
    fields = numeric_fields(parsed) if isinstance(parsed, dict) else ()
    return TaskFeatures(skill, declared_s, len(input_json), fields)


def numeric_fields(parsed: Mapping[str, object]) -> tuple[tuple[str, float], ...]:
    """Numbers of an object's top level, and the lengths of its texts and lists as `name.length`.

    In alphabetical order, the first MAX_FIELDS; true, false and what is not finite are left out.
    """
    found: list[tuple[str, float]] = []
    for name in sorted(parsed):
        if len(found) == MAX_FIELDS:
            break
        if len(name) > MAX_FIELD_CHARS:
            continue
        value = parsed[name]
        if isinstance(value, str | list):
            found.append((f"{name}.length", float(len(value))))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            try:
                number = float(value)
            except OverflowError:
                continue
            if math.isfinite(number):
                found.append((name, number))
    return tuple(found)


class History:
    """The newest attempts, oldest first; bounded."""

    def __init__(self, limit: int = MAX_ATTEMPTS_KEPT) -> None:
        if limit < 1:
            raise InvalidInput("limit", limit, "must be at least 1")
        self._attempts: deque[Attempt] = deque(maxlen=limit)
        # All that were ever added, those that are forgotten too.
        self.seen = 0

    def __len__(self) -> int:
        return len(self._attempts)

    def __iter__(self) -> Iterator[Attempt]:
        return iter(self._attempts)

    def add(self, attempts: Iterable[Attempt]) -> None:
        for attempt in attempts:
            self._attempts.append(attempt)
            self.seen += 1

    def window(self) -> tuple[Attempt, ...]:
        """A copy that a trainer elsewhere may keep."""
        return tuple(self._attempts)
