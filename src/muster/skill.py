"""What the author of a skill touches: `@skill`, and the `Context` that a skill may ask for.

    from muster.skill import Context, skill

    @skill
    def translate(text: str, to: str = "en") -> str: ...

    @skill(name="summary", description="Shortens a text")
    async def summarise(input: Document, ctx: AsyncContext) -> Summary: ...

How a task's input reaches the function:

* A JSON object maps onto the parameters by name; missing ones take their defaults, and no input
  (null) stands for an object without keys when all parameters have defaults.
* A function with exactly one parameter receives the WHOLE input when that parameter is
  positional-only (`def f(x, /)`), is called `input`, or is annotated with something that is an
  object by itself: a pydantic model, a dataclass, a TypedDict, `dict` or `Mapping`.
* A parameter annotated `Context` or `AsyncContext`, or called `ctx`, receives the context.

Hints are checked: an input that breaks them fails the task once and is not tried again. The
result is what is returned, as JSON. A generator's yields are partial outputs that can be
followed while it runs; its result is what it returns, or the list of its yields. (An async
generator cannot return a value; it may yield `Result(value)` as its last.)

Sync functions run one at a time in a process of their own and receive a `Context`, whose methods
block. Async functions share a process and receive an `AsyncContext`, whose `kv`, `blobs` and
`submit` are awaited. Nothing else differs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar, overload

from muster.domain import errors
from muster.domain.errors import InvalidInput, MusterError, PreconditionFailed
from muster.domain.ids import parse_skill_name

F = TypeVar("F", bound=Callable[..., Any])

# Where the decorator leaves what it knows.
SKILL_ATTRIBUTE = "__muster_skill__"

SYNC, ASYNC, COMMAND = "sync", "async", "command"


class InputRejected(InvalidInput):
    """Raised by a skill: this input can never work, so the task fails and is not tried again."""

    code = "input_rejected"


class PermanentFailure(MusterError):
    """Raised by a skill: the task fails and is not tried again, though its input was sound.

    Its message alone, without a traceback, is the task's error.
    """

    code = "permanent_failure"


class ChildFailed(MusterError):
    """A task that this one had submitted did not succeed; `state` and `error` say how."""

    code: ClassVar[str] = "child_failed"

    def __init__(self, task_id: str, state: str, error: str) -> None:
        self.task_id, self.state, self.error = task_id, state, error
        super().__init__(f"task {task_id} ended as {state}" + (f": {error}" if error else ""))


class TaskCancelled(BaseException):
    """Raised inside a sync skill when its attempt is cancelled or its time is up.

    `finally` blocks run; what is still running two seconds later is killed. (An async skill meets
    asyncio.CancelledError instead.)
    """


@dataclass(frozen=True, slots=True)
class Result:
    """Yielded last by an async generator, which cannot return a value: the task's result."""

    value: Any


@dataclass(frozen=True, slots=True)
class Skill:
    """A function as an agent may offer it. Schemas, where given, stand in for the hints."""

    name: str
    description: str
    function: Callable[..., Any]
    mode: str
    generator: bool
    input_schema: Mapping[str, Any] | None = None
    output_schema: Mapping[str, Any] | None = None


