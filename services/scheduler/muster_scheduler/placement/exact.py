"""CP-SAT (OR-tools) for small instances: the optimum, or the best found and how far it may be."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

from muster.domain.errors import InvalidInput
from muster_scheduler.placement.exact_bounds import add_bounds
from muster_scheduler.placement.improvement import ImprovingStrategy, Work
from muster_scheduler.placement.problem import Floats, Ints, Ints32, Problem
from muster_scheduler.placement.strategy import register

# Pairs of task and agent beyond which no answer comes in seconds; the start is returned then.
_MOST_PAIRS = 20_000
# CP-SAT counts in integers: the objective's and the times' units per their sizes.
_UNITS = 100_000_000
_SHARE_UNITS = 100_000
_MOST_UNITS = 10**12
# What CP-SAT may use of the budget: building the model and ending take the rest.
_BUDGET_SHARE = 0.75
# Deterministic seconds (CP-SAT's own count of its work) for one step.
_WORK_PER_STEP = 0.05
# Tangents at most; a round may take this part of what is left of the steps.
_TANGENT_ROUNDS = 200
_ROUND_PARTS = 6
# Units by which the model's B may be off when its tangents count as closed.
_CLOSED = 8
_STOP_EVERY_S = 0.05


@register("exact")
class Exact(ImprovingStrategy):
    """T and makespan in one model; B in J by tangents, added until they close or time ends.

    Raises InvalidInput where `ortools` is not installed. One worker, so that a plan depends on
    the seed alone while `max_steps` and not the clock ends it. Bounds of the policy are rows of
    the model; where it finds no plan that keeps to them the start is returned.
    """

    name = "exact"

    def improve(self, work: Work) -> None:
        problem = work.problem
        pairs = int(problem.choice_count[problem.class_row].sum())
        if pairs > _MOST_PAIRS:
            return
        if find_spec("ortools") is None:
            raise InvalidInput("strategy", self.name, "needs the package ortools (extra `exact`)")
        whole = len(work.movable) == len(work.place)
        model = _model(work)
        parts = _ROUND_PARTS if model.spread is not None else 1
        for _ in range(_TANGENT_ROUNDS if model.spread is not None else 1):
            if not work.goes_on():
                return
            steps = max(1, min(work.max_steps - work.steps, 10**6) // parts)
            found = _solve(work, model, steps, _BUDGET_SHARE * work.policy.budget_s / parts)
            if found is None:
                return
            if whole and not problem.bounded:
                work.bound = found.bound if work.bound is None else max(work.bound, found.bound)
            _offer(work, found.place)
            if not _add_tangent(problem, model, found):
                return


@dataclass(slots=True, eq=False)
class _Found:
    """A solution of the model; spread is B as the model has it, in units."""

    place: Ints32
    bound: float
    optimal: bool
    spread: int


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
    complete = bool((work.place[work.movable] >= 0).all())
    x: dict[tuple[int, int], Any] = {}
    for i, row in enumerate(problem.class_row.tolist()):
        choices = problem.choices[row, : problem.choice_count[row]].tolist()
        if i not in movable:
            continue
        for j in choices:
            x[i, j] = cp.new_bool_var("")
            cp.add_hint(x[i, j], int(work.place[i] == j))
        # Where the start has found a place for all, none may lose it; otherwise many small tasks
        # may be worth more than a large one that has a place.
        placed = sum(x[i, j] for j in choices)
        if complete:
            cp.add(placed == 1)
        else:
            cp.add(placed <= 1)
    _add_room(problem, cp, x, work.place, movable)
    return _with_objective(work, cp, x, complete=complete)


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


def _with_objective(
    work: Work, cp: Any, x: dict[tuple[int, int], Any], *, complete: bool
) -> _Model:
    """Costs are rounded down, so that the model's bound bounds the true objective too."""
    problem = work.problem
    # A start that breaks bounds, or leaves work out, has an energy far beyond the objective's size.
    left_out = problem.k_weight * float(problem.weight[work.place < 0].sum())
    size = problem.k_excess / 1e3 if problem.bounded else abs(work.energy - left_out)
    unit = max(size, 1e-9) / _UNITS
    if problem.k_spread > 0.0:
        # B's factor is a whole number of units: rounded it would weigh less than it should.
        weight = problem.k_spread / _SHARE_UNITS
        unit = weight / math.ceil(weight / unit)
    # Beyond bounds that are rows of their own nothing has to be outweighed.
    k_weight = problem.k_weight / (1e3 if problem.bounded else 1.0)
    terms = []
    for (i, j), v in x.items():
        cost = problem.k_time * problem.time[i, j * problem.time_step]
        cost -= problem.k_used * problem.used_share[problem.demand_row[i], j * problem.demand_step]
        if not complete:
            cost -= k_weight * problem.weight[i]
            cost -= problem.k_unplaced * problem.unplaced_share[problem.demand_row[i]]
        terms.append(math.floor(cost / unit) * v)
    share: list[Any] = []
    spread = None
    if problem.k_longest > 0.0:
        longest = cp.new_int_var(0, _MOST_UNITS, "")
        for j in range(len(problem.capacity)):
            busy = [
                math.floor(problem.time[i, j * problem.time_step] / unit) * v
                for (i, a), v in x.items()
                if a == j
            ]
            cp.add(sum(busy) <= longest)
        terms.append(longest)
    bounded = min(problem.bound_b, problem.bound_j) < math.inf
    if (problem.k_spread > 0.0 or bounded) and problem.capacity.shape[1]:
        share = _shares(problem, cp, x, work.place)
        spread = cp.new_int_var(0, 2 * _SHARE_UNITS, "")
        terms.append(round(problem.k_spread / _SHARE_UNITS / unit) * spread)
    if problem.bounded:
        add_bounds(problem, cp, x, work.place, (0 if spread is None else spread, _SHARE_UNITS))
    cp.minimize(sum(terms))
    constant = problem.k_used * (1.0 - problem.used_before)
    return _Model(cp, x, share, spread, constant, unit)


