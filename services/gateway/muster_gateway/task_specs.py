"""From task objects to the scheduler's specifications: checks, defaults, ids.

A batch's tasks mostly differ in their input alone. Everything else (the *shape*) is checked and
built once for each different shape of a request, and copied in serialised form into each task.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, TypeVar

from muster.api.v1 import scheduler_pb2, task_pb2
from muster.domain.durations import parse_duration_ms
from muster.domain.errors import InvalidInput
from muster.domain.ids import TenantId, parse_skill_name, task_id
from muster.domain.quantity import MAX_AMOUNT
from muster.domain.resources import DEFAULT_TASK_RESOURCES, ResourceVector
from muster.domain.task import (
    MAX_ATTEMPTS,
    MAX_CONSTRAINTS,
    MAX_INPUT_BYTES,
    MAX_LABEL_CHARS,
    MAX_PRIORITY,
    Constraint,
    Lifetime,
    OnDisconnect,
    parse_labels,
)
from muster_gateway.task_body import ConstraintIn, TaskIn

# A chunk is one message and one script run at Redis: long enough to pay for the call, short
# enough not to hold Redis for more than a few milliseconds.
CHUNK_TASKS = 500
# Well below the 16 MiB that a message may have, whatever the last task adds.
CHUNK_BYTES = 4 * 1024 * 1024
# Enough for a list of zones; with MAX_CONSTRAINTS it bounds a specification to 80 KiB.
MAX_CONSTRAINT_VALUES = 32

_ON_DISCONNECT: Mapping[str, task_pb2.OnDisconnect.ValueType] = {
    OnDisconnect.KEEP.value: task_pb2.ON_DISCONNECT_KEEP,
    OnDisconnect.STOP.value: task_pb2.ON_DISCONNECT_STOP,
}
_LIFETIME: Mapping[str, task_pb2.Lifetime.ValueType] = {
    Lifetime.FINITE.value: task_pb2.LIFETIME_FINITE,
    Lifetime.SERVICE.value: task_pb2.LIFETIME_SERVICE,
}
_DEFAULT_RESOURCES: Mapping[str, int] = DEFAULT_TASK_RESOURCES.as_dict()


V = TypeVar("V")


class InputCheck(Protocol):
    """What is known of skills: raises InvalidInput when no agent's schema takes the input."""

    def needs_check(self, tenant: str, skill: str) -> bool: ...

    def check(self, tenant: str, skill: str, input_json: bytes, field: str) -> None: ...


@dataclass(frozen=True, slots=True)
class CheckedTasks:
    """Tasks that passed every check, still without ids: `templates[i]` belongs to `tasks[i]`."""

    tenant: TenantId
    tasks: Sequence[TaskIn]
    templates: Sequence[task_pb2.TaskSpec]

    def chunks(self, prefix: str, submitted_at_ms: int) -> list[scheduler_pb2.SubmitRequest]:
        """The tasks with their ids, in messages of bounded size.

        `prefix` is `request_prefix` of the request, whose index numbers the tasks.
        """
        chunks: list[scheduler_pb2.SubmitRequest] = []
        serialised: dict[int, bytes] = {}
        add = scheduler_pb2.SubmitRequest().tasks.add
        room_tasks = room_bytes = 0
        for index, (task, template) in enumerate(zip(self.tasks, self.templates, strict=True)):
            shared = serialised.get(id(template))
            if shared is None:
                template.submitted_at_ms = submitted_at_ms
                shared = serialised[id(template)] = template.SerializeToString()
            input_json = bytes(task.input)
            if room_tasks == 0 or room_bytes <= 0:
                chunks.append(scheduler_pb2.SubmitRequest())
                add = chunks[-1].tasks.add
                room_tasks, room_bytes = CHUNK_TASKS, CHUNK_BYTES
            room_tasks -= 1
            room_bytes -= len(input_json) + len(shared)
            spec = add()
            spec.MergeFromString(shared)
            spec.id = task_id(prefix, index)
            spec.skill = task.skill
            spec.input_json = input_json
        return chunks


def check_tasks(
    tasks: Sequence[TaskIn],
    tenant: TenantId,
    skills: InputCheck,
    *,
    is_batch: bool,
    first: int = 0,
) -> CheckedTasks:
    """All tasks or none. Raises InvalidInput naming the first bad field.

    `first` is the number of the first one in its batch.
    """
    known_skills: dict[str, bool] = {}
    by_shape: dict[object, task_pb2.TaskSpec] = {}
    templates: list[task_pb2.TaskSpec] = []
    add = templates.append
    for index, task in enumerate(tasks, first):
        where = f"tasks[{index}]." if is_batch else ""
        checked = known_skills.get(task.skill)
        if checked is None:
            parse_skill_name(task.skill, f"{where}skill")
            checked = known_skills[task.skill] = skills.needs_check(tenant, task.skill)
        input_bytes = memoryview(task.input).nbytes
        if input_bytes > MAX_INPUT_BYTES:
            limit = f"at most {MAX_INPUT_BYTES} bytes; put more into a blob"
            raise InvalidInput(f"{where}input", f"{input_bytes} bytes", limit)
        if checked:
            skills.check(tenant, task.skill, bytes(task.input), f"{where}input")
        shape = shape_of(task)
        template = by_shape.get(shape)
        if template is None:
            template = by_shape[shape] = _template(task, tenant, where)
        add(template)
    return CheckedTasks(tenant, tasks, templates)


