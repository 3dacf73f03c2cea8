"""The processes that call skills: one for sync ones (an attempt at a time), one for async ones.

Both are forked from the zygote, which has imported the skills, and speak with the runtime over
one socket. Code in here shares its process with user code and is trusted with nothing beyond
the attempts it was given.
"""

from __future__ import annotations

import asyncio
import collections.abc
import contextvars
import mmap
import os
import signal
import socket
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Final

from muster.agent import error_kinds, wire
from muster.agent.capture import CURRENT
from muster.agent.outputs import NotJson, describe_exception, encode_output
from muster.agent.process_tree import descendants, flush_c_streams, send_signal
from muster.agent.schema import BoundSkill
from muster.domain.task import MAX_INLINE_RESULT_BYTES
from muster.skill import AsyncContext, Context, InputRejected, TaskCancelled, error_from

_READ_BYTES: Final = 256 * 1024
# Printed text of one async attempt that is passed on; the task's log is cut below this anyway.
_MAX_PRINTED_CHARS: Final = 2 * 1024 * 1024
# A generator is paused while this much waits to be sent.
_HIGH_WATER_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class RunnerSettings:
    """What all runners of an agent share."""

    skills: Mapping[str, BoundSkill]
    max_result_bytes: int


def results_folder(runner_folder: Path) -> Path:
    """Where large results wait for their upload: beside the runner, which may go before."""
    return runner_folder.parent / "results"


def _failed(slot: int, error: BaseException) -> wire.RunFailed:
    if isinstance(error, InputRejected):
        return wire.RunFailed(slot, error_kinds.INPUT_SCHEMA, str(error))
    return wire.RunFailed(slot, error_kinds.EXCEPTION, describe_exception(error))


def _done(slot: int, value: Any, settings: RunnerSettings, folder: Path) -> Any:
    """The message for a returned value: its JSON, a file with it, or why there is none."""
    try:
        output = encode_output(value)
    except NotJson as error:
        return wire.RunFailed(slot, error_kinds.NOT_JSON, str(error))
    except Exception as error:  # noqa: BLE001  a model's own serialiser may raise anything
        return wire.RunFailed(slot, error_kinds.NOT_JSON, f"the result is not JSON: {error!r}")
    size = len(output)
    if size > settings.max_result_bytes:
        return wire.RunFailed(
            slot,
            error_kinds.OUTPUT_TOO_LARGE,
            f"the result has {size} bytes; this agent takes at most {settings.max_result_bytes}",
        )
    if size <= MAX_INLINE_RESULT_BYTES:
        return wire.RunDone(slot, output, "", size)
    with tempfile.NamedTemporaryFile(
        dir=results_folder(folder), prefix="result-", delete=False
    ) as out:
        out.write(output)
    return wire.RunDone(slot, b"", out.name, size)


def _partial(slot: int, index: int, value: Any) -> wire.PartialOutput | None:
    """A yield that cannot be shown on the way is left to the result."""
    try:
        output = encode_output(value)
    except NotJson:
        return None
    if len(output) > MAX_INLINE_RESULT_BYTES:
        return None
    return wire.PartialOutput(slot, index, output)


# --- sync skills --------------------------------------------------------------------------------


class _SyncPort:
    """Stands behind the Context of the one attempt that runs."""

    def __init__(self, runner: SyncRunner, run: wire.RunAttempt, folder: Path) -> None:
        self._runner, self._run = runner, run
        self.task_id, self.attempt, self.folder = run.task_id, run.attempt, folder

    @property
    def cancelled(self) -> bool:
        return self._runner.cancelled

    def progress(self, fraction: float, note: str) -> None:
        self._runner.send([wire.ProgressMade(self._run.slot, fraction, note)])

    def log(self, text: str, level: str) -> None:
        self._runner.send([wire.LogWritten(self._run.slot, "log", level, text)])

    def call(self, op: str, args: dict[str, Any]) -> Any:
        return self._runner.call(self._run.slot, op, args)

    async def call_async(self, _op: str, _args: dict[str, Any], /) -> Any:
        raise RuntimeError("a sync skill's context is not awaited")


