"""Runs skills in a sandbox, by the code that agents run them with."""

from __future__ import annotations

import asyncio
import inspect
import tempfile
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import orjson

from muster.agent import wire
from muster.agent.catalog import load_skills
from muster.agent.events import AttemptKey, AttemptSpec
from muster.agent.outputs import NotJson, describe_exception, encode_output
from muster.agent.run_answers import RunnerSettings, answer_for, partial_of, results_folder
from muster.agent.schema import BoundSkill
from muster.domain.errors import InvalidInput, MusterError
from muster.domain.ids import DEFAULT_TENANT, TaskId
from muster.domain.task import DEFAULT_PRIORITY
from muster.domain.task_lifecycle import TaskState
from muster.skill import (
    ASYNC,
    COMMAND,
    SKILL_ATTRIBUTE,
    AsyncContext,
    Context,
    InputRejected,
    Result,
    Skill,
    TaskCancelled,
)
from muster.testing.sandbox import ChildTask, LogEntry, Sandbox

T = TypeVar("T")


class ResultRejected(MusterError):
    """An agent would not take this result; `kind` is not_json or output_too_large."""

    code = "result_rejected"

    def __init__(self, kind: str, message: str) -> None:
        self.kind = kind
        super().__init__(message)


class _Port:
    """Stands behind the context of one attempt."""

    def __init__(self, box: Sandbox, spec: AttemptSpec, folder: Path) -> None:
        self._box, self._spec, self.folder = box, spec, folder
        self.task_id, self.attempt = spec.key.task_id, spec.key.attempt
        self.devices = box.devices
        # Of an async skill; a sync one meets its cancellation as an exception of the context.
        self.task: asyncio.Task[Any] | None = None
        self.running: dict[str, asyncio.Task[None]] = {}
        self._uses = 0

    @property
    def cancelled(self) -> bool:
        return self._box.cancelled

    def used(self) -> None:
        """The skill yielded or used its context: a moment to be cancelled at."""
        self._uses += 1
        box = self._box
        if box.cancel_after is not None and self._uses >= box.cancel_after:
            box.cancelled = True
        if box.cancelled:
            if self.task is None:
                raise TaskCancelled("the attempt was cancelled, or its time is up")
            self.task.cancel()

    def progress(self, fraction: float, note: str) -> None:
        self._box.progress.append((fraction, note))
        self.used()

    def log(self, text: str, level: str) -> None:
        self._box.logs.append(LogEntry(level, text))
        self.used()

    def partial(self, index: int, item: Any) -> None:
        shown = partial_of(0, index, item)
        if shown is not None:
            self._box.partials.append(orjson.loads(shown.output_json))
        self.used()

    def call(self, op: str, args: dict[str, Any]) -> Any:
        self.used()
        if op == "submit":
            child, spec = self._box._child_of(self._spec, args)
            if spec is not None:
                _blocking(_run_child(self._box, child, spec))
            return {"id": child.id}
        if op == "child.result":
            return self._ended(args["id"])
        return self._box._answer(op, args, self.folder)

    async def call_async(self, op: str, args: dict[str, Any]) -> Any:
        self.used()
        # A real call waits, and that is where a cancellation is met.
        await asyncio.sleep(0)
        if op == "submit":
            child, spec = self._box._child_of(self._spec, args)
            if spec is not None:
                work = _run_child(self._box, child, spec)
                self.running[child.id] = asyncio.create_task(work, name=f"child {child.skill}")
            return {"id": child.id}
        if op == "child.result":
            if args["id"] in self.running:
                await self.running[args["id"]]
            return self._ended(args["id"])
        return self._box._answer(op, args, self.folder)

    def _ended(self, ident: str) -> dict[str, Any]:
        child = self._box._children[ident]
        output = orjson.dumps(child.output)
        return {
            "id": child.id,
            "state": str(child.state),
            "error": child.error,
            "output": output,
            "file": "",
        }


async def _run_child(box: Sandbox, child: ChildTask, spec: AttemptSpec) -> None:
    """Notes on `child` how it ends; raises nothing but a cancellation."""
    answer = box.skills[child.skill]
    value: Any
    try:
        if isinstance(answer, BaseException):
            value = _raised(answer)
        elif _mark_of(answer) is not None:
            value = await _call_async(box, _bound(answer, box), spec)
        elif callable(answer):
            value = answer(child.input)
            if inspect.isawaitable(value):
                value = await value
        else:
            value = answer
        child.output, child.state = orjson.loads(encode_output(value)), TaskState.SUCCEEDED
    except TaskCancelled:
        child.state, child.error = TaskState.CANCELLED, "cancelled"
    except (InputRejected, ResultRejected, NotJson) as error:
        child.state, child.error = TaskState.FAILED, str(error)
    except Exception as error:  # noqa: BLE001  whatever it is, the child has failed
        child.state, child.error = TaskState.FAILED, describe_exception(error)


def _raised(error: BaseException) -> NoReturn:
    raise error


def run_skill(
    skill: Callable[..., Any] | str,
    input: Any = None,  # noqa: A002  the name that it has everywhere
    *,
    sandbox: Sandbox | None = None,
) -> Any:
    """The skill's result for this input, as JSON gives it back.

    `skill` is a function marked with @skill, or a name: of the sandbox's skills, or built in.
    Raises InputRejected when the input does not fit, ResultRejected when the result does not,
    TaskCancelled when the sandbox cancels, and whatever the skill raises. Async skills run to
    their end in a loop of their own.
    """
    box = sandbox if sandbox is not None else Sandbox()
    bound, spec = _prepare(skill, input, box)
    if bound.skill.mode == ASYNC:
        return _blocking(_call_async(box, bound, spec))
    return _call(box, bound, spec)


