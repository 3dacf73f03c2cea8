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

from muster_scheduler.recovery.costs import (
    MAX_WAIT_S,
    NOTHING,
    Ends,
    FloatArray,
    Price,
    Work,
    away_shares,
    ends,
    priced,
)
from muster_scheduler.recovery.posterior import range_of_second
from muster_scheduler.recovery.settings import RecoverySettings

# A table has up to 120 × 3 × 33 × 8 numbers of 4 bytes: 400 KB.
CACHED_TABLES: Final = 128
SmallArray = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Problem:
    """All that a table depends on.

    `back` and `with_work`: chances in a second of each range of ages; `back_later`: once a restart
    was tried, which ended what might have mended. `works_after`: the chance
    that the r-th restart of this plan works, r = 1, 2, ...; none = not offered.
    `over[j]`: the chance that a restart is over within second j + 1, if it was not before; the last
    is 1. `pauses[r - 1]`: epochs before the r-th begins. `dead`: nothing of the agent runs.
    `later_s`: once the plan's restarts are used up, until a further one of an agent that holds
    nothing has worked.
    """

    works: tuple[Work, ...]
    silent_s: float
    free: int
    capacity: int
    dead: bool
    may_migrate: bool
    back: tuple[float, ...]
    back_later: tuple[float, ...]
    with_work: tuple[float, ...]
    works_after: tuple[float, ...]
    over: tuple[float, ...]
    pauses: tuple[int, ...]
    settings: RecoverySettings
    price: Price = NOTHING
    later_s: float = MAX_WAIT_S


@dataclass(frozen=True, slots=True)
class Table:
    """Expected costs per epoch t, restarts r of this plan, seconds j of a restart, and group.

    `waits` [horizon, R + 1, G]: wait now, then the best. `restarts` [horizon, R, J, G]: restart
    number r + 1 has been under way for j s: go on now, then the best. A restart ordered now has
    j = 0. `ends`: what each end costs the tasks, `priced`: and the others until then. `away` and
    `shares`: for how long an agent stays away that holds nothing, and what a second of it costs
    [G]; where that is nothing, `away` is not counted and 0.
    """

    waits: FloatArray
    restarts: SmallArray
    ends: Ends
    priced: Ends
    away: Away
    shares: FloatArray

    @property
    def horizon(self) -> int:
        """The epoch at which what is held is given away."""
        return int(self.waits.shape[0])

    def moves(self, t: int) -> FloatArray:
        """[R + 1, G]: what giving away costs at epoch t, while nobody restarts the agent."""
        given: FloatArray = _moves(self, slice(t, t + 1))[0]
        return given

    def moves_restarting(self, t: int) -> FloatArray:
        """[R, J + 1, G]: the same, while restart r + 1 has been under way for j s."""
        given: FloatArray = _moves_restarting(self, slice(t, t + 1))[0]
        return given


@dataclass(frozen=True, slots=True)
class Away:
    """Expected seconds until an agent is back that holds nothing, cared for in the best way.

    `down` [horizon + 1, R + 1], `going` [horizon + 1, R, J + 1]: by epoch, restarts of this plan,
    seconds of the present one; `waiting_s`: now, when this second is waited. At most MAX_WAIT_S
    beyond the horizon.
    """

    down: FloatArray
    going: FloatArray
    waiting_s: float


@lru_cache(maxsize=CACHED_TABLES)
def table(problem: Problem) -> Table:
    """The solved problem; the same object for an equal problem while it is remembered."""
    return solve(problem)


def solve(problem: Problem) -> Table:
    """Backward from the horizon, where everything is given away."""
    horizon, groups = problem.settings.horizon_s, len(problem.works)
    tries, length = len(problem.works_after), _length(problem)
    own = ends(
        problem.works,
        problem.silent_s,
        problem.free,
        problem.capacity,
        problem.dead,
        problem.settings,
    )
    costs = priced(own, problem.works, problem.silent_s, problem.price, problem.settings)
    backs, (worked, failed, on) = _backs(problem), _restart_chances(problem, length)
    solved = Table(
        waits=np.zeros((horizon, tries + 1, groups)),
        restarts=np.zeros((horizon, tries, length, groups), np.float32),
        ends=own,
        priced=costs,
        away=seconds_away(problem) if problem.price.away else _uncounted(horizon, tries, length),
        shares=away_shares(problem.works, problem.price),
    )
    # The least cost at the next epoch: down [R + 1, G] and restarting [R, J + 1, G]; no restart
    # comes to the last of those seconds.
    moves, moves_restarting = _moves(solved, slice(None)), _moves_restarting(solved, slice(None))
    down, going = moves[horizon], moves_restarting[horizon].copy()
    for t in range(horizon - 1, -1, -1):
        kept = problem.with_work[range_of_second(problem.silent_s + t)]
        back, empty = backs[t][:, None], costs.empty[t + 1]
        best = back * empty + (1.0 - back) * down
        best[0] += back[0] * kept * (costs.with_work[t + 1] - empty)
        solved.waits[t] = best
        if tries:
            go = worked * empty + failed * down[1:, None, :] + on * going[:, 1:, :]
            solved.restarts[t] = go
            best[:-1] = np.minimum(best[:-1], go[:, 0])
            going[:, :-1] = go
            if problem.may_migrate:
                np.minimum(going, moves_restarting[t], out=going)
        if problem.may_migrate:
            np.minimum(best, moves[t], out=best)
        down = best
    return solved


