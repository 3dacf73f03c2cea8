"""Runs the `command` skill: a program in its own session, capped, streamed, killed as a whole."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson

from muster.agent import error_kinds, wire
from muster.agent.attempts import LiveAttempt, failed, stopped
from muster.agent.builtin import CommandInput, parse_command
from muster.agent.devices import GIVEN, VISIBLE, DeviceNames
from muster.agent.logbook import LogBook
from muster.agent.outputs import describe_signal
from muster.agent.streams import CappedBytes, LastLines, PipeReader, PipeWriter
from muster.agent.zygote_link import ZygoteLink
from muster.domain.task import MAX_INLINE_RESULT_BYTES, Outcome, OutcomeKind
from muster.rpc.clock import wall_ms
from muster.skill import InputRejected

# Of each stream, in the result; the task's log has a cap of its own.
MAX_STREAM_BYTES: Final = 1024 * 1024
_ERROR_LINES: Final = 5
# After the program has ended its group is killed, so its pipes end; a bound all the same.
_PIPES_END_S: Final = 1.0
# Runners count from 1 in the zygote's books; commands count from here.
_FIRST_IDENT: Final = 1 << 40

OnDone = Callable[[LiveAttempt, Outcome, str], None]


@dataclass(slots=True)
class _Command:
    live: LiveAttempt
    on_done: OnDone
    wanted: CommandInput
    folder: Path
    stdout: CappedBytes = field(default_factory=lambda: CappedBytes(MAX_STREAM_BYTES))
    stderr: CappedBytes = field(default_factory=lambda: CappedBytes(MAX_STREAM_BYTES))
    last: LastLines = field(default_factory=lambda: LastLines(_ERROR_LINES))
    readers: list[PipeReader] = field(default_factory=list)
    writer: PipeWriter | None = None
    open_pipes: int = 2
    exit_code: int | None = None


class CommandRuns:
    """All programs that run now. `allowed` None = any program."""

    def __init__(
        self,
        *,
        zygote: ZygoteLink,
        folder: Path,
        results: Path,
        environ: Mapping[str, str],
        allowed: frozenset[str] | None,
        logs: LogBook,
        devices: DeviceNames,
    ) -> None:
        self._zygote, self._folder, self._results = zygote, folder, results
        self._environ, self._allowed, self._logs = dict(environ), allowed, logs
        self._devices = devices
        self._loop = asyncio.get_running_loop()
        self._next = _FIRST_IDENT
        self._commands: dict[int, _Command] = {}
        self._ident_of: dict[int, int] = {}

    def owns(self, ident: int) -> bool:
        """Whether a message of the zygote is about a command."""
        return ident >= _FIRST_IDENT

    def start(self, live: LiveAttempt, on_done: OnDone) -> None:
        """`on_done(live, outcome, file)` is called once; `file` holds a large output."""
        try:
            wanted = parse_command(live.spec.input_json)
        except InputRejected as error:
            on_done(live, failed(live, error_kinds.INPUT_SCHEMA, str(error), wall_ms()), "")
            return
        refusal = self._refusal(wanted)
        program = None if refusal else self._resolve(wanted.argv[0])
        if program is None:
            kind = error_kinds.NOT_ALLOWED if refusal else error_kinds.NO_PROGRAM
            text = refusal or f"this agent has no program {wanted.argv[0]!r} on its PATH"
            on_done(live, failed(live, kind, text, wall_ms()), "")
            return
        ident, self._next = self._next, self._next + 1
        folder = Path(tempfile.mkdtemp(prefix="command-", dir=self._folder))
        self._commands[ident] = _Command(live, on_done, wanted, folder)
        self._ident_of[live.slot] = ident
        env = {**self._environ, "TMPDIR": str(folder), **wanted.env}
        env["MUSTER_TASK_ID"] = live.key.task_id
        env["MUSTER_ATTEMPT"] = str(live.key.attempt)
        if live.spec.devices:
            given = {share.resource: share.indices for share in live.spec.devices}
            env[VISIBLE] = self._devices.visible(given)
            env[GIVEN] = orjson.dumps(given).decode()
        self._zygote.send(wire.SpawnCommand(ident, program, wanted.argv, env, str(folder)))

    def stop(self, live: LiveAttempt, grace_ms: int) -> None:
        """SIGTERM to all of the program's group, SIGKILL after a grace."""
        ident = self._ident_of[live.slot]
        self._zygote.send(wire.KillProcess(ident, signal.SIGTERM))
        live.kill_timer = self._loop.call_later(
            grace_ms / 1000, self._zygote.send, wire.KillProcess(ident, signal.SIGKILL)
        )

    def _refusal(self, wanted: CommandInput) -> str:
        if self._allowed is None:
            return ""
        if wanted.argv[0] not in self._allowed:
            names = ", ".join(sorted(self._allowed)) or "none"
            return f"this agent may not run {wanted.argv[0]!r}; allowed: {names}"
        # These would let an allowed program run something else.
        loaded = [name for name in wanted.env if name.startswith("LD_") or name == "PATH"]
        return f"this agent does not let a task set {loaded[0]}" if loaded else ""

    def _resolve(self, program: str) -> str | None:
        if os.sep in program and not os.path.isabs(program):
            return None
        return shutil.which(program, path=self._environ.get("PATH", os.defpath))

    def on_zygote_message(self, message: Any, fds: tuple[int, ...]) -> None:
        """The program runs, could not be executed, or has ended."""
        command = self._commands[message.ident]
        if isinstance(message, wire.Forked):
            self._forked(message.ident, command, fds)
        elif isinstance(message, wire.SpawnFailed):
            live = command.live
            outcome = failed(live, error_kinds.NO_PROGRAM, message.error, wall_ms())
            self._finish(message.ident, command, outcome, "")
        else:
            command.exit_code = message.code
            if command.open_pipes:
                self._loop.call_later(_PIPES_END_S, self._close_pipes, message.ident)
            self._maybe_done(message.ident, command)

    def _forked(self, ident: int, command: _Command, fds: tuple[int, ...]) -> None:
        command.writer = PipeWriter(fds[0], command.wanted.stdin.encode())

        def on_end() -> None:
            command.open_pipes -= 1
            self._loop.call_soon(self._maybe_done, ident, command)

        def on_error_text(text: str) -> None:
            command.last.add(text)
            self._log(command, "stderr", text)

        command.readers = [
            PipeReader(
                fds[1],
                lambda text: self._log(command, "stdout", text),
                on_raw=command.stdout.add,
                on_end=on_end,
            ),
            PipeReader(fds[2], on_error_text, on_raw=command.stderr.add, on_end=on_end),
        ]

    def _log(self, command: _Command, stream: str, text: str) -> None:
        live = command.live
        self._logs.write(live.key, live.spec.tenant, stream, "", text, wall_ms())

    def _close_pipes(self, ident: int) -> None:
        command = self._commands.get(ident)
        if command is not None:
            for reader in command.readers:
                reader.drain()
                reader.close()
            command.open_pipes = 0
            self._maybe_done(ident, command)

    def _maybe_done(self, ident: int, command: _Command) -> None:
        code = command.exit_code
        if code is None or command.open_pipes or ident not in self._commands:
            return
        live = command.live
        now_ms = wall_ms()
        if live.stopping and code != 0:
            self._finish(ident, command, stopped(live, now_ms), "")
            return
        if code < 0:
            name = describe_signal(-code)
            text = _with_lines(f"the program died of signal {name}", command)
            self._finish(ident, command, failed(live, error_kinds.SIGNAL, text, now_ms), "")
            return
        output = orjson.dumps(
            {"exit_code": code, "stdout": command.stdout.text(), "stderr": command.stderr.text()}
        )
        file = ""
        inline = output
        if len(output) > MAX_INLINE_RESULT_BYTES:
            with tempfile.NamedTemporaryFile(dir=self._results, delete=False) as out:
                out.write(output)
            file, inline = out.name, b""
        common: dict[str, Any] = {
            "output_json": inline,
            "output_bytes": len(output),
            "exit_code": code,
        }
        if code:
            text = _with_lines(f"the program ended with exit code {code}", command)
            outcome = failed(live, error_kinds.EXIT, text, now_ms, **common)
        else:
            outcome = Outcome(
                OutcomeKind.SUCCEEDED,
                started_at_ms=live.started_at_ms,
                ended_at_ms=now_ms,
                **common,
            )
        self._finish(ident, command, outcome, file)

    def _finish(self, ident: int, command: _Command, outcome: Outcome, file: str) -> None:
        del self._commands[ident]
        del self._ident_of[command.live.slot]
        if command.writer is not None:
            command.writer.close()
        for reader in command.readers:
            reader.close()
        self._loop.run_in_executor(None, shutil.rmtree, command.folder, True)
        command.on_done(command.live, outcome, file)


def _with_lines(text: str, command: _Command) -> str:
    last = command.last.text()
    return f"{text}: {last}" if last else text
