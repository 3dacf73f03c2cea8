"""Simulated annealing over moves and swaps, restarted from the best for ever longer rounds."""

from __future__ import annotations

import numpy as np

from muster_scheduler.placement.improvement import (
    DRAWS_PER_STEP,
    ImprovingStrategy,
    Work,
    learn_pressures,
    typical_rise,
)
from muster_scheduler.placement.problem import Ints32
from muster_scheduler.placement.strategy import register

# Steps of the first round. How much time there is nobody says, so each round is longer by half
# than the one before: the last whole one has a third of all steps at least.
_FIRST_ROUND = 24
_GROWTH = 1.5
# A round begins at this quantile of what a worsening change costs and ends at a share of it.
_HOT_QUANTILE = 0.1
_COLD = 1e-3
# Rounds differ in how hot they begin. Which serves best depends on the instance and on how long
# the round is, so all are tried, and then mostly the best of the last rounds or one beside it.
_HEATS = (30.0, 10.0, 3.0, 1.0, 0.3, 0.1)


@register("annealing")
class Annealing(ImprovingStrategy):
    """Metropolis acceptance on exact deltas; never leaves the feasible plans (Kirkpatrick 1983)."""

    name = "annealing"

    def improve(self, work: Work) -> None:
        rise = typical_rise(work, work.place, _HOT_QUANTILE)
        length = float(_FIRST_ROUND)
        found = [work.energy] * len(_HEATS)
        turn = 0
        while True:
            heat = next_heat(work, found, turn)
            energy = anneal_round(work, work.place, rise * _HEATS[heat], int(length))
            if energy is None:
                return
            found[heat] = energy
            learn_pressures(work)
            turn += 1
            if turn >= len(_HEATS):
                length *= _GROWTH


def next_heat(work: Work, found: list[float], turn: int) -> int:
    """Index of the heat to begin the round with, after each has been tried once."""
    if turn < len(found):
        return turn
    best = int(np.argmin(found))
    if turn % 2:
        return best
    return int(np.clip(best + work.rng.integers(-1, 2), 0, len(found) - 1))


def anneal_round(
    work: Work,
    start: Ints32,
    hot: float,
    steps: int,
    cold: float = _COLD,
    price: float = -1.0,
) -> float | None:
    """One cooling from `start`; the round's best energy, None when it was ended early."""
    from muster_scheduler.placement.compiled.annealer import anneal  # noqa: PLC0415
    from muster_scheduler.placement.compiled.delta import new_state  # noqa: PLC0415

    state = new_state(work.problem, start)
    best, best_energy = start.copy(), np.inf
    for step in range(steps):
        if not work.goes_on():
            work.offer(best, best_energy)
            return None
        best_energy = anneal(
            work.problem,
            state,
            best,
            best_energy,
            work.movable,
            work.words,
            max(DRAWS_PER_STEP, len(start) // 8),
            hot * cold ** (step / steps),
            hot * cold ** ((step + 1) / steps),
            price,
            work.bias,
        )
    work.offer(best, best_energy)
    return float(best_energy)