@overload
def skill(function: F, /) -> F: ...
@overload
def skill(
    *,
    name: str | None = None,
    description: str | None = None,
    input_schema: Mapping[str, Any] | None = None,
    output_schema: Mapping[str, Any] | None = None,
) -> Callable[[F], F]: ...
def skill(
    function: F | None = None,
    /,
    *,
    name: str | None = None,
    description: str | None = None,
    input_schema: Mapping[str, Any] | None = None,
    output_schema: Mapping[str, Any] | None = None,
) -> F | Callable[[F], F]:
    """Marks a function as a skill; the function itself stays callable as it was.

    `name` is the function's unless given, `description` the first line of its docstring.
    Explicit schemas replace those from the hints; the function then checks its input itself.

    Raises InvalidInput on a bad name and TypeError on what cannot be a skill.
    """

    def mark(target: F) -> F:
        if not inspect.isfunction(target):
            raise TypeError(f"@skill marks functions, not {type(target).__name__}")
        is_async = inspect.iscoroutinefunction(target) or inspect.isasyncgenfunction(target)
        kinds = [p.kind for p in inspect.signature(target).parameters.values()]
        if inspect.Parameter.VAR_POSITIONAL in kinds:
            raise TypeError(f"skill {target.__name__}: *args has no place in a JSON input")
        about = description
        if about is None:
            about = (inspect.getdoc(target) or "").strip().partition("\n")[0]
        found = Skill(
            name=parse_skill_name(name if name is not None else target.__name__, "skill name"),
            description=about,
            function=target,
            mode=ASYNC if is_async else SYNC,
            generator=inspect.isgeneratorfunction(target) or inspect.isasyncgenfunction(target),
            input_schema=input_schema,
            output_schema=output_schema,
        )
        setattr(target, SKILL_ATTRIBUTE, found)
        return target

    return mark if function is None else mark(function)


# --- context ------------------------------------------------------------------------------------


class ContextPort(Protocol):
    """What stands behind a context: the runner's connection, or a stand-in in tests."""

    @property
    def task_id(self) -> str: ...
    @property
    def attempt(self) -> int: ...
    @property
    def devices(self) -> Mapping[str, tuple[int, ...]]: ...
    @property
    def folder(self) -> Path: ...
    @property
    def cancelled(self) -> bool: ...
    def progress(self, fraction: float, note: str) -> None: ...
    def log(self, text: str, level: str) -> None: ...
    def call(self, op: str, args: dict[str, Any], /) -> Any: ...
    async def call_async(self, op: str, args: dict[str, Any], /) -> Any: ...


@dataclass(frozen=True, slots=True)
class KvEntry:
    """A stored value: bytes as they were put, anything else decoded from JSON."""

    value: Any
    etag: str


_LEVELS = ("debug", "info", "warning", "error")


class _AnyContext:
    def __init__(self, port: ContextPort) -> None:
        self._port = port
        self._children = 0

    @property
    def task_id(self) -> str:
        """The task's id; together with `attempt` it makes side effects idempotent."""
        return self._port.task_id

    @property
    def attempt(self) -> int:
        """Counts from 1 and grows with each assignment of the task."""
        return self._port.attempt

    @property
    def devices(self) -> Mapping[str, tuple[int, ...]]:
        """Indices of the devices that the attempt was given, by resource: {"gpu": (0, 2)}.

        Empty unless the task asks for some. A share of a device ("gpu": "500m") is its index, too.
        CUDA_VISIBLE_DEVICES is set accordingly, so a library that heeds it needs nothing of this.
        """
        return self._port.devices

    @property
    def folder(self) -> Path:
        """A folder for scratch files; it is removed after use."""
        return self._port.folder

    @property
    def cancelled(self) -> bool:
        """Whether somebody asked for this attempt's end."""
        return self._port.cancelled

    def progress(self, fraction: float, note: str = "") -> None:
        """Reports how far the task is: `fraction` from 0 to 1, or negative for unknown."""
        if fraction != fraction or fraction > 1:  # noqa: PLR0124  NaN is not equal to itself
            raise InvalidInput("fraction", fraction, "0 to 1, or negative for unknown")
        self._port.progress(float(fraction), str(note)[:1024])

    def log(self, text: str, level: str = "info") -> None:
        """Writes to the task's log; `level` is debug, info, warning or error."""
        if level not in _LEVELS:
            raise InvalidInput("level", level, "one of " + ", ".join(_LEVELS))
        self._port.log(str(text), level)

    def _submission(self, skill_name: str, task_input: Any, options: dict[str, Any]) -> Any:
        import orjson  # noqa: PLC0415  skill.py is imported where nothing is submitted

        unknown = options.keys() - _SUBMIT_OPTIONS
        if unknown:
            limit = "options are " + ", ".join(sorted(_SUBMIT_OPTIONS))
            raise InvalidInput("submit", sorted(unknown)[0], limit)
        index, self._children = self._children, self._children + 1
        return {
            "skill": parse_skill_name(skill_name),
            "input": orjson.dumps(task_input),
            "index": index,
            "options": options,
        }