def shape_of(task: TaskIn) -> object:
    """Equal for tasks that differ in skill and input alone."""
    return (
        tuple(task.resources.items()) if task.resources else task.resources is None,
        tuple(task.labels.items()) if task.labels else None,
        task.constraints,
        task.priority,
        task.max_attempts,
        task.timeout,
        task.start_deadline,
        task.total_deadline,
        task.progress_timeout,
        task.estimate,
        task.on_disconnect,
        task.lifetime,
    )


def _template(task: TaskIn, tenant: TenantId, where: str) -> task_pb2.TaskSpec:
    return task_pb2.TaskSpec(
        version=task_pb2.SCHEMA_VERSION_1,
        tenant=tenant,
        resources=_resources(task.resources, f"{where}resources"),
        labels=dict(parse_labels(task.labels, f"{where}labels")) if task.labels else None,
        constraints=_constraints(task.constraints or (), f"{where}constraints"),
        priority=_within(task.priority, 0, MAX_PRIORITY, f"{where}priority"),
        timeout_ms=_duration(task.timeout, f"{where}timeout"),
        start_deadline_ms=_duration(task.start_deadline, f"{where}start_deadline"),
        total_deadline_ms=_duration(task.total_deadline, f"{where}total_deadline"),
        progress_timeout_ms=_duration(task.progress_timeout, f"{where}progress_timeout"),
        estimate_ms=_duration(task.estimate, f"{where}estimate"),
        max_attempts=_within(task.max_attempts, 1, MAX_ATTEMPTS, f"{where}max_attempts"),
        on_disconnect=_one_of(
            task.on_disconnect, OnDisconnect.KEEP, _ON_DISCONNECT, f"{where}on_disconnect"
        ),
        lifetime=_one_of(task.lifetime, Lifetime.FINITE, _LIFETIME, f"{where}lifetime"),
    )


def _resources(given: Mapping[str, str | int | float] | None, field: str) -> Mapping[str, int]:
    """In base units; what is not named gets its default, an explicit 0 stays nothing."""
    if given is None:
        return _DEFAULT_RESOURCES
    try:
        amounts = ResourceVector.parse(given, field).as_dict()
    except InvalidInput as error:
        if error.field == "resource name":
            raise InvalidInput(
                f"{field}.{str(error.value)[:64]}", error.value, error.limit
            ) from None
        raise
    for name, amount in _DEFAULT_RESOURCES.items():
        if name not in given:
            amounts[name] = amount
    return amounts


def _duration(text: str | None, field: str) -> int:
    return 0 if text is None else parse_duration_ms(text, field=field)


def _within(number: int, least: int, most: int, field: str) -> int:
    if not least <= number <= most:
        raise InvalidInput(field, number, f"must be from {least} to {most}")
    return number


def _one_of(
    text: str | None, default: OnDisconnect | Lifetime, table: Mapping[str, V], field: str
) -> V:
    value = table.get(default.value if text is None else text)
    if value is None:
        raise InvalidInput(field, text, f"must be one of {', '.join(table)}")
    return value


def _constraints(given: Iterable[ConstraintIn], field: str) -> list[task_pb2.Constraint]:
    messages: list[task_pb2.Constraint] = []
    seen: dict[tuple[str, str], int] = {}
    for index, constraint in enumerate(given):
        where = f"{field}[{index}]"
        if index >= MAX_CONSTRAINTS:
            raise InvalidInput(where, constraint.key, f"at most {MAX_CONSTRAINTS} constraints")
        _check_constraint(constraint, where)
        first = seen.setdefault((constraint.key, constraint.op), index)
        if first != index:
            limit = f"repeats key and op of {field}[{first}]; join them with in or not_in"
            raise InvalidInput(where, f"{constraint.key} {constraint.op}", limit)
        messages.append(
            task_pb2.Constraint(key=constraint.key, op=constraint.op, values=constraint.values)
        )
    return messages


def _check_constraint(constraint: ConstraintIn, where: str) -> None:
    try:
        parse_labels({constraint.key: ""})
    except InvalidInput as error:
        raise InvalidInput(f"{where}.key", constraint.key, error.limit) from None
    try:
        Constraint(constraint.key, constraint.op, constraint.values)
    except InvalidInput as error:
        part = error.field.rpartition(".")[2]
        raise InvalidInput(f"{where}.{part}", error.value, error.limit) from None
    if len(constraint.values) > MAX_CONSTRAINT_VALUES:
        limit = f"at most {MAX_CONSTRAINT_VALUES} values"
        raise InvalidInput(f"{where}.values", f"{len(constraint.values)} values", limit)
    for value in constraint.values:
        if len(value) > MAX_LABEL_CHARS or any(ord(c) < 32 for c in value):
            limit = f"at most {MAX_LABEL_CHARS} printable characters"
            raise InvalidInput(f"{where}.values", value, limit)
        if constraint.op in (">", "<") and not _is_number(value):
            raise InvalidInput(f"{where}.values", value, f"{constraint.op} compares numbers")


@lru_cache(maxsize=256)
def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text)) and abs(float(text)) <= MAX_AMOUNT
    except ValueError:
        return False
