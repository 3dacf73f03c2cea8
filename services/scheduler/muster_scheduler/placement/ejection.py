"""Rounds of ejection chains: how `search` lowers T once it is known what room is worth."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from muster_scheduler.placement.annealing import next_heat
from muster_scheduler.placement.improvement import Work
from muster_scheduler.placement.problem import Floats, Ints, Ints32, Problem
from muster_scheduler.placement.relaxation import Relaxation

if TYPE_CHECKING:
    from muster_scheduler.placement.compiled.chains import Chains

# Chains between two questions to `stop`: about a millisecond.
_DRAWS_PER_STEP = 512
_FIRST_ROUND = 24
_GROWTH = 1.3
# Temperatures, in what the second and third choices cost, and how far a round cools.
_HEATS = (2.0, 1.0, 0.5, 0.25)
_COLD = 0.1
# A fine begins at this much of what room is worth; after each such number of steps it grows or
# shrinks so that this part of the plans fits.
_FINE = 1.5
_STEPS_PER_FINE = 16
_FITTING = (0.05, 0.2)
_FINE_STEP = 1.1
# What the room of an average task costs at least, in the same unit as the temperatures.
_LEAST_FINE = 0.1


def is_total_time(problem: Problem) -> bool:
    """Whether T alone is minimised: what chains are for."""
    others = problem.k_spread, problem.k_used, problem.k_longest
    return not any(others) and not problem.bounded and problem.capacity.shape[1] > 0


def eject(work: Work, relaxation: Relaxation) -> None:
    """Better `work` by chains until it ends. The choices are sorted by the relaxation."""
    unit = _unit(relaxation.reduced)
    fine = _first_fine(work.problem, relaxation, unit)
    length = float(_FIRST_ROUND)
    found = [math.inf] * len(_HEATS)
    turn = 0
    while True:
        heat = next_heat(work, found, turn)
        chains = _chains(work, relaxation, fine)
        energy = _round(work, chains, unit * _HEATS[heat], int(length))
        if energy is None:
            return
        found[heat] = energy
        turn += 1
        if turn >= len(_HEATS):
            length *= _GROWTH


def _round(work: Work, chains: Chains, hot: float, steps: int) -> float | None:
    """One cooling; the energy of the best that fits, None when it was ended early."""
    from muster_scheduler.placement.compiled.chains import walk  # noqa: PLC0415 - numba is heavy

    best, energy, fitted = work.place.copy(), math.inf, 0
    for step in range(steps):
        if not work.goes_on():
            _offer(work, best, energy)
            return None
        energy, count = walk(
            work.problem,
            chains,
            best,
            energy,
            work.movable,
            work.words,
            _DRAWS_PER_STEP,
            hot * _COLD ** (step / steps),
            hot * _COLD ** ((step + 1) / steps),
        )
        fitted += count
        if step % _STEPS_PER_FINE == _STEPS_PER_FINE - 1:
            share = fitted / (_STEPS_PER_FINE * _DRAWS_PER_STEP)
            fitted = 0
            if share < _FITTING[0]:
                chains.fine[:] *= _FINE_STEP
            elif share > _FITTING[1]:
                chains.fine[:] /= _FINE_STEP
    _offer(work, best, energy)
    return float(energy)


def _offer(work: Work, place: Ints32, energy: float) -> None:
    from muster_scheduler.placement.compiled.annealer import exact_energy  # noqa: PLC0415
    from muster_scheduler.placement.compiled.delta import new_state  # noqa: PLC0415

    if energy < math.inf:
        work.offer(place, float(exact_energy(work.problem, new_state(work.problem, place))))


def _chains(work: Work, relaxation: Relaxation, fine: Floats) -> Chains:
    """From the best plan; what has no place there goes to its cheapest agent, beyond the room."""
    from muster_scheduler.placement.compiled.chains import DEPTH, Chains  # noqa: PLC0415

    problem = work.problem
    place = work.place.copy()
    without = work.movable[place[work.movable] < 0]
    place[without] = problem.choices[problem.class_row[without], 0]
    reduced = relaxation.reduced
    fans, counts = _fans(reduced, work.movable)
    return Chains(
        place=place,
        room=_room(problem, place, work.movable),
        reduced=reduced,
        price=relaxation.room_price,
        fine=fine,
        fans=fans,
        fan_count=counts,
        moved=np.zeros(DEPTH, np.int64),
        left=np.zeros(DEPTH, np.int64),
    )


def _fans(reduced: Floats, movable: Ints32) -> tuple[Ints32, Ints]:
    """int32 [M, movable], each agent's possible tasks by what they cost there, and their number."""
    costs = reduced[movable]
    order = costs.argsort(axis=0, kind="stable")
    counts = np.isfinite(costs).sum(axis=0).astype(np.int64)
    return np.ascontiguousarray(movable[order].T.astype(np.int32)), counts


def _room(problem: Problem, place: Ints32, movable: Ints32) -> Ints:
    """int64 [M, K], without the movable tasks' own; below 0 only by them."""
    room = np.maximum(problem.capacity - problem.used, 0)
    moves = np.zeros(len(place), np.bool_)
    moves[movable] = True
    for tasks in (~moves, moves):
        placed = np.flatnonzero(tasks & (place >= 0))
        at = place[placed]
        demand = problem.demand[problem.demand_row[placed], at * problem.demand_step]
        np.subtract.at(room, at, demand)
    return np.ascontiguousarray(room)


def _first_fine(problem: Problem, relaxation: Relaxation, unit: float) -> Floats:
    task = np.maximum(problem.demand.mean(axis=(0, 1)), 1.0)
    return np.ascontiguousarray(_FINE * relaxation.room_price + _LEAST_FINE * unit / task)


def _unit(reduced: Floats) -> float:
    """What a second or third choice costs, the median of those that cost anything."""
    near = np.sort(reduced, axis=1)[:, 1:3]
    costs = near[np.isfinite(near) & (near > 0.0)]
    return float(np.median(costs)) if len(costs) else 1.0