_SUBMIT_OPTIONS = frozenset(
    {"timeout_s", "priority", "max_attempts", "resources", "labels", "on_disconnect"}
)


class Context(_AnyContext):
    """The context of a sync skill: `kv`, `blobs` and `submit` block."""

    def __init__(self, port: ContextPort) -> None:
        super().__init__(port)
        self.kv = KeyValues(port)
        self.blobs = Blobs(port)

    def submit(self, skill_name: str, input: Any = None, **options: Any) -> Child:  # noqa: A002
        """Submits a task on behalf of this one.

        A retried parent finds the child of its n-th call again instead of making a second one.
        Options: timeout_s, priority, max_attempts, resources, labels, on_disconnect. Deadline and
        priority are inherited. Raises InvalidInput when tasks are nested too deep.
        """
        answer = self._port.call("submit", self._submission(skill_name, input, options))
        return Child(self._port, answer["id"])


class AsyncContext(_AnyContext):
    """The context of an async skill: `kv`, `blobs` and `submit` are awaited."""

    def __init__(self, port: ContextPort) -> None:
        super().__init__(port)
        self.kv = AsyncKeyValues(port)
        self.blobs = AsyncBlobs(port)

    async def submit(
        self,
        skill_name: str,
        input: Any = None,  # noqa: A002
        **options: Any,
    ) -> AsyncChild:
        """As `Context.submit`. Submit in a fixed order: the n-th call has the n-th child."""
        answer = await self._port.call_async("submit", self._submission(skill_name, input, options))
        return AsyncChild(self._port, answer["id"])


class Child:
    """A task that a sync skill has submitted."""

    def __init__(self, port: ContextPort, ident: str) -> None:
        self._port, self.id = port, ident

    def result(self) -> Any:
        """Waits for the child's output. Meanwhile this task's slot and cpu serve others.

        Raises ChildFailed when it ends without success.
        """
        return _child_output(self._port.call("child.result", {"id": self.id}))


class AsyncChild:
    """A task that an async skill has submitted."""

    def __init__(self, port: ContextPort, ident: str) -> None:
        self._port, self.id = port, ident

    async def result(self) -> Any:
        """As `Child.result`."""
        return _child_output(await self._port.call_async("child.result", {"id": self.id}))


def _child_output(answer: Mapping[str, Any]) -> Any:
    import orjson  # noqa: PLC0415  as above

    if answer["state"] != "SUCCEEDED":
        raise ChildFailed(answer["id"], answer["state"], answer["error"])
    return orjson.loads(_taken(answer["file"]) if answer["file"] else answer["output"])


# --- shared data --------------------------------------------------------------------------------

_JSON, _BYTES = "application/json", "application/octet-stream"


def _put_args(key: str, value: Any, if_match: str, if_absent: bool) -> dict[str, Any]:
    if isinstance(value, bytes):
        content, kind = value, _BYTES
    else:
        import orjson  # noqa: PLC0415  as above

        content, kind = orjson.dumps(value), _JSON
    return {
        "key": key,
        "value": content,
        "content_type": kind,
        "if_match": if_match,
        "if_absent": if_absent,
    }


def _etag(key: str, answer: Mapping[str, Any]) -> str:
    if not answer["written"]:
        raise PreconditionFailed(f"key {key!r} has etag {answer['etag']!r} now")
    return str(answer["etag"])


def _entry(answer: Mapping[str, Any]) -> KvEntry | None:
    if not answer["found"]:
        return None
    value = answer["value"]
    if answer["content_type"] == _JSON:
        import orjson  # noqa: PLC0415  as above

        value = orjson.loads(value)
    return KvEntry(value, answer["etag"])


