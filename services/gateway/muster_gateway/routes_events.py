"""Route: everything that happens, as it happens."""

from __future__ import annotations

from starlette.responses import Response

from muster.api.v1 import storage_pb2
from muster.domain.errors import InvalidInput
from muster.domain.ids import parse_task_id
from muster.domain.task_lifecycle import TaskState
from muster.rpc.conversion import TASK_STATE_TO_PROTO
from muster_gateway import sse
from muster_gateway.requests import known_queries
from muster_gateway.table import Answer, Call, Query, Route


async def events(call: Call) -> Response:
    request = call.request
    known_queries(request, "task", "state", "after")
    tenant, query = call.tenant, request.query_params
    task = parse_task_id(query["task"]) if "task" in query else None
    state = 0
    if "state" in query:
        names = tuple(s.value for s in TaskState)
        if query["state"] not in names:
            raise InvalidInput("state", query["state"], f"must be one of {', '.join(names)}")
        state = TASK_STATE_TO_PROTO[TaskState(query["state"])]
    after = sse.last_event_id(request)

    def accept(event: storage_pb2.Event) -> bool:
        return (
            # Events of no tenant are the cluster's own.
            event.tenant in ("", tenant)
            and (task is None or event.task_id == task)
            and (not state or event.state == state)
        )

    return sse.stream_response(sse.event_stream(call.gateway.feed, accept, after))


ROUTES: tuple[Route, ...] = (
    Route(
        "GET",
        "/v1/events",
        events,
        "Changes of tasks, agents, leader and policy as they happen",
        "cluster",
        (
            Answer(
                200,
                "Server-sent events. An event `gap` is the last one of a stream that broke off; "
                "go on with Last-Event-ID.",
                media_type=sse.MEDIA_TYPE,
                example='id: 42\nevent: task.changed\ndata: {"id":"42","kind":"task.changed"}\n\n',
            ),
        ),
        queries=(
            Query("task", "One task's events."),
            Query("state", "Events that brought a task into this state.", "FAILED"),
            Query("Last-Event-ID", "Go on after this event.", where="header"),
            Query("after", "The same for clients that cannot set headers; 0 = the oldest kept."),
        ),
        problems=(422, 429),
    ),
)
