"""Which runner process takes which attempt, and when runners are made and let go. Pure.

A lane is a kind of runner. A shared lane has one runner that holds many attempts (async skills);
the exclusive lane has as many runners as are needed, one attempt each (sync skills). Attempts that
were given devices have lanes of their own, one for each set of devices: a process is bound to what
it saw first, and what it has loaded there serves the next attempt with the same.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final

from muster.agent.events import AttemptKey

# While attempts wait for a runner, the lane is looked at this often.
GROW_AFTER_MS: Final = 10
# An attempt that runs for longer than this counts as long: its runner is spoken for, and one more
# may be made. Short tasks gain nothing from more runners than there are cores.
LONG_MS: Final = 25
# Idle runners are let go after this long; a new one costs a few milliseconds.
IDLE_MS: Final = 30_000


@dataclass(frozen=True, slots=True)
class Lane:
    """A kind of runner. `eager` exclusive runners are made without a wait (one per core).

    `devices` are by resource the indices of those that its runners see.
    """

    name: str
    exclusive: bool
    eager: int = 1
    devices: tuple[tuple[str, tuple[int, ...]], ...] = ()

    def overlaps(self, other: Lane) -> bool:
        """Whether both have a device."""
        own = {(name, index) for name, indices in self.devices for index in indices}
        return any((name, index) in own for name, indices in other.devices for index in indices)


@dataclass(frozen=True, slots=True)
class Spawn:
    """Make a runner."""

    runner: int
    lane: Lane


@dataclass(frozen=True, slots=True)
class Run:
    """Hand the attempt to the runner: it starts now."""

    runner: int
    key: AttemptKey


@dataclass(frozen=True, slots=True)
class Retire:
    """End an idle runner."""

    runner: int


Action = Spawn | Run | Retire


@dataclass(slots=True)
class _Runner:
    lane: Lane
    up: bool = False
    # Takes nothing more: an attempt on it is being ended by force, or it is to end.
    closed: bool = False
    holds: set[AttemptKey] = field(default_factory=set)
    idle_since_ms: int = 0
    busy_since_ms: int = 0


@dataclass(slots=True)
class _LaneState:
    lane: Lane
    waiting: dict[AttemptKey, None] = field(default_factory=dict)
    idle: deque[int] = field(default_factory=deque)
    live: set[int] = field(default_factory=set)
    starting: int = 0
    next_look_ms: int = 0


class RunnerPool:
    """All runners of one runtime."""

    def __init__(self) -> None:
        self._lanes: dict[str, _LaneState] = {}
        self._runners: dict[int, _Runner] = {}
        self._lane_of: dict[AttemptKey, str] = {}
        self._on: dict[AttemptKey, int] = {}
        self._next = 1
        self._actions: list[Action] = []

    @property
    def size(self) -> int:
        """Runners, those being made included."""
        return len(self._runners)

    @property
    def waiting(self) -> int:
        """Attempts that no runner has taken up."""
        return sum(len(state.waiting) for state in self._lanes.values())

    def take_actions(self) -> list[Action]:
        """What is to be done since the last call, in order."""
        actions, self._actions = self._actions, []
        return actions

    def runner_of(self, key: AttemptKey) -> int | None:
        """The runner that has the attempt, or None while it waits."""
        return self._on.get(key)

    def attempts_on(self, runner: int) -> frozenset[AttemptKey]:
        """The attempts that a runner has."""
        found = self._runners.get(runner)
        return frozenset(found.holds) if found else frozenset()

    def add(self, key: AttemptKey, lane: Lane, now_ms: int) -> None:
        """An attempt wants a runner of this lane."""
        state = self._lanes.get(lane.name)
        if state is None:
            state = self._lanes[lane.name] = _LaneState(lane)
        self._lane_of[key] = lane.name
        if lane.devices:
            self._free_devices_for(lane, now_ms)
        if not state.waiting:
            state.next_look_ms = now_ms + GROW_AFTER_MS
        state.waiting[key] = None
        self._serve(state, now_ms)

    def _free_devices_for(self, lane: Lane, now_ms: int) -> None:
        """Lets idle runners of other lanes go that may still occupy a device of this one."""
        for ident, runner in list(self._runners.items()):
            idle = runner.up and not runner.closed and not runner.holds
            if idle and runner.lane.name != lane.name and runner.lane.overlaps(lane):
                self._retire(ident, now_ms)

    def _retire(self, runner: int, now_ms: int) -> None:
        self.close(runner, now_ms)
        self._actions.append(Retire(runner))

    def withdraw_if_waiting(self, key: AttemptKey) -> bool:
        """Takes back an attempt that still waits; False when a runner has it."""
        if key in self._on:
            return False
        self._lanes[self._lane_of.pop(key)].waiting.pop(key)
        return True

    def runner_up(self, runner: int, now_ms: int) -> None:
        """The runner can be spoken to."""
        found = self._runners.get(runner)
        if found is None or found.closed:
            return
        state = self._lanes[found.lane.name]
        found.up = True
        found.idle_since_ms = now_ms
        state.starting -= 1
        if found.lane.exclusive:
            state.idle.append(runner)
        self._serve(state, now_ms)

    def attempt_left(self, key: AttemptKey, now_ms: int) -> None:
        """The attempt is over and its runner lives."""
        runner = self._on.pop(key)
        del self._lane_of[key]
        found = self._runners[runner]
        found.holds.discard(key)
        found.idle_since_ms = now_ms
        if found.closed:
            return
        if found.lane.exclusive:
            self._lanes[found.lane.name].idle.append(runner)
            self._serve(self._lanes[found.lane.name], now_ms)

    def close(self, runner: int, now_ms: int) -> None:
        """The runner is about to end: it takes nothing more."""
        found = self._runners.get(runner)
        if found is None or found.closed:
            return
        found.closed = True
        state = self._lanes[found.lane.name]
        state.live.discard(runner)
        if runner in state.idle:
            state.idle.remove(runner)
        if not found.up:
            state.starting -= 1
            found.up = True
        self._serve(state, now_ms)

    def runner_gone(self, runner: int, now_ms: int) -> frozenset[AttemptKey]:
        """The runner has ended; gives the attempts that it still had."""
        if runner not in self._runners:
            return frozenset()
        self.close(runner, now_ms)
        gone = self._runners.pop(runner)
        held = frozenset(gone.holds)
        for key in held:
            del self._on[key]
            del self._lane_of[key]
        if gone.lane.devices:
            self._forget_if_unused(gone.lane)
        return held

    def _forget_if_unused(self, lane: Lane) -> None:
        """There are more sets of devices than anybody will use again."""
        used = self._lanes[lane.name].waiting or any(
            runner.lane.name == lane.name for runner in self._runners.values()
        )
        if not used:
            del self._lanes[lane.name]

    def spawn_failed(self, runner: int, now_ms: int) -> AttemptKey | None:
        """The runner could not be made; gives the attempt that had waited longest, withdrawn.

        So a machine that can fork no more gives its work back instead of trying for ever.
        """
        lane = self._runners[runner].lane
        waiting = self._lanes[lane.name].waiting
        self.runner_gone(runner, now_ms)
        if not waiting:
            return None
        key = next(iter(waiting))
        self.withdraw_if_waiting(key)
        return key

    def next_wake_ms(self) -> int | None:
        """When `tick` has something to do; None = not by itself."""
        wakes = [
            state.next_look_ms
            for state in self._lanes.values()
            if state.lane.exclusive and len(state.waiting) > state.starting
        ]
        wakes += [
            r.idle_since_ms + IDLE_MS
            for r in self._runners.values()
            if r.up and not r.closed and not r.holds
        ]
        return min(wakes, default=None)

    def tick(self, now_ms: int) -> None:
        """Makes runners for attempts that have waited, and lets idle runners go."""
        for state in self._lanes.values():
            if state.lane.exclusive and state.waiting and now_ms >= state.next_look_ms:
                self._grow(state, now_ms)
        for ident, runner in list(self._runners.items()):
            idle = runner.up and not runner.closed and not runner.holds
            if idle and now_ms - runner.idle_since_ms >= IDLE_MS:
                self._retire(ident, now_ms)

    def _grow(self, state: _LaneState, now_ms: int) -> None:
        state.next_look_ms = now_ms + GROW_AFTER_MS
        busy = [self._runners[r] for r in state.live]
        long = sum(1 for r in busy if r.holds and now_ms - r.busy_since_ms >= LONG_MS)
        room = state.lane.eager + long - len(state.live)
        for _ in range(min(room, len(state.waiting) - state.starting)):
            self._spawn(state)

    def _serve(self, state: _LaneState, now_ms: int) -> None:
        if not state.waiting:
            return
        if not state.lane.exclusive:
            self._serve_shared(state, now_ms)
            return
        while state.waiting and state.idle:
            # The runner used last has the warmest caches; the others may age and be let go.
            self._run(state, next(iter(state.waiting)), state.idle.pop(), now_ms)
        while len(state.waiting) > state.starting and len(state.live) < state.lane.eager:
            self._spawn(state)

    def _serve_shared(self, state: _LaneState, now_ms: int) -> None:
        if not state.live:
            self._spawn(state)
            return
        runner = next(iter(state.live))
        if self._runners[runner].up:
            for key in list(state.waiting):
                self._run(state, key, runner, now_ms)

    def _run(self, state: _LaneState, key: AttemptKey, runner: int, now_ms: int) -> None:
        del state.waiting[key]
        self._on[key] = runner
        found = self._runners[runner]
        found.holds.add(key)
        found.busy_since_ms = now_ms
        self._actions.append(Run(runner, key))

    def _spawn(self, state: _LaneState) -> None:
        ident, self._next = self._next, self._next + 1
        self._runners[ident] = _Runner(state.lane)
        state.live.add(ident)
        state.starting += 1
        self._actions.append(Spawn(ident, state.lane))
