"""Routes: plans of tasks against the live cluster, which place nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, Final

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from muster.api.v1 import scheduler_pb2
from muster.domain.task import MAX_FRONT_TASKS, MAX_PLAN_TASKS
from muster_gateway import plan_documents
from muster_gateway.plan_body import decode_plan, plan_request
from muster_gateway.plan_view import plan_out
from muster_gateway.requests import (
    JSON,
    announced_bytes,
    known_queries,
    read_body,
    require_json,
)
from muster_gateway.table import Answer, Body, Call, Route
from muster_gateway.views import encode

# Beside the budget: a process is started, compiled loops are loaded (or compiled, the first time).
_GRACE_S: Final = 120.0
_LOOK_EVERY_S: Final = 1.0


async def plan(call: Call) -> Response:
    request = call.request
    known_queries(request)
    require_json(request)
    gateway = call.gateway
    with gateway.admission.room(announced_bytes(request)):
        order = decode_plan(await read_body(request))
        message = await plan_request(order, call.caller.tenant, gateway.skills)
    answer = await _while_there(
        request,
        gateway.leader.call("Plan", message, timeout_s=order.budget_s + _GRACE_S, streamed=False),
    )
    return Response(encode(plan_out(answer, with_front=order.front)), media_type=JSON)


async def _while_there(
    request: Request, answering: Awaitable[scheduler_pb2.PlanResponse]
) -> scheduler_pb2.PlanResponse:
    """Who has gone needs no plan: it would keep others from theirs."""
    task = asyncio.ensure_future(answering)
    try:
        while not (await asyncio.wait({task}, timeout=_LOOK_EVERY_S))[0]:
            if await request.is_disconnected():
                raise ClientDisconnect
        return task.result()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


_EXAMPLES: dict[str, Any] = {
    "as the policy has it": {"tasks": [{"skill": "echo"}, {"skill": "echo", "estimate": "2s"}]},
    "another strategy": {
        "tasks": [{"skill": "echo", "resources": {"cpu": "2"}}],
        "strategy": "search",
        "weights": {"t": 0.5, "b": 0.5},
        "bounds": {"B": 0.2},
        "budget": "2s",
        "seed": 7,
    },
    "front": {"tasks": [{"skill": "echo"}] * 3, "front": True},
}
_TAG = "plans"

ROUTES: tuple[Route, ...] = (
    Route(
        "POST",
        "/v1/plans",
        plan,
        f"Where up to {MAX_PLAN_TASKS:,} tasks would go now",
        _TAG,
        (Answer(200, "The plan.", plan_documents.PlanDocument, plan_documents.EXAMPLE),),
        about="Nothing is placed or stored. The tasks are checked as in a submission, and planned "
        "against what is free at that moment; tasks that wait are not taken into account "
        "(`queued` says how many do). Fields of a policy that are not given are as in the policy "
        "in force; `budget` is 5 s if not given, at most 10 min. `front` also gives the Pareto "
        f"front of T and B, for at most {MAX_FRONT_TASKS:,} tasks; the first half of the budget "
        "is then the plan's. Equal tasks, agents, `seed` and `max_steps` give an equal plan where "
        "the budget is not reached.",
        body=Body(plan_documents.NewPlan, _EXAMPLES),
        problems=(400, 413, 415, 422),
    ),
)