class SyncRunner:
    """Runs one attempt after the other in the main thread."""

    def __init__(
        self, connection: socket.socket, settings: RunnerSettings, folder: Path, board: mmap.mmap
    ) -> None:
        self._connection, self._settings, self._folder = connection, settings, folder
        self._board = memoryview(board).cast("I")
        self._frames = wire.FrameBuffer()
        self._inbox: deque[Any] = deque()
        self._lock = threading.RLock()
        self._calls = 0
        self._in_skill = self._sending = False
        self._pid = os.getpid()
        self.cancelled = False

    def serve(self) -> None:
        """Until the runtime closes the connection, or an attempt leaves something behind."""
        signal.signal(signal.SIGTERM, self._terminated)
        while True:
            message = self._receive()
            if isinstance(message, wire.RunAttempt) and self._run(message):
                return

    def _terminated(self, _signum: int, _frame: FrameType | None) -> None:
        if not self._in_skill:
            os._exit(0)
        self.cancelled = True
        # Half a frame would break the connection; `send` raises when it is through.
        if not self._sending:
            raise TaskCancelled("the attempt was cancelled, or its time is up")

    def _run(self, message: wire.RunAttempt) -> bool:
        """Runs an attempt; True when the process must end after it."""
        self._board[0] = message.slot
        context = Context(_SyncPort(self, message, self._folder))
        bound = self._settings.skills[message.skill]
        try:
            self._in_skill = True
            try:
                value = bound.call(message.input_json, context)
                if bound.skill.generator:
                    value = self._follow(message.slot, value)
            finally:
                self._in_skill = False
            answer = _done(message.slot, value, self._settings, self._folder)
        except TaskCancelled:
            answer = wire.RunStopped(message.slot)
        except BaseException as error:  # noqa: BLE001  SystemExit too is the skill's failure
            answer = _failed(message.slot, error)
        self._flush_streams()
        leaving = self.cancelled or _has_children()
        if leaving:
            # Those in other sessions too, as long as they can still be told from others' children.
            for pid in descendants(self._pid):
                send_signal(pid, signal.SIGKILL)
        self._board[0] = 0
        self.send([answer, wire.Leaving()] if leaving else [answer])
        return leaving

    def _follow(self, slot: int, generator: Generator[Any, None, Any]) -> Any:
        items: list[Any] = []
        iterator = iter(generator)
        while True:
            try:
                item = next(iterator)
            except StopIteration as end:
                return items if end.value is None else end.value
            partial = _partial(slot, len(items), item)
            items.append(item)
            if partial is not None:
                self.send([partial])

    def _flush_streams(self) -> None:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):
                # The skill closed or replaced the stream; there is nothing left to flush.
                continue
        flush_c_streams()

    def send(self, messages: list[Any]) -> None:
        """Writes one frame; also from threads that the skill has started."""
        if os.getpid() != self._pid:
            # A skill forked and its child came back here: it must not answer in our name.
            os._exit(0)
        with self._lock:
            self._sending = True
            try:
                self._connection.sendall(wire.frame(messages))
            finally:
                self._sending = False
        if self.cancelled and self._in_skill and _in_main_thread():
            raise TaskCancelled("the attempt was cancelled, or its time is up")

    def call(self, slot: int, op: str, args: dict[str, Any]) -> Any:
        """Asks the runtime and blocks until it answers; raises the error that it names."""
        with self._lock:
            self._calls += 1
            number = self._calls
            self.send([wire.Call(slot, number, op, args)])
            while True:
                message = self._receive()
                if not isinstance(message, wire.Reply) or message.call != number:
                    # An answer to a call that a cancellation had cut short.
                    continue
                if message.error:
                    raise error_from(message.error, str(message.value))
                return message.value

    def _receive(self) -> Any:
        while not self._inbox:
            chunk = self._connection.recv(_READ_BYTES)
            if not chunk:
                os._exit(0)
            for body in self._frames.feed(chunk):
                self._inbox.extend(wire.to_runner.decode(body))
        return self._inbox.popleft()


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _has_children() -> bool:
    """Whether something that the attempt started is still there; zombies are collected."""
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return False
        if pid == 0:
            return True


