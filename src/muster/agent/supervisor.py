"""The supervisor: keeps one runtime alive, ends it whole, and tells the leader of deaths.

It is small, and does nothing that a task could make it fail at.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from muster.agent.config import AgentConfig
from muster.agent.journal import Journal
from muster.agent.process_tree import (
    adopt_orphans,
    kill_all_descendants,
    reap_all,
    send_signal,
)
from muster.agent.slot_table import TableView, read_slot_table
from muster.agent.supervisor_core import EXIT_CONFIGURATION, Next, SupervisorCore
from muster.domain.errors import ConfigurationError

if TYPE_CHECKING:
    # Imported at run time only after the runtime was started, see `_open_session`.
    from muster.agent.peers import Peers
    from muster.agent.session_link import SessionLink
    from muster.agent.supervisor_speech import SupervisorSpeech

SLOT_TABLE: Final = "slots.bin"
_TICK_S: Final = 1.0
# While a deadline for `stop` tasks is near, it is met this precisely.
_LEAST_TICK_S: Final = 0.05
# After the drain's deadline: 5 s to deliver outcomes, 4 s for goodbyes, and a margin.
_DRAIN_MARGIN_S: Final = 12.0
# At the end the leader has this long to hear of a death.
_LAST_WORDS_S: Final = 2.0
# So long the next runtime waits for the leader to hear of the last one's end. With a session that
# takes some milliseconds; without a leader work should not wait for one.
_NEWS_FIRST_S: Final = 3.0
_TOLD_STEP_S: Final = 0.01


class Supervisor:
    """One agent on one machine."""

    def __init__(self, config: AgentConfig) -> None:
        self._config = config
        self._journal = Journal("supervisor", config.id)
        self._table = config.state_dir / SLOT_TABLE
        self._lock_fd = -1
        self._pid = 0
        self._exited = asyncio.Event()
        self._exit_code = 0
        self._stopping = asyncio.Event()
        self._core = SupervisorCore()
        self._peers: Peers | None = None
        self._session: SessionLink | None = None
        self._speech: SupervisorSpeech | None = None

    async def run(self) -> int:
        """The process's exit code. Raises ConfigurationError before anything was started."""
        self._lock_fd = lock_folder(self._config.state_dir)
        adopt_orphans()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGCHLD, self._reap)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._terminate)
        self._start()
        session = asyncio.create_task(self._open_session(), name="session")
        ticks = asyncio.create_task(self._tick(), name="ticks")
        keeper = asyncio.create_task(self._keep_alive(), name="runtime")
        try:
            done, _ = await asyncio.wait(
                [session, ticks, keeper], return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                task.result()
            return keeper.result()
        finally:
            for task in (session, ticks, keeper):
                task.cancel()
            await asyncio.gather(session, ticks, keeper, return_exceptions=True)
            kill_all_descendants()
            if self._session is not None:
                await self._session.close()

    # --- the runtime's process --------------------------------------------------------------

    def _start(self) -> None:
        self._exited.clear()
        self._core.began(_now_ms())
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        try:
            self._pid = os.posix_spawn(
                sys.executable,
                [sys.executable, "-P", "-m", "muster.agent.runtime_process", str(os.getpid())],
                os.environ,
                file_actions=[(os.POSIX_SPAWN_DUP2, read_end, 0)],
                # Ctrl-C at a terminal is for the supervisor, which drains.
                setsid=True,
                setsigmask=[],
                setsigdef=[signal.SIGINT, signal.SIGTERM],
            )
            # It fits into the pipe, so nobody waits for the runtime to read it.
            os.write(write_end, self._config.to_json())
        finally:
            os.close(read_end)
            os.close(write_end)

    def _reap(self) -> None:
        for pid, code in reap_all():
            if pid == self._pid:
                self._pid, self._exit_code = 0, code
                self._exited.set()

    def _kill(self, why: str, *, blameless: bool = False) -> None:
        if self._pid:
            self._core.killed(why, blameless=blameless)
            send_signal(self._pid, signal.SIGKILL)

    async def _keep_alive(self) -> int:
        """Restarts the runtime for as long as it dies; gives the exit code when it ends well."""
        while True:
            await self._exited.wait()
            code = self._exit_code
            after = self._core.ended(code)
            if after is Next.LEAVE:
                return code if code > 0 else 0
            await self._bury(code)
            if after is Next.LAST_WORDS:
                await self._until_told(_LAST_WORDS_S)
                return 1
            # A leader that meets the next runtime first takes this one's tasks back, and can charge
            # nobody with the death: it does not know what had begun.
            await self._until_told(_NEWS_FIRST_S)
            pause_s = self._core.pause_ms(_now_ms(), random.random()) / 1000  # noqa: S311
            if pause_s:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause_s):
                        await self._stopping.wait()
                        return 0
            self._start()

    async def _bury(self, code: int) -> None:
        """Ends what the dead runtime left, and keeps the news for the leader once all is gone."""
        view = read_slot_table(self._table)
        death = self._core.death(code, view)
        while not kill_all_descendants():
            # The leader gives `stop` tasks out again on our word that nothing of them runs.
            self._journal.error("processes of the dead runtime do not end", why=death.why)
            await asyncio.sleep(_TICK_S)
        if view is not None:
            # One that lived for less than a tick was never looked at.
            self._learn_leader(view)
        self._journal.error(
            "the runtime died",
            why=death.why,
            incarnation=death.incarnation,
            started=death.started,
        )
        if death.incarnation and self._speech is not None and self._session is not None:
            self._speech.died(*death)
            self._session.wake()

    async def _until_told(self, seconds: float) -> None:
        """Waits until a leader has confirmed every death, `seconds` at most."""
        for _ in range(int(seconds / _TOLD_STEP_S)):
            if self._speech is None or not self._speech.undelivered:
                return
            await asyncio.sleep(_TOLD_STEP_S)

    def _learn_leader(self, view: TableView) -> None:
        from muster.agent.peers import Endpoints  # noqa: PLC0415  loaded with the session

        if view.leader and self._peers is not None:
            self._peers.update(Endpoints(leader=view.leader))

    # --- signals, time, the leader ----------------------------------------------------------

    def _terminate(self) -> None:
        if self._stopping.is_set():
            self._journal.warning("asked to end twice: ending at once")
            kill_all_descendants()
            os._exit(1)
        self._stopping.set()
        self._core.stopping = True
        if self._pid:
            send_signal(self._pid, signal.SIGTERM)
        limit_s = self._config.drain_s + _DRAIN_MARGIN_S
        asyncio.get_running_loop().call_later(limit_s, self._kill, "the drain took too long")

    async def _tick(self) -> None:
        pause_s, beat_s = _TICK_S, _TICK_S
        while True:
            await asyncio.sleep(pause_s)
            view = read_slot_table(self._table, attempts=False)
            left_s = _TICK_S
            if view is not None and view.pid == self._pid:
                left_s = self._look_at(view)
            beat_s -= pause_s
            pause_s = min(_TICK_S, max(_LEAST_TICK_S, left_s))
            if beat_s > 0:
                continue
            beat_s = _TICK_S
            if self._speech is not None and self._session is not None:
                self._speech.beat()
                self._session.wake()

    def _look_at(self, view: TableView) -> float:
        """Seconds until it must step in for the runtime; when that is past, it does."""
        why = self._core.look(view, _now_ms())
        self._learn_leader(view)
        if why:
            self._kill(why)
        if why or not view.stop_deadline_ms:
            return _TICK_S
        return (view.stop_deadline_ms - _now_ms()) / 1000

    def _restart(self, incarnation: int, why: str) -> None:
        reason = self._core.restart_asked(incarnation, why)
        if reason:
            self._journal.info("restarting the runtime", why=why)
            # Nobody is to blame for a death that was ordered.
            self._kill(reason, blameless=True)

    async def _open_session(self) -> None:
        from muster.agent.peers import Endpoints, Peers  # noqa: PLC0415  see TYPE_CHECKING
        from muster.agent.session_link import SessionLink  # noqa: PLC0415
        from muster.agent.supervisor_speech import SupervisorSpeech  # noqa: PLC0415

        config = self._config
        peers = self._peers = Peers(config.secret)
        view = read_slot_table(self._table, attempts=False)
        if view is not None and view.leader:
            peers.update(Endpoints(leader=view.leader))
        self._speech = SupervisorSpeech(config.id, lambda: self._core.incarnation, self._restart)
        self._session = SessionLink(
            peers=peers,
            secret=config.secret,
            speaker=self._speech,
            journal=self._journal,
            # The runtime asks the registry; the table tells what it learnt.
            want_leader=lambda: None,
        )
        await self._session.run()


def _now_ms() -> int:
    """CLOCK_BOOTTIME, as `muster.rpc.clock` reads it; that loads too much before the runtime."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


def lock_folder(folder: Path) -> int:
    """Makes the agent's folder and locks it; raises ConfigurationError when it is not to be had."""
    key = "MUSTER_STATE_DIR"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigurationError(
            key, str(folder), f"a folder that can be written is needed ({error.strerror})"
        ) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise ConfigurationError(key, str(folder), "another agent runs in this folder") from None
    return fd


def run_agent(config: AgentConfig) -> int:
    """Runs an agent in this process until it has drained; gives the exit code."""

    async def run() -> int:
        return await Supervisor(config).run()

    try:
        return asyncio.run(run())
    except ConfigurationError as error:
        print(f"muster agent: {error}", file=sys.stderr, flush=True)
        return EXIT_CONFIGURATION
