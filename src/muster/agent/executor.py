"""Carries out the core's Start and Stop with runners and commands; reports what happens."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from muster.agent import error_kinds, wire
from muster.agent.attempts import BlobStore, LiveAttempt, died, failed, returned, stopped
from muster.agent.commands import CommandRuns
from muster.agent.data_calls import DataCalls
from muster.agent.devices import DeviceNames
from muster.agent.events import (
    AttemptEnded,
    AttemptKey,
    AttemptSpec,
    AttemptStarted,
    Event,
    StopReason,
    WaitBegan,
    WaitEnded,
)
from muster.agent.logbook import LogBook
from muster.agent.pool import Lane, Retire, Run, RunnerPool, Spawn
from muster.agent.runner_link import RunnerLink
from muster.agent.slot_table import SlotTable
from muster.agent.zygote_link import ZygoteLink
from muster.domain.errors import MusterError
from muster.domain.task import Outcome, OutcomeKind
from muster.rpc.clock import boot_ms, wall_ms
from muster.skill import COMMAND, SYNC

# A runner that is gone has this long for its last words to be read.
_LAST_WORDS_S: Final = 1.0
# Calls of one runner's contexts under way at once; more is a runaway loop.
_MAX_CALLS: Final = 1_024
# A device is given in thousandths.
_SHARES: Final = 1_000
# A parent that is only moved to another agent finds its children again there.
_CANCELS_CHILDREN: Final = frozenset({StopReason.CANCEL, StopReason.TIME_OUT})


class Executor:
    """All that runs on this agent. Must be used on its loop.

    `emit` takes events for the core; `progress(key, fraction, note)` and
    `partial(key, index, json)` are passed on as they come.
    """

    def __init__(
        self,
        *,
        zygote: ZygoteLink,
        skills: dict[str, wire.SkillFound],
        folder: Path,
        table: SlotTable,
        logs: LogBook,
        blobs: BlobStore,
        calls: DataCalls,
        commands: CommandRuns,
        devices: DeviceNames,
        emit: Callable[[Event], None],
        on_progress: Callable[[LiveAttempt, wire.ProgressMade | wire.PartialOutput], None],
    ) -> None:
        self._zygote, self._skills, self._folder = zygote, skills, folder
        self._table, self._logs, self._blobs = table, logs, blobs
        self._calls, self._commands, self._devices = calls, commands, devices
        self._emit, self._on_progress = emit, on_progress
        self._loop = asyncio.get_running_loop()
        self._pool = RunnerPool()
        self._live: dict[AttemptKey, LiveAttempt] = {}
        self._by_slot: dict[int, LiveAttempt] = {}
        self._links: dict[int, RunnerLink] = {}
        self._next_slot = 1
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Future[Any]] = set()
        self._call_count = 0
        self._closing = self._act_due = False
        self._timer_ms = 0
        self._sync_lane = Lane("sync", exclusive=True, eager=max(1, os.cpu_count() or 1))
        self._async_lanes: dict[str, Lane] = {}

    # --- what the runtime may ask -----------------------------------------------------------

    @property
    def runner_pids(self) -> list[int]:
        """Process ids of all runners."""
        return [link.pid for link in self._links.values()]

    @property
    def waiting(self) -> int:
        """Attempts that no process has taken up."""
        return self._pool.waiting

    def start(self, spec: AttemptSpec) -> None:
        """Runs the attempt as soon as a process is free for it."""
        found = self._skills.get(spec.skill)
        mode = found.mode if found is not None else ""
        live = LiveAttempt(spec, self._next_slot, mode)
        # 32 bits on the board; 0 means nobody.
        self._next_slot = self._next_slot % 0xFFFF_FFFF + 1
        self._live[live.key] = live
        if found is None:
            error = f"this agent does not offer the skill {spec.skill!r}"
            self._end(live, returned(live, error_kinds.UNKNOWN_SKILL, error, wall_ms()))
            return
        if spec.devices and not self._devices.has_all(spec.devices):
            error = f"this agent does not have the devices {dict(_given(spec))}"
            self._end(live, returned(live, error_kinds.NO_DEVICE, error, wall_ms()))
            return
        self._by_slot[live.slot] = live
        if mode == COMMAND:
            self._started(live)
            self._commands.start(live, self._command_done)
        else:
            self._pool.add(live.key, self._lane(spec, mode), boot_ms())
            self._act()

    def stop(self, key: AttemptKey, reason: StopReason, grace_ms: int) -> None:
        """Ends the attempt, after `grace_ms` by force; AttemptEnded follows when nothing of it
        runs."""
        live = self._live.get(key)
        if live is None or live.stopping:
            return
        # What the pool has decided must reach the runner before the wish to stop it.
        self._act_now()
        live.stop_reason = reason
        if live.storing is not None:
            live.storing.cancel()
        elif live.mode == COMMAND:
            self._commands.stop(live, grace_ms)
        elif self._pool.withdraw_if_waiting(key):
            self._end(live, stopped(live, wall_ms()))
        else:
            self._stop_on_runner(live, grace_ms)

    def resume(self, key: AttemptKey) -> None:
        """A waiting parent may go on: it receives the answers that were kept."""
        live = self._live.get(key)
        if live is None or live.held_replies is None:
            return
        link = self._links.get(self._pool.runner_of(key) or 0)
        replies, live.held_replies = live.held_replies, None
        if link is not None:
            for reply in replies:
                link.send(reply)
        if live.waits:
            # An async parent awaits other children too: it must not keep their slot from them.
            self._emit(WaitBegan(key))

    def on_zygote_message(self, message: Any, fds: tuple[int, ...]) -> None:
        """A process was made, could not be made, or has ended."""
        if self._commands.owns(message.ident):
            self._commands.on_zygote_message(message, fds)
        elif isinstance(message, wire.Forked):
            self._own(self._runner_forked(message, fds))
        elif isinstance(message, wire.SpawnFailed):
            self._runner_not_made(message)
        else:
            self._runner_exited(message)

    async def close(self) -> None:
        """Gives up everything at once."""
        self._closing = True
        if self._timer is not None:
            self._timer.cancel()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for link in self._links.values():
            link.close()
            link.close_streams()

    # --- pool -------------------------------------------------------------------------------

    def _lane(self, spec: AttemptSpec, mode: str) -> Lane:
        skill = spec.skill
        if spec.devices:
            return _lane_of_devices(spec, mode)
        if mode == SYNC:
            return self._sync_lane
        lane = self._async_lanes.get(skill)
        if lane is None:
            # One process per async skill: one that blocks or crashes harms only its own kind.
            lane = self._async_lanes[skill] = Lane(f"async:{skill}", exclusive=False)
        return lane

    def _act(self) -> None:
        """Carries out what the pool wants, once for all that this turn of the loop brings."""
        if not self._act_due:
            self._act_due = True
            self._loop.call_soon(self._act_now)

    def _act_now(self) -> None:
        self._act_due = False
        for action in self._pool.take_actions():
            if isinstance(action, Run):
                self._hand_over(action)
            elif isinstance(action, Spawn):
                folder = self._runner_folder(action.runner)
                folder.mkdir(parents=True, exist_ok=True)
                mode = "sync" if action.lane.exclusive else "async"
                devices = dict(action.lane.devices)
                visible = self._devices.visible(devices) if devices else ""
                self._zygote.send(
                    wire.SpawnRunner(action.runner, mode, str(folder), devices, visible)
                )
            else:
                assert isinstance(action, Retire)
                link = self._links[action.runner]
                link.killed = True
                link.close()
        self._schedule()

    def _schedule(self) -> None:
        wake_ms = self._pool.next_wake_ms()
        # A timer that is too early costs one look; moving it each time would cost more.
        if wake_ms is None or (self._timer is not None and self._timer_ms <= wake_ms):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_ms = wake_ms
        self._timer = self._loop.call_later(max(0, wake_ms - boot_ms()) / 1000, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._pool.tick(boot_ms())
        self._act()

    def _runner_folder(self, runner: int) -> Path:
        return self._folder / f"runner-{runner}"

    def _hand_over(self, action: Run) -> None:
        live = self._live[action.key]
        self._started(live)
        spec = live.spec
        self._links[action.runner].send(
            wire.RunAttempt(
                live.slot, spec.key.task_id, spec.key.attempt, spec.skill, spec.input_json
            )
        )

    def _started(self, live: LiveAttempt) -> None:
        live.started_at_ms = wall_ms()
        self._table.started(live.key, live.spec.tenant)
        self._emit(AttemptStarted(live.key, live.started_at_ms))

    # --- runners come and go ----------------------------------------------------------------

    async def _runner_forked(self, message: wire.Forked, fds: tuple[int, ...]) -> None:
        link = RunnerLink(message.ident, message.pid, self._on_messages, self._settle)
        self._links[message.ident] = link
        await link.open(fds, self._on_text)
        self._pool.runner_up(message.ident, boot_ms())
        self._act()

    def _runner_not_made(self, message: wire.SpawnFailed) -> None:
        key = self._pool.spawn_failed(message.ident, boot_ms())
        if key is not None:
            live = self._live[key]
            self._end(live, returned(live, error_kinds.RUNNER_LOST, message.error, wall_ms()))
        self._act()

    def _runner_exited(self, message: wire.Exited) -> None:
        link = self._links.get(message.ident)
        if link is None:
            return
        link.exit = message
        if link.lost:
            self._settle(link)
        else:
            # Its last frame may still be on the way; but nobody may hold the socket open.
            self._loop.call_later(_LAST_WORDS_S, link.close)

    def _settle(self, link: RunnerLink) -> None:
        """When the runner has exited and all that it had sent is read."""
        if self._closing:
            return
        if link.exit is None:
            # It closed its socket and lives: nothing more can be asked of it.
            self._kill(link)
            return
        if not link.lost or link.ident not in self._links:
            return
        self._act_now()
        del self._links[link.ident]
        link.drain_streams()
        held = sorted(
            (self._live[key] for key in self._pool.runner_gone(link.ident, boot_ms())),
            key=lambda live: live.slot,
        )
        culprit = None if link.killed else _culprit(held, link.exit.board)
        now_ms = wall_ms()
        for live in held:
            if live.stopping:
                outcome = stopped(live, now_ms)
            elif live is culprit:
                outcome = died(live, link.exit.code, now_ms)
            else:
                error = "another attempt broke the process that this one shared with it"
                outcome = returned(live, error_kinds.RUNNER_LOST, error, now_ms)
            self._end(live, outcome)
        link.close_streams()
        folder = self._runner_folder(link.ident)
        self._own(self._loop.run_in_executor(None, shutil.rmtree, folder, True))
        self._act()

    def _kill(self, link: RunnerLink) -> None:
        self._zygote.send(wire.KillProcess(link.ident, signal.SIGKILL))

    # --- stopping ---------------------------------------------------------------------------

    def _stop_on_runner(self, live: LiveAttempt, grace_ms: int) -> None:
        runner = self._pool.runner_of(live.key)
        assert runner is not None
        link = self._links[runner]
        if live.mode == SYNC:
            link.killed = True
            self._pool.close(runner, boot_ms())
            self._zygote.send(wire.KillProcess(runner, signal.SIGTERM))
            self._act()
        else:
            link.send(wire.CancelRun(live.slot))
        live.kill_timer = self._loop.call_later(grace_ms / 1000, self._end_by_force, live, link)

    def _end_by_force(self, live: LiveAttempt, link: RunnerLink) -> None:
        if live.key in self._live and link.ident in self._links:
            link.killed = True
            self._pool.close(link.ident, boot_ms())
            self._kill(link)
            self._act()

    # --- what runners say -------------------------------------------------------------------

    def _on_text(self, link: RunnerLink, stream: str, text: str) -> None:
        """Text on a runner's own descriptor: of its only attempt, or of nobody's."""
        held = self._pool.attempts_on(link.ident)
        live = self._live[next(iter(held))] if len(held) == 1 else None
        if live is not None:
            self._logs.write(live.key, live.spec.tenant, stream, "", text, wall_ms())
        else:
            for line in text.split("\n"):
                self._logs.write_agent("info", f"runner {link.pid}: {line}", wall_ms())

    def _on_messages(self, link: RunnerLink, messages: list[Any]) -> None:
        for message in messages:
            if isinstance(message, wire.Leaving):
                link.killed = True
                self._pool.close(link.ident, boot_ms())
                continue
            live = self._by_slot.get(message.slot)
            if live is None or self._pool.runner_of(live.key) != link.ident:
                # Of an attempt that is over, or that this runner was never given.
                continue
            if isinstance(message, wire.RunDone | wire.RunFailed | wire.RunStopped):
                self._attempt_done(link, live, message)
            elif isinstance(message, wire.LogWritten):
                self._logs.write(
                    live.key,
                    live.spec.tenant,
                    message.stream,
                    message.level,
                    message.text,
                    wall_ms(),
                )
            elif isinstance(message, wire.Call):
                self._call(link, live, message)
            else:
                self._on_progress(live, message)
        self._act()

    def _attempt_done(
        self, link: RunnerLink, live: LiveAttempt, message: wire.RunDone | Any
    ) -> None:
        now_ms = wall_ms()
        if live.mode == SYNC:
            link.drain_streams()
        self._pool.attempt_left(live.key, boot_ms())
        if isinstance(message, wire.RunFailed):
            if live.stopping:
                self._end(live, stopped(live, now_ms))
            else:
                self._end(live, failed(live, message.kind, message.error, now_ms))
        elif isinstance(message, wire.RunStopped):
            self._end(live, stopped(live, now_ms))
        elif message.file:
            self._store(live, message.file, _succeeded(live, message, now_ms))
        else:
            self._end(live, _succeeded(live, message, now_ms))

    def _command_done(self, live: LiveAttempt, outcome: Outcome, file: str) -> None:
        if file:
            self._store(live, file, outcome)
        else:
            self._end(live, outcome)

    # --- large results ----------------------------------------------------------------------

    def _store(self, live: LiveAttempt, file: str, outcome: Outcome) -> None:
        if live.stopping and outcome.kind is not OutcomeKind.SUCCEEDED:
            self._end(live, stopped(live, wall_ms()))
            return
        live.storing = self._loop.create_task(self._store_and_end(live, file, outcome))
        self._own(live.storing)

    async def _store_and_end(self, live: LiveAttempt, file: str, outcome: Outcome) -> None:
        try:
            sha256, size = await self._blobs.put_file(live.spec.tenant, file)
        except asyncio.CancelledError:
            self._end(live, stopped(live, wall_ms()))
            raise
        except MusterError as error:
            text = f"the result could not be stored: {error}"
            self._end(live, failed(live, error_kinds.RESULT_STORE, text, wall_ms()))
            return
        finally:
            with suppress(FileNotFoundError):
                os.unlink(file)
        self._end(
            live,
            Outcome(
                outcome.kind,
                output_blob=sha256,
                output_bytes=size,
                error=outcome.error,
                error_kind=outcome.error_kind,
                exit_code=outcome.exit_code,
                started_at_ms=outcome.started_at_ms,
                ended_at_ms=outcome.ended_at_ms,
            ),
        )

    # --- calls of contexts ------------------------------------------------------------------

    def _call(self, link: RunnerLink, live: LiveAttempt, message: wire.Call) -> None:
        if self._call_count >= _MAX_CALLS:
            error = f"{_MAX_CALLS} calls of contexts are under way on this agent"
            link.send(wire.Reply(message.call, "Overloaded", error))
            return
        self._own(self._answer(link, live, message))

    async def _answer(self, link: RunnerLink, live: LiveAttempt, message: wire.Call) -> None:
        waits = message.op == "child.result"
        self._call_count += 1
        try:
            if waits:
                live.waits += 1
                self._emit(WaitBegan(live.key))
            reply = await self._calls.answer(live.spec, message, self._runner_folder(link.ident))
        finally:
            self._call_count -= 1
        if not waits:
            link.send(reply)
            return
        live.waits -= 1
        # The core says when: the parent needs a slot again before it goes on.
        live.held_replies = [*(live.held_replies or []), reply]
        self._emit(WaitEnded(live.key))

    # --- ends -------------------------------------------------------------------------------

    def _end(self, live: LiveAttempt, outcome: Outcome) -> None:
        if self._live.pop(live.key, None) is None:
            return
        self._by_slot.pop(live.slot, None)
        if live.kill_timer is not None:
            live.kill_timer.cancel()
        self._table.ended(live.key)
        self._logs.end(live.key, wall_ms())
        children = self._calls.forget(live.key)
        if children and live.stop_reason in _CANCELS_CHILDREN:
            self._own(self._calls.cancel(live.spec.tenant, children))
        self._emit(AttemptEnded(live.key, outcome))

    def _own(self, work: Awaitable[Any]) -> None:
        """Keeps a reference until the work is done; a failure of it is a bug and is shown."""
        future = asyncio.ensure_future(work)
        self._tasks.add(future)
        future.add_done_callback(self._work_done)

    def _work_done(self, future: asyncio.Future[Any]) -> None:
        self._tasks.discard(future)
        error = None if future.cancelled() else future.exception()
        if error is not None:
            self._loop.call_exception_handler({"message": "executor", "exception": error})


def _given(spec: AttemptSpec) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((share.resource, share.indices) for share in spec.devices)


def _lane_of_devices(spec: AttemptSpec, mode: str) -> Lane:
    devices = _given(spec)
    name = mode if mode == SYNC else f"async:{spec.skill}"
    # The leader has found room for each of them, so none needs to wait for another's process.
    return Lane(f"{name}@{devices}", exclusive=mode == SYNC, eager=_SHARES, devices=devices)


def _culprit(held: list[LiveAttempt], board: int) -> LiveAttempt | None:
    """Whose attempt took its runner down: the one that was executing, else the newest."""
    for live in held:
        if live.slot == board:
            return live
    return held[-1] if held else None


def _succeeded(live: LiveAttempt, message: wire.RunDone, now_ms: int) -> Outcome:
    return Outcome(
        OutcomeKind.SUCCEEDED,
        output_json=message.output_json,
        output_bytes=message.size,
        started_at_ms=live.started_at_ms,
        ended_at_ms=now_ms,
    )
