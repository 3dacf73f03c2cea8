"""Routes: submit, read, list, explain and cancel tasks."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterable

from starlette.responses import Response, StreamingResponse

from muster.api.v1 import scheduler_pb2, storage_pb2, task_pb2
from muster.domain.errors import Conflict, InvalidInput, NotFound
from muster.domain.ids import (
    TaskId,
    parse_agent_id,
    parse_idempotency_key,
    parse_skill_name,
    parse_task_id,
    task_time_ms,
)
from muster.domain.task_lifecycle import TaskState
from muster.rpc.clock import wall_ms
from muster.rpc.conversion import TASK_STATE_TO_PROTO
from muster_gateway import documents, sse
from muster_gateway.blobs import open_blob
from muster_gateway.explain_view import explain_out
from muster_gateway.logs import follow_log, read_log
from muster_gateway.metrics import TASKS_REFUSED
from muster_gateway.requests import (
    JSON,
    MAX_PAGE,
    NDJSON,
    announced_bytes,
    flag_of,
    known_queries,
    labels_of,
    limit_of,
    read_body,
    require_json,
    wait_ms_of,
)
from muster_gateway.table import Answer, Body, Call, Query, Route
from muster_gateway.tail import ENDED
from muster_gateway.task_body import decode_submission
from muster_gateway.task_specs import check_tasks
from muster_gateway.views import (
    blob_of,
    encode,
    log_line_out,
    result_out,
    state_name,
    task_out,
)

_LEADER_TIMEOUT_S = 5.0
_TASK_EVENTS = frozenset(
    {
        storage_pb2.EVENT_KIND_TASK_CREATED,
        storage_pb2.EVENT_KIND_TASK_CHANGED,
        storage_pb2.EVENT_KIND_TASK_PROGRESS,
    }
)


def task_id_of(call: Call) -> TaskId:
    """The path's task id. What cannot be an id is unknown, too."""
    text = call.request.path_params["id"]
    try:
        return parse_task_id(text)
    except InvalidInput:
        raise NotFound("task", text) from None


async def submit(call: Call) -> Response:
    request = call.request
    kind = require_json(request, NDJSON)
    key_text = request.headers.get("idempotency-key")
    key = parse_idempotency_key(key_text) if key_text is not None else None
    gateway = call.gateway
    with gateway.admission.room(announced_bytes(request)):
        body = await read_body(request)
        try:
            tasks, is_batch = decode_submission(body, ndjson=kind == NDJSON)
            checked = check_tasks(tasks, call.caller.tenant, gateway.skills, is_batch=is_batch)
        except InvalidInput:
            TASKS_REFUSED.inc()
            raise
        body_hash = hashlib.sha256(body).digest() if key is not None else b""
        with gateway.turning_away.waiting():
            ids = await gateway.submitter.submit(checked, key=key, body_hash=body_hash)
    answer = encode({"ids": ids} if is_batch else {"id": ids[0]})
    return Response(answer, 202, media_type=JSON)


async def get_task(call: Call) -> Response:
    request = call.request
    known_queries(request, "wait", "include")
    include = request.query_params.get("include", "")
    if include not in ("", "input"):
        raise InvalidInput("include", include, "must be input")
    task = await call.gateway.reader.get_ended(
        call.tenant,
        task_id_of(call),
        wait_ms_of(request) / 1000,
        request.is_disconnected,
        with_input=bool(include),
    )
    await call.gateway.reasons.complete(task, wall_ms())
    body = encode(task_out(task, with_input=bool(include)))
    return await with_blob(call, body, blob_of(task), 200)


async def get_result(call: Call) -> Response:
    known_queries(call.request, "wait")
    task = await call.gateway.reader.get_ended(
        call.tenant,
        task_id_of(call),
        wait_ms_of(call.request) / 1000,
        call.request.is_disconnected,
        only_ending=True,
    )
    if task.status.state not in ENDED:
        return Response(encode(result_out(task)), 202, {"Retry-After": "1"}, JSON)
    return await with_blob(call, encode(result_out(task)), blob_of(task), 200)


