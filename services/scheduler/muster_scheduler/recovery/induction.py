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
    j = 0. `ends`: what each end costs. `idle_*`: expected seconds for which the tasks are held.
    """

    waits: FloatArray
    restarts: SmallArray
    idle_waits: FloatArray
    idle_restarts: SmallArray
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
    ranges = [range_of_second(problem.silent_s + t) for t in range(horizon)]
    waits = np.zeros((horizon, tries + 1, groups))
    restarts = np.zeros((horizon, tries, length, groups), np.float32)
    idle_waits = np.zeros((horizon, tries + 1, groups))
    idle_restarts = np.zeros_like(restarts)
    # What is known at the next epoch: cost and seconds held, down [R + 1] and restarting [R, J+1].
    down = np.repeat(costs.moved_dead[None, horizon], tries + 1, axis=0)
    down[0] = costs.moved[horizon]
    going = np.repeat(costs.moved_dead[None, None, horizon], tries * (length + 1), axis=0)
    going = going.reshape(tries, length + 1, groups)
    idle_down, idle_going = np.zeros_like(down), np.zeros_like(going)
    moved_down = np.empty_like(down)
    for t in range(horizon - 1, -1, -1):
        empty = costs.empty[t + 1]
        back, kept = problem.back[ranges[t]], problem.with_work[ranges[t]]
        q_go = worked * empty + failed * down[1:, None, :] + on * going[:, 1:, :]
        i_go = 1.0 + failed * idle_down[1:, None, :] + on * idle_going[:, 1:, :]
        q_wait = back * empty + (1.0 - back) * down
        q_wait[0] += back * kept * (costs.with_work[t + 1] - empty)
        i_wait = 1.0 + (1.0 - back) * idle_down
        waits[t], idle_waits[t] = q_wait, i_wait
        restarts[t], idle_restarts[t] = q_go, i_go
        best, idle = q_wait, i_wait
        if tries:
            best, idle = q_wait.copy(), i_wait.copy()
            better = q_go[:, 0] < best[:-1]
            best[:-1] = np.where(better, q_go[:, 0], best[:-1])
            idle[:-1] = np.where(better, i_go[:, 0], idle[:-1])
        going, idle_going = np.empty_like(going), np.zeros_like(idle_going)
        going[:, :-1], idle_going[:, :-1] = q_go, i_go
        going[:, -1] = costs.moved_dead[t]
        if problem.may_migrate:
            moved_down[:] = costs.moved_dead[t]
            moved_down[0] = costs.moved[t]
            idle = np.where(moved_down < best, 0.0, idle)
            best = np.minimum(moved_down, best)
            gone = costs.moved_dead[t] < going
            idle_going[gone] = 0.0
            going = np.minimum(costs.moved_dead[t], going)
        down, idle_down = best, idle
    return Table(waits, restarts, idle_waits, idle_restarts, costs)


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
