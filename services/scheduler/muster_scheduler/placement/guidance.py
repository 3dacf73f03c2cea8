"""A relaxation as a guide: its rounding is one more start, its prices say where to look first."""

from __future__ import annotations

import numpy as np

from muster_scheduler.placement.improvement import Work, feasible, pressures
from muster_scheduler.placement.problem import Problem
from muster_scheduler.placement.relaxation import MOST_ROUNDS, Relaxation, relax, rounded

# Pairs of task and agent that the relaxation may have for each second of the budget: in a program,
# and in all of J's, of which each adds a tangent. A program of 8,192 pairs took 0.06 s, so these
# are under a third of the budget, without asking a clock.
_PAIRS_PER_S = 20_000
_MOST_PAIRS = 200_000
_PAIRS_OF_ALL_PER_S = 40_000
# Exponent of the draw of a choice: half of the draws are of the first eighth.
_BIAS = 3.0
_PRICE = 1.5


def guide(work: Work) -> Relaxation | None:
    """Offer the rounding, sort the choices by what they really cost, and draw the first more often.

    Nothing happens, and None comes back, where the instance is too large for the budget or the
    policy has bounds.
    """
    from muster_scheduler.placement.compiled.annealer import (  # noqa: PLC0415
        exact_energy,
        place_greedily,
    )
    from muster_scheduler.placement.compiled.delta import new_state  # noqa: PLC0415

    problem = work.problem
    pairs = int(problem.choice_count[problem.class_row].sum())
    most = min(_MOST_PAIRS, int(_PAIRS_PER_S * work.policy.budget_s))
    if pairs > most or problem.bounded or not work.goes_on():
        return None
    start = new_state(problem, work.place)
    rounds = int(_PAIRS_OF_ALL_PER_S * work.policy.budget_s / max(1, pairs))
    relaxation = relax(problem, start.load, start.used, work.stop, min(MOST_ROUNDS, max(1, rounds)))
    if relaxation is None:
        return None
    work.bound = relaxation.bound
    work.problem = _sorted_by_cost(problem, relaxation)
    place = rounded(relaxation, problem.choice_count[problem.class_row])
    state = new_state(problem, feasible(problem, place))
    place_greedily(problem, state, work.movable)
    work.offer(state.place, exact_energy(problem, state))
    work.bias = _BIAS
    # Above what room is worth, so that staying within it pays in the end.
    work.price = _PRICE * relaxation.price if relaxation.price > 0.0 else -1.0
    return relaxation


def _sorted_by_cost(problem: Problem, relaxation: Relaxation) -> Problem:
    order = relaxation.reduced.argsort(axis=1, kind="stable").astype(np.int32)
    counts = problem.choice_count[problem.class_row]
    no_price = not relaxation.pressure.any()
    return problem._replace(
        class_row=np.arange(len(counts), dtype=np.int32),
        allowed=np.ascontiguousarray(problem.allowed[problem.class_row]),
        choices=np.ascontiguousarray(order[:, : max(1, int(counts.max()))]),
        choice_count=counts.copy(),
        pressure=pressures(problem.pressure if no_price else relaxation.pressure),
    )
