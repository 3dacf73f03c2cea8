"""What each end of an outage costs, in task-seconds: docs/recovery.md, "Costs"."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from muster_scheduler.recovery.settings import RecoverySettings

FloatArray = NDArray[np.float64]
# Nobody knows what comes after this long; a longer wait for a slot is counted as this.
MAX_WAIT_S: Final = 600.0


@dataclass(frozen=True, slots=True)
class Work:
    """A group of tasks as the table sees it: bucketed, without names."""

    tasks: int
    age_s: float
    remaining_s: float
    stop: bool


@dataclass(frozen=True, slots=True)
class Ends:
    """Costs of the ends per epoch and group, float64 [horizon + 1, groups].

    `with_work` and `empty`: the agent is back. `moved` and `moved_dead`: given away, before and
    after a restart has ended whatever still ran.
    """

    with_work: FloatArray
    empty: FloatArray
    moved: FloatArray
    moved_dead: FloatArray


def ends(
    works: tuple[Work, ...],
    silent_s: float,
    free: int,
    capacity: int,
    dead: bool,
    settings: RecoverySettings,
) -> Ends:
    """The costs at each epoch, counted from when the agent was last heard.

    `dead`: nothing of the agent runs any more, that is certain. `free` of `capacity` slots
    elsewhere can take the work; the groups take them in their order.
    """
    count = np.array([work.tasks for work in works], np.float64)
    age = np.array([work.age_s for work in works], np.float64)
    remaining = np.array([max(work.remaining_s, 1e-3) for work in works], np.float64)
    stop = np.array([work.stop for work in works], np.bool_)
    away = silent_s + np.arange(settings.horizon_s + 1.0)[:, None]
    late = away + remaining * np.expm1(-away / remaining)
    empty = count * (away + age)
    alive = np.where(stop & (away >= settings.stop_ends_s), empty, count * late)
    moved_dead = empty + count * settings.move_s + loads(works, free, capacity, settings)
    fence = 0.0 if dead else np.where(stop, np.maximum(0.0, settings.fence_s - away), 0.0)
    return Ends(
        with_work=alive, empty=empty, moved=moved_dead + count * fence, moved_dead=moved_dead
    )


@dataclass(frozen=True, slots=True)
class Price:
    """What the others lose, task-seconds: docs/recovery.md, "What the others lose".

    `slot`: by one second of one slot (w). `away`: by one second without the agent (a), at least
    `slot` for each of its tasks.
    """

    slot: float = 0.0
    away: float = 0.0


NOTHING: Final = Price()


def worth_of_slot(waiting: int, busy: int, slots: int, settings: RecoverySettings) -> float:
    """Task-seconds that one second of one slot more or less makes, of a cluster of `slots` with
    `busy` in use, where `waiting` tasks find none free."""
    slots = max(1, slots)
    slower = _slowed(busy + 1, slots, settings) - _slowed(busy, slots, settings)
    return waiting / slots + slower


def priced(
    own: Ends, works: tuple[Work, ...], silent_s: float, cost: Price, settings: RecoverySettings
) -> Ends:
    """The ends with what the others lose until then.

    What they lose after an agent is given up, for as long as it stays away, is not in it.
    """
    count = np.array([work.tasks for work in works], np.float64)
    age = np.array([work.age_s for work in works], np.float64)
    remaining = np.array([max(work.remaining_s, 1e-3) for work in works], np.float64)
    stop = np.array([work.stop for work in works], np.bool_)
    away = silent_s + np.arange(settings.horizon_s + 1.0)[:, None]
    lost = away * away_shares(works, cost)
    again = lost + cost.slot * count * age
    went_on = lost + cost.slot * count * remaining * np.expm1(-away / remaining)
    return Ends(
        with_work=own.with_work + np.where(stop & (away >= settings.stop_ends_s), again, went_on),
        empty=own.empty + again,
        moved=own.moved + again,
        moved_dead=own.moved_dead + again,
    )


def away_shares(works: tuple[Work, ...], cost: Price) -> FloatArray:
    """float64 [groups]: what a second of the agent's absence costs, divided by tasks."""
    count = np.array([work.tasks for work in works], np.float64)
    return cost.away * count / max(1.0, float(count.sum()))


def loads(
    works: tuple[Work, ...], free: int, capacity: int, settings: RecoverySettings
) -> FloatArray:
    """float64 [groups]: what taking each group costs, after those before it: slower agents, and
    waits for a slot."""
    costs = np.zeros(len(works))
    taken = 0
    for index, work in enumerate(works):
        if capacity <= 0:
            costs[index] = work.tasks * MAX_WAIT_S
            continue
        busy = max(0, capacity - free) + taken
        after = _slowed(busy + work.tasks, capacity, settings) - _slowed(busy, capacity, settings)
        # The i-th task beyond the free slots waits i · m / c, at most MAX_WAIT_S.
        first, last = max(0, taken - free), max(0, taken + work.tasks - free)
        each_s = work.remaining_s / capacity
        wait = _waits(last, each_s) - _waits(first, each_s)
        costs[index] = work.remaining_s * after + wait
        taken += work.tasks
    return costs


def _slowed(busy: int, capacity: int, settings: RecoverySettings) -> float:
    """Task-seconds lost per second by so many tasks on so many slots."""
    over = max(0.0, busy / capacity - settings.knee) / (1.0 - settings.knee)
    return busy * settings.slowdown * over


def _waits(beyond: int, each_s: float) -> float:
    """Σ min(i · each_s, MAX_WAIT_S) for i = 1 … beyond."""
    if each_s <= 0 or beyond <= 0:
        return 0.0
    within = int(min(beyond, MAX_WAIT_S / each_s))
    return each_s * within * (within + 1) / 2 + MAX_WAIT_S * (beyond - within)