async def with_blob(call: Call, body: bytes, sha256: str, status: int) -> Response:
    """The JSON object `body`, with the blob's JSON streamed in as its `result`."""
    if not sha256:
        return Response(body, status, media_type=JSON)
    _, pieces = await open_blob(call.gateway.storage, call.tenant, sha256)
    return StreamingResponse(spliced(body, pieces), status, media_type=JSON)


async def spliced(body: bytes, pieces: AsyncGenerator[bytes, None]) -> AsyncIterator[bytes]:
    """`{…}` and the pieces of a JSON text as `{…,"result":text}`."""
    try:
        yield body[:-1] + b',"result":'
        async for piece in pieces:
            yield piece
        yield b"}"
    finally:
        await pieces.aclose()


async def list_tasks(call: Call) -> Response:
    request = call.request
    known_queries(request, "state", "skill", "agent", "label", "limit", "cursor")
    query = request.query_params
    wanted = storage_pb2.ListTasksRequest(
        tenant=call.tenant,
        labels=labels_of(request),
        limit=limit_of(request),
        without_input=True,
    )
    if "state" in query:
        states = tuple(s.value for s in TaskState)
        if query["state"] not in states:
            raise InvalidInput("state", query["state"], f"must be one of {', '.join(states)}")
        wanted.state = TASK_STATE_TO_PROTO[TaskState(query["state"])]
    if "skill" in query:
        wanted.skill = parse_skill_name(query["skill"])
    if "agent" in query:
        wanted.agent = parse_agent_id(query["agent"])
    if "cursor" in query:
        try:
            wanted.cursor = parse_task_id(query["cursor"])
        except InvalidInput as error:
            raise InvalidInput("cursor", query["cursor"], "must be a page's next") from error
    page = await call.gateway.reader.list_tasks(wanted)
    items = []
    for task in page.tasks:
        out = task_out(task)
        if blob_of(task):
            out.result_blob = {
                "sha256": task.outcome.output_blob,
                "size_bytes": task.outcome.output_bytes,
            }
        items.append(out)
    return Response(encode({"items": items, "next": page.next or None}), media_type=JSON)


async def explain(call: Call) -> Response:
    known_queries(call.request)
    ident = task_id_of(call)
    answer: scheduler_pb2.ExplainResponse = await call.gateway.leader.call(
        "Explain",
        scheduler_pb2.ExplainRequest(tenant=call.tenant, id=ident),
        timeout_s=_LEADER_TIMEOUT_S,
    )
    if not answer.found:
        # The leader knows open tasks alone.
        task = await call.gateway.reader.get(call.tenant, ident)
        answer.state = task.status.state
        answer.summary = answer.summary or task.status.why or "it does not wait"
    return Response(encode(explain_out(ident, answer, wall_ms())), media_type=JSON)


async def cancel(call: Call) -> Response:
    known_queries(call.request)
    ident = task_id_of(call)
    response: scheduler_pb2.CancelResponse = await call.gateway.leader.call(
        "Cancel",
        scheduler_pb2.CancelRequest(tenant=call.tenant, ids=[ident]),
        timeout_s=_LEADER_TIMEOUT_S,
    )
    result = response.results[0]
    if result.code == scheduler_pb2.CANCEL_CODE_NOT_FOUND:
        raise NotFound("task", ident)
    if result.code == scheduler_pb2.CANCEL_CODE_ENDED:
        raise Conflict(f"task {ident} has ended already; its state is {state_name(result.state)}")
    return Response(encode({"id": ident, "state": state_name(result.state)}), 202, media_type=JSON)


