"""What the improving strategies share: the start that none of them falls below, and the end."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.random import Generator

from muster_scheduler.placement.classes import TaskBatch
from muster_scheduler.placement.devices import Devices
from muster_scheduler.placement.explain import LazyReasons
from muster_scheduler.placement.objective import Score, evaluate
from muster_scheduler.placement.plan import Plan, Policy
from muster_scheduler.placement.problem import Floats, Frame, Ints32, Problem, frame
from muster_scheduler.placement.snapshot import IntArray, Snapshot
from muster_scheduler.placement.strategy import get, names

if TYPE_CHECKING:
    from muster_scheduler.placement.compiled.random_numbers import Words

# The first is the one that every plan owes; the others are tried while there is time.
STARTS = ("worst_fit", "best_fit", "first_fit", "greedy", "dot_product", "fragmentation", "quota")
# Draws between two questions to `stop`: about a millisecond.
DRAWS_PER_STEP = 8192
_SAMPLED_RISES = 400
_LEAST_PRESSURE = 1e-3


@dataclass(slots=True, eq=False)
class Work:
    """One improvement under way.

    place    int32 [N], the best plan so far, agents by index, -1 unplaced; always feasible
    energy   its energy, in which plans are compared
    movable  int32, the tasks that may be moved; what else a plan must know of the rest is not
             in the problem
    bound    of the policy's objective, where one is known
    bias     above 1 where the choices are sorted: how much more often the first are drawn
    rise     what a change that worsens typically costs, once a strategy has asked
    price    of a whole agent's room beyond its room, in energy; below 0 where it is not known
    """

    problem: Problem
    policy: Policy
    place: Ints32
    energy: float
    movable: Ints32
    words: Words
    rng: Generator
    stop: Callable[[], bool]
    max_steps: int
    bound: float | None = None
    steps: int = 0
    bias: float = 1.0
    rise: float = 0.0
    price: float = -1.0

    def goes_on(self) -> bool:
        """Count a step; False once there is no more time for one."""
        if self.steps >= self.max_steps or self.stop():
            return False
        self.steps += 1
        return True

    def offer(self, place: Ints32, energy: float) -> bool:
        """Take over a feasible plan if it is better."""
        if not energy < self.energy:
            return False
        self.place, self.energy = place.astype(np.int32), energy
        return True


class ImprovingStrategy(ABC):
    """A strategy that only has to improve: building a start and comparing with it is done here."""

    name: ClassVar[str]

    @abstractmethod
    def improve(self, work: Work) -> None:
        """Better `work.place` and `work.energy` until `work.goes_on()` says no."""

    def plan(
        self,
        snapshot: Snapshot,
        tasks: TaskBatch,
        policy: Policy,
        now_s: float,
        rng: Generator,
        stop: Callable[[], bool],
        max_steps: int,
    ) -> Plan:
        """See Strategy. Never worse than the best of STARTS that there was time to build."""
        assert snapshot.is_current(), "the agent table changed after this view was taken"
        framed = frame(snapshot, tasks, policy)
        start, score, devices = _best_start(snapshot, tasks, policy, now_s, rng, stop, framed)
        if framed is None or stop():
            return _plan(self.name, snapshot, tasks, policy, start, score, devices)
        work = begin(framed, policy, start, rng, stop, max_steps)
        if len(work.movable) and math.isfinite(work.energy):
            self.improve(work)
        found = framed.to_rows(work.place)
        improved = evaluate(snapshot, tasks, found, policy)
        if improved.order(policy) < score.order(policy):
            start, score = found, improved
        # Bounds are of plans that place every task.
        bound = work.bound if not score.unplaced_weight else None
        return _plan(self.name, snapshot, tasks, policy, start, score, devices, bound)


def begin(
    framed: Frame,
    policy: Policy,
    start: Ints32,
    rng: Generator,
    stop: Callable[[], bool],
    max_steps: int,
) -> Work:
    """The better of `start` (rows) and our own greedy plan, ready to be improved."""
    from muster_scheduler.placement.compiled.annealer import (  # noqa: PLC0415 - numba is heavy
        exact_energy,
        place_greedily,
    )
    from muster_scheduler.placement.compiled.delta import new_state  # noqa: PLC0415
    from muster_scheduler.placement.compiled.random_numbers import words_from  # noqa: PLC0415

    problem = framed.problem
    movable = np.flatnonzero(problem.choice_count[problem.class_row] > 0).astype(np.int32)
    work = Work(
        problem,
        policy,
        framed.from_rows(start),
        math.inf,
        movable,
        words_from(rng),
        rng,
        stop,
        max_steps,
    )
    state = new_state(problem, feasible(problem, work.place))
    work.place = state.place.copy()
    work.energy = exact_energy(problem, state)
    fixed = work.place.copy()
    fixed[movable] = -1
    for order in orders(problem):
        if stop():
            break
        state = new_state(problem, fixed)
        place_greedily(problem, state, order)
        work.offer(state.place, exact_energy(problem, state))
    return work


def feasible(problem: Problem, place: Ints32) -> Ints32:
    """`place` without what is not allowed or beyond the room, the last tasks of an agent first."""
    from muster_scheduler.placement.compiled.annealer import drop_overload  # noqa: PLC0415
    from muster_scheduler.placement.compiled.delta import new_state  # noqa: PLC0415

    allowed = problem.allowed[problem.class_row, np.maximum(place, 0)]
    state = new_state(problem, np.where(allowed, place, np.int32(-1)).astype(np.int32))
    if state.over.any():
        drop_overload(problem, state, np.arange(len(place), dtype=np.int32)[::-1].copy())
    return state.place


def orders(problem: Problem) -> list[Ints32]:
    """Orders in which to place greedily: the longest and the largest first, and by regret."""
    time = problem.time
    shortest = time.min(axis=1)
    size = problem.unplaced_share[problem.demand_row]
    found = [_descending(shortest), _descending(size)]
    if time.shape[1] > 1:
        second = np.partition(time, 1, axis=1)[:, 1]
        found.append(_descending(second - shortest))
    return found


def typical_rise(work: Work, place: Ints32, share: float) -> float:
    """The quantile of what a change that worsens costs, as a temperature to begin with; > 0."""
    from muster_scheduler.placement.compiled.annealer import typical_rises  # noqa: PLC0415
    from muster_scheduler.placement.compiled.delta import new_state  # noqa: PLC0415

    rises = np.zeros(_SAMPLED_RISES)
    state = new_state(work.problem, place)
    count = typical_rises(work.problem, state, work.movable, work.words, rises)
    if not count:
        return 1e-9 * max(abs(work.energy), 1e-9)
    return max(float(np.quantile(rises[:count], share)), 1e-300)


def pressures(price: Floats) -> Floats:
    """float64 [M], sum 1, in the ratios of `price` (≥ 0) but none below a share of the greatest."""
    floored = np.maximum(price, _LEAST_PRESSURE * price.max())
    shares: Floats = floored / floored.sum()
    return shares


def learn_pressures(work: Work) -> None:
    """Set the pressures to what the best plan shows them to be.

    Where the norm is least, a second on agent j costs pressure_j busy_j^(p-1): with that as its
    pressure the agents can be equally busy. Repeated, this tends to the prices of the relaxation.
    """
    problem = work.problem
    if problem.k_longest <= 0.0:
        return
    placed = work.place >= 0
    time = problem.time[placed, work.place[placed] * problem.time_step]
    busy = np.bincount(work.place[placed], time, minlength=len(problem.capacity))
    if busy.max() > 0.0:
        steep = (busy / busy.max()) ** (2**problem.doublings - 1)
        work.problem = problem._replace(pressure=pressures(problem.pressure * np.sqrt(steep)))


def _descending(key: Floats) -> Ints32:
    return np.argsort(-key, kind="stable").astype(np.int32)


def start_of(
    snapshot: Snapshot,
    tasks: TaskBatch,
    policy: Policy,
    now_s: float,
    rng: Generator,
    stop: Callable[[], bool],
    framed: Frame | None,
) -> Ints32:
    """int32 [N], rows: the best plan of STARTS."""
    return _best_start(snapshot, tasks, policy, now_s, rng, stop, framed)[0]


def _best_start(
    snapshot: Snapshot,
    tasks: TaskBatch,
    policy: Policy,
    now_s: float,
    rng: Generator,
    stop: Callable[[], bool],
    framed: Frame | None,
) -> tuple[Ints32, Score, Mapping[int, Devices]]:
    best: tuple[Ints32, Score, Mapping[int, Devices]] | None = None
    known = names()
    for position, name in enumerate(STARTS):
        if name not in known or (position and stop()):
            continue
        patience = stop if position else _never
        plan = get(name).plan(snapshot, tasks, policy, now_s, rng, patience, 0)
        assignment = plan.assignment
        if framed is not None and (
            tasks.demand_by_agent is not None or tasks.response_s is not None
        ):
            assignment = framed.to_rows(feasible(framed.problem, framed.from_rows(assignment)))
        score = evaluate(snapshot, tasks, assignment, policy)
        if best is None or score.order(policy) < best[1].order(policy):
            best = assignment, score, plan.devices
        if framed is None and not len(tasks):
            break
    assert best is not None, "there is always the first strategy"
    return best


def _never() -> bool:
    return False


def _plan(
    name: str,
    snapshot: Snapshot,
    tasks: TaskBatch,
    policy: Policy,
    assignment: Ints32,
    score: Score,
    devices: Mapping[int, Devices],
    bound: float | None = None,
) -> Plan:
    """`devices` of the start hold for every plan: their tasks are never moved."""
    class_of = {i: int(tasks.class_id[i]) for i in np.flatnonzero(assignment < 0).tolist()}
    reasons = LazyReasons(
        snapshot, tasks.classes, class_of, lambda: _free_after(snapshot, tasks, assignment)
    )
    plan = Plan(
        assignment,
        reasons,
        name,
        len(tasks),
        lower_bound=bound,
        devices=_placed(devices, assignment),
    )
    if not policy.measured:
        return plan
    return replace(plan, T=score.T, U=score.U, B=score.B, J=score.J)


def _placed(devices: Mapping[int, Devices], assignment: Ints32) -> Mapping[int, Devices]:
    return {i: found for i, found in devices.items() if assignment[i] >= 0}


def _free_after(snapshot: Snapshot, tasks: TaskBatch, assignment: Ints32) -> IntArray:
    free = snapshot.free.copy(order="K")
    for i in np.flatnonzero(assignment >= 0).tolist():
        row = assignment[i]
        if tasks.demand_by_agent is not None:
            free[row] -= tasks.demand_by_agent[i, row]
        else:
            free[row] -= np.array(tasks.classes.demand(int(tasks.class_id[i]), snapshot).amounts)
    return free
