"""Routes: agents, what the operator wants of them, and the cluster's figures."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.responses import Response

from muster.api.v1 import (
    agent_pb2,
    monitor_pb2,
    monitor_pb2_grpc,
    scheduler_pb2,
    storage_pb2,
    storage_pb2_grpc,
)
from muster.domain.agent import MAX_DRAIN_MS
from muster.domain.durations import GRAMMAR, parse_duration_ms
from muster.domain.errors import InvalidInput, MusterError, NotFound, Unavailable
from muster.domain.ids import AgentId, parse_agent_id
from muster_gateway import documents
from muster_gateway.gateway import Gateway
from muster_gateway.requests import JSON, MAX_PAGE, known_queries, limit_of, read_body, require_json
from muster_gateway.table import Answer, Body, Call, Query, Route
from muster_gateway.task_body import decode_bounded
from muster_gateway.views import agent_out, cluster_out, encode, metrics_out

_LEADER_TIMEOUT_S = 5.0
_METRICS_TIMEOUT_S = 2.0
_COUNT_TIMEOUT_S = 5.0
_MAX_DRAIN_BYTES = 1024
# The cluster's figures without a leader are still worth having, soon.
_LEADER_SEARCH_S = 0.5


def agent_id_of(call: Call) -> AgentId:
    """The path's agent id. What cannot be an id is unknown, too."""
    text = call.request.path_params["id"]
    try:
        return parse_agent_id(text)
    except InvalidInput:
        raise NotFound("agent", text) from None


async def _views(call: Call) -> list[agent_pb2.AgentView]:
    """The tenant's agents, by id."""
    response: scheduler_pb2.ListAgentViewsResponse = await call.gateway.leader.call(
        "ListAgentViews",
        scheduler_pb2.ListAgentViewsRequest(),
        timeout_s=_LEADER_TIMEOUT_S,
    )
    tenant = call.tenant
    own = [v for v in response.agents if (v.record.spec.tenant or "default") == tenant]
    return sorted(own, key=lambda view: view.record.spec.id)


async def _view(call: Call, ident: str) -> agent_pb2.AgentView:
    for view in await _views(call):
        if view.record.spec.id == ident:
            return view
    raise NotFound("agent", ident)


async def list_agents(call: Call) -> Response:
    known_queries(call.request, "limit", "cursor")
    limit, cursor = limit_of(call.request), call.request.query_params.get("cursor", "")
    views = [v for v in await _views(call) if v.record.spec.id > cursor]
    items = [agent_out(view, detailed=False) for view in views[:limit]]
    following = items[-1]["id"] if len(views) > limit else None
    return Response(encode({"items": items, "next": following}), media_type=JSON)


async def get_agent(call: Call) -> Response:
    known_queries(call.request)
    ident = agent_id_of(call)
    view, metrics = await asyncio.gather(_view(call, ident), _metrics(call.gateway, ident))
    out = agent_out(view, detailed=True) | {"metrics": metrics}
    return Response(encode(out), media_type=JSON)


async def _metrics(gateway: Gateway, ident: str) -> dict[str, Any] | None:
    """The newest figures that any monitor has; None when none has any, or none answers."""
    request = monitor_pb2.GetMetricsRequest(agent=ident)
    answers = await asyncio.gather(
        *(
            monitor.call(
                monitor_pb2_grpc.MonitorServiceStub,
                "GetMetrics",
                request,
                timeout_s=_METRICS_TIMEOUT_S,
            )
            for monitor in gateway.monitors
        ),
        return_exceptions=True,
    )
    newest: monitor_pb2.AgentSamples | None = None
    for answer in answers:
        if isinstance(answer, BaseException):
            if not isinstance(answer, MusterError):
                raise answer
            continue
        for samples in answer.agents:
            if samples.agent == ident and (
                newest is None or samples.last_seen_at_ms > newest.last_seen_at_ms
            ):
                newest = samples
    return None if newest is None else metrics_out(newest)


async def _drain_ms(call: Call) -> int:
    """The deadline of a drain's body, which may be left out; 0 = none."""
    require_json(call.request)
    body = await read_body(call.request, _MAX_DRAIN_BYTES)
    if not body.strip():
        return 0
    document = decode_bounded(body, object)
    if not isinstance(document, dict):
        raise InvalidInput("body", type(document).__name__, "must be an object")
    for name in document:
        if name != "deadline":
            raise InvalidInput(str(name)[:80], document[name], "the only field is deadline")
    text = document.get("deadline")
    if text is None:
        return 0
    if not isinstance(text, str):
        raise InvalidInput("deadline", text, f"must be {GRAMMAR}")
    return parse_duration_ms(text, field="deadline", most_ms=MAX_DRAIN_MS)


