"""The runtime: the shell around the core, with its links to leader, registry and monitor."""

from __future__ import annotations

import asyncio
import os
import platform
import shutil
import signal
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from muster.agent import events as ev
from muster.agent import wire
from muster.agent.attempts import LiveAttempt
from muster.agent.blob_files import BlobFiles
from muster.agent.commands import CommandRuns
from muster.agent.config import AgentConfig
from muster.agent.core import AgentCore
from muster.agent.data_calls import DataCalls
from muster.agent.devices import DeviceNames
from muster.agent.executor import Executor
from muster.agent.figures import Figures
from muster.agent.journal import Journal
from muster.agent.logbook import LogBook
from muster.agent.peers import Peers
from muster.agent.registration import RegistryLink, Superseded, instance_key
from muster.agent.reporting import MonitorLink
from muster.agent.runtime_speech import STARTED_AFTER_MS, RuntimeSpeech
from muster.agent.schema import schema_hash
from muster.agent.session_link import SessionLink
from muster.agent.slot_table import SlotTable
from muster.agent.zygote_link import ZygoteLink
from muster.domain.agent import AgentSpec, SkillOffer
from muster.domain.errors import ConfigurationError, Conflict
from muster.rpc.clock import boot_ms, wall_ms

SLOT_TABLE: Final = "slots.bin"
# The supervisor steps in this long after the runtime itself should have begun to end `stop` tasks:
# it kills them by force after 1 s, and the supervisor has the last of the promised 3 s.
_STOP_MARGIN_MS: Final = 2_000
# Waiting parents and their children, and some that are being ended.
_TABLE_RECORDS_PER_SLOT: Final = 4


class ZygoteDied(Exception):
    """Nothing can run any more; the supervisor starts everything again."""


def _muster_version() -> str:
    try:
        return version("muster-cluster")
    except PackageNotFoundError:
        return "unknown"


def agent_spec(config: AgentConfig, skills: dict[str, wire.SkillFound]) -> AgentSpec:
    """What this agent says of itself."""
    offers = tuple(
        SkillOffer(
            s.name,
            s.description,
            s.input_schema,
            s.output_schema,
            schema_hash(s.input_schema, s.output_schema),
        )
        for s in sorted(skills.values(), key=lambda s: s.name)
    )
    return AgentSpec(
        id=config.id,
        capacity=config.capacity,
        skills=offers,
        labels=config.labels,
        host=platform.node(),
        pid=os.getpid(),
        version=_muster_version(),
    )