# --- async skills -------------------------------------------------------------------------------


class _AsyncRun:
    """One attempt on the loop: the port behind its context, and the sink of its prints."""

    def __init__(self, runner: AsyncRunner, run: wire.RunAttempt, folder: Path) -> None:
        self._runner = runner
        self.slot = run.slot
        self.task_id, self.attempt, self.folder = run.task_id, run.attempt, folder
        self.cancelled = self.begun = False
        self.task: asyncio.Task[None] | None = None
        self._printed: dict[str, str] = {}
        self._printed_chars = 0

    def progress(self, fraction: float, note: str) -> None:
        self._runner.send(wire.ProgressMade(self.slot, fraction, note))

    def log(self, text: str, level: str) -> None:
        self._runner.send(wire.LogWritten(self.slot, "log", level, text))

    def printed(self, stream: str, text: str) -> None:
        """Passes complete lines on."""
        self._printed_chars += len(text)
        if self._printed_chars > _MAX_PRINTED_CHARS:
            return
        pending = self._printed.get(stream, "") + text
        lines, newline, rest = pending.rpartition("\n")
        self._printed[stream] = rest
        if newline:
            self._runner.send(wire.LogWritten(self.slot, stream, "", lines))

    def flush(self) -> None:
        """Passes unfinished lines on."""
        for stream, rest in self._printed.items():
            if rest:
                self._runner.send(wire.LogWritten(self.slot, stream, "", rest))
        self._printed.clear()

    def call(self, _op: str, _args: dict[str, Any], /) -> Any:
        raise RuntimeError("an async skill's context is awaited")

    async def call_async(self, op: str, args: dict[str, Any]) -> Any:
        return await self._runner.call(self.slot, op, args)


class _Tracked(collections.abc.Coroutine[Any, Any, Any]):
    """A coroutine that notes on the board whose attempt is executing, step by step.

    When the process dies or hangs, the board tells which of its attempts was at it.
    """

    __slots__ = ("_board", "_coroutine", "_slot")

    def __init__(self, coroutine: Any, slot: int, board: memoryview) -> None:
        self._coroutine, self._slot, self._board = coroutine, slot, board

    def send(self, value: Any) -> Any:
        self._board[0] = self._slot
        try:
            return self._coroutine.send(value)
        finally:
            self._board[0] = 0

    def throw(self, *args: Any) -> Any:
        self._board[0] = self._slot
        try:
            return self._coroutine.throw(*args)
        finally:
            self._board[0] = 0

    def close(self) -> None:
        self._coroutine.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        return (yield from self._coroutine.__await__())