async def logs(call: Call) -> Response:
    request = call.request
    known_queries(request, "follow", "attempt")
    attempt_text = request.query_params.get("attempt", "0")
    if not (attempt_text.isascii() and attempt_text.isdecimal() and len(attempt_text) <= 9):
        raise InvalidInput("attempt", attempt_text, "must be a number; 0 = all attempts")
    attempt = int(attempt_text)
    gateway = call.gateway
    follow = flag_of(request, "follow")
    task = await gateway.reader.get(call.tenant, task_id_of(call))
    if follow:
        lines = follow_log(gateway.monitors, gateway.board, task, attempt)
        return sse.stream_response(lines)
    found, truncated = await read_log(gateway.monitors, call.tenant, task.spec.id, attempt)
    items = [log_line_out(line) for line in found]
    return Response(encode({"items": items, "next": None, "truncated": truncated}), media_type=JSON)


async def task_events(call: Call) -> Response:
    known_queries(call.request, "after", "from_start")
    ident, tenant, reader = task_id_of(call), call.tenant, call.gateway.reader
    after = sse.last_event_id(call.request)
    task = await reader.get(tenant, ident)
    if not after and flag_of(call.request, "from_start"):
        submitted_ms = task.spec.submitted_at_ms or task_time_ms(ident)
        after = call.gateway.feed.positions.before(submitted_ms)

    def accept(event: storage_pb2.Event) -> bool:
        return event.task_id == ident and event.tenant == tenant and event.kind in _TASK_EVENTS

    def is_last(event: storage_pb2.Event) -> bool:
        return event.state in ENDED and event.kind == storage_pb2.EVENT_KIND_TASK_CHANGED

    async def opening() -> Iterable[bytes]:
        task = await reader.get(tenant, ident)
        snapshot = sse.sse("task", _snapshot(task))
        if task.status.state in ENDED:
            raise sse.Done([snapshot])
        return [snapshot]

    feed = call.gateway.feed
    return sse.stream_response(
        sse.event_stream(feed, accept, after, opening=opening, is_last=is_last)
    )


def _snapshot(task: task_pb2.Task) -> bytes:
    """The whole task, a result in a blob left out."""
    return encode(task_out(task))


_WAIT = Query("wait", "Answer at the end of the task, at the latest after this.", "30s")
_EXAMPLE_TASK = {
    "skill": "translate",
    "input": {"text": "hello", "to": "de"},
    "resources": {"cpu": "500m", "memory": "256Mi"},
    "labels": {"team": "docs"},
    "constraints": [{"key": "zone", "op": "in", "values": ["a", "b"]}],
    "priority": 60,
    "timeout": "60s",
    "start_deadline": "10m",
    "max_attempts": 3,
    "on_disconnect": "keep",
    "lifetime": "finite",
    "estimate": "2s",
}
_EXAMPLE_RESULT = {
    "id": documents.TASK_ID,
    "state": "SUCCEEDED",
    "attempt": 1,
    "agent": documents.AGENT,
    "result": {"text": "hallo"},
}
_TAG = "tasks"