def _moves(solved: Table, epochs: slice) -> FloatArray:
    """[epochs, R + 1, G]: what giving away costs, while nobody restarts the agent."""
    dead = solved.priced.moved_dead[epochs]
    given: FloatArray = dead[:, None, :] + solved.away.down[epochs][..., None] * solved.shares
    given[:, 0] += solved.priced.moved[epochs] - dead
    return given


def _moves_restarting(solved: Table, epochs: slice) -> FloatArray:
    """[epochs, R, J + 1, G]: the same, while it is restarted."""
    dead = solved.priced.moved_dead[epochs][:, None, None, :]
    given: FloatArray = dead + solved.away.going[epochs][..., None] * solved.shares
    return given


def _uncounted(horizon: int, tries: int, length: int) -> Away:
    going = np.broadcast_to(np.float64(0.0), (horizon + 1, tries, length + 1))
    return Away(np.zeros((horizon + 1, tries + 1)), going, 0.0)


@lru_cache(maxsize=CACHED_TABLES)
def seconds_away(problem: Problem) -> Away:
    """Backward from the horizon: an agent that holds nothing waits or is restarted."""
    horizon, tries, length = problem.settings.horizon_s, len(problem.works_after), _length(problem)
    backs, (_, failed, on) = _backs(problem), _restart_chances(problem, length)
    failed, on = failed[..., 0], on[..., 0]
    beyond_s = np.minimum(1.0 / np.maximum(backs[horizon], 1e-9), problem.later_s)
    down = np.repeat(beyond_s[None], horizon + 1, axis=0)
    going = np.zeros((horizon + 1, tries, length + 1)) + beyond_s[1:, None]
    waiting, stay = beyond_s, 1.0 - backs
    for t in range(horizon - 1, -1, -1):
        waiting = 1.0 + stay[t] * down[t + 1]
        down[t] = waiting
        down[t, -1] = min(waiting[-1], problem.later_s)
        if tries:
            going[t, :, :-1] = 1.0 + failed * down[t + 1, 1:, None] + on * going[t + 1][:, 1:]
            down[t, :-1] = np.minimum(down[t, :-1], going[t, :, 0])
    return Away(down, going, float(waiting[0]))


@lru_cache(maxsize=CACHED_TABLES)
def seconds_held(problem: Problem) -> tuple[FloatArray, FloatArray]:
    """For how long tasks are expected to be held, shapes as the table's `waits` and `restarts`.

    Needed only where U is bounded, and as dear as the table.
    """
    solved = table(problem)
    horizon = solved.horizon
    tries, length = len(problem.works_after), _length(problem)
    backs, (_, failed, on) = _backs(problem), _restart_chances(problem, length)
    waits = np.zeros(solved.waits.shape)
    restarts = np.zeros(solved.restarts.shape)
    down = np.zeros((tries + 1, len(problem.works)))
    going = np.zeros((tries, length + 1, len(problem.works)))
    for t in range(horizon - 1, -1, -1):
        waits[t] = 1.0 + (1.0 - backs[t][:, None]) * down
        restarts[t] = 1.0 + failed * down[1:, None, :] + on * going[:, 1:, :]
        cheapest = solved.waits[t].copy()
        down = waits[t].copy()
        if problem.works_after:
            sooner = solved.restarts[t, :, 0] < cheapest[:-1]
            down[:-1] = np.where(sooner, restarts[t, :, 0], down[:-1])
            cheapest[:-1] = np.minimum(cheapest[:-1], solved.restarts[t, :, 0])
            going[:, :-1] = restarts[t]
            if problem.may_migrate:
                sooner_given = solved.moves_restarting(t)[:, :-1] < solved.restarts[t]
                going[:, :-1][sooner_given] = 0.0
        if problem.may_migrate:
            down[solved.moves(t) < cheapest] = 0.0
    return waits, restarts


def _backs(problem: Problem) -> FloatArray:
    """[horizon + 1, R + 1]: the chance to come back by itself in the second after each epoch."""
    seconds = range(problem.settings.horizon_s + 1)
    ranges = [range_of_second(problem.silent_s + t) for t in seconds]
    untried, tried = np.array(problem.back)[ranges], np.array(problem.back_later)[ranges]
    return np.stack([untried, *[tried] * len(problem.works_after)], axis=1)


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
