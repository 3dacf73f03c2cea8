"""Making one feasible plan out of others: what the population strategies share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from muster_scheduler.placement.improvement import DRAWS_PER_STEP, Work, orders
from muster_scheduler.placement.problem import Ints32, Problem


@dataclass(frozen=True, slots=True, eq=False)
class Member:
    """A feasible plan (int32 [N], agents by index) and its energy."""

    place: Ints32
    energy: float


def repaired(work: Work, place: Ints32, problem: Problem | None = None) -> Member:
    """A feasible plan near `place`: overload dropped, gaps filled greedily, then a descent.

    `problem` weighs T and B differently where it is given; the energy is in its terms.
    """
    from muster_scheduler.placement.compiled.annealer import (  # noqa: PLC0415 - numba is heavy
        descend,
        drop_overload,
        place_greedily,
    )
    from muster_scheduler.placement.compiled.delta import new_state  # noqa: PLC0415

    problem = work.problem if problem is None else problem
    state = new_state(problem, place)
    order = work.rng.permutation(work.movable).astype(np.int32)
    if state.over.any():
        drop_overload(problem, state, order)
    place_greedily(problem, state, order)
    energy = descend(problem, state, work.movable, work.words, _draws(work), 1.0)
    return Member(state.place, float(energy))


def crossed(work: Work, mother: Ints32, father: Ints32, mutation: float) -> Ints32:
    """The mother's choice for a random part of the tasks, else the father's; some have none.

    The part differs from child to child, so that some are near one parent.
    """
    rng = work.rng
    child = np.where(rng.random(len(mother)) < rng.random(), mother, father)
    forget = work.movable[rng.random(len(work.movable)) < mutation]
    child[forget] = -1
    return child.astype(np.int32)


def founders(work: Work, count: int) -> list[Member]:
    """The best start as it is, and others that are partly built anew; at least one."""
    from muster_scheduler.placement.compiled.annealer import place_greedily  # noqa: PLC0415
    from muster_scheduler.placement.compiled.delta import new_state  # noqa: PLC0415

    members = [Member(work.place.copy(), work.energy)]
    seeds = orders(work.problem)
    while len(members) < count and work.goes_on():
        place = work.place.copy()
        if len(members) <= len(seeds):
            place[work.movable] = -1
            state = new_state(work.problem, place)
            place_greedily(work.problem, state, seeds[len(members) - 1])
            place = state.place
        else:
            share = len(members) / count
            place[work.movable[work.rng.random(len(work.movable)) < share]] = -1
        members.append(repaired(work, place))
        work.offer(members[-1].place, members[-1].energy)
    return members


def _draws(work: Work) -> int:
    return max(DRAWS_PER_STEP, 8 * len(work.place))
