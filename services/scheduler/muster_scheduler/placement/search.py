"""Search guided by a relaxation: the strategy that is meant to win.

The split placement says what each choice really costs once agents are scarce. Its rounding is the
start of short, cool annealing rounds that draw cheap choices more often; then blocks of a few
agents are solved anew. Where T alone counts and room is limited, ejection chains take the place
of both.
"""

from __future__ import annotations

import math

import numpy as np

from muster_scheduler.placement.annealing import anneal_round, next_heat
from muster_scheduler.placement.blocks import solve_block, solve_core
from muster_scheduler.placement.ejection import eject, is_total_time
from muster_scheduler.placement.guidance import guide
from muster_scheduler.placement.improvement import ImprovingStrategy, Work, typical_rise
from muster_scheduler.placement.strategy import register

# Tasks of a block, about, and its fewest agents.
_BLOCK_TASKS = 120
_BLOCK_AGENTS = 3
# Annealing steps for each block.
_STEPS_PER_BLOCK = 16
_FIRST_ROUND = 16
_GROWTH = 1.4
_HOT_QUANTILE = 0.1
_COLD = 3e-3
_HEATS = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03)
# A block is given up after a share of the budget. Of less than this budget that share would be so
# little that the plan depended on the machine's moods.
_LEAST_BUDGET_S = 2.0


@register("search")
class Search(ImprovingStrategy):
    """Relaxation, rounding, guided annealing, exact blocks."""

    name = "search"

    def improve(self, work: Work) -> None:
        relaxation = guide(work)
        if relaxation is not None and is_total_time(work.problem):
            eject(work, relaxation)
            return
        if relaxation is not None and _takes_blocks(work) and work.problem.k_longest > 0.0:
            solve_core(work, relaxation)
        rise = typical_rise(work, work.place, _HOT_QUANTILE)
        length = float(_FIRST_ROUND)
        found = [math.inf] * len(_HEATS)
        turn = 0
        while True:
            heat = next_heat(work, found, turn)
            hot = rise * _HEATS[heat]
            # Every other round may go beyond the room at a price: tight agents are walls else.
            price = work.price if turn % 2 else -1.0
            energy = anneal_round(work, work.place, hot, int(length), _COLD, price)
            if energy is None:
                return
            _solve_blocks(work, max(1, int(length) // _STEPS_PER_BLOCK))
            found[heat] = energy
            turn += 1
            if turn >= len(_HEATS):
                length *= _GROWTH


def _solve_blocks(work: Work, count: int) -> None:
    """Blocks around the busiest agent for the makespan, around any for T; none for J."""
    problem = work.problem
    agents = len(problem.capacity)
    if not _takes_blocks(work):
        return
    size = max(_BLOCK_AGENTS, round(_BLOCK_TASKS * agents / len(work.place)))
    for _ in range(count):
        if not work.goes_on():
            return
        block = work.rng.permutation(agents)[:size]
        busiest = _busiest(work)
        if problem.k_longest > 0.0 and busiest not in block:
            block[0] = busiest
        solve_block(work, block)


def _takes_blocks(work: Work) -> bool:
    problem = work.problem
    if work.bias == 1.0 or problem.k_spread > 0.0 or problem.k_used > 0.0:
        return False
    return len(problem.capacity) >= 2 and work.policy.budget_s >= _LEAST_BUDGET_S


def _busiest(work: Work) -> int:
    problem = work.problem
    placed = np.flatnonzero(work.place >= 0)
    at = work.place[placed]
    return int(np.bincount(at, problem.time[placed, at * problem.time_step]).argmax())
