"""The Pareto front of T and B by NSGA-II (Deb et al. 2002), for who would rather choose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from muster_scheduler.placement.breeding import crossed, repaired
from muster_scheduler.placement.classes import TaskBatch
from muster_scheduler.placement.improvement import Work, begin, feasible, start_of, typical_rise
from muster_scheduler.placement.objective import evaluate
from muster_scheduler.placement.plan import Policy
from muster_scheduler.placement.problem import Floats, Ints32, frame
from muster_scheduler.placement.snapshot import BoolArray, Snapshot

_MEMBERS = 64
_MUTATION = 0.02
# Children that descend; the others are near a parent, cost a hundredth, and have some of at most
# so many tasks elsewhere, a part of them after crossing.
_DESCENDING = 0.2
_SHAKEN = 3
_CROSSED = 0.5
_HOT_QUANTILE = 0.1


@dataclass(frozen=True, slots=True, eq=False)
class FrontPoint:
    """A plan that no other found is better than in both T and B, with as much work placed."""

    assignment: Ints32
    T: float
    U: float
    B: float


@dataclass(frozen=True, slots=True, eq=False)
class _Point:
    """goals: (unplaced weight, T, B)."""

    place: Ints32
    goals: tuple[float, float, float]


def pareto_front(
    snapshot: Snapshot,
    tasks: TaskBatch,
    policy: Policy,
    now_s: float,
    rng: Generator,
    stop: Callable[[], bool],
    max_steps: int,
) -> list[FrontPoint]:
    """By growing T, so by falling B; at least one point. Arguments as of `Strategy.plan`.

    Among all with the least unplaced weight that was found. A step makes one child.
    """
    policy = replace(policy, objective="J", bounds={})
    framed = frame(snapshot, tasks, policy)
    start = start_of(snapshot, tasks, policy, now_s, rng, stop, framed)
    if framed is None:
        return [_front_point(snapshot, tasks, policy, start)]
    work = begin(framed, policy, start, rng, stop, max_steps)
    points = [_point(work, work.place), _point(work, framed.from_rows(start))]
    if len(work.movable):
        work.rise = typical_rise(work, work.place, _HOT_QUANTILE)
    while len(work.movable) and work.goes_on():
        mother, father = (points[k].place for k in rng.integers(len(points), size=2))
        child = _descended if rng.random() < _DESCENDING else _shaken
        points.append(_point(work, child(work, mother, father)))
        if len(points) >= 2 * _MEMBERS:
            points = _survivors(points)
    least = min(point.goals[0] for point in points)
    # Once more in full: sums of other orders differ in the last digits, and equals are no front.
    found = [
        _front_point(snapshot, tasks, policy, framed.to_rows(point.place))
        for point in points
        if point.goals[0] == least
    ]
    goals = np.array([(point.T, point.B) for point in found])
    first = np.flatnonzero(_ranks(goals) == 0)
    _, unique = np.unique(goals[first], axis=0, return_index=True)
    return [found[first[k]] for k in unique.tolist()]


def _descended(work: Work, mother: Ints32, father: Ints32) -> Ints32:
    """Repaired and improved for a random trade of T against B: these find the front's hull."""
    problem = work.problem
    trade = float(work.rng.random())
    reference = max(float(problem.time.min(axis=1).sum()), 1e-300)
    leaning = problem._replace(
        k_time=(1.0 - trade) / reference, k_used=0.0, k_unplaced=0.0, k_spread=trade
    )
    return repaired(work, crossed(work, mother, father, _MUTATION), leaning).place


def _shaken(work: Work, mother: Ints32, father: Ints32) -> Ints32:
    """Some tasks at random elsewhere: no trade leads to what lies behind the hull."""
    rng, problem = work.rng, work.problem
    place = crossed(work, mother, father, 0.0) if rng.random() < _CROSSED else mother.copy()
    for i in rng.choice(work.movable, 1 + int(rng.integers(_SHAKEN))).tolist():
        row = problem.class_row[i]
        place[i] = problem.choices[row, rng.integers(problem.choice_count[row])]
    return feasible(problem, place)


def _point(work: Work, place: Ints32) -> _Point:
    from muster_scheduler.placement.compiled.delta import (  # noqa: PLC0415 - numba is heavy
        imbalance,
        new_state,
        sums_of,
    )

    sums = sums_of(new_state(work.problem, place))
    goals = float(sums.weight), float(sums.time), float(imbalance(work.problem, sums))
    return _Point(place.astype(np.int32), goals)


def _front_point(snapshot: Snapshot, tasks: TaskBatch, policy: Policy, rows: Ints32) -> FrontPoint:
    score = evaluate(snapshot, tasks, rows, policy)
    return FrontPoint(rows, score.T, score.U, score.B)


def _survivors(points: list[_Point]) -> list[_Point]:
    """The least unplaced first, then by rank, then the loneliest."""
    goals = np.array([point.goals for point in points])
    ranks, crowding = np.zeros(len(points), np.int64), np.zeros(len(points))
    for weight in np.unique(goals[:, 0]):
        same = np.flatnonzero(goals[:, 0] == weight)
        ranks[same] = _ranks(goals[same, 1:])
        for rank in np.unique(ranks[same]):
            layer = same[ranks[same] == rank]
            crowding[layer] = _loneliness(goals[layer, 1:])
    order = np.lexsort((-crowding, ranks, goals[:, 0]))
    return [points[k] for k in order[:_MEMBERS].tolist()]


def _ranks(goals: Floats) -> NDArray[np.int64]:
    """int64 [P], 0 for points that none dominates, 1 for those that only these do, and so on."""
    no_worse: BoolArray = np.all(goals[:, None, :] <= goals[None, :, :], axis=2)
    dominates = no_worse & ~no_worse.T
    ranks = np.full(len(goals), -1, np.int64)
    rank = 0
    while (ranks < 0).any():
        left = ranks < 0
        first = left & ~np.any(dominates[left], axis=0)
        ranks[first] = rank
        rank += 1
    return ranks


def _loneliness(goals: Floats) -> Floats:
    """Crowding distance; infinite at the ends."""
    distance = np.zeros(len(goals))
    for k in range(goals.shape[1]):
        order = np.argsort(goals[:, k], kind="stable")
        span = goals[order[-1], k] - goals[order[0], k]
        distance[order[[0, -1]]] = np.inf
        if span > 0.0 and len(goals) > 2:
            distance[order[1:-1]] += (goals[order[2:], k] - goals[order[:-2], k]) / span
    return distance
