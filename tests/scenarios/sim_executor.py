"""What runs on an agent: attempts in runner processes, as the production pool deals them out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.scenarios.sim_books import label, token
from tests.scenarios.sim_kernel import SimulationError

from muster.agent.data_calls import child_spec
from muster.agent.events import (
    AttemptEnded,
    AttemptKey,
    AttemptSpec,
    AttemptStarted,
    WaitBegan,
    WaitEnded,
)
from muster.agent.pool import Lane, Run, RunnerPool, Spawn
from muster.domain.ids import TaskId
from muster.domain.task import Outcome, OutcomeKind

if TYPE_CHECKING:
    from tests.scenarios.sim_agent import Runtime

_EAGER_RUNNERS = 2
# Of forks, now and then one fails.
_FORKS_FAIL = 0.01
_DONE_WHEN_STOPPED = 0.2
_CHILD_POLL_MS = 300
REPORT_EVERY_MS = 150


@dataclass(frozen=True, slots=True)
class Habits:
    """What a task does when it is run. `child`: it submits one and waits for its end. `reports`: it
    shows progress."""

    runs_ms: int
    kinds: tuple[OutcomeKind, ...]
    error_kind: str = ""
    poison: bool = False
    stubborn: bool = False
    child: bool = False
    reports: bool = False


@dataclass(slots=True)
class _Live:
    spec: AttemptSpec
    running: bool = False
    waiting: bool = False
    stopping: bool = False
    resumed: Callable[[], None] | None = None


class RunsOfStop:
    """Which runs of `stop` tasks go on at this moment, over all agents.

    A runtime that is frozen alone has processes that run on, until its supervisor kills them.
    """

    def __init__(self) -> None:
        self._runs: dict[TaskId, list[Runtime]] = {}

    def begin(self, key: AttemptKey, runtime: Runtime) -> None:
        runs = self._runs.setdefault(key.task_id, [])
        others = [r.name for r in runs if r.alive and not r.machine.frozen]
        if others:
            raise SimulationError(
                f"invariant 17: {label(*key)} runs on {runtime.name} and on {others}"
            )
        runs.append(runtime)

    def end(self, key: AttemptKey, runtime: Runtime) -> None:
        runs = self._runs.get(key.task_id, [])
        if runtime in runs:
            runs.remove(runtime)


class SimExecutor:
    """The processes of one runtime."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._rng = runtime.kernel.rng
        self._lane = Lane("sync", exclusive=True, eager=_EAGER_RUNNERS)
        self._pool = RunnerPool()
        self.live: dict[AttemptKey, _Live] = {}
        self._wake_ms: int | None = None
        # Nothing starts any more, although the runtime is heard.
        self.stuck = False

    @property
    def running(self) -> int:
        """Processes that work, those of waiting parents left out."""
        return sum(1 for live in self.live.values() if live.running and not live.waiting)

    def end(self) -> None:
        """All processes are gone."""
        for key in self.live:
            self._runtime.world.stops.end(key, self._runtime)
        self.live.clear()

    def leaks(self) -> list[str]:
        """What is left although no attempt is."""
        pool = self._pool
        kept = {"waiting": pool.waiting, "on runners": len(pool._on), "lanes": len(pool._lane_of)}
        return [
            f"the pool keeps {count} attempts ({what})" for what, count in kept.items() if count
        ]

    # --------------------------------------------------------------------- commands

    def start(self, spec: AttemptSpec) -> None:
        if any(key.task_id == spec.key.task_id for key in self.live):
            raise SimulationError(f"{label(*spec.key)} begins while an older attempt is there")
        self.live[spec.key] = _Live(spec)
        self._pool.add(spec.key, self._lane, self._runtime.boot_ms())
        self._act()

    def stop(self, key: AttemptKey, grace_ms: int) -> None:
        live = self.live.get(key)
        if live is None or live.stopping:
            return
        live.stopping = True
        if not live.running:
            self._pool.withdraw_if_waiting(key)
            self._end(key, Outcome(OutcomeKind.CANCELLED))
            return
        runner = self._pool.runner_of(key)
        assert runner is not None
        self._pool.close(runner, self._runtime.boot_ms())
        takes_ms = min(100 * self._rng.random(), grace_ms)
        if self._runtime.world.habits[key.task_id].stubborn:
            takes_ms = grace_ms
        if takes_ms:
            self._runtime.later(takes_ms, lambda: self._killed(key, runner))
        else:
            self._killed(key, runner)
        self._act()

    def resume(self, key: AttemptKey) -> None:
        live = self.live.get(key)
        if live is not None and live.resumed is not None and not live.stopping:
            goes_on, live.resumed = live.resumed, None
            live.waiting = False
            self._check_slots()
            goes_on()

    # ------------------------------------------------------------------------- pool

    def _act(self) -> None:
        for action in self._pool.take_actions():
            if isinstance(action, Run):
                self._hand_over(action.key)
            elif isinstance(action, Spawn):
                failed = self._rng.random() < _FORKS_FAIL
                ready = self._not_made if failed else self._up
                runner = action.runner
                if self.stuck:
                    continue
                self._runtime.later(
                    5 + 15 * self._rng.random(),
                    lambda runner=runner, ready=ready: ready(runner),  # type: ignore[misc]
                )
            else:
                self._pool.runner_gone(action.runner, self._runtime.boot_ms())
        self._schedule()

    def _schedule(self) -> None:
        wake_ms = self._pool.next_wake_ms()
        if wake_ms is None or (self._wake_ms is not None and self._wake_ms <= wake_ms):
            return
        self._wake_ms = wake_ms
        self._runtime.later(wake_ms - self._runtime.boot_ms(), lambda: self._tick(wake_ms))

    def _tick(self, wake_ms: int) -> None:
        if self._wake_ms == wake_ms:
            self._wake_ms = None
            self._pool.tick(self._runtime.boot_ms())
            self._act()

    def _up(self, runner: int) -> None:
        self._pool.runner_up(runner, self._runtime.boot_ms())
        self._act()

    def _not_made(self, runner: int) -> None:
        key = self._pool.spawn_failed(runner, self._runtime.boot_ms())
        if key is not None:
            self._end(key, Outcome(OutcomeKind.RETURNED, error="no process could be made"))
        self._act()

    # ------------------------------------------------------------------------- runs

    def get_stuck(self) -> None:
        """New attempts find no process from now on."""
        self.stuck = True
        for runner in range(1, self._pool._next):
            if not self._pool.attempts_on(runner):
                self._pool.close(runner, self._runtime.boot_ms())

    def _hand_over(self, key: AttemptKey) -> None:
        runtime, live = self._runtime, self.live[key]
        live.running = True
        runtime.say("runs", label(*key))
        self._check_slots()
        runtime.world.books.started(runtime.machine.id, runtime.core.incarnation, key)
        runtime.table.started[key] = live.spec.tenant
        if live.spec.stop_when_cut_off:
            runtime.world.stops.begin(key, runtime)
        runtime.emit(AttemptStarted(key, runtime.wall_ms()))
        habits = runtime.world.habits[key.task_id]
        if habits.reports:
            self._report(key)
        if habits.poison:
            runtime.later(5 + 40 * self._rng.random(), lambda: self._poison(key))
        elif habits.child:
            half_ms = habits.runs_ms / 2
            runtime.later(half_ms, lambda: self._submit_child(key, half_ms))
        else:
            runtime.later(habits.runs_ms, lambda: self._finish(key))

    def _report(self, key: AttemptKey) -> None:
        """It shows progress, again and again."""
        if key in self.live:
            self._runtime.say_progress(key)
            self._runtime.later(REPORT_EVERY_MS, lambda: self._report(key))

    def _check_slots(self) -> None:
        slots = self._runtime.machine.slots
        if self.running > slots:
            raise SimulationError(
                f"invariant 13: {self._runtime.name} runs {self.running} with {slots} slots"
            )

    def _poison(self, key: AttemptKey) -> None:
        if key in self.live:
            self._runtime.say("is killed by", label(*key))
            self._runtime.exit(-9)

    def _finish(self, key: AttemptKey) -> None:
        live = self.live.get(key)
        if live is None or live.stopping:
            return
        habits = self._runtime.world.habits[key.task_id]
        kind = habits.kinds[min(key.attempt, len(habits.kinds)) - 1]
        machine = self._runtime.machine
        if self._runtime.kernel.now_ms < machine.sick_until_ms and kind is OutcomeKind.SUCCEEDED:
            kind = OutcomeKind.FAILED
        error_kind = habits.error_kind if kind is OutcomeKind.FAILED else ""
        self._pool.attempt_left(key, self._runtime.boot_ms())
        self._end(key, Outcome(kind, error=f"it {kind.value}", error_kind=error_kind))
        self._act()

    def _killed(self, key: AttemptKey, runner: int) -> None:
        held = self._pool.runner_gone(runner, self._runtime.boot_ms())
        if key in self.live:
            assert held == {key}, f"{held} were on the runner of {key}"
            # Now and then it was done before the stop reached it.
            habits = self._runtime.world.habits[key.task_id]
            done = not (habits.stubborn or habits.child) and self._rng.random() < _DONE_WHEN_STOPPED
            kind = OutcomeKind.SUCCEEDED if done else OutcomeKind.CANCELLED
            self._end(key, Outcome(kind))
        self._act()

    def _end(self, key: AttemptKey, outcome: Outcome) -> None:
        runtime = self._runtime
        live = self.live.pop(key)
        runtime.table.started.pop(key, None)
        if live.running and live.spec.stop_when_cut_off:
            runtime.world.stops.end(key, runtime)
        runtime.world.books.seen[key] = outcome.kind
        mark = token(runtime.machine.id, runtime.core.incarnation, *key)
        runtime.emit(
            AttemptEnded(
                key,
                Outcome(
                    outcome.kind,
                    output_blob=mark if outcome.kind is OutcomeKind.SUCCEEDED else "",
                    error=outcome.error,
                    error_kind=outcome.error_kind,
                    ended_at_ms=runtime.wall_ms(),
                ),
            )
        )

    # --------------------------------------------------------------------- children

    def _submit_child(self, key: AttemptKey, rest_ms: float) -> None:
        """Submits and waits; a later attempt of the same task finds the same child."""
        live = self.live.get(key)
        if live is None or live.stopping:
            return
        live.waiting = True
        self._runtime.kernel.tally["parent waited for a child"] += 1
        live.resumed = lambda: self._runtime.later(rest_ms, lambda: self._finish(key))
        self._runtime.emit(WaitBegan(key))
        child = child_spec(live.spec, 0, live.spec.skill, b"null", {})
        self._runtime.world.submit_child(self._runtime, child, lambda: self._look(key, child.id))

    def _look(self, key: AttemptKey, child: TaskId) -> None:
        live = self.live.get(key)
        if live is None or live.stopping or live.resumed is None:
            return
        if self._runtime.world.has_ended(child):
            self._runtime.emit(WaitEnded(key))
        else:
            self._runtime.later(_CHILD_POLL_MS, lambda: self._look(key, child))
