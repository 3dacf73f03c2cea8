"""CP-SAT (OR-tools) for small instances: the optimum, or the best found and how far it may be."""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

from muster.domain.errors import InvalidInput
from muster_scheduler.placement.improvement import ImprovingStrategy, Work
from muster_scheduler.placement.problem import Floats, Ints, Ints32, Problem
from muster_scheduler.placement.strategy import register

# Pairs of task and agent beyond which no answer comes in seconds; the start is returned then.
_MOST_PAIRS = 20_000
# CP-SAT counts in integers: the objective's and the times' units per their sizes.
_UNITS = 10_000_000
_SHARE_UNITS = 100_000
# What CP-SAT may use of the budget: building the model and ending take the rest.
_BUDGET_SHARE = 0.75
# Deterministic seconds (CP-SAT's own count of its work) for one step.
_WORK_PER_STEP = 0.05
_TANGENT_ROUNDS = 6


@register("exact")
class Exact(ImprovingStrategy):
    """T and makespan in one model; B in J by tangents, added until they close or time ends.

    Raises InvalidInput where `ortools` is not installed. One worker, so that a plan depends on
    the seed alone while `max_steps` and not the clock ends it. Knows no bounds of the policy.
    """

    name = "exact"

    def improve(self, work: Work) -> None:
        problem = work.problem
        pairs = int(problem.choice_count[problem.class_row].sum())
        if pairs > _MOST_PAIRS or problem.bounded:
            return
        if find_spec("ortools") is None:
            raise InvalidInput("strategy", self.name, "needs the package ortools (extra `exact`)")
        whole = len(work.movable) == len(work.place)
        model = _model(work)
        rounds = _TANGENT_ROUNDS if problem.k_spread > 0.0 else 1
        for _ in range(rounds):
            steps = max(1, min(work.max_steps - work.steps, 10**6) // rounds)
            if not work.goes_on():
                return
            found = _solve(work, model, steps, _BUDGET_SHARE * work.policy.budget_s / rounds)
            work.steps += steps - 1
            if found is None:
                return
            place, bound = found
            if whole:
                work.bound = bound if work.bound is None else max(work.bound, bound)
            _offer(work, place)
            if not _add_tangent(problem, model, place):
                return


@dataclass(slots=True, eq=False)
class _Model:
    """x[(i, j)] are the choices; share and spread are L_j and B in units, spread None without."""

    cp: Any
    x: dict[tuple[int, int], Any]
    share: list[Any]
    spread: Any
    constant: float
    unit: float


def _model(work: Work) -> _Model:
    from ortools.sat.python import cp_model  # noqa: PLC0415 - heavy, and optional

    problem, cp = work.problem, cp_model.CpModel()
    movable = set(work.movable.tolist())
    x: dict[tuple[int, int], Any] = {}
    for i, row in enumerate(problem.class_row.tolist()):
        choices = problem.choices[row, : problem.choice_count[row]].tolist()
        if i not in movable:
            continue
        for j in choices:
            x[i, j] = cp.new_bool_var("")
            cp.add_hint(x[i, j], int(work.place[i] == j))
        # What the start has placed stays placed, so that unplaced work never grows.
        placed = sum(x[i, j] for j in choices)
        if work.place[i] >= 0:
            cp.add(placed == 1)
        else:
            cp.add(placed <= 1)
    _add_room(problem, cp, x, work.place, movable)
    return _with_objective(work, cp, x)


def _add_room(
    problem: Problem, cp: Any, x: dict[tuple[int, int], Any], place: Ints32, movable: set[int]
) -> None:
    room = np.maximum(problem.capacity, problem.used) - problem.used
    for i, j in enumerate(place.tolist()):
        if i not in movable and j >= 0:
            room[j] -= _demand(problem, i, j)
    for j in range(len(problem.capacity)):
        for k in range(problem.capacity.shape[1]):
            amounts = [(_demand(problem, i, j)[k], v) for (i, a), v in x.items() if a == j]
            terms = [int(amount) * v for amount, v in amounts if amount]
            if terms:
                cp.add(sum(terms) <= int(room[j, k]))


def _with_objective(work: Work, cp: Any, x: dict[tuple[int, int], Any]) -> _Model:
    """Costs are rounded down, so that the model's bound bounds the true objective too."""
    problem = work.problem
    size = max(abs(work.energy), 1e-9)
    unit = size / _UNITS
    terms = []
    for (i, j), v in x.items():
        cost = problem.k_time * problem.time[i, j * problem.time_step]
        cost -= problem.k_used * problem.used_share[problem.demand_row[i], j * problem.demand_step]
        if work.place[i] < 0:
            cost -= problem.k_weight * problem.weight[i]
        terms.append(math.floor(cost / unit) * v)
    share: list[Any] = []
    spread = None
    if problem.k_longest > 0.0:
        longest = cp.new_int_var(0, 2 * _UNITS, "")
        for j in range(len(problem.capacity)):
            busy = [
                math.floor(problem.time[i, j * problem.time_step] / unit) * v
                for (i, a), v in x.items()
                if a == j
            ]
            cp.add(sum(busy) <= longest)
        terms.append(longest)
    if problem.k_spread > 0.0 and problem.capacity.shape[1]:
        share = _shares(problem, cp, x)
        spread = cp.new_int_var(0, 2 * _SHARE_UNITS, "")
        terms.append(math.floor(problem.k_spread / _SHARE_UNITS / unit) * spread)
    cp.minimize(sum(terms))
    constant = problem.k_used * (1.0 - problem.used_before)
    return _Model(cp, x, share, spread, constant, unit)


def _shares(problem: Problem, cp: Any, x: dict[tuple[int, int], Any]) -> list[Any]:
    """L_j in units, each off by at most one unit a task."""
    share = []
    for j in range(len(problem.capacity)):
        parts = []
        for k in range(problem.capacity.shape[1]):
            scale = problem.inverse[j, k] * _SHARE_UNITS
            held = max(float(problem.used[j, k] * scale), problem.least_load[j] * _SHARE_UNITS)
            added = [
                round(float(_demand(problem, i, j)[k] * scale)) * v
                for (i, a), v in x.items()
                if a == j
            ]
            parts.append(round(held) + sum(added))
        largest = cp.new_int_var(0, 4 * _SHARE_UNITS, "")
        cp.add_max_equality(largest, parts)
        share.append(largest)
    return share


def _solve(work: Work, model: _Model, steps: int, limit_s: float) -> tuple[Ints32, float] | None:
    from ortools.sat.python import cp_model  # noqa: PLC0415

    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = int(work.rng.integers(2**31 - 1))
    solver.parameters.max_time_in_seconds = limit_s
    solver.parameters.max_deterministic_time = _WORK_PER_STEP * steps
    status = solver.solve(model.cp)
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return None
    place = work.place.copy()
    place[work.movable] = -1
    for (i, j), v in model.x.items():
        if solver.value(v):
            place[i] = j
    slack = _slack(work.problem) if model.spread is not None else 0.0
    return place, solver.best_objective_bound * model.unit + model.constant - slack


def _slack(problem: Problem) -> float:
    """What rounding shares and tangents may have added to B."""
    units = len(problem.class_row) + 2.0 * len(problem.capacity) + 2.0
    return problem.k_spread * units / _SHARE_UNITS


def _offer(work: Work, place: Ints32) -> None:
    from muster_scheduler.placement.compiled.annealer import exact_energy  # noqa: PLC0415
    from muster_scheduler.placement.compiled.delta import new_state  # noqa: PLC0415

    work.offer(place, float(exact_energy(work.problem, new_state(work.problem, place))))


def _add_tangent(problem: Problem, model: _Model, place: Ints32) -> bool:
    """B ≥ its tangent at the loads of `place`; False where there is none to add."""
    from muster_scheduler.placement.compiled.delta import new_state  # noqa: PLC0415

    if model.spread is None:
        return False
    loads: Floats = new_state(problem, place).load
    away = loads - loads.mean()
    length = float(np.linalg.norm(away))
    if length < 1e-9:
        return False
    direction = np.floor(away / (length * math.sqrt(len(loads))) * _SHARE_UNITS).astype(np.int64)
    direction -= round(float(direction.mean()))
    tangent = sum(int(d) * v for d, v in zip(direction, model.share, strict=True))
    model.cp.add(_SHARE_UNITS * model.spread >= tangent)
    return True


def _demand(problem: Problem, i: int, j: int) -> Ints:
    demand: Ints = problem.demand[problem.demand_row[i], j * problem.demand_step]
    return demand
