"""From a skill's name, an input and options to the body of a submission."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from typing import Any, Final, TypeAlias, TypedDict

import orjson

from muster.agent.outputs import NotJson, encode_output
from muster.domain.errors import InvalidInput
from muster.domain.ids import parse_skill_name

# The gateway takes 10,000 tasks and 10 MiB; smaller batches let work begin while the rest is
# sent, and leave room for the envelope.
BATCH_TASKS: Final = 1_000
BATCH_BYTES: Final = 4 * 1024 * 1024

# Seconds, a timedelta, or as REST writes it ("90s", "1h30m").
Duration: TypeAlias = float | str | timedelta


class TaskOptions(TypedDict, total=False):
    """What a submission may say besides skill and input; all as in REST."""

    resources: Mapping[str, str | float]
    labels: Mapping[str, str]
    constraints: list[Mapping[str, Any]]
    priority: int
    timeout: Duration
    start_deadline: Duration
    total_deadline: Duration
    progress_timeout: Duration
    estimate: Duration
    max_attempts: int
    on_disconnect: str
    lifetime: str


class PlanOptions(TypedDict, total=False):
    """How a plan should be made; what is left out is as in the cluster's policy."""

    strategy: str
    weights: Mapping[str, float]
    penalty: float
    objective: str
    bounds: Mapping[str, float]
    budget: Duration
    seed: int
    max_steps: int
    front: bool


_PLAN_OPTIONS: Final = frozenset(PlanOptions.__annotations__)
_OPTIONS: Final = frozenset(TaskOptions.__annotations__)
_DURATIONS: Final = frozenset(
    {"timeout", "start_deadline", "total_deadline", "progress_timeout", "estimate"}
)


class BodyMaker:
    """Makes the bodies of tasks that differ in their input alone."""

    def __init__(self, skill: str, options: TaskOptions) -> None:
        """Raises InvalidInput on a bad name, or an option that does not exist."""
        fields: dict[str, Any] = {"skill": parse_skill_name(skill)}
        for name, value in options.items():
            if name not in _OPTIONS:
                limit = "options are " + ", ".join(sorted(_OPTIONS))
                raise InvalidInput("option", name, limit)
            if value is not None:
                fields[name] = _duration(name, value) if name in _DURATIONS else value
        try:
            self._head = orjson.dumps(fields)[:-1] + b',"input":'
        except TypeError as error:
            raise InvalidInput("options", options, f"JSON is needed ({error})") from None

    def one(self, value: Any, field: str = "input") -> bytes:
        """A task with this input; raises InvalidInput when that is not JSON."""
        return self._head + json_of(value, field) + b"}"

    def each(self, inputs: Iterable[Any]) -> Iterator[bytes]:
        """A task for each input, as they are asked for."""
        for index, value in enumerate(inputs):
            yield self.one(value, f"inputs[{index}]")


def plan_body(tasks: Iterable[Mapping[str, Any]], options: PlanOptions) -> bytes:
    """A plan's body of tasks as REST has them; raises InvalidInput as `BodyMaker` does."""
    bodies = []
    for index, task in enumerate(tasks):
        rest: Any = {name: value for name, value in task.items() if name not in ("skill", "input")}
        maker = BodyMaker(task.get("skill", ""), rest)
        bodies.append(maker.one(task.get("input"), f"tasks[{index}].input"))
    fields: dict[str, Any] = {}
    for name, value in options.items():
        if name not in _PLAN_OPTIONS:
            raise InvalidInput("option", name, "options are " + ", ".join(sorted(_PLAN_OPTIONS)))
        if value is not None:
            fields[name] = _duration(name, value) if name == "budget" else value
    return orjson.dumps({**fields, "tasks": [orjson.Fragment(body) for body in bodies]})


def json_of(value: Any, field: str) -> bytes:
    """The value as JSON; raises InvalidInput naming `field`.

    Takes what a skill may return: pydantic models, dataclasses, dates, numpy, too.
    """
    try:
        return encode_output(value)
    except NotJson as error:
        why = str(error).removeprefix("the result is not JSON: ")
        raise InvalidInput(field, value, f"JSON is needed: {why}") from None


def batches(tasks: Iterable[bytes]) -> Iterator[list[bytes]]:
    """The tasks in order, in parts that the gateway takes; the same for the same tasks."""
    batch: list[bytes] = []
    size = 0
    for task in tasks:
        if batch and (len(batch) >= BATCH_TASKS or size + len(task) > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(task)
        size += len(task) + 1
    if batch:
        yield batch


def batch_body(tasks: Iterable[bytes]) -> bytes:
    """The body that submits these tasks together."""
    return b'{"tasks":[' + b",".join(tasks) + b"]}"


def _duration(name: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InvalidInput(name, value, "seconds, a timedelta, or text such as 90s")
    return f"{math.ceil(value * 1000)}ms"
