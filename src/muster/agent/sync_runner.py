"""Calls sync skills in a process of their own, one attempt after the other.

The process is forked from the zygote and speaks with the runtime over one socket.
"""

from __future__ import annotations

import mmap
import os
import signal
import socket
import sys
import threading
from collections import deque
from collections.abc import Generator
from pathlib import Path
from types import FrameType
from typing import Any, Final

from muster.agent import wire
from muster.agent.process_tree import descendants, flush_c_streams, send_signal
from muster.agent.run_answers import (
    RunnerSettings,
    Throttle,
    answer_for,
    failure_of,
    in_main_thread,
    partial_of,
)
from muster.skill import Context, TaskCancelled, error_from

_READ_BYTES: Final = 256 * 1024


class _SyncPort:
    """Stands behind the Context of the one attempt that runs."""

    def __init__(self, runner: SyncRunner, run: wire.RunAttempt, folder: Path) -> None:
        self._runner, self._run = runner, run
        self.task_id, self.attempt, self.folder = run.task_id, run.attempt, folder
        self.devices = runner.devices
        self._throttle = Throttle()

    @property
    def cancelled(self) -> bool:
        return self._runner.cancelled

    def progress(self, fraction: float, note: str) -> None:
        if fraction >= 1 or self._throttle.passes():
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
        self.devices = settings.devices
        self._board = memoryview(board).cast("I")
        self._frames = wire.FrameBuffer()
        self._inbox: deque[Any] = deque()
        # A thread may log while another one waits for the answer to a call.
        self._send_lock, self._call_lock = threading.RLock(), threading.RLock()
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
            answer = answer_for(message.slot, value, self._settings, self._folder)
        except TaskCancelled:
            answer = wire.RunStopped(message.slot)
        except BaseException as error:  # noqa: BLE001  SystemExit too is the skill's failure
            answer = failure_of(message.slot, error)
        self._flush_streams()
        leaving = self.cancelled or _has_children()
        if leaving:
            # Those in other sessions too, as long as they can still be told from others' children.
            for pid in descendants(self._pid):
                send_signal(pid, signal.SIGKILL)
        self._board[0] = 0
        # First: what the answer makes room for must not be given to a process that ends.
        self.send([wire.Leaving(), answer] if leaving else [answer])
        return leaving

    def _follow(self, slot: int, generator: Generator[Any, None, Any]) -> Any:
        items: list[Any] = []
        iterator = iter(generator)
        while True:
            try:
                item = next(iterator)
            except StopIteration as end:
                return items if end.value is None else end.value
            partial = partial_of(slot, len(items), item)
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
        with self._send_lock:
            self._sending = True
            try:
                self._connection.sendall(wire.frame(messages))
            finally:
                self._sending = False
        if self.cancelled and self._in_skill and in_main_thread():
            raise TaskCancelled("the attempt was cancelled, or its time is up")

    def call(self, slot: int, op: str, args: dict[str, Any]) -> Any:
        """Asks the runtime and blocks until it answers; raises the error that it names."""
        with self._call_lock:
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


def _has_children() -> bool:
    """Whether something that the attempt started is still there; zombies are collected."""
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return False
        if pid == 0:
            return True
