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
from muster.domain.errors import ConfigurationError

if TYPE_CHECKING:
    # Imported at run time only after the runtime was started, see `_open_session`.
    from muster.agent.peers import Peers
    from muster.agent.session_link import SessionLink
    from muster.agent.supervisor_speech import SupervisorSpeech

EXIT_CONFIGURATION: Final = 78
SLOT_TABLE: Final = "slots.bin"
_TICK_S: Final = 1.0
# A runtime that lived for this long was sound: its death is met by a restart at once.
_SOUND_AFTER_S: Final = 60.0
_FIRST_PAUSE_S: Final = 0.5
_LAST_PAUSE_S: Final = 30.0
# After the drain's deadline: 5 s to deliver outcomes, 4 s for goodbyes, and a margin.
_DRAIN_MARGIN_S: Final = 12.0
# At the end the leader has this long to hear of a death.
_LAST_WORDS_S: Final = 2.0
_LAST_WORDS_STEP_S: Final = 0.05


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
        self._kill_why = ""
        self._blameless = False
        self._incarnation = 0
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
        self._kill_why, self._blameless = "", False
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
            self._kill_why, self._blameless = why, blameless
            send_signal(self._pid, signal.SIGKILL)

    async def _keep_alive(self) -> int:
        """Restarts the runtime for as long as it dies; gives the exit code when it ends well."""
        loop = asyncio.get_running_loop()
        failures = 0
        while True:
            began_s = loop.time()
            await self._exited.wait()
            code = self._exit_code
            if code in (0, EXIT_CONFIGURATION):
                return code
            if self._stopping.is_set() and code == -signal.SIGTERM:
                # It was not yet so far that it could drain: it held nothing.
                return 0
            self._bury(code)
            if self._stopping.is_set():
                await self._last_words()
                return 1
            if loop.time() - began_s >= _SOUND_AFTER_S:
                failures = 0
            if failures:
                ceiling_s = min(_LAST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** (failures - 1))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(random.uniform(0.0, ceiling_s)):  # noqa: S311
                        await self._stopping.wait()
                        return 0
            failures += 1
            self._start()

    def _bury(self, code: int) -> None:
        """Ends what the dead runtime left, and keeps the news for the leader."""
        view = read_slot_table(self._table)
        kill_all_descendants()
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        why = self._kill_why or f"the runtime ended with {how}"
        started = view.started if view is not None and not self._blameless else ()
        incarnation = view.incarnation if view is not None else 0
        self._journal.error("the runtime died", why=why, incarnation=incarnation, started=started)
        if incarnation and self._speech is not None and self._session is not None:
            self._speech.died(incarnation, started, view is not None, why)
            self._session.wake()

    async def _last_words(self) -> None:
        for _ in range(int(_LAST_WORDS_S / _LAST_WORDS_STEP_S)):
            if self._speech is None or not self._speech.undelivered:
                return
            await asyncio.sleep(_LAST_WORDS_STEP_S)

    # --- signals, time, the leader ----------------------------------------------------------

    def _terminate(self) -> None:
        if self._stopping.is_set():
            self._journal.warning("asked to end twice: ending at once")
            kill_all_descendants()
            os._exit(1)
        self._stopping.set()
        if self._pid:
            send_signal(self._pid, signal.SIGTERM)
        limit_s = self._config.drain_s + _DRAIN_MARGIN_S
        asyncio.get_running_loop().call_later(limit_s, self._kill, "the drain took too long")

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            view = read_slot_table(self._table, attempts=False)
            if view is not None and view.pid == self._pid:
                self._look_at(view)
            if self._speech is not None and self._session is not None:
                self._speech.beat()
                self._session.wake()

    def _look_at(self, view: TableView) -> None:
        from muster.agent.peers import Endpoints  # noqa: PLC0415  loaded with the session
        from muster.rpc.clock import boot_ms  # noqa: PLC0415

        self._incarnation = view.incarnation
        if view.leader and self._peers is not None:
            self._peers.update(Endpoints(leader=view.leader))
        if 0 < view.stop_deadline_ms < boot_ms():
            # A task that must never overlap still runs although the agent is cut off.
            self._kill("it was cut off from the leader and did not end its `stop` tasks")

    def _restart(self, incarnation: int, why: str) -> None:
        if incarnation in (0, self._incarnation):
            self._journal.info("restarting the runtime", why=why)
            # Nobody is to blame for a death that was ordered.
            self._kill(f"restarted at the leader's word: {why}", blameless=True)

    async def _open_session(self) -> None:
        from muster.agent.peers import Endpoints, Peers  # noqa: PLC0415  see TYPE_CHECKING
        from muster.agent.session_link import SessionLink  # noqa: PLC0415
        from muster.agent.supervisor_speech import SupervisorSpeech  # noqa: PLC0415

        config = self._config
        peers = self._peers = Peers(config.secret)
        view = read_slot_table(self._table, attempts=False)
        if view is not None and view.leader:
            peers.update(Endpoints(leader=view.leader))
        self._speech = SupervisorSpeech(config.id, lambda: self._incarnation, self._restart)
        self._session = SessionLink(
            peers=peers,
            secret=config.secret,
            speaker=self._speech,
            journal=self._journal,
            # The runtime asks the registry; the table tells what it learnt.
            want_leader=lambda: None,
        )
        await self._session.run()


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
