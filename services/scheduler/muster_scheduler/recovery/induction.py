"""Backward induction over the states of docs/recovery.md: the least expected cost from each.

One pass solves all groups of an agent's tasks at once (last axis). Tables are cached by their
problem, whose numbers are bucketed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from muster_scheduler.recovery.costs import Ends, FloatArray, Work, ends
from muster_scheduler.recovery.posterior import range_of_second
from muster_scheduler.recovery.settings import RecoverySettings

# A table has up to 120 × 3 × 33 × 8 numbers of 4 bytes: 400 KB.
CACHED_TABLES: Final = 128
SmallArray = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Problem:
    """All that a table depends on.

    `back` and `with_work`: chances in a second of each range of ages. `works_after`: the chance
    that the r-th restart of this plan works, r = 1, 2, ...; none = not offered.
    `over[j]`: the chance that a restart is over within second j + 1, if it was not before; the last
    is 1. `pauses[r - 1]`: epochs before the r-th begins. `dead`: nothing of the agent runs.
    """

    works: tuple[Work, ...]
    silent_s: float
    free: int
    capacity: int
    dead: bool
    may_migrate: bool
    back: tuple[float, ...]
    with_work: tuple[float, ...]
    works_after: tuple[float, ...]
    over: tuple[float, ...]
    pauses: tuple[int, ...]
    settings: RecoverySettings


@dataclass(frozen=True, slots=True)
class Table:
    """Expected costs per epoch t, restarts r of this plan, seconds j of a restart, and group.

    `waits` [horizon, R + 1, G]: wait now, then the best. `restarts` [horizon, R, J, G]: restart
    number r + 1 has been under way for j s: go on now, then the best. A restart ordered now has
    j = 0. `ends`: what each end costs.
    """

    waits: FloatArray
    restarts: SmallArray
    ends: Ends

    @property
    def horizon(self) -> int:
        """The epoch at which what is held is given away."""
        return int(self.waits.shape[0])


@lru_cache(maxsize=CACHED_TABLES)
def table(problem: Problem) -> Table:
    """The solved problem; the same object for an equal problem while it is remembered."""
    return solve(problem)


def solve(problem: Problem) -> Table:
    """Backward from the horizon, where everything is given away."""
    horizon, groups = problem.settings.horizon_s, len(problem.works)
    tries, length = len(problem.works_after), _length(problem)
    costs = ends(
        problem.works,
        problem.silent_s,
        problem.free,
        problem.capacity,
        problem.dead,
        problem.settings,
    )
    worked, failed, on = _restart_chances(problem, length)
    solved = Table(
        waits=np.zeros((horizon, tries + 1, groups)),
        restarts=np.zeros((horizon, tries, length, groups), np.float32),
        ends=costs,
    )
    # The least cost at the next epoch: down [R + 1, G] and restarting [R, J + 1, G]; no restart
    # comes to the last of those seconds.
    down = np.repeat(costs.moved_dead[horizon][None], tries + 1, axis=0)
    down[0] = costs.moved[horizon]
    going = np.zeros((tries, length + 1, groups)) + costs.moved_dead[horizon]
    for t in range(horizon - 1, -1, -1):
        at = range_of_second(problem.silent_s + t)
        back, kept, empty = problem.back[at], problem.with_work[at], costs.empty[t + 1]
        best = back * empty + (1.0 - back) * down
        best[0] += back * kept * (costs.with_work[t + 1] - empty)
        solved.waits[t] = best
        if tries:
            go = worked * empty + failed * down[1:, None, :] + on * going[:, 1:, :]
            solved.restarts[t] = go
            best[:-1] = np.minimum(best[:-1], go[:, 0])
            going[:, :-1] = go
            if problem.may_migrate:
                np.minimum(going, costs.moved_dead[t], out=going)
        if problem.may_migrate:
            best[0] = np.minimum(best[0], costs.moved[t])
            np.minimum(best[1:], costs.moved_dead[t], out=best[1:])
        down = best
    return solved


@lru_cache(maxsize=CACHED_TABLES)
def seconds_held(problem: Problem) -> tuple[FloatArray, FloatArray]:
    """For how long tasks are expected to be held, shapes as the table's `waits` and `restarts`.

    Needed only where U is bounded, and as dear as the table.
    """
    solved = table(problem)
    costs, horizon = solved.ends, solved.horizon
    tries, length = len(problem.works_after), _length(problem)
    _, failed, on = _restart_chances(problem, length)
    waits = np.zeros(solved.waits.shape)
    restarts = np.zeros(solved.restarts.shape)
    down = np.zeros((tries + 1, len(problem.works)))
    going = np.zeros((tries, length + 1, len(problem.works)))
    for t in range(horizon - 1, -1, -1):
        back = problem.back[range_of_second(problem.silent_s + t)]
        waits[t] = 1.0 + (1.0 - back) * down
        restarts[t] = 1.0 + failed * down[1:, None, :] + on * going[:, 1:, :]
        cheapest = solved.waits[t].copy()
        down = waits[t].copy()
        if problem.works_after:
            sooner = solved.restarts[t, :, 0] < cheapest[:-1]
            down[:-1] = np.where(sooner, restarts[t, :, 0], down[:-1])
            cheapest[:-1] = np.minimum(cheapest[:-1], solved.restarts[t, :, 0])
            going[:, :-1] = restarts[t]
            if problem.may_migrate:
                going[:, :-1][costs.moved_dead[t] < solved.restarts[t]] = 0.0
        if problem.may_migrate:
            down[0][costs.moved[t] < cheapest[0]] = 0.0
            down[1:][costs.moved_dead[t] < cheapest[1:]] = 0.0
    return waits, restarts


def _length(problem: Problem) -> int:
    return len(problem.over) + max(problem.pauses, default=0) if problem.works_after else 0


def _restart_chances(problem: Problem, length: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    """[R, J, 1] three times: in second j + 1 of restart r it worked, it failed, it goes on."""
    tries = len(problem.works_after)
    over = np.zeros((tries, length, 1))
    for r in range(tries):
        pause = problem.pauses[r]
        over[r, pause : pause + len(problem.over), 0] = problem.over
        over[r, pause + len(problem.over) :, 0] = 1.0
    works = np.array(problem.works_after).reshape(tries, 1, 1)
    return over * works, over * (1.0 - works), 1.0 - over
