"""What each method of a client asks and how it reads the answer. Performs nothing itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final
from urllib.parse import quote

import msgspec

from muster.client.errors import (
    ClientError,
    Conflict,
    Unreadable,
    unsuccessful,
)
from muster.client.exchange import (
    Deadline,
    Emit,
    Op,
    Reply,
    Request,
    Settings,
    as_wait,
    decoded,
    exchange,
)
from muster.client.models import Agent, Cluster, Explanation, LogLine, Plan, Result, Task
from muster.client.task_bodies import (
    BodyMaker,
    PlanOptions,
    TaskOptions,
    batch_body,
    batches,
    plan_body,
)
from muster.domain.errors import InvalidInput
from muster.domain.ids import parse_idempotency_key

# How much longer than a long-poll its answer may take.
GRACE_S: Final = 15.0
_JSON: Final = "application/json"
_PAGE: Final = "1000"


class _Accepted(msgspec.Struct):
    id: str = ""
    ids: list[str] = []


class _Page(msgspec.Struct):
    items: list[Any]
    next: str | None = None


class _Cancelled(msgspec.Struct):
    state: str


# --- tasks --------------------------------------------------------------------------------------


def submit(
    settings: Settings,
    skill: str,
    value: Any,
    options: TaskOptions,
    key: str | None,
    timeout_s: float,
) -> Op[str]:
    """The id, once the task is durable. One key for all repetitions: one task."""
    body = BodyMaker(skill, options).one(value)
    deadline = settings.deadline("submitting", timeout_s)
    reply = yield from _post_tasks(settings, body, _key(settings, key), deadline)
    return decoded(reply, _Accepted).id


def submit_many(
    settings: Settings,
    skill: str,
    inputs: Iterable[Any],
    options: TaskOptions,
    key: str | None,
    timeout_s: float,
) -> Op[list[str]]:
    """The ids in order. An error's `submitted` holds those of the batches before it."""
    key = _key(settings, key)
    ids: list[str] = []
    try:
        for number, batch in enumerate(batches(BodyMaker(skill, options).each(inputs))):
            ids += yield from submit_batch(
                settings, batch, f"{key}-{number}", settings.deadline("submitting", timeout_s)
            )
    except ClientError as error:
        error.submitted = ids
        raise
    return ids


def submit_batch(
    settings: Settings, batch: list[bytes], key: str, deadline: Deadline
) -> Op[list[str]]:
    """The ids of one batch."""
    reply = yield from _post_tasks(settings, batch_body(batch), key, deadline)
    ids = decoded(reply, _Accepted).ids
    if len(ids) != len(batch):
        raise Unreadable(f"{len(batch)} tasks were answered with {len(ids)} ids")
    return ids


def _key(settings: Settings, given: str | None) -> str:
    return settings.new_key() if given is None else parse_idempotency_key(given)


def _post_tasks(settings: Settings, body: bytes, key: str, deadline: Deadline) -> Op[Reply]:
    headers = {"Content-Type": _JSON, "Idempotency-Key": key}
    request = Request("POST", "/v1/tasks", headers=headers, content=body)
    return exchange(settings, request, deadline)


def result(settings: Settings, ident: str, timeout_s: float | None, returns: Any) -> Op[Any]:
    """The result, once the task has ended; raises TaskUnsuccessful when there is none."""
    deadline = settings.deadline(f"waiting for task {ident}", timeout_s)
    return (yield from awaited(settings, ident, deadline, returns))


def awaited(settings: Settings, ident: str, deadline: Deadline, returns: Any) -> Op[Any]:
    """As `result`, within a deadline that runs already."""
    while True:
        ended = yield from read_result(settings, ident, settings.long_poll_s, deadline)
        if ended is not None:
            return value_of(ended, returns)


def run(
    settings: Settings,
    skill: str,
    value: Any,
    options: TaskOptions,
    key: str | None,
    timeout_s: float | None,
    returns: Any,
) -> Op[Any]:
    """Submits, then waits; the error of a deadline that passes names the task in `submitted`."""
    deadline = settings.deadline(f"running skill {skill}", timeout_s)
    patience_s = min(settings.timeout_s, deadline.seconds)
    ident = yield from submit(settings, skill, value, options, key, patience_s)
    try:
        return (yield from awaited(settings, ident, deadline, returns))
    except ClientError as error:
        error.submitted = (ident,)
        raise


def read_result(
    settings: Settings, ident: str, wait_s: float, deadline: Deadline
) -> Op[Result | None]:
    """What came of a task, None while it is open after `wait_s`."""
    wait_s = min(wait_s, deadline.left_s())
    request = Request("GET", task_path(ident, "/result"), {"wait": as_wait(wait_s)})
    # The gateway's answer to a wait that ends with the deadline is still worth having.
    late = Deadline(deadline.what, deadline.seconds, deadline.ends_s + GRACE_S, deadline.clock)
    reply = yield from exchange(settings, request, late, quiet_s=wait_s + GRACE_S, due_s=wait_s)
    return None if reply.status == 202 else decoded(reply, Result)


