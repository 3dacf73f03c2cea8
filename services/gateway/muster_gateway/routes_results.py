"""Route: gather the results of many tasks as they end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec
from starlette.responses import Response, StreamingResponse

from muster.api.v1 import task_pb2
from muster.domain.durations import parse_duration_ms
from muster.domain.errors import InvalidInput, MusterError
from muster.domain.ids import parse_task_id
from muster.domain.task import MAX_BATCH_TASKS
from muster_gateway import documents
from muster_gateway.blobs import open_blob
from muster_gateway.requests import MAX_WAIT_MS, NDJSON, known_queries, read_body, require_json
from muster_gateway.routes_tasks import spliced
from muster_gateway.table import Answer, Body, Call, Route
from muster_gateway.task_body import decode_bounded
from muster_gateway.views import ErrorOut, blob_of, encode, result_out


class GatherIn(msgspec.Struct, forbid_unknown_fields=True):
    """The body."""

    ids: list[str]
    wait: str | None = None


async def gather(call: Call) -> Response:
    request = call.request
    known_queries(request)
    require_json(request)
    wanted: GatherIn = decode_bounded(await read_body(request), GatherIn)
    if not 1 <= len(wanted.ids) <= MAX_BATCH_TASKS:
        raise InvalidInput("ids", f"{len(wanted.ids)} ids", f"1 to {MAX_BATCH_TASKS} ids")
    for index, ident in enumerate(wanted.ids):
        try:
            parse_task_id(ident)
        except InvalidInput as error:
            raise InvalidInput(f"ids[{index}]", ident, error.limit) from None
    wait_ms = 0
    if wanted.wait is not None:
        wait_ms = parse_duration_ms(wanted.wait, field="wait", least_ms=0, most_ms=MAX_WAIT_MS)
    ids = list(dict.fromkeys(wanted.ids))
    lines = _lines(call, ids, wait_ms / 1000)
    # The first piece is awaited here, so that what fails at once is a problem document.
    first = await anext(lines, b"")
    return StreamingResponse(_from(first, lines), media_type=NDJSON)


async def _from(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for piece in rest:
        yield piece


async def _lines(call: Call, ids: list[str], wait_s: float) -> AsyncIterator[bytes]:
    """A line per ended task, then one with what is still open."""
    left = dict.fromkeys(ids)
    failure: dict[str, Any] = {}
    sent = False
    try:
        async for tasks in call.gateway.reader.ended_tasks(call.tenant, ids, wait_s):
            inline: list[bytes] = []
            for ident, task in tasks:
                if task is not None and blob_of(task):
                    async for piece in _large(call, task):
                        yield piece
                        sent = True
                else:
                    inline.append(_line(ident, task))
                del left[ident]
            if inline:
                yield b"".join(inline)
                sent = True
    except MusterError as error:
        if not sent:
            raise
        # The answer has begun: what is open, and why, is all that can still be said.
        failure = {"error": {"kind": error.code, "message": str(error)}}
    yield encode({"open": list(left), **failure}) + b"\n"


def _line(ident: str, task: task_pb2.Task | None) -> bytes:
    if task is not None:
        return encode(result_out(task)) + b"\n"
    error = ErrorOut("not_found", f"there is no task {ident}")
    return encode({"id": ident, "state": None, "error": error}) + b"\n"


async def _large(call: Call, task: task_pb2.Task) -> AsyncIterator[bytes]:
    """A line whose result lies in a blob."""
    out = result_out(task)
    try:
        _, pieces = await open_blob(call.gateway.storage, call.tenant, blob_of(task))
    except MusterError as error:
        out.error = ErrorOut(error.code, f"the result cannot be read: {error}")
        yield encode(out) + b"\n"
        return
    try:
        async for piece in spliced(encode(out), pieces):
            yield piece
    except MusterError as error:
        # In the middle of a line nothing can be said any more: the connection is broken off.
        raise ConnectionAbortedError(str(error)) from error
    yield b"\n"


ROUTES: tuple[Route, ...] = (
    Route(
        "POST",
        "/v1/results",
        gather,
        "Results of many tasks, each as soon as it has ended",
        "tasks",
        (
            Answer(
                200,
                "One line per task that has ended, in the order in which they end, as from "
                "/result; `state` null = there is no such task. The last line is "
                '`{"open": [ids]}`, with an `error` when the gathering broke off.',
                documents.Result,
                media_type=NDJSON,
            ),
        ),
        body=Body(documents.Gather, {"two": {"ids": [documents.TASK_ID], "wait": "60s"}}),
        problems=(400, 413, 415, 422, 429),
    ),
)
