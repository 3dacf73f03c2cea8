"""Routes: what was done about agents that were down, and why."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.responses import Response

from muster.api.v1 import scheduler_pb2
from muster.domain.errors import NotFound
from muster.domain.ids import parse_agent_id
from muster_gateway import documents
from muster_gateway.requests import JSON, MAX_PAGE, known_queries, limit_of
from muster_gateway.table import Answer, Call, Query, Route
from muster_gateway.views import encode, rfc3339

_LEADER_TIMEOUT_S = 5.0
# As many as the leader keeps.
_MOST = 500
# Of the ids that the leader gives; any other names nothing.
_MAX_ID_CHARS = 200


async def list_recoveries(call: Call) -> Response:
    known_queries(call.request, "limit", "cursor", "agent")
    queries = call.request.query_params
    agent = queries.get("agent", "")
    found = await _ask(
        call,
        agent=parse_agent_id(agent) if agent else "",
        before_id=queries.get("cursor", "")[:_MAX_ID_CHARS],
        limit=min(_MOST, limit_of(call.request)),
    )
    items = [_out(record, detailed=False) for record in found.records_json]
    following = items[-1]["id"] if found.more else None
    return Response(encode({"items": items, "next": following}), media_type=JSON)


async def get_recovery(call: Call) -> Response:
    known_queries(call.request)
    ident = call.request.path_params["id"]
    found = await _ask(call, id=ident[:_MAX_ID_CHARS], limit=1)
    if not found.records_json:
        raise NotFound("recovery", ident)
    return Response(encode(_out(found.records_json[0], detailed=True)), media_type=JSON)


async def _ask(call: Call, **what: Any) -> scheduler_pb2.ListRecoveriesResponse:
    found: scheduler_pb2.ListRecoveriesResponse = await call.gateway.leader.call(
        "ListRecoveries",
        scheduler_pb2.ListRecoveriesRequest(tenant=call.tenant, **what),
        timeout_s=_LEADER_TIMEOUT_S,
        streamed=False,
    )
    return found


def _out(record_json: bytes, *, detailed: bool) -> dict[str, Any]:
    """As the leader keeps it, with times as people write them; what was weighed only in detail."""
    record: dict[str, Any] = msgspec.json.decode(record_json)
    record["began_at"] = rfc3339(record.pop("began_at_ms"))
    record["ended_at"] = rfc3339(record.pop("ended_at_ms") or 0)
    del record["tenant"]
    actions = record.pop("actions")
    if detailed:
        record["actions"] = [
            {name: value for name, value in action.items() if name not in ("agent", "at_ms")}
            | {"at": rfc3339(action["at_ms"])}
            for action in actions
        ]
    return record


ROUTES: tuple[Route, ...] = (
    Route(
        "GET",
        "/v1/recoveries",
        list_recoveries,
        "What was done about agents that were down",
        "agents",
        (Answer(200, "The newest first, without what was weighed.", documents.RecoveryPage),),
        queries=(
            Query("limit", f"1 to {MAX_PAGE}, default 100.", 100, kind="integer"),
            Query("cursor", "`next` of the page before."),
            Query("agent", "Only this agent's.", documents.AGENT),
        ),
        problems=(422,),
    ),
    Route(
        "GET",
        "/v1/recoveries/{id}",
        get_recovery,
        "One recovery, with what was weighed against what",
        "agents",
        (Answer(200, "The recovery.", documents.Recovery),),
        problems=(404,),
    ),
)
