"""Making one feasible plan out of others: what the population strategies share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from muster_scheduler.placement.improvement import DRAWS_PER_STEP, Work, orders, typical_rise
from muster_scheduler.placement.problem import Ints32, Problem

# Temperatures, as exponents of ten of what a worsening change costs, and how far they fall.
_HEAT = (-2.5, -0.5)
_COLD = 0.03
_HOT_QUANTILE = 0.1
# A makespan falls by few, long descents rather than by many short ones: so many steps for
# each second of the budget.
_STEPS_PER_S = 4
_MOST_STEPS = 40


@dataclass(frozen=True, slots=True, eq=False)
class Member:
    """A feasible plan (int32 [N], agents by index) and its energy."""

    place: Ints32
    energy: float


def repaired(work: Work, place: Ints32, problem: Problem | None = None) -> Member:
    """A feasible plan near `place`: overload dropped, gaps filled greedily, then a cool descent.

    A descent at a low temperature, another for each child, ends far lower than a strict one.
    `problem` weighs T and B differently where it is given; the energy is in its terms.
    """
    from muster_scheduler.placement.compiled.annealer import (  # noqa: PLC0415 - numba is heavy
        anneal,
        drop_overload,
        exact_energy,
        place_greedily,
    )
    from muster_scheduler.placement.compiled.delta import new_state  # noqa: PLC0415

    problem = work.problem if problem is None else problem
    state = new_state(problem, place)
    order = work.rng.permutation(work.movable).astype(np.int32)
    if state.over.any():
        drop_overload(problem, state, order)
    place_greedily(problem, state, order)
    best, energy = state.place.copy(), exact_energy(problem, state)
    hot = work.rise * 10.0 ** work.rng.uniform(*_HEAT)
    steps = _steps(work)
    for step in range(steps):
        if step and not work.goes_on():
            break
        energy = anneal(
            problem,
            state,
            best,
            energy,
            work.movable,
            work.words,
            max(DRAWS_PER_STEP, 8 * len(work.place)),
            hot * _COLD ** (step / steps),
            hot * _COLD ** ((step + 1) / steps),
            -1.0,
            work.bias,
        )
    return Member(best, float(energy))


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

    work.rise = typical_rise(work, work.place, _HOT_QUANTILE)
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


def _steps(work: Work) -> int:
    """Of a descent."""
    if work.problem.k_longest <= 0.0:
        return 1
    return int(min(max(1.0, _STEPS_PER_S * work.policy.budget_s), _MOST_STEPS))