async def run_skill_async(
    skill: Callable[..., Any] | str,
    input: Any = None,  # noqa: A002  as above
    *,
    sandbox: Sandbox | None = None,
) -> Any:
    """As `run_skill`, in the running loop; sync skills run in a thread."""
    box = sandbox if sandbox is not None else Sandbox()
    bound, spec = _prepare(skill, input, box)
    return await _call_async(box, bound, spec)


def _prepare(
    skill: Callable[..., Any] | str, value: Any, box: Sandbox
) -> tuple[BoundSkill, AttemptSpec]:
    bound = _bound(skill, box)
    try:
        input_json = encode_output(value)
    except NotJson as error:
        why = str(error).removeprefix("the result is not JSON: ")
        raise InvalidInput("input", value, f"JSON is needed: {why}") from None
    _check(bound, input_json)
    return bound, AttemptSpec(
        key=AttemptKey(TaskId(box.task_id), box.attempt),
        tenant=DEFAULT_TENANT,
        skill=bound.skill.name,
        input_json=input_json,
        incarnation=1,
        priority=DEFAULT_PRIORITY,
    )


def _mark_of(value: Any) -> Skill | None:
    found = getattr(value, "__dict__", {}).get(SKILL_ATTRIBUTE) if callable(value) else None
    return found if isinstance(found, Skill) else None


def _bound(skill: Any, box: Sandbox) -> BoundSkill:
    if isinstance(skill, str):
        mark = _mark_of(box.skills.get(skill))
        builtin = load_skills((), builtin=True)
        if mark is None and skill not in builtin:
            known = ", ".join(sorted({*box.skills, *builtin}))
            raise InvalidInput("skill", skill, f"the sandbox's and built-in skills are: {known}")
        bound = BoundSkill(mark) if mark is not None else builtin[skill]
    else:
        mark = _mark_of(skill)
        if mark is None:
            raise InvalidInput("skill", skill, "a function marked with @skill, or a skill's name")
        bound = BoundSkill(mark)
    if bound.skill.mode == COMMAND:
        raise InvalidInput("skill", bound.skill.name, "programs are not run in a sandbox")
    return bound


def _check(bound: BoundSkill, input_json: bytes) -> None:
    """The check that a gateway makes before it accepts a task."""
    if not bound.input_schema:
        return
    import jsonschema_rs  # noqa: PLC0415  slow to import, and not every skill has a schema

    validator = jsonschema_rs.validator_for(orjson.loads(bound.input_schema), offline=True)
    for fault in validator.iter_errors(orjson.loads(input_json)):
        where = ".".join(("input", *(str(step) for step in fault.instance_path)))
        raise InputRejected(
            where, fault.instance, f"skill {bound.skill.name} takes no such input: {fault.message}"
        )


def _call(box: Sandbox, bound: BoundSkill, spec: AttemptSpec) -> Any:
    with tempfile.TemporaryDirectory(prefix="muster-skill-") as top:
        folder = _folder(top)
        port = _Port(box, spec, folder)
        value = bound.call(spec.input_json, Context(port))
        if bound.skill.generator:
            value = _follow(port, value)
        return _result(box, value, folder)


def _follow(port: _Port, generator: Any) -> Any:
    items: list[Any] = []
    try:
        while True:
            try:
                items.append(next(generator))
            except StopIteration as end:
                return items if end.value is None else end.value
            port.partial(len(items) - 1, items[-1])
    finally:
        generator.close()


async def _call_async(box: Sandbox, bound: BoundSkill, spec: AttemptSpec) -> Any:
    if bound.skill.mode != ASYNC:
        return await asyncio.to_thread(_call, box, bound, spec)
    with tempfile.TemporaryDirectory(prefix="muster-skill-") as top:
        folder = _folder(top)
        port = _Port(box, spec, folder)
        value = await _attempt(box, port, _execute(bound, spec, port))
        return _result(box, value, folder)


async def _attempt(box: Sandbox, port: _Port, work: Coroutine[Any, Any, Any]) -> Any:
    """Runs an async attempt as a task of its own, which can be cancelled; then its children."""
    port.task = asyncio.create_task(work, name="attempt")
    with box._lock:
        box._tasks.add(port.task)
    try:
        return await port.task
    except asyncio.CancelledError:
        if not (box.cancelled and port.task.done()):
            raise
        raise TaskCancelled("the attempt was cancelled, or its time is up") from None
    finally:
        with box._lock:
            box._tasks.discard(port.task)
        if box.cancelled:
            for child in port.running.values():
                child.cancel()
        await asyncio.gather(*port.running.values(), return_exceptions=True)


async def _execute(bound: BoundSkill, spec: AttemptSpec, port: _Port) -> Any:
    found = bound.call(spec.input_json, AsyncContext(port))
    if not bound.skill.generator:
        return await found
    items: list[Any] = []
    async for item in found:
        if isinstance(item, Result):
            await found.aclose()
            return item.value
        items.append(item)
        port.partial(len(items) - 1, item)
        await asyncio.sleep(0)
    return items


def _folder(top: str) -> Path:
    folder = Path(top) / "scratch"
    folder.mkdir()
    results_folder(folder).mkdir()
    return folder


def _result(box: Sandbox, value: Any, folder: Path) -> Any:
    """The returned value as an agent reports it; raises ResultRejected."""
    answer = answer_for(0, value, RunnerSettings({}, box.max_result_bytes), folder)
    if isinstance(answer, wire.RunFailed):
        raise ResultRejected(answer.kind, answer.error)
    content = Path(answer.file).read_bytes() if answer.file else answer.output_json
    return orjson.loads(content)


def _blocking(work: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine to its end, in another thread when this one has a loop already."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1, thread_name_prefix="sandbox") as threads:
        return threads.submit(asyncio.run, work).result()
