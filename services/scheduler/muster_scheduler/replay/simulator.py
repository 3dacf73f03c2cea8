"""Virtual time: tasks arrive, are placed by a strategy of the live system, run, and end.

Deterministic for a trace, a strategy and a seed.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from muster_scheduler.core.mix import TOLD_THE_MIX, ArrivalMix
from muster_scheduler.learning.evaluation import UNKNOWN_S
from muster_scheduler.placement.auto import Auto, ChosenPlan
from muster_scheduler.placement.classes import ClassTable, TaskBatch
from muster_scheduler.placement.devices import NO_DEVICES, Devices
from muster_scheduler.placement.learned import ForetoldBatch
from muster_scheduler.placement.objective import dominant_shares, evaluate
from muster_scheduler.placement.plan import Policy
from muster_scheduler.placement.snapshot import AgentTable, FloatArray, IntArray
from muster_scheduler.placement.strategy import Strategy, get
from muster_scheduler.replay.forecast import Declared, Forecast, Learning, Oracle
from muster_scheduler.replay.trace import Trace, TraceTask
from muster_scheduler.replay.waiting import Waiting

# As the leader does: tasks planned at once.
MAX_PLAN = 512
# Tasks shown to a strategy beyond those that could find a place, where waiting may be the best:
# the more there are that wait for fast agents, the sooner a slow one is worth taking.
LOOK_AHEAD = 128
# U and B are looked at this often between the first arrival and the last, at equal distances.
_LOOKS = 500
# The reference that knows all run times; places as `learned` does.
ORACLE = "oracle"


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """What became of a trace.

    start_s, end_s   float64 [N], virtual seconds; NaN for tasks that were never placed
    agent            int32 [N], -1 likewise
    look_s, U, B, waiting   float64 [looks], of the cluster at equal distances of time
    """

    strategy: str
    start_s: FloatArray
    end_s: FloatArray
    agent: NDArray[np.int32]
    look_s: FloatArray
    U: FloatArray
    B: FloatArray
    waiting: FloatArray
    plans: int


def simulate(trace: Trace, strategy: str, policy: Policy, seed: int, max_steps: int) -> Run:
    """Replays the whole trace. `strategy` is a registered one, or ORACLE.

    Raises InvalidInput for an unknown strategy.
    """
    forecast: Forecast = Declared()
    if strategy == ORACLE:
        forecast = Oracle(trace)
    elif strategy in ("learned", "auto"):
        forecast = Learning(trace, seed)
    # One of its own, for what it has learned must not come from another replay.
    placer = Auto() if strategy == "auto" else get("learned" if strategy == ORACLE else strategy)
    return _Replay(trace, placer, forecast, policy, seed, max_steps).run(strategy)


@dataclass(slots=True)
class _Placed:
    task: int
    row: int
    demand_row: IntArray
    devices: Devices
    load: float
    start_s: float
    end_s: float
    predicted_s: float


@dataclass(slots=True)
class _Looks:
    at: FloatArray
    U: list[float] = field(default_factory=list)
    B: list[float] = field(default_factory=list)
    waiting: list[float] = field(default_factory=list)


class _Replay:
    def __init__(
        self,
        trace: Trace,
        placer: Strategy,
        forecast: Forecast,
        policy: Policy,
        seed: int,
        max_steps: int,
    ) -> None:
        self._trace, self._placer, self._forecast = trace, placer, forecast
        self._policy, self._max_steps = policy, max_steps
        self._rng = np.random.default_rng(seed)
        self._table = AgentTable()
        skills = frozenset(task.features.skill for task in trace.tasks)
        for agent in trace.agents:
            capacity = agent.capacity
            self._table.upsert(agent.agent_id, capacity, skills, agent.labels, placeable=True)
        self._classes = ClassTable()
        self._class_of = [
            self._classes.id_of(t.features.skill, t.demand.with_slot(), t.constraints)
            for t in trace.tasks
        ]
        self._waiting = Waiting()
        self._arrivals = ArrivalMix()
        self._running: list[tuple[float, int, _Placed]] = []
        count = len(trace.tasks)
        self._start_s, self._end_s = np.full(count, np.nan), np.full(count, np.nan)
        self._agent = np.full(count, -1, np.int32)
        self._plans = 0
        self._beyond = 0 if isinstance(forecast, Declared) else LOOK_AHEAD
        self._none = TaskBatch.of(self._classes, [])
        self._looks = _Looks(np.linspace(0.0, trace.tasks[-1].arrival_s, _LOOKS, endpoint=False))

    def run(self, strategy: str) -> Run:
        tasks = self._trace.tasks
        arrived = 0
        while arrived < len(tasks) or self._running:
            now_s = self._next_event(arrived)
            self._look_until(now_s)
            freed: set[int] = set()
            while self._running and self._running[0][0] <= now_s:
                _, _, placed = heapq.heappop(self._running)
                self._end(placed, now_s)
                freed.add(placed.row)
            if freed:
                self._unblock(freed)
            while arrived < len(tasks) and tasks[arrived].arrival_s <= now_s:
                self._waiting.add(arrived, self._class_of[arrived], tasks[arrived].priority)
                self._arrivals.note(self._class_of[arrived])
                arrived += 1
            self._place(now_s)
        looks = self._looks
        used, spread, waiting = np.array([looks.U, looks.B, looks.waiting])
        return Run(
            strategy,
            self._start_s,
            self._end_s,
            self._agent,
            looks.at[: len(looks.U)],
            used,
            spread,
            waiting,
            self._plans,
        )

    def _next_event(self, arrived: int) -> float:
        tasks = self._trace.tasks
        arrival = tasks[arrived].arrival_s if arrived < len(tasks) else np.inf
        return min(arrival, self._running[0][0] if self._running else np.inf)

    def _look_until(self, now_s: float) -> None:
        """U, B and the queue as they were before `now_s`."""
        looks = self._looks
        due = int(np.searchsorted(looks.at, now_s)) - len(looks.U)
        if due > 0:
            score = evaluate(self._table.view(), self._none, self._agent[:0], self._policy)
            looks.U += [score.U] * due
            looks.B += [score.B] * due
            looks.waiting += [float(len(self._waiting))] * due

    def _end(self, placed: _Placed, now_s: float) -> None:
        self._table.give_back(placed.row, placed.demand_row, placed.devices)
        task = self._trace.tasks[placed.task]
        self._forecast.ended(task, placed.row, placed.load, now_s)

    def _unblock(self, rows: set[int]) -> None:
        """Lets those classes try again that fit on one of the rows now."""
        snapshot = self._table.view()
        for class_id in list(self._waiting.blocked):
            demand = self._classes.demand(class_id, snapshot)
            for row in rows:
                if all(snapshot.free[row, column] >= amount for column, amount in demand.columns):
                    self._waiting.blocked.discard(class_id)
                    break

    def _place(self, now_s: float) -> None:
        while True:
            taken = self._waiting.take(self._places, self._beyond, MAX_PLAN)
            if not taken or self._plan(taken, now_s) == 0 or len(taken) < MAX_PLAN:
                return

    def _places(self, class_id: int) -> int:
        """How many tasks of the class could find a place at most."""
        snapshot = self._table.view()
        demand = self._classes.demand(class_id, snapshot)
        if demand.missing:
            return 0
        room = np.where(self._classes.eligible(class_id, snapshot), MAX_PLAN, 0)
        for column, amount in demand.columns:
            np.minimum(room, snapshot.free[:, column] // amount, out=room)
        return int(np.maximum(room, 0).sum())

    def _plan(self, taken: list[tuple[int, int, int]], now_s: float) -> int:
        """Places what finds a place; returns how many did."""
        snapshot = self._table.view()
        tasks = [self._trace.tasks[task] for _, task, _ in taken]
        load = dominant_shares(snapshot.used.astype(np.float64), snapshot.capacity)
        times = self._forecast.response_s(tasks, load)
        release = None if times is None else self._release_s(now_s)
        batch = ForetoldBatch(
            self._classes,
            np.array([class_id for _, _, class_id in taken], np.int32),
            np.array([task.priority for task in tasks], np.int32),
            np.array([task.features.declared_s or UNKNOWN_S for task in tasks]),
            times,
            mix=self._arrivals.mix() if self._policy.strategy in TOLD_THE_MIX else None,
            release_s=release,
        )
        plan = self._placer.plan(
            snapshot, batch, self._policy, now_s, self._rng, _never, self._max_steps
        )
        self._plans += 1
        if isinstance(plan, ChosenPlan) and isinstance(self._placer, Auto) and plan.choice:
            self._placer.bandit.learn(plan.choice, -self._realised(tasks, batch, plan))
        found: list[tuple[int, int, int]] = []
        for index, row in enumerate(plan.assignment.tolist()):
            if row >= 0:
                found.append(taken[index])
                predicted_s = tasks[index].work_s if times is None else times.item(index, row)
                self._start(
                    taken[index], row, plan.devices.get(index), load.item(row), now_s, predicted_s
                )
            elif release is None:
                # Otherwise it may only have chosen to wait, and others of its class may not.
                self._waiting.blocked.add(taken[index][2])
        self._waiting.remove(found)
        return len(found)

    def _realised(
        self, tasks: Sequence[TraceTask], batch: ForetoldBatch, plan: ChosenPlan
    ) -> float:
        """J of the plan with the run times that come true."""
        snapshot = self._table.view()
        agents = self._trace.agents
        true_s = np.array([[agent.run_s(task) for agent in agents] for task in tasks])
        batch = replace(batch, response_s=true_s)
        return evaluate(snapshot, batch, plan.assignment, self._policy).J

    def _release_s(self, now_s: float) -> FloatArray | None:
        """float64 [M, R] as ForetoldBatch has it; None where nothing runs."""
        if not self._running:
            return None
        running = [placed for _, _, placed in self._running]
        predicted, start, end = np.array([(p.predicted_s, p.start_s, p.end_s) for p in running]).T
        left = self._forecast.remaining_s(predicted, end - start, now_s - start)
        if left is None:
            return None
        rows = np.array([placed.row for placed in running])
        order = np.lexsort((left, rows))
        rows, left = rows[order], left[order]
        place = np.arange(rows.shape[0]) - np.searchsorted(rows, rows)
        release = np.full((len(self._trace.agents), int(place.max()) + 1), np.inf)
        release[rows, place] = left
        return release

    def _start(
        self,
        taken: tuple[int, int, int],
        row: int,
        devices: Devices | None,
        load: float,
        now_s: float,
        predicted_s: float,
    ) -> None:
        _, task, class_id = taken
        demand_row = self._classes.demand_row(class_id, self._table)
        if devices is None:
            devices = self._table.devices_for(row, demand_row)
        self._table.take(row, demand_row, devices)
        end_s = now_s + self._trace.agents[row].run_s(self._trace.tasks[task])
        self._start_s[task], self._end_s[task], self._agent[task] = now_s, end_s, row
        devices = devices or NO_DEVICES
        placed = _Placed(task, row, demand_row, devices, load, now_s, end_s, predicted_s)
        heapq.heappush(self._running, (end_s, task, placed))


def _never() -> bool:
    return False
