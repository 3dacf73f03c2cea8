"""The process that has imported the skills and forks runners and commands on demand.

It has one thread, so that its forks are safe; it shares its imports with all runners, so that a
runner costs milliseconds and few pages. It is the parent of all that runs tasks: it collects
them, and when the runtime goes it kills all of them before it goes too.
"""

from __future__ import annotations

import gc
import mmap
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NoReturn

import msgspec

from muster.agent import wire
from muster.agent.capture import TaskStream
from muster.agent.catalog import load_skills
from muster.agent.devices import VISIBLE
from muster.agent.process_tree import (
    adopt_orphans,
    confine,
    die_with_parent,
    kill_all_descendants,
    kill_group_and_descendants,
    kill_orphans_of_session,
    signal_group,
)
from muster.agent.run_answers import RunnerSettings
from muster.agent.runner import serve
from muster.agent.zygote_settings import ZygoteSettings
from muster.domain.errors import SkillImportError

_READ_BYTES: Final = 256 * 1024
_EXEC_FAILED: Final = 127
_TOLD_TO_END: Final = frozenset({signal.SIGTERM})


@dataclass(slots=True)
class _Process:
    ident: int
    board: mmap.mmap | None


class Zygote:
    """One thread that forks, signals and collects."""

    def __init__(self, connection: socket.socket, settings: ZygoteSettings) -> None:
        self._connection, self._settings = connection, settings
        self._frames = wire.FrameBuffer()
        self._processes: dict[int, _Process] = {}
        self._pids: dict[int, int] = {}
        self._runner_settings: RunnerSettings | None = None
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._ending = False
        self._pid = os.getpid()

    def _send(self, *messages: Any, fds: tuple[int, ...] = ()) -> None:
        content = wire.frame(messages)
        if fds:
            sent = socket.send_fds(self._connection, [content], fds)
            content = content[sent:]
        self._connection.sendall(content)

    def prepare(self) -> bool:
        """Imports the skills and says what was found; False when that failed."""
        try:
            skills = load_skills(self._settings.sources, builtin=self._settings.builtin)
        except SkillImportError as error:
            self._send(wire.ZygoteReady(str(error)))
            return False
        self._runner_settings = RunnerSettings(skills, self._settings.max_result_bytes)
        for name, bound in skills.items():
            skill = bound.skill
            self._send(
                wire.SkillFound(
                    name, skill.description, skill.mode, bound.input_schema, bound.output_schema
                )
            )
        others = [t.name for t in threading.enumerate() if t is not threading.current_thread()]
        warning = ""
        if others:
            warning = (
                "skill modules started threads at import, which runners will not have: "
                + ", ".join(others[:5])
            )
        sys.stdout.flush()
        sys.stderr.flush()
        gc.collect()
        # Objects that exist now are never collected: their pages stay shared with all runners.
        gc.freeze()
        self._send(wire.ZygoteReady("", warning))
        return True

    def serve(self) -> None:
        """Until the runtime is gone; then nothing of what was forked is left."""
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._end)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        # From here on the runtime's end is met with a sweep instead of sudden death.
        die_with_parent(os.getppid(), signal.SIGTERM)
        runtime = self._connection.fileno()
        poller = select.poll()
        poller.register(runtime, select.POLLIN)
        poller.register(self._wake_read, select.POLLIN)
        try:
            while not self._ending:
                readable = [fd for fd, _ in poller.poll()]
                if self._wake_read in readable:
                    with suppress(BlockingIOError):
                        os.read(self._wake_read, 4096)
                    self._collect()
                if runtime in readable and not self._read():
                    return
        except (BrokenPipeError, ConnectionResetError):
            return
        finally:
            kill_all_descendants()

    def _end(self, *_: object) -> None:
        self._ending = True

    def _read(self) -> bool:
        chunk = self._connection.recv(_READ_BYTES)
        if not chunk:
            return False
        for body in self._frames.feed(chunk):
            for message in wire.to_zygote.decode(body):
                if isinstance(message, wire.SpawnRunner):
                    self._spawn_runner(message)
                elif isinstance(message, wire.SpawnCommand):
                    self._spawn_command(message)
                else:
                    self._kill(message)
        return True

    def _kill(self, message: wire.KillProcess) -> None:
        # Only what has not been collected yet is in the table, so no number is met twice.
        pid = self._pids.get(message.ident)
        if pid is None:
            return
        if message.signum == signal.SIGKILL:
            kill_group_and_descendants(pid)
        else:
            signal_group(pid, message.signum)

    def _collect(self) -> None:
        while True:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if found is None:
                return
            pid = found.si_pid
            process = self._processes.pop(pid, None)
            if process is not None:
                # While the leader is not collected its number cannot belong to anybody else.
                signal_group(pid, signal.SIGKILL)
                kill_orphans_of_session(pid, self._processes.keys())
            _, status = os.waitpid(pid, 0)
            if process is not None:
                del self._pids[process.ident]
                board = 0
                if process.board is not None:
                    board = int.from_bytes(process.board[:4], sys.byteorder)
                    process.board.close()
                self._send(wire.Exited(process.ident, os.waitstatus_to_exitcode(status), board))

    # --- forks ------------------------------------------------------------------------------

    def _spawn_runner(self, message: wire.SpawnRunner) -> None:
        settings = self._runner_settings
        assert settings is not None
        try:
            ours, theirs = socket.socketpair()
            out_read, out_write = os.pipe2(os.O_CLOEXEC)
            err_read, err_write = os.pipe2(os.O_CLOEXEC)
            board = mmap.mmap(-1, mmap.PAGESIZE)
            pid = self._fork()
        except OSError as error:
            self._send(wire.SpawnFailed(message.ident, f"a runner cannot be made: {error}"))
            return
        if pid == 0:

            def become() -> None:
                ours.close()
                self._become(out_write, err_write, os.open(os.devnull, os.O_RDONLY), message.folder)
                os.environ["TMPDIR"] = message.folder
                if message.devices:
                    os.environ[VISIBLE] = message.visible
                own = replace(settings, devices=message.devices) if message.devices else settings
                serve(message.mode, theirs, own, Path(message.folder), board)

            self._in_child(become, 0)
        for fd in (out_write, err_write):
            os.close(fd)
        theirs.close()
        self._track(message.ident, pid, board, (ours.fileno(), out_read, err_read))
        ours.close()
        os.close(out_read)
        os.close(err_read)

    def _spawn_command(self, message: wire.SpawnCommand) -> None:
        try:
            in_read, in_write = os.pipe2(os.O_CLOEXEC)
            out_read, out_write = os.pipe2(os.O_CLOEXEC)
            err_read, err_write = os.pipe2(os.O_CLOEXEC)
            told_read, told_write = os.pipe2(os.O_CLOEXEC)
            pid = self._fork()
        except OSError as error:
            self._send(wire.SpawnFailed(message.ident, f"a process cannot be made: {error}"))
            return
        if pid == 0:

            def become() -> None:
                self._become(out_write, err_write, in_read, message.folder)
                # Python ignores it; programs expect to be ended by it.
                signal.signal(signal.SIGPIPE, signal.SIG_DFL)
                try:
                    os.execve(message.program, message.argv, message.env)  # noqa: S606  no shell
                except OSError as error:
                    os.write(told_write, os.strerror(error.errno or 0).encode())

            self._in_child(become, _EXEC_FAILED)
        for fd in (in_read, out_write, err_write, told_write):
            os.close(fd)
        # Ends at once: the descriptor closes at the execution, or with the reason why not.
        trouble = os.read(told_read, 256)
        os.close(told_read)
        if trouble:
            os.waitpid(pid, 0)
            error_text = f"{message.program} cannot be executed: {trouble.decode()}"
            self._send(wire.SpawnFailed(message.ident, error_text))
        else:
            self._track(message.ident, pid, None, (in_write, out_read, err_read))
        for fd in (in_write, out_read, err_read):
            os.close(fd)

    def _fork(self) -> int:
        """A child that is told to end before it has handlers of its own must still do so."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _TOLD_TO_END)
        try:
            pid = os.fork()
        except OSError:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _TOLD_TO_END)
            raise
        if pid:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _TOLD_TO_END)
        return pid

    def _track(self, ident: int, pid: int, board: mmap.mmap | None, fds: tuple[int, ...]) -> None:
        self._processes[pid] = _Process(ident, board)
        self._pids[ident] = pid
        self._send(wire.Forked(ident, pid), fds=fds)

    def _become(self, stdout: int, stderr: int, stdin: int, folder: str) -> None:
        """In a forked child: its own session, its own streams, no way to more rights."""
        os.setsid()
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _TOLD_TO_END)
        self._connection.close()
        os.close(self._wake_read)
        os.close(self._wake_write)
        os.dup2(stdin, 0)
        os.dup2(stdout, 1)
        os.dup2(stderr, 2)
        os.chdir(folder)
        confine(
            max_files=self._settings.max_files,
            address_space_bytes=self._settings.address_space_bytes,
        )

    def _in_child(self, become: Callable[[], None], code: int) -> NoReturn:
        """`code` is the exit code when `become` returns."""
        try:
            die_with_parent(self._pid)
            become()
        except BaseException:  # noqa: BLE001  nothing may climb into the zygote's own loop
            code = 1
            sys.excepthook(*sys.exc_info())
            sys.stderr.flush()
        finally:
            os._exit(code)


def main() -> None:
    """`python -m muster.agent.zygote SOCKET_FD PARENT_PID SETTINGS_JSON`."""
    die_with_parent(int(sys.argv[2]))
    settings = msgspec.json.decode(sys.argv[3], type=ZygoteSettings)
    connection = socket.socket(fileno=int(sys.argv[1]))
    connection.set_inheritable(False)
    sys.argv[1:] = []
    if settings.search_path:
        sys.path.insert(0, settings.search_path)
    os.dup2(2, 1)
    sys.stdout = TaskStream(1, "stdout")
    sys.stderr = TaskStream(2, "stderr")
    adopt_orphans()
    zygote = Zygote(connection, settings)
    if not zygote.prepare():
        sys.stderr.flush()
        os._exit(1)
    zygote.serve()
    os._exit(0)


if __name__ == "__main__":
    main()