class AsyncRunner(asyncio.Protocol):
    """Runs many attempts on one loop; what they send within one turn leaves as one frame."""

    def __init__(self, settings: RunnerSettings, folder: Path, board: mmap.mmap) -> None:
        self._settings, self._folder = settings, folder
        self._board = memoryview(board).cast("I")
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._frames = wire.FrameBuffer()
        self._outbox: list[Any] = []
        self._runs: dict[int, _AsyncRun] = {}
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._call_number = 0
        self._writable = asyncio.Event()
        self._writable.set()
        self.closed: asyncio.Future[None] = self._loop.create_future()
        self._loop.set_task_factory(self._make_task)

    def _make_task(
        self,
        loop: asyncio.AbstractEventLoop,
        coroutine: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.Task[Any]:
        run = CURRENT.get() if context is None else context.get(CURRENT)
        if isinstance(run, _AsyncRun):
            coroutine = _Tracked(coroutine, run.slot, self._board)
        return asyncio.Task(coroutine, loop=loop, context=context)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.set_write_buffer_limits(high=_HIGH_WATER_BYTES)
        self._transport = transport

    def connection_lost(self, _exc: Exception | None, /) -> None:
        # Nobody is left to report to; user code may ignore a cancellation, so no goodbyes.
        os._exit(0)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        for body in self._frames.feed(data):
            for message in wire.to_runner.decode(body):
                if isinstance(message, wire.RunAttempt):
                    self._start(message)
                elif isinstance(message, wire.CancelRun):
                    self._cancel(message.slot)
                else:
                    self._answer(message)

    def _start(self, message: wire.RunAttempt) -> None:
        run = _AsyncRun(self, message, self._folder)
        self._runs[message.slot] = run
        context = contextvars.copy_context()
        context.run(CURRENT.set, run)
        run.task = self._loop.create_task(self._execute(run, message), context=context)

    def _cancel(self, slot: int) -> None:
        run = self._runs.get(slot)
        if run is not None and run.task is not None:
            run.cancelled = True
            run.task.cancel()
            if not run.begun:
                # Its first step will not come, so nobody else would answer.
                del self._runs[slot]
                self.send(wire.RunStopped(slot))

    async def _execute(self, run: _AsyncRun, message: wire.RunAttempt) -> None:
        run.begun = True
        bound = self._settings.skills[message.skill]
        answer: Any
        try:
            found = bound.call(message.input_json, AsyncContext(run))
            value = await (self._follow(run, found) if bound.skill.generator else found)
            answer = _done(run.slot, value, self._settings, self._folder)
        except asyncio.CancelledError as error:
            answer = wire.RunStopped(run.slot) if run.cancelled else _failed(run.slot, error)
        except BaseException as error:  # noqa: BLE001  SystemExit too is the skill's failure
            answer = _failed(run.slot, error)
        run.flush()
        del self._runs[run.slot]
        self.send(answer)

    async def _follow(self, run: _AsyncRun, generator: Any) -> list[Any]:
        items: list[Any] = []
        async for item in generator:
            partial = _partial(run.slot, len(items), item)
            items.append(item)
            if partial is not None:
                self.send(partial)
                await self._writable.wait()
        return items

    def send(self, message: Any) -> None:
        """Queues a message for the frame that leaves at the end of this turn of the loop.

        Skills may log from other threads, so the hand-over goes through the loop then.
        """
        if not _in_main_thread():
            self._loop.call_soon_threadsafe(self.send, message)
            return
        if not self._outbox:
            self._loop.call_soon(self._flush)
        self._outbox.append(message)

    def _flush(self) -> None:
        messages, self._outbox = self._outbox, []
        if self._transport is not None:
            self._transport.write(wire.frame(messages))

    async def call(self, slot: int, op: str, args: dict[str, Any]) -> Any:
        """Asks the runtime; raises the error that it names."""
        self._call_number += 1
        number = self._call_number
        future = self._calls[number] = self._loop.create_future()
        self.send(wire.Call(slot, number, op, args))
        try:
            return await future
        finally:
            del self._calls[number]

    def _answer(self, message: wire.Reply) -> None:
        future = self._calls.get(message.call)
        if future is None or future.done():
            return
        if message.error:
            future.set_exception(error_from(message.error, str(message.value)))
        else:
            future.set_result(message.value)


async def _serve_async(
    connection: socket.socket, settings: RunnerSettings, folder: Path, board: mmap.mmap
) -> None:
    loop = asyncio.get_running_loop()
    connection.setblocking(False)
    _, runner = await loop.create_unix_connection(
        lambda: AsyncRunner(settings, folder, board), sock=connection
    )
    await runner.closed


def serve(
    mode: str,
    connection: socket.socket,
    settings: RunnerSettings,
    folder: Path,
    board: mmap.mmap,
) -> None:
    """Runs attempts until there is nothing more to do in this process."""
    _reseed()
    if mode == "sync":
        SyncRunner(connection, settings, folder, board).serve()
    else:
        asyncio.run(_serve_async(connection, settings, folder, board))


def _reseed() -> None:
    """Forks of one process would otherwise all draw the same numbers from numpy."""
    numpy_random: Any = sys.modules.get("numpy.random")
    if numpy_random is not None:
        seed: Callable[[], None] = numpy_random.seed
        seed()
