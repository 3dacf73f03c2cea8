"""The policy's bounds (ε-constraints) as rows of the integer program of `exact`.

They are drawn in by what rounding to integers may add, so that what keeps to the rows keeps to the
bounds. B is held from below by tangents: a plan may still break its bound until enough are there.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from muster_scheduler.placement.problem import Floats, Ints32, Problem

# Of one bound: a row's coefficients are integers, parts of it in these units.
_UNITS = 10_000_000
# What rounding the shares of the agents was seen to take from B, in its units.
_ROUNDED = 3


def add_bounds(
    problem: Problem,
    cp: Any,
    x: dict[tuple[int, int], Any],
    place: Ints32,
    spread: tuple[Any, int],
) -> None:
    """`place` has the tasks that are no part of `x`; `spread` is B's variable and its units."""
    inside = np.zeros(len(place), np.bool_)
    inside[[i for i, _ in x]] = True
    rest = np.flatnonzero(~inside & (place >= 0))
    time = {(i, j): float(problem.time[i, j * problem.time_step]) for i, j in x}
    used = {(i, j): _used(problem, i, j) for i, j in x}
    time_rest = float(problem.time[rest, place[rest] * problem.time_step].sum())
    used_rest = problem.used_before + sum(_used(problem, i, int(place[i])) for i in rest.tolist())
    if math.isfinite(problem.bound_t):
        _at_most(cp, x, time, problem.bound_t - time_rest)
    if math.isfinite(problem.bound_u):
        _at_most(cp, x, {key: -value for key, value in used.items()}, used_rest - problem.bound_u)
    imbalance, units = spread
    if math.isfinite(problem.bound_b):
        cp.add(imbalance <= max(0, math.floor(problem.bound_b * units) - _ROUNDED))
    if math.isfinite(problem.bound_j):
        missing = _missing(problem)
        cost = {
            key: problem.j_time * time[key]
            - problem.j_used * used[key]
            - problem.j_unplaced * float(missing[key[0]])
            for key in x
        }
        fixed = problem.j_time * time_rest + problem.j_used * (1.0 - used_rest)
        fixed += problem.j_unplaced * float(missing[inside | (place < 0)].sum())
        _at_most(cp, x, cost, problem.bound_j - fixed, (imbalance, problem.j_spread / units))


def _used(problem: Problem, i: int, j: int) -> float:
    return float(problem.used_share[problem.demand_row[i], j * problem.demand_step])


def _missing(problem: Problem) -> Floats:
    """float64 [N], what each task adds to the unplaced share."""
    missing: Floats = problem.unplaced_share[problem.demand_row]
    return missing


def _at_most(
    cp: Any,
    x: dict[tuple[int, int], Any],
    cost: dict[tuple[int, int], float],
    most: float,
    more: tuple[Any, float] | None = None,
) -> None:
    """Σ cost x (+ a variable times its factor) ≤ most, each part rounded up."""
    size = max(abs(most), max((abs(value) for value in cost.values()), default=0.0), 1e-12)
    unit = size / _UNITS
    terms = [math.ceil(value / unit) * x[key] for key, value in cost.items()]
    if more is not None:
        terms.append(math.ceil(more[1] / unit) * more[0])
    cp.add(sum(terms) <= math.floor(most / unit))