def _act(action: scheduler_pb2.AgentAction.ValueType) -> Callable[[Call], Awaitable[Response]]:
    async def act(call: Call) -> Response:
        known_queries(call.request)
        ident = agent_id_of(call)
        drains = action == scheduler_pb2.AGENT_ACTION_DRAIN
        deadline_ms = await _drain_ms(call) if drains else 0
        await _view(call, ident)
        response: scheduler_pb2.ActOnAgentResponse = await call.gateway.leader.call(
            "ActOnAgent",
            scheduler_pb2.ActOnAgentRequest(
                agent=ident, action=action, who=call.caller.key_id, deadline_ms=deadline_ms
            ),
            timeout_s=_LEADER_TIMEOUT_S,
        )
        return Response(encode(agent_out(response.agent, detailed=False)), media_type=JSON)

    return act


async def get_cluster(call: Call) -> Response:
    known_queries(call.request)
    gateway = call.gateway
    answers = await asyncio.gather(
        gateway.leader.call(
            "GetClusterStatus",
            scheduler_pb2.GetClusterStatusRequest(),
            timeout_s=_LEADER_TIMEOUT_S,
            search_s=_LEADER_SEARCH_S,
        ),
        gateway.storage.call(
            storage_pb2_grpc.StorageServiceStub,
            "CountTasks",
            storage_pb2.CountTasksRequest(tenant=call.tenant),
            timeout_s=_COUNT_TIMEOUT_S,
        ),
        return_exceptions=True,
    )
    errors = [answer for answer in answers if isinstance(answer, BaseException)]
    for error in errors:
        if not isinstance(error, MusterError):
            raise error
    status, counts = (None if isinstance(a, BaseException) else a for a in answers)
    if status is None and counts is None:
        raise Unavailable("the cluster", "; ".join(map(str, errors)))
    out = cluster_out(status, counts.by_state if counts is not None else None)
    return Response(encode(out), media_type=JSON)


async def accept_store(call: Call) -> Response:
    known_queries(call.request)
    response: scheduler_pb2.AcceptStoreResponse = await call.gateway.leader.call(
        "AcceptStore",
        scheduler_pb2.AcceptStoreRequest(who=call.caller.key_id),
        timeout_s=_LEADER_TIMEOUT_S,
    )
    return Response(encode({"accepted": response.was}), media_type=JSON)


_TAG = "agents"


def _action(
    name: str,
    action: scheduler_pb2.AgentAction.ValueType,
    summary: str,
    body: Body | None = None,
) -> Route:
    return Route(
        "POST",
        f"/v1/agents/{{id}}/{name}",
        _act(action),
        summary,
        _TAG,
        (Answer(200, "The agent, with the wish recorded.", documents.Agent),),
        body=body,
        problems=(404, 409) if body is None else (400, 404, 409, 413, 415, 422),
        audited=True,
    )


ROUTES: tuple[Route, ...] = (
    Route(
        "GET",
        "/v1/agents",
        list_agents,
        "Agents, by id",
        _TAG,
        (Answer(200, "The tenant's agents.", documents.AgentPage),),
        queries=(
            Query("limit", f"1 to {MAX_PAGE}, default 100.", 100, kind="integer"),
            Query("cursor", "`next` of the page before."),
        ),
        problems=(422,),
    ),
    Route(
        "GET",
        "/v1/agents/{id}",
        get_agent,
        "An agent with its skills' schemas, its evidence and metrics",
        _TAG,
        (Answer(200, "The agent; `metrics` is null when no monitor has any.", documents.Agent),),
        problems=(404,),
    ),
    _action("cordon", scheduler_pb2.AGENT_ACTION_CORDON, "Give an agent no new work"),
    _action("uncordon", scheduler_pb2.AGENT_ACTION_UNCORDON, "Give an agent work again"),
    _action(
        "drain",
        scheduler_pb2.AGENT_ACTION_DRAIN,
        "Let an agent end what it has, no more",
        Body(documents.Drain, {"within a minute": {"deadline": "60s"}}, required=False),
    ),
    _action("restart", scheduler_pb2.AGENT_ACTION_RESTART, "Restart an agent's runtime"),
    Route(
        "GET",
        "/v1/cluster",
        get_cluster,
        "Counts, capacity, leader",
        "cluster",
        (Answer(200, "The cluster's figures.", documents.Cluster),),
    ),
    Route(
        "POST",
        "/v1/cluster/accept-store",
        accept_store,
        "Go on with a store that was rolled back",
        "cluster",
        (
            Answer(
                200,
                "Scheduling goes on; `accepted` is what was wrong.",
                documents.AcceptedStore,
                example={"accepted": "Redis was rolled back by 5.2 s"},
            ),
        ),
        about="What the store has lost is lost, and what it believes to be open runs again.",
        problems=(409,),
        audited=True,
    ),
)