ROUTES: tuple[Route, ...] = (
    Route(
        "POST",
        "/v1/tasks",
        submit,
        "Submit one task, or up to 10,000",
        _TAG,
        (Answer(202, "Every task is durable.", documents.Accepted, {"id": documents.TASK_ID}),),
        about="A batch is accepted whole or not at all; its answer has `ids` in order. A body of "
        "type application/x-ndjson has one task per line. With an `Idempotency-Key` a repeated "
        "request gets the same ids, and completes what was left half done; another body under "
        "the same key is refused with 409. A skill that no agent offers is accepted: the task "
        "waits, and says why.",
        queries=(
            Query(
                "Idempotency-Key",
                "1 to 200 visible ASCII characters; makes the request safe to repeat.",
                "order-4711",
                where="header",
            ),
        ),
        body=Body(
            documents.NewTask | documents.NewTasks,
            {
                "one": _EXAMPLE_TASK,
                "smallest": {"skill": "echo", "input": "hello"},
                "batch": {"tasks": [{"skill": "echo", "input": n} for n in range(3)]},
            },
            (JSON, NDJSON),
        ),
        problems=(400, 409, 413, 415, 422),
    ),
    Route(
        "GET",
        "/v1/tasks/{id}",
        get_task,
        "A task, at once or when it has ended",
        _TAG,
        (Answer(200, "The task, ended or not.", documents.Task),),
        queries=(_WAIT, Query("include", "`input` adds the task's input.", "input")),
        problems=(404, 422),
    ),
    Route(
        "GET",
        "/v1/tasks/{id}/result",
        get_result,
        "What came of a task",
        _TAG,
        (
            Answer(200, "It has ended.", documents.Result, _EXAMPLE_RESULT),
            Answer(
                202,
                "It is still open: neither `result` nor `error`.",
                documents.Result,
                {"id": documents.TASK_ID, "state": "RUNNING", "attempt": 1, "agent": "agent-1"},
            ),
        ),
        about="A result of any size is streamed into the answer, wherever it is stored.",
        queries=(_WAIT,),
        problems=(404, 422),
    ),
    Route(
        "GET",
        "/v1/tasks",
        list_tasks,
        "Tasks, newest first",
        _TAG,
        (Answer(200, "A page of tasks.", documents.TaskPage),),
        about="All filters given must hold. A page may be shorter than `limit`, even empty; "
        "`next` alone tells whether more follow.",
        queries=(
            Query("state", "One state.", "RUNNING"),
            Query("skill", "One skill.", "echo"),
            Query("agent", "The agent that has or had it.", "agent-1"),
            Query("label", "`key=value`; may be repeated.", "team=docs"),
            Query("limit", f"1 to {MAX_PAGE}, default 100.", 100, kind="integer"),
            Query("cursor", "`next` of the page before."),
        ),
        problems=(422,),
    ),
    Route(
        "GET",
        "/v1/tasks/{id}/logs",
        logs,
        "What a task has written",
        _TAG,
        (Answer(200, "Lines; with follow=1 events `line`, then `end`.", documents.LogPage),),
        queries=(
            Query("follow", "1: server-sent events until the task has ended.", "1"),
            Query("attempt", "One attempt; 0 = all.", 0, kind="integer"),
        ),
        problems=(404, 422),
    ),
    Route(
        "GET",
        "/v1/tasks/{id}/explain",
        explain,
        "Why a task waits, or why it is where it is",
        _TAG,
        (Answer(200, "The reasons.", documents.Explanation),),
        about="The change is the smallest single one that would give the task a place, by this "
        "order: ask for less of one resource, down to half; let agents hold more of its kind "
        "(`max`); drop one constraint; let it go to agents that failed it; uncordon an agent; ask "
        "for less than half of one resource; add an agent. Each was tried before it is said.",
        problems=(404,),
    ),
    Route(
        "GET",
        "/v1/tasks/{id}/events",
        task_events,
        "A task's changes, progress and partial output as they happen",
        _TAG,
        (Answer(200, "Server-sent events, ending with the task.", media_type=sse.MEDIA_TYPE),),
        about="First an event `task` with the whole task, then `task.changed` and `task.progress`.",
        queries=(
            Query("Last-Event-ID", "Go on after this event.", where="header"),
            Query("after", "The same for clients that cannot set headers."),
            Query(
                "from_start",
                "1: first what happened since it was submitted, up to ten minutes.",
                "1",
            ),
        ),
        problems=(404, 422, 429),
    ),
    Route(
        "POST",
        "/v1/tasks/{id}/cancel",
        cancel,
        "Cancel a task",
        _TAG,
        (
            Answer(
                202,
                "Cancelled, or durably marked; a running attempt is being told.",
                documents.Cancelled,
                {"id": documents.TASK_ID, "state": "CANCELLED"},
            ),
        ),
        problems=(404, 409),
    ),
)