def _shares(problem: Problem, cp: Any, x: dict[tuple[int, int], Any], place: Ints32) -> list[Any]:
    """L_j in units, each off by at most one unit a task."""
    share = []
    mine = {i for i, _ in x}
    used = problem.used.copy()
    for i, at in enumerate(place.tolist()):
        if i not in mine and at >= 0:
            used[at] += _demand(problem, i, at)
    for j in range(len(problem.capacity)):
        parts = []
        for k in range(problem.capacity.shape[1]):
            scale = problem.inverse[j, k] * _SHARE_UNITS
            held = max(float(used[j, k] * scale), problem.least_load[j] * _SHARE_UNITS)
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


def _solve(work: Work, model: _Model, steps: int, limit_s: float) -> _Found | None:
    from ortools.sat.python import cp_model  # noqa: PLC0415

    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = int(work.rng.integers(2**31 - 1))
    solver.parameters.max_time_in_seconds = limit_s
    solver.parameters.max_deterministic_time = _WORK_PER_STEP * steps
    with _told_to_stop(solver, work.stop):
        status = solver.solve(model.cp)
    work.steps += max(0, math.ceil(solver.deterministic_time / _WORK_PER_STEP) - 1)
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return None
    place = work.place.copy()
    place[work.movable] = -1
    for (i, j), v in model.x.items():
        if solver.value(v):
            place[i] = j
    slack = _slack(work.problem) if model.spread is not None else 0.0
    return _Found(
        place,
        solver.best_objective_bound * model.unit + model.constant - slack,
        status == cp_model.OPTIMAL,
        0 if model.spread is None else solver.value(model.spread),
    )


@contextmanager
def _told_to_stop(solver: Any, stop: Callable[[], bool]) -> Iterator[None]:
    """Ask `stop` while the solver runs, which has no steps between which to ask."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(_STOP_EVERY_S):
            if stop():
                solver.stop_search()
                return

    watcher = threading.Thread(target=watch, name="exact-stop", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def _slack(problem: Problem) -> float:
    """What rounding shares and tangents may have added to B."""
    units = len(problem.class_row) + 2.0 * len(problem.capacity) + 2.0
    return problem.k_spread * units / _SHARE_UNITS


def _offer(work: Work, place: Ints32) -> None:
    from muster_scheduler.placement.compiled.annealer import exact_energy  # noqa: PLC0415
    from muster_scheduler.placement.compiled.delta import new_state  # noqa: PLC0415

    work.offer(place, float(exact_energy(work.problem, new_state(work.problem, place))))


def _add_tangent(problem: Problem, model: _Model, found: _Found) -> bool:
    """B ≥ its tangent at the loads of what was found; False where that would tell nothing new."""
    from muster_scheduler.placement.compiled.delta import new_state  # noqa: PLC0415

    if model.spread is None:
        return False
    loads: Floats = new_state(problem, found.place).load
    away = loads - loads.mean()
    length = float(np.linalg.norm(away))
    if length < 1e-9:
        return False
    if found.optimal and found.spread >= length / math.sqrt(len(loads)) * _SHARE_UNITS - _CLOSED:
        return False
    direction = np.floor(away / (length * math.sqrt(len(loads))) * _SHARE_UNITS).astype(np.int64)
    direction -= round(float(direction.mean()))
    tangent = sum(int(d) * v for d, v in zip(direction, model.share, strict=True))
    model.cp.add(_SHARE_UNITS * model.spread >= tangent)
    return True


def _demand(problem: Problem, i: int, j: int) -> Ints:
    demand: Ints = problem.demand[problem.demand_row[i], j * problem.demand_step]
    return demand
