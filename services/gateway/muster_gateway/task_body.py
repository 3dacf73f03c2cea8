"""The body of a submission: bytes to task objects, with errors that name the spot."""

from __future__ import annotations

import re
from typing import Any, Final, NoReturn

import msgspec

from muster.domain.errors import InvalidInput, TooLarge
from muster.domain.task import (
    DEFAULT_MAX_ATTEMPTS,
    DEFAULT_PRIORITY,
    MAX_BATCH_TASKS,
    MAX_BODY_BYTES,
    MAX_JSON_DEPTH,
)
from muster_gateway.json_bounds import json_depth
from muster_gateway.problems import MalformedBody

NULL: Final = msgspec.Raw(b"null")
_FIRST_KEY_IS_TASKS = re.compile(rb'\s*\{\s*"tasks"\s*:')
_AT = re.compile(r"(?P<what>.*?)(?: - at (?P<key>`key` in )?`\$(?P<path>[^`]*)`)?", re.DOTALL)
_UNKNOWN_FIELD = re.compile(r"Object contains unknown field `(?P<name>.*)`", re.DOTALL)
_MISSING_FIELD = re.compile(r"Object missing required field `(?P<name>.*)`")
_STEP = re.compile(r"\.(?P<name>[^.\[]+)|\[(?P<index>[0-9]+)\]|(?P<any>\[\.\.\.\])")
_LONE_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
# A batch's task lies in an object in a list; a single task's input one level down.
BATCH_LEVELS, _SINGLE_LEVELS = 3, 1


class ConstraintIn(msgspec.Struct, forbid_unknown_fields=True, frozen=True, gc=False):
    """A constraint as it is submitted."""

    key: str
    op: str
    values: tuple[str, ...] = ()


