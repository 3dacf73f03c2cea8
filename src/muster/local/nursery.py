"""Runs child processes: starts, restarts, ends them, and leaves none behind.

Children die with their parent however that dies (PR_SET_PDEATHSIG), and what a dead child
leaves behind comes to the parent (PR_SET_CHILD_SUBREAPER), which kills it before the child is
started again.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from muster.domain.errors import MusterError
from muster.local.log_files import last_line, size_of
from muster.local.parts import Part
from muster.local.restarts import SOUND_AFTER_S, GiveUp, LetGo, Restart, after_death

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
# Loaded before any fork: a child between fork and exec must not import.
_libc = ctypes.CDLL(None, use_errno=True)
_random = random.SystemRandom()

# Orphans of a killed child come to us one after the other as the kernel takes its tree apart.
_ORPHAN_SWEEPS_S = (0.0, 0.05, 0.2, 1.0)
_KILLED_WAIT_S = 5.0


class StartFailed(MusterError):
    """A child ended in a way that starting it again would not mend."""

    code = "start_failed"


class Child:
    """One part and the process that presently runs it."""

    def __init__(self, part: Part, log: Path) -> None:
        self.part, self.log = part, log
        self.pid = 0
        self.ended = asyncio.Event()
        self.ended.set()
        self.deaths = 0
        self.started_s = 0.0
        self._log_offset = 0
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Raises OSError when the program cannot be run."""
        assert self.ended.is_set(), f"{self.part.name} runs"
        parent = os.getpid()

        def die_with_parent() -> None:
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)

        self.part.cwd.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._log_offset = size_of(self.log)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 -- our own argv
                self.part.argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=dict(self.part.env),
                cwd=self.part.cwd,
                # A Ctrl-C at the terminal is for the parent, which ends them in order.
                process_group=0,
                preexec_fn=die_with_parent,  # noqa: PLW1509 -- the parent has one thread
            )
        self.pid = self._process.pid
        self.started_s = time.monotonic()
        self.ended.clear()

    def reap(self) -> int | None:
        """The exit code (negative: the signal) once, when the process has ended."""
        if self._process is None or (code := self._process.poll()) is None:
            return None
        self._process = None
        self.ended.set()
        return code

    def send(self, number: signal.Signals) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """kill -9 for it and its process group."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self.send(signal.SIGKILL)

    def last_words(self) -> str:
        """The last line that this process wrote, "" when it wrote none."""
        return last_line(self.log, since=self._log_offset)


class Nursery:
    """The children of this process. Lives in the main thread's event loop.

    `tell` takes a sentence on each death. `failed` is done with StartFailed once a child gives
    up before `started` is set. `adopt`: take in and kill the orphans of dead children; only
    for a process that has no other children.
    """

    def __init__(self, log_dir: Path, tell: Callable[[str], None], *, adopt: bool) -> None:
        self._log_dir, self._tell, self._adopt = log_dir, tell, adopt
        self._loop = asyncio.get_running_loop()
        self.children: dict[str, Child] = {}
        self.failed: asyncio.Future[None] = self._loop.create_future()
        self.started = False
        self._ending = False
        self._timers: set[asyncio.TimerHandle] = set()
        self._loop.add_signal_handler(signal.SIGCHLD, self._reap_all)
        if adopt:
            _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)

    def start(self, parts: Iterable[Part]) -> None:
        """Starts all at once."""
        for part in parts:
            child = Child(part, self._log_dir / f"{part.name}.log")
            self.children[part.name] = child
            self._start_child(child)

    async def end(
        self, children: Iterable[Child], grace_s: float, hurry: asyncio.Event | None = None
    ) -> list[str]:
        """SIGTERM, `grace_s` to obey or until `hurry`, SIGKILL. Returns the names of those killed.

        From then on no child is started again.
        """
        self._ending = True
        self._cancel_timers()
        running = [child for child in children if not child.ended.is_set()]
        for child in running:
            child.send(signal.SIGTERM)
            # One that was stopped would not hear it.
            child.send(signal.SIGCONT)
        await self._wait_for(running, grace_s, hurry)
        stubborn = [child for child in running if not child.ended.is_set()]
        for child in stubborn:
            child.kill()
        await self._wait_for(stubborn, _KILLED_WAIT_S)
        return [child.part.name for child in stubborn]

    async def close(self) -> None:
        """Kills whatever is left, grandchildren included."""
        await self.end(list(self.children.values()), 0.0)
        self._cancel_timers()
        for delay_s in _ORPHAN_SWEEPS_S[:3]:
            await asyncio.sleep(delay_s)
            self.sweep_orphans()
        self._loop.remove_signal_handler(signal.SIGCHLD)
        if not self.failed.done():
            self.failed.cancel()

    def sweep_orphans(self) -> None:
        """Kills and reaps processes that a dead descendant has left to us."""
        if not self._adopt:
            return
        ours = {child.pid for child in self.children.values() if not child.ended.is_set()}
        for pid in _children_of(os.getpid()):
            if pid not in ours:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)

    def _start_child(self, child: Child) -> None:
        try:
            child.start()
        except OSError as error:
            self._give_up(child, f"{child.part.argv[0]}: {error.strerror}")

    def _reap_all(self) -> None:
        for child in self.children.values():
            code = child.reap()
            if code is not None and not self._ending:
                self._on_death(child, code)
        # Or an orphan that was killed has died: it stays a zombie until it is asked for.
        self.sweep_orphans()

    def _on_death(self, child: Child, code: int) -> None:
        now_s = time.monotonic()
        child.deaths = 1 if now_s - child.started_s > SOUND_AFTER_S else child.deaths + 1
        step = after_death(
            code,
            deaths=child.deaths,
            may_leave=child.part.may_leave,
            started=self.started,
            jitter=_random.random(),
        )
        how = f"{child.part.name} {describe_exit(code)}"
        self._mend(child, code)
        match step:
            case Restart(delay_s):
                when = f"in {delay_s:.1f} s" if delay_s else "now"
                self._tell(f"{how}; it is started again {when}")
                # Its tree is gone before it is there again.
                self.sweep_orphans()
                self._later(delay_s, lambda: self._start_child(child))
            case LetGo():
                last = child.last_words()
                self._tell(f"{how} and stays away" + (f": {last}" if code and last else ""))
            case GiveUp():
                self._give_up(child, child.last_words() or describe_exit(code))
        for delay_s in _ORPHAN_SWEEPS_S:
            self._later(delay_s, self.sweep_orphans)

    def _mend(self, child: Child, code: int) -> None:
        """What a part that ended by itself may need before it can be there again."""
        if code <= 0 or child.part.mend is None:
            return
        try:
            said = child.part.mend(child.last_words(), time.strftime("before-%Y%m%dT%H%M%S"))
        except OSError as error:
            said = f"it cannot be put right: {error}"
        if said:
            self._tell(f"{child.part.name}: {said}")

    def _give_up(self, child: Child, why: str) -> None:
        if self.started:
            self._tell(f"{child.part.name} cannot be started: {why}")
        elif not self.failed.done():
            self.failed.set_exception(StartFailed(f"{child.part.name} cannot start: {why}"))

    def _later(self, delay_s: float, act: Callable[[], None]) -> None:
        def run() -> None:
            self._timers.discard(handle)
            act()

        handle = self._loop.call_later(delay_s, run)
        self._timers.add(handle)

    def _cancel_timers(self) -> None:
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()

    async def _wait_for(
        self, children: list[Child], seconds: float, hurry: asyncio.Event | None = None
    ) -> None:
        async def all_ended() -> None:
            for child in children:
                await child.ended.wait()

        waits = [asyncio.create_task(all_ended())]
        if hurry is not None:
            waits.append(asyncio.create_task(_set(hurry)))
        try:
            await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)


async def _set(event: asyncio.Event) -> None:
    await event.wait()


def describe_exit(code: int) -> str:
    """`ended with exit code 1`, `was killed by SIGKILL`."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def _children_of(pid: int) -> list[int]:
    numbers = (entry.name for entry in os.scandir("/proc"))
    return [int(number) for number in numbers if number.isdigit() and _parent_of(number) == pid]


def _parent_of(pid: str) -> int:
    """0 when there is no such process any more."""
    try:
        text = Path("/proc", pid, "stat").read_text()
    except OSError:
        return 0
    # "pid (name) state parent …", and the name may hold spaces and brackets.
    return int(text.rpartition(")")[2].split()[1])