def _deleted(key: str, answer: Mapping[str, Any]) -> bool:
    if answer["found"] and not answer["deleted"]:
        raise PreconditionFailed(f"key {key!r} has etag {answer['etag']!r} now")
    return bool(answer["deleted"])


class KeyValues:
    """The tenant's shared keys, also reachable as `/v1/kv/{key}`."""

    def __init__(self, port: ContextPort) -> None:
        self._port = port

    def get(self, key: str) -> KvEntry | None:
        """The entry, or None when there is no such key."""
        return _entry(self._port.call("kv.get", {"key": key}))

    def put(self, key: str, value: Any, *, if_match: str = "", if_absent: bool = False) -> str:
        """Writes and gives the new etag. Bytes are kept as they are, all else as JSON.

        Raises PreconditionFailed when the etag differs, or with `if_absent` when the key exists.
        """
        return _etag(key, self._port.call("kv.put", _put_args(key, value, if_match, if_absent)))

    def delete(self, key: str, *, if_match: str = "") -> bool:
        """Whether there was such a key. Raises PreconditionFailed when the etag differs."""
        return _deleted(key, self._port.call("kv.delete", {"key": key, "if_match": if_match}))


class AsyncKeyValues:
    """As `KeyValues`, awaited."""

    def __init__(self, port: ContextPort) -> None:
        self._port = port

    async def get(self, key: str) -> KvEntry | None:
        """As `KeyValues.get`."""
        return _entry(await self._port.call_async("kv.get", {"key": key}))

    async def put(
        self, key: str, value: Any, *, if_match: str = "", if_absent: bool = False
    ) -> str:
        """As `KeyValues.put`."""
        args = _put_args(key, value, if_match, if_absent)
        return _etag(key, await self._port.call_async("kv.put", args))

    async def delete(self, key: str, *, if_match: str = "") -> bool:
        """As `KeyValues.delete`."""
        args = {"key": key, "if_match": if_match}
        return _deleted(key, await self._port.call_async("kv.delete", args))


class Blobs:
    """Content-addressed data of any size; named by its SHA-256 in hex."""

    def __init__(self, port: ContextPort) -> None:
        self._port = port

    def put(self, content: bytes | Path) -> str:
        """Stores bytes, or the file at a path, and gives its name."""
        return str(self._port.call("blob.put", _handed_over(self._port, content))["sha256"])

    def get(self, sha256: str) -> bytes:
        """The content; raises NotFound."""
        return _taken(self._port.call("blob.get", {"sha256": sha256})["file"])


class AsyncBlobs:
    """As `Blobs`, awaited."""

    def __init__(self, port: ContextPort) -> None:
        self._port = port

    async def put(self, content: bytes | Path) -> str:
        """As `Blobs.put`."""
        args = _handed_over(self._port, content)
        return str((await self._port.call_async("blob.put", args))["sha256"])

    async def get(self, sha256: str) -> bytes:
        """As `Blobs.get`."""
        return _taken((await self._port.call_async("blob.get", {"sha256": sha256}))["file"])


def _handed_over(port: ContextPort, content: bytes | Path) -> dict[str, Any]:
    """Content travels as a file: a frame need not hold it, and nobody copies it twice."""
    if isinstance(content, Path):
        return {"file": str(content.resolve(strict=True)), "remove": False}
    import tempfile  # noqa: PLC0415  as above

    with tempfile.NamedTemporaryFile(dir=port.folder, prefix="blob-", delete=False) as out:
        out.write(content)
    return {"file": out.name, "remove": True}


def _taken(name: str) -> bytes:
    path = Path(name)
    content = path.read_bytes()
    path.unlink()
    return content


def error_from(name: str, message: str) -> MusterError:
    """The error that a peer described by its class name and message."""
    found = getattr(errors, name, MusterError)
    if not (isinstance(found, type) and issubclass(found, MusterError)):
        found = MusterError
    error = found.__new__(found, message)
    error.args = (message,)
    return error
