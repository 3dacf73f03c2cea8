"""The body of a plan: tasks as they are submitted, and how they should be placed."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from muster.api.v1 import scheduler_pb2, task_pb2
from muster.domain.durations import parse_duration_ms
from muster.domain.errors import InvalidInput, TooLarge
from muster.domain.ids import TenantId
from muster.domain.policy import parse_policy
from muster.domain.task import MAX_FRONT_TASKS, MAX_PLAN_TASKS
from muster.rpc.call_stream import MAX_CALL_BYTES
from muster_gateway.requests import MAX_WAIT_MS
from muster_gateway.task_body import BATCH_LEVELS, TaskIn, decode_bounded
from muster_gateway.task_specs import InputCheck, check_tasks, shape_of

# As the scheduler has it where the request names none.
DEFAULT_BUDGET_S: Final = 5.0
_MAX_SEED: Final = 2**63 - 1
_MAX_STEPS: Final = 2**53
# Tasks that are checked between two turns of the loop: some milliseconds.
_SLICE: Final = 1_000


class PlanIn(msgspec.Struct, forbid_unknown_fields=True):
    """What is to be planned; a policy's fields that are not given are as in the policy in force."""

    tasks: list[TaskIn]
    strategy: Any = msgspec.UNSET
    weights: Any = msgspec.UNSET
    penalty: Any = msgspec.UNSET
    objective: Any = msgspec.UNSET
    bounds: Any = msgspec.UNSET
    budget: Any = msgspec.UNSET
    seed: int = 0
    max_steps: int = 0
    front: bool = False


_OF_POLICY: Final = ("strategy", "weights", "penalty", "objective", "bounds", "budget")


@dataclass(frozen=True, slots=True)
class PlanOrder:
    """A decoded plan; `budget_s` bounds the planning, not the way to it and back."""

    tasks: list[TaskIn]
    document: dict[str, Any]
    budget_s: float
    seed: int
    max_steps: int
    front: bool


def decode_plan(body: bytes) -> PlanOrder:
    """Raises MalformedBody, InvalidInput, TooLarge. The tasks are not checked yet."""
    given: PlanIn = decode_bounded(body, PlanIn, BATCH_LEVELS)
    count = len(given.tasks)
    if not 1 <= count <= MAX_PLAN_TASKS:
        raise InvalidInput("tasks", f"{count} tasks", f"a plan has 1 to {MAX_PLAN_TASKS} tasks")
    if given.front and count > MAX_FRONT_TASKS:
        limit = f"a front is worked out for at most {MAX_FRONT_TASKS} tasks"
        raise InvalidInput("front", f"{count} tasks", limit)
    for name, most in (("seed", _MAX_SEED), ("max_steps", _MAX_STEPS)):
        value = getattr(given, name)
        if not 0 <= value <= most:
            raise InvalidInput(name, value, f"must be from 0 to {most}")
    fields = {name: getattr(given, name) for name in _OF_POLICY}
    document = {name: value for name, value in fields.items() if value is not msgspec.UNSET}
    budget_s = DEFAULT_BUDGET_S
    if isinstance(given.budget, str):
        parse_duration_ms(given.budget, field="budget", most_ms=MAX_WAIT_MS)
    policy = parse_policy(document)
    if "budget" in document:
        budget_s = policy.budget_s
    return PlanOrder(given.tasks, document, budget_s, given.seed, given.max_steps, given.front)


async def plan_request(
    order: PlanOrder, tenant: TenantId, skills: InputCheck
) -> scheduler_pb2.PlanRequest:
    """The order for the leader, each different task once. Raises InvalidInput, TooLarge."""
    request = scheduler_pb2.PlanRequest(
        policy_json=msgspec.json.encode(order.document),
        seed=order.seed,
        max_steps=order.max_steps,
        front=order.front,
    )
    known: dict[object, int] = {}
    indices: list[int] = []
    for start in range(0, len(order.tasks), _SLICE):
        part = order.tasks[start : start + _SLICE]
        checked = check_tasks(part, tenant, skills, is_batch=True, first=start)
        for task, template in zip(part, checked.templates, strict=True):
            key = (task.skill, shape_of(task))
            index = known.get(key)
            if index is None:
                index = known[key] = len(known)
                _add_shape(request, template, task.skill)
            indices.append(index)
        await asyncio.sleep(0)
    request.shape_of.extend(indices)
    if request.ByteSize() > MAX_CALL_BYTES:
        limit = f"{len(known)} different tasks take more than {MAX_CALL_BYTES} bytes; plan fewer"
        raise TooLarge("tasks", f"{request.ByteSize()} bytes", limit)
    return request


def _add_shape(request: scheduler_pb2.PlanRequest, template: task_pb2.TaskSpec, skill: str) -> None:
    shape = request.shapes.add()
    shape.CopyFrom(template)
    shape.skill = skill