class TaskIn(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """A task as it is submitted; None stands for the default, and for JSON's null."""

    skill: str
    input: msgspec.Raw = NULL
    resources: dict[str, str | int | float] | None = None
    labels: dict[str, str] | None = None
    constraints: tuple[ConstraintIn, ...] | None = None
    priority: int = DEFAULT_PRIORITY
    timeout: str | None = None
    start_deadline: str | None = None
    total_deadline: str | None = None
    progress_timeout: str | None = None
    estimate: str | None = None
    max_attempts: int = DEFAULT_MAX_ATTEMPTS
    on_disconnect: str | None = None
    lifetime: str | None = None


class BatchIn(msgspec.Struct, forbid_unknown_fields=True):
    """Many tasks as they are submitted."""

    tasks: list[TaskIn]


_SINGLE: Final = msgspec.json.Decoder(TaskIn)
_BATCH: Final = msgspec.json.Decoder(BatchIn)


def decode_submission(body: bytes, *, ndjson: bool) -> tuple[list[TaskIn], bool]:
    """The tasks of a body, and whether it is a batch (answered by `ids`, not `id`).

    Raises MalformedBody, InvalidInput (fields begin with `tasks[i]` in a batch), TooLarge.
    """
    check_text(body)
    is_batch = ndjson or _FIRST_KEY_IS_TASKS.match(body) is not None
    levels = BATCH_LEVELS if is_batch and not ndjson else _SINGLE_LEVELS
    if json_depth(body) > MAX_JSON_DEPTH + levels:
        _refuse_depth(body, ndjson)
    try:
        if ndjson:
            tasks = _SINGLE.decode_lines(body)
        elif is_batch:
            tasks = _BATCH.decode(body).tasks
        else:
            tasks, is_batch = _decode_object(body)
    except msgspec.ValidationError as error:
        _refuse_type(error, body, ndjson)
    except msgspec.DecodeError as error:
        raise MalformedBody("body", _around(error, body), f"must be JSON: {error}") from error
    except RecursionError as error:
        raise _too_deep("body") from error
    if is_batch and not 1 <= len(tasks) <= MAX_BATCH_TASKS:
        limit = f"a batch has 1 to {MAX_BATCH_TASKS} tasks"
        raise InvalidInput("tasks", f"{len(tasks)} tasks", limit)
    return tasks, is_batch


def check_text(body: bytes) -> None:
    """Size and encoding. Raises TooLarge, MalformedBody."""
    if len(body) > MAX_BODY_BYTES:
        raise TooLarge("body", len(body), f"at most {MAX_BODY_BYTES} bytes")
    if body.isascii():
        return
    try:
        body.decode("utf-8")
    except UnicodeDecodeError as error:
        spot = body[error.start : error.start + 8]
        limit = f"must be UTF-8; byte {error.start} is not"
        raise MalformedBody("body", spot, limit) from error


def decode_bounded(body: bytes, kind: type[Any], levels: int = 0) -> Any:
    """Any other JSON body as a msgspec type, with the same checks and errors.

    `levels` are those around the values that are bounded in depth.
    """
    check_text(body)
    if json_depth(body) > MAX_JSON_DEPTH + levels:
        raise _too_deep("body")
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        _refuse_type(error, body, ndjson=False)
    except msgspec.DecodeError as error:
        raise MalformedBody("body", _around(error, body), f"must be JSON: {error}") from error


def _decode_object(body: bytes) -> tuple[list[TaskIn], bool]:
    """A single task, or a batch whose first key is another than `tasks`."""
    try:
        return [_SINGLE.decode(body)], False
    except msgspec.ValidationError:
        keys = json_keys(body) if b'"tasks"' in body else []
        if "tasks" not in keys:
            raise
        if keys != ["tasks"]:
            raise InvalidInput("tasks", "…", "a batch has this field alone") from None
    return _BATCH.decode(body).tasks, True


def json_keys(body: bytes) -> list[str]:
    """The names of a JSON object's fields; none of what is no object."""
    try:
        return list(msgspec.json.decode(body, type=dict[str, msgspec.Raw]))
    except msgspec.ValidationError:
        return []


def _too_deep(field: str) -> MalformedBody:
    return MalformedBody(field, "…", f"JSON may nest at most {MAX_JSON_DEPTH} deep")


def _refuse_depth(body: bytes, ndjson: bool) -> NoReturn:
    """Names the task where that can be found out."""
    try:
        tasks = _SINGLE.decode_lines(body) if ndjson else _BATCH.decode(body).tasks
    except (msgspec.DecodeError, RecursionError):
        # So deep that the decoder gives up, a single task, or not JSON at all.
        raise _too_deep("body") from None
    for index, task in enumerate(tasks):
        if json_depth(bytes(task.input)) > MAX_JSON_DEPTH:
            raise _too_deep(f"tasks[{index}].input")
    raise _too_deep("body")


def _around(error: msgspec.DecodeError, body: bytes) -> str:
    """A little of the body where the decoder stopped."""
    if not body.strip():
        return ""
    found = re.search(r"\(byte ([0-9]+)\)", str(error))
    if found is None:
        surrogate = _LONE_SURROGATE.search(body)
        start = surrogate.start() if surrogate else max(0, len(body) - 16)
    else:
        start = max(0, int(found[1]) - 8)
    return body[start : start + 24].decode("utf-8", "replace")


def _refuse_type(error: msgspec.ValidationError, body: bytes, ndjson: bool) -> NoReturn:
    """A well-formed body of the wrong shape, told with field, value and limit."""
    match = _AT.fullmatch(str(error))
    assert match is not None
    what, path = match["what"], match["path"] or ""
    field = ("tasks" + path if ndjson else path.removeprefix(".")) or "body"
    for pattern, limit in (
        (_UNKNOWN_FIELD, "there is no such field"),
        (_MISSING_FIELD, "it is needed"),
    ):
        named = pattern.fullmatch(what)
        if named is not None:
            name = named["name"]
            where = f"{field}.{name}" if field != "body" else name
            raise InvalidInput(where[:200], name if pattern is _UNKNOWN_FIELD else None, limit)
    value, last = _value_at(path, body, ndjson)
    if last is not None:
        field = field.replace("[...]", f".{last}"[:80])
    limit = what.replace("`", "")[:1].lower() + what.replace("`", "")[1:]
    raise InvalidInput(field, value, limit.replace(" | null", ""))


def _value_at(path: str, body: bytes, ndjson: bool) -> tuple[object, str | None]:
    """The value that the decoder's path points at; the key too where it says `[...]`."""
    try:
        at: Any = msgspec.json.Decoder().decode_lines(body) if ndjson else msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return "…", None
    for step in _STEP.finditer(path):
        if step["any"]:
            return _odd_one(at)
        try:
            at = at[int(step["index"])] if step["index"] else at[step["name"]]
        except (LookupError, TypeError):
            return "…", None
    return (f"an {type(at).__name__}" if isinstance(at, dict | list) else at), None


def _odd_one(at: object) -> tuple[object, str | None]:
    """Of a map of plain values, the first entry that is none."""
    if isinstance(at, dict):
        plain = (str, int, float) if any(isinstance(v, int | float) for v in at.values()) else str
        for key, value in at.items():
            if isinstance(value, bool) or not isinstance(value, plain):
                return value, str(key)
        for key, value in at.items():
            if not isinstance(value, str):
                return value, str(key)
    return "…", None