def value_of(ended: Result, returns: Any) -> Any:
    """The result as `returns` (None: as it is); raises TaskUnsuccessful, Unreadable."""
    if not ended.succeeded:
        raise unsuccessful(ended)
    if returns is None:
        return ended.result
    import pydantic  # noqa: PLC0415  slow to import, and results are mostly taken as they are

    try:
        return pydantic.TypeAdapter(returns).validate_python(ended.result)
    except pydantic.ValidationError as error:
        raise Unreadable(
            f"the result of task {ended.id} is not of the type asked for: {error}"
        ) from (error)


def task(
    settings: Settings, ident: str, wait_s: float, with_input: bool, timeout_s: float
) -> Op[Task]:
    params = {"include": "input"} if with_input else {}
    if wait_s > 0:
        params["wait"] = as_wait(wait_s)
    request = Request("GET", task_path(ident), params)
    deadline = settings.deadline(f"reading task {ident}", timeout_s + wait_s)
    reply = yield from exchange(settings, request, deadline, quiet_s=wait_s + GRACE_S, due_s=wait_s)
    return decoded(reply, Task)


def tasks(
    settings: Settings,
    filters: Mapping[str, str | None],
    labels: Mapping[str, str],
    timeout_s: float,
) -> Op[None]:
    """Emits tasks, newest first. `timeout_s` is for each page."""
    params = {name: value for name, value in filters.items() if value is not None}
    if len(labels) > 1:
        raise InvalidInput("labels", labels, "one label can be asked for at a time")
    for key, value in labels.items():
        params["label"] = f"{key}={value}"
    yield from pages(settings, "/v1/tasks", params, Task, timeout_s)


def cancel(settings: Settings, ident: str, timeout_s: float) -> Op[str]:
    """The state. That it is cancelled already is no error: the first answer may have been lost."""
    deadline = settings.deadline(f"cancelling task {ident}", timeout_s)
    request = Request("POST", task_path(ident, "/cancel"))
    try:
        reply = yield from exchange(settings, request, deadline)
    except Conflict:
        found = yield from task(settings, ident, 0, False, timeout_s)
        if found.state != "CANCELLED":
            raise
        return found.state
    return decoded(reply, _Cancelled).state


def explain(settings: Settings, ident: str, timeout_s: float) -> Op[Explanation]:
    return _get(settings, task_path(ident, "/explain"), Explanation, timeout_s)


def plan(
    settings: Settings,
    tasks: Iterable[Mapping[str, Any]],
    options: PlanOptions,
    timeout_s: float,
) -> Op[Plan]:
    """Nothing is stored, so it may be repeated."""
    request = Request(
        "POST", "/v1/plans", headers={"Content-Type": _JSON}, content=plan_body(tasks, options)
    )
    deadline = settings.deadline("planning", timeout_s)
    reply = yield from exchange(settings, request, deadline)
    return decoded(reply, Plan)


def logs(settings: Settings, ident: str, attempt: int, timeout_s: float) -> Op[None]:
    """Emits the lines that there are."""
    params = {"attempt": str(attempt)} if attempt else {}
    yield from pages(settings, task_path(ident, "/logs"), params, LogLine, timeout_s, limit="")


def task_path(ident: str, more: str = "") -> str:
    """Where a task lies; `ident` is quoted."""
    return f"/v1/tasks/{segment(ident)}{more}"


def segment(text: str) -> str:
    """The text as one step of a path."""
    # Dots alone would be taken for folders.
    return quote(text, safe="") if text.strip(".") else text.replace(".", "%2E")


# --- the cluster --------------------------------------------------------------------------------


def agents(settings: Settings, timeout_s: float) -> Op[None]:
    """Emits the agents."""
    yield from pages(settings, "/v1/agents", {}, Agent, timeout_s)


def agent(settings: Settings, ident: str, timeout_s: float) -> Op[Agent]:
    return _get(settings, f"/v1/agents/{segment(ident)}", Agent, timeout_s)


def cluster(settings: Settings, timeout_s: float) -> Op[Cluster]:
    return _get(settings, "/v1/cluster", Cluster, timeout_s)


def _get(settings: Settings, path: str, kind: type[Any], timeout_s: float) -> Op[Any]:
    deadline = settings.deadline(f"GET {path}", timeout_s)
    reply = yield from exchange(settings, Request("GET", path), deadline)
    return decoded(reply, kind)


def pages(
    settings: Settings,
    path: str,
    params: Mapping[str, str],
    kind: Any,
    timeout_s: float,
    *,
    limit: str = _PAGE,
) -> Op[None]:
    """Emits the items of all pages of a list; `timeout_s` is for each."""
    asked = {**params, "limit": limit} if limit else dict(params)
    while True:
        deadline = settings.deadline(f"GET {path}", timeout_s)
        reply = yield from exchange(settings, Request("GET", path, asked), deadline)
        page = decoded(reply, _Page)
        try:
            items = msgspec.convert(page.items, list[kind])
        except msgspec.ValidationError as error:
            raise Unreadable(f"a list at {path} cannot be read: {error}") from error
        for item in items:
            yield Emit(item)
        if not page.next:
            return
        asked["cursor"] = page.next
