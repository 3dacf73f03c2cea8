"""Search guided by a relaxation: the strategy that is meant to win.

The split placement says what each choice really costs once agents are scarce. Its rounding is the
start of short, cool annealing rounds that draw cheap choices more often; then blocks of a few
agents are solved anew.
"""

from __future__ import annotations

import math

import numpy as np

from muster_scheduler.placement.annealing import anneal_round
from muster_scheduler.placement.improvement import (
    ImprovingStrategy,
    Work,
    feasible,
    pressures,
    typical_rise,
)
from muster_scheduler.placement.problem import Problem
from muster_scheduler.placement.relaxation import Relaxation, relax, rounded
from muster_scheduler.placement.strategy import register

# Pairs of task and agent that the relaxation may have for each second of the budget: measured, it
# takes a hundredth of the budget then.
_PAIRS_PER_S = 20_000
_MOST_PAIRS = 200_000
_RELAXATION_SHARE = 0.3
_FIRST_ROUND = 16
_GROWTH = 1.4
_HOT_QUANTILE = 0.1
_COLD = 3e-3
_HEATS = (1.0, 0.3, 0.1, 0.03)
# Exponent of the draw of a choice: half of the draws are of the first eighth.
_BIAS = 3.0


@register("search")
class Search(ImprovingStrategy):
    """Relaxation, rounding, guided annealing."""

    name = "search"

    def improve(self, work: Work) -> None:
        bias = _guide(work)
        rise = typical_rise(work, work.place, _HOT_QUANTILE)
        length = float(_FIRST_ROUND)
        found = [math.inf] * len(_HEATS)
        turn = 0
        while True:
            if turn < len(_HEATS):
                heat = turn
            else:
                heat = int(np.argmin(found)) if turn % 3 else int(work.rng.integers(len(_HEATS)))
            hot = rise * _HEATS[heat]
            energy = anneal_round(work, work.place, hot, int(length), _COLD, bias)
            if energy is None:
                return
            found[heat] = energy if turn < len(_HEATS) else min(found[heat], energy)
            turn += 1
            if turn >= len(_HEATS):
                length *= _GROWTH


def _guide(work: Work) -> float:
    """Sort the problem's choices by what they really cost; returns the bias to draw them with."""
    from muster_scheduler.placement.compiled.annealer import (  # noqa: PLC0415
        exact_energy,
        place_greedily,
    )
    from muster_scheduler.placement.compiled.delta import new_state  # noqa: PLC0415

    problem = work.problem
    pairs = int(problem.choice_count[problem.class_row].sum())
    most = min(_MOST_PAIRS, int(_PAIRS_PER_S * work.policy.budget_s))
    if pairs > most or problem.bounded or not work.goes_on():
        return 1.0
    start = new_state(problem, work.place)
    relaxation = relax(problem, start.load, start.used, _RELAXATION_SHARE * work.policy.budget_s)
    if relaxation is None:
        return 1.0
    work.bound = relaxation.bound
    work.problem = _sorted_by_cost(problem, relaxation)
    place = rounded(relaxation, problem.choice_count[problem.class_row])
    state = new_state(problem, feasible(problem, place))
    place_greedily(problem, state, work.movable)
    work.offer(state.place, exact_energy(problem, state))
    return _BIAS


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