class Runtime:
    """One incarnation of an agent."""

    def __init__(self, config: AgentConfig, zygote: ZygoteLink) -> None:
        self._config, self._zygote = config, zygote
        self._loop = asyncio.get_running_loop()
        self._journal = Journal("runtime", config.id)
        self._core = AgentCore(slots=config.slots)
        self._events: list[ev.Event] = []
        self._pump_scheduled = False
        self._wake: asyncio.TimerHandle | None = None
        self._wake_ms = 0
        self._start_timer: asyncio.TimerHandle | None = None
        self._finished: asyncio.Future[int] = self._loop.create_future()
        self._peers = Peers(config.secret)
        self._logs = LogBook(self._lines_pending)
        self._journal.also = lambda level, text: self._logs.write_agent(level, text, wall_ms())
        self._table = SlotTable(
            config.state_dir / SLOT_TABLE, records=config.slots * _TABLE_RECORDS_PER_SLOT
        )
        self._identified: tuple[int, int, str] = (0, 0, "")
        self._speech = RuntimeSpeech(
            config.id,
            self._emit,
            lambda: (self._core.incarnation, self._core.term),
            boot_ms,
            lambda: self._core.slots_used,
        )
        self._executor: Executor | None = None
        self._session: SessionLink | None = None
        self._registry: RegistryLink | None = None
        self._monitor: MonitorLink | None = None
        speech = self._speech
        self._carry_out: dict[type[Any], Callable[[Any], None]] = {
            ev.Start: lambda c: self._running.start(c.spec),
            ev.Stop: lambda c: self._running.stop(c.key, c.reason, c.grace_ms),
            ev.Resume: lambda c: self._running.resume(c.key),
            ev.SendHello: speech.hello,
            ev.SendBeat: speech.beat,
            ev.SendStarted: self._send_started,
            ev.SendOutcome: speech.outcome,
            ev.SendWaiting: speech.waiting,
            ev.SendDraining: speech.draining,
            ev.CloseSession: self._close_session,
            ev.Forget: lambda _: None,
            ev.Finished: self._finish,
        }

    @property
    def _running(self) -> Executor:
        assert self._executor is not None
        return self._executor

    # --- core and shell ---------------------------------------------------------------------

    def _emit(self, event: ev.Event) -> None:
        """Events of one turn of the loop go to the core together."""
        self._events.append(event)
        if not self._pump_scheduled:
            self._pump_scheduled = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._pump_scheduled = False
        taken, self._events = self._events, []
        commands = self._core.handle(taken, boot_ms())
        carry_out = self._carry_out
        for command in commands:
            carry_out[type(command)](command)
        if commands and self._session is not None:
            self._session.wake()
        self._note_in_table()
        self._schedule()

    def _schedule(self) -> None:
        wake_ms = self._core.next_wake_ms()
        if wake_ms == self._wake_ms and self._wake is not None:
            return
        if self._wake is not None:
            self._wake.cancel()
            self._wake = None
        self._wake_ms = wake_ms
        if wake_ms:
            delay_s = max(0.0, (wake_ms - boot_ms()) / 1000)
            self._wake = self._loop.call_later(delay_s, self._tick)

    def _tick(self) -> None:
        self._wake = None
        self._emit(ev.Tick())

    def _note_in_table(self) -> None:
        leader = self._session.leader if self._session is not None else ""
        identity = (
            self._core.incarnation,
            self._core.term,
            leader or self._peers.endpoints.leader,
        )
        if identity != self._identified:
            self._identified = identity
            self._table.identify(incarnation=identity[0], term=identity[1], leader=identity[2])
        deadline_ms = self._core.stop_deadline_ms
        self._table.set_stop_deadline(deadline_ms + _STOP_MARGIN_MS if deadline_ms else 0)

    def _send_started(self, command: ev.SendStarted) -> None:
        self._speech.started(command)
        if self._start_timer is None:
            self._start_timer = self._loop.call_later(STARTED_AFTER_MS / 1000, self._tell_starts)

    def _tell_starts(self) -> None:
        self._start_timer = None
        next_ms = self._speech.next_started_ms()
        if next_ms is None or self._session is None:
            return
        delay_ms = next_ms - boot_ms()
        if delay_ms > 0:
            self._start_timer = self._loop.call_later(delay_ms / 1000, self._tell_starts)
        else:
            self._session.wake()
            self._start_timer = self._loop.call_later(STARTED_AFTER_MS / 1000, self._tell_starts)

    def _close_session(self, command: ev.CloseSession) -> None:
        self._journal.error("the session is given up", why=command.why)
        if self._session is not None:
            self._session.give_up()

    def _finish(self, command: ev.Finished) -> None:
        if command.undelivered:
            self._journal.warning("outcomes were not delivered", count=command.undelivered)
        if not self._finished.done():
            self._finished.set_result(command.undelivered)

    def _lines_pending(self) -> None:
        if self._monitor is not None:
            self._monitor.wake()

    def _on_progress(
        self, live: LiveAttempt, message: wire.ProgressMade | wire.PartialOutput
    ) -> None:
        if isinstance(message, wire.ProgressMade):
            self._speech.progress(live.key, live.spec.tenant, message.fraction, message.note)
        else:
            self._speech.partial(live.key, live.spec.tenant, message.index, message.output_json)
        if self._session is not None:
            self._session.wake()

    # --- life -------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until drained. Raises ConfigurationError, SkillImportError, ZygoteDied."""
        config = self._config
        self._watch_signals()
        skills, warning = await self._zygote.open()
        if not skills:
            raise ConfigurationError("MUSTER_SKILLS", "", "an agent needs at least one skill")
        if warning:
            self._journal.warning(warning)
        scratch = config.state_dir / "run"
        self._make_executor(scratch, skills)
        self._registry = RegistryLink(
            addresses=config.registry,
            secret=config.secret,
            spec=agent_spec(config, skills),
            key=instance_key(config.state_dir),
            peers=self._peers,
            journal=self._journal,
            on_registered=lambda number: self._emit(ev.Registered(number)),
        )
        try:
            if await self._until_drained(self._registry.register()):
                return
            self._open_links(self._registry)
            await self._serve()
        finally:
            await self._close(scratch)

    def _make_executor(self, scratch: Path, skills: dict[str, wire.SkillFound]) -> None:
        shutil.rmtree(scratch, ignore_errors=True)
        results = scratch / "results"
        results.mkdir(parents=True, mode=0o700)
        blobs = BlobFiles(self._peers)
        config = self._config
        devices = DeviceNames(config.capacity, os.environ)
        commands = CommandRuns(
            zygote=self._zygote,
            folder=scratch,
            results=results,
            environ=config.task_environ(os.environ),
            allowed=None if config.commands is None else frozenset(config.commands),
            logs=self._logs,
            devices=devices,
        )
        self._executor = Executor(
            zygote=self._zygote,
            skills=skills,
            folder=scratch,
            table=self._table,
            logs=self._logs,
            blobs=blobs,
            calls=DataCalls(self._peers, blobs),
            commands=commands,
            devices=devices,
            emit=self._emit,
            on_progress=self._on_progress,
        )
        self._zygote.listen(self._executor.on_zygote_message, self._zygote_lost)

    def _open_links(self, registry: RegistryLink) -> None:
        config = self._config
        self._session = SessionLink(
            peers=self._peers,
            secret=config.secret,
            speaker=self._speech,
            journal=self._journal,
            want_leader=registry.poke,
        )
        figures = Figures(self._pids, str(config.state_dir))
        self._monitor = MonitorLink(
            agent=config.id,
            peers=self._peers,
            secret=config.secret,
            logs=self._logs,
            journal=self._journal,
            sample=lambda: {**figures.sample(), **self._own_figures()},
            incarnation=lambda: registry.incarnation,
        )

    async def _serve(self) -> None:
        assert self._session is not None
        assert self._registry is not None
        assert self._monitor is not None
        links = [
            asyncio.create_task(self._session.run(), name="session"),
            asyncio.create_task(self._registry.run(), name="registry"),
            asyncio.create_task(self._monitor.run(), name="monitor"),
        ]
        try:
            ends: list[asyncio.Future[Any]] = [*links, self._finished]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            # A link ends only by an error, which ends the runtime.
            for end in ends:
                if end.done():
                    end.result()
            await self._registry.deregister()
            await self._monitor.leave()
        except (Superseded, Conflict) as error:
            raise ConfigurationError(
                "MUSTER_AGENT_ID",
                self._config.id,
                f"another process runs this agent now ({error or 'a newer incarnation'})",
            ) from error
        finally:
            for link in links:
                link.cancel()
            await asyncio.gather(*links, return_exceptions=True)

    async def _until_drained(self, work: Any) -> bool:
        """Does the work unless the runtime is to end before it is done."""
        task = asyncio.ensure_future(work)
        await asyncio.wait([task, self._finished], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
            return self._finished.done()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return True

    async def _close(self, scratch: Path) -> None:
        for timer in (self._wake, self._start_timer):
            if timer is not None:
                timer.cancel()
        await self._running.close()
        for link in (self._session, self._registry):
            if link is not None:
                await link.close()
        await self._peers.close()
        await self._zygote.close()
        shutil.rmtree(scratch, ignore_errors=True)

    def _watch_signals(self) -> None:
        def terminated() -> None:
            if self._core.draining:
                # Asked twice: the supervisor kills what is left.
                os._exit(1)
            self._journal.info("draining", timeout_s=self._config.drain_s)
            self._emit(ev.DrainBegan(boot_ms() + int(self._config.drain_s * 1000)))

        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, terminated)
        self._loop.set_exception_handler(self._on_bug)

    def _on_bug(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """An exception that nobody awaits is a bug: shown whole, and the runtime starts afresh."""
        error = context.get("exception")
        self._journal.error("bug", message=context.get("message"), error=repr(error))
        if error is not None:
            sys.excepthook(type(error), error, error.__traceback__)
            if not self._finished.done():
                self._finished.set_exception(error)

    def _zygote_lost(self, why: str) -> None:
        if not self._finished.done():
            self._finished.set_exception(ZygoteDied(why))

    # --- figures ----------------------------------------------------------------------------

    def _pids(self) -> list[int]:
        return [os.getpid(), self._zygote.pid, *self._running.runner_pids]

    def _own_figures(self) -> dict[str, float]:
        core = self._core
        return {
            "agent_slots": float(core.slots),
            "agent_slots_used": float(core.slots_used),
            "agent_running": float(core.running),
            "agent_queued": float(core.slots_used - core.running),
            "agent_outbox": float(core.outbox_size),
            "agent_runners": float(len(self._running.runner_pids)),
            "agent_log_lines_dropped": float(self._logs.dropped_lines),
        }
