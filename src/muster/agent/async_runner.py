"""Calls async skills: all attempts of one skill share a process and its loop.

The process is forked from the zygote and speaks with the runtime over one socket.
"""

from __future__ import annotations

import asyncio
import collections.abc
import contextvars
import mmap
import os
import socket
from collections.abc import Generator
from pathlib import Path
from typing import Any, Final

from muster.agent import wire
from muster.agent.capture import CURRENT
from muster.agent.run_answers import (
    RunnerSettings,
    Throttle,
    answer_for,
    failure_of,
    in_main_thread,
    partial_of,
)
from muster.skill import AsyncContext, Result, error_from

# Printed text of one attempt that is passed on; the task's log is cut below this anyway.
_MAX_PRINTED_CHARS: Final = 2 * 1024 * 1024
# A generator is paused while this much waits to be sent.
_HIGH_WATER_BYTES: Final = 1024 * 1024


class _AsyncRun:
    """One attempt on the loop: the port behind its context, and the sink of its prints."""

    def __init__(self, runner: AsyncRunner, run: wire.RunAttempt, folder: Path) -> None:
        self._runner = runner
        self.slot = run.slot
        self.task_id, self.attempt, self.folder = run.task_id, run.attempt, folder
        self.devices = runner.devices
        self.cancelled = self.begun = False
        self.task: asyncio.Task[None] | None = None
        self._throttle = Throttle()
        self._printed: dict[str, str] = {}
        self._printed_chars = 0

    def progress(self, fraction: float, note: str) -> None:
        if fraction >= 1 or self._throttle.passes():
            self._runner.send(wire.ProgressMade(self.slot, fraction, note))

    def log(self, text: str, level: str) -> None:
        self._printed_chars += len(text)
        if self._printed_chars <= _MAX_PRINTED_CHARS:
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
        self.devices = settings.devices
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
            answer = answer_for(run.slot, value, self._settings, self._folder)
        except asyncio.CancelledError as error:
            answer = wire.RunStopped(run.slot) if run.cancelled else failure_of(run.slot, error)
        except BaseException as error:  # noqa: BLE001  SystemExit too is the skill's failure
            answer = failure_of(run.slot, error)
        run.flush()
        del self._runs[run.slot]
        self.send(answer)

    async def _follow(self, run: _AsyncRun, generator: Any) -> Any:
        items: list[Any] = []
        async for item in generator:
            if isinstance(item, Result):
                await generator.aclose()
                return item.value
            partial = partial_of(run.slot, len(items), item)
            items.append(item)
            if partial is not None:
                self.send(partial)
                await self._writable.wait()
        return items

    def send(self, message: Any) -> None:
        """Queues a message for the frame that leaves at the end of this turn of the loop.

        Skills may log from other threads, so the hand-over goes through the loop then.
        """
        if not in_main_thread():
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


async def serve_async(
    connection: socket.socket, settings: RunnerSettings, folder: Path, board: mmap.mmap
) -> None:
    """Until the runtime closes the connection."""
    loop = asyncio.get_running_loop()
    connection.setblocking(False)
    _, runner = await loop.create_unix_connection(
        lambda: AsyncRunner(settings, folder, board), sock=connection
    )
    await runner.closed
