"""The placement with tasks that may be split: a lower bound, and what each choice really costs.

A linear program (HiGHS through scipy). B is a norm, which tangents hold from below: each round
adds the tangent at the last solution (Kelley 1960). The bound holds for plans that place every
task. With several resources L_j is the greatest share, no linear function; the program then takes
the share that is greatest in the start, which guides the search and bounds nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from muster_scheduler.placement.problem import Floats, Ints, Ints32, Problem

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

# Tangents of B; the bound moves by less than a thousandth after about ten.
MOST_ROUNDS = 25
# Some times what the largest program that `guide` allows was seen to need.
_MOST_ITERATIONS = 200_000
_CLOSE = 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class Relaxation:
    """bound    of the policy's objective (J, T in seconds, makespan in seconds), None: not one
    parts    float64 [N, M], the part of each task on each agent, 0 where it may not go
    reduced  float64 [N, M], what the choice costs above the task's best; infinite where it may not
    pressure float64 [M], the makespan's price of a second on the agent; zeros for other objectives
    price    the most that the room of a whole agent is worth, in energy
    room_price float64 [M, K], what a unit of the agent's room is worth, in energy
    """

    bound: float | None
    parts: Floats
    reduced: Floats
    pressure: Floats
    price: float
    room_price: Floats


@dataclass(slots=True, eq=False)
class _Program:
    """Columns: a part for each pair of task and agent that is possible, then the makespan or B."""

    task: Ints
    agent: Ints
    cost: Floats
    upper: csr_matrix
    limit: Floats
    equal: csr_matrix
    share: Floats
    before: Floats


def relax(
    problem: Problem,
    loads: Floats,
    used: Ints,
    stop: Callable[[], bool],
    rounds: int = MOST_ROUNDS,
) -> Relaxation | None:
    """None where no split placement places every task, or it was told to stop.

    `loads` and `used` are the start's: where its shares are greatest. At most `rounds` programs;
    iterations and not seconds bound each, so that a plan does not depend on the machine.
    """
    from scipy.optimize import linprog  # noqa: PLC0415 - heavy

    program = _program(problem, used)
    pairs = len(program.task)
    spread = problem.k_spread > 0.0
    tangents = [_tangent(program, loads)] if spread else []
    found: Any = None
    value = -math.inf
    for _ in range(rounds if spread else 1):
        upper, limit = _with_tangents(program, tangents)
        found = linprog(
            program.cost,
            upper,
            limit,
            program.equal,
            np.ones(program.equal.shape[0]),
            method="highs",
            options={"maxiter": _MOST_ITERATIONS},
        )
        if found.status != 0 or stop():
            return None
        if not spread or found.fun < value + _CLOSE * max(1e-9, abs(found.fun)):
            break
        value = float(found.fun)
        share = np.bincount(
            program.agent, program.share * found.x[:pairs], minlength=len(problem.capacity)
        )
        tangents.append(_tangent(program, program.before + share))
    reduced = program.cost[:pairs] - (upper.T @ found.ineqlin.marginals)[:pairs]
    return _relaxation(problem, program, found, reduced)


def _relaxation(problem: Problem, program: _Program, found: Any, reduced: Floats) -> Relaxation:
    shape = len(problem.class_row), len(problem.capacity)
    parts, costs = np.zeros(shape), np.full(shape, math.inf)
    parts[program.task, program.agent] = found.x[: len(program.task)]
    costs[program.task, program.agent] = reduced
    least = costs.min(axis=1, keepdims=True)
    costs -= np.where(np.isfinite(least), least, 0.0)
    bound: float | None = float(found.fun)
    if problem.k_longest > 0.0:
        bound = float(found.fun) * problem.scale
    elif problem.k_spread > 0.0 or problem.k_used > 0.0:
        exact = problem.capacity.shape[1] <= 1 and not problem.least_load.any()
        bound = float(found.fun) + problem.k_used * (1.0 - problem.used_before) if exact else None
    pressure = np.zeros(shape[1])
    if problem.k_longest > 0.0:
        pressure = -np.asarray(found.ineqlin.marginals)[-shape[1] :]
    marginals = -np.asarray(found.ineqlin.marginals)
    worth = np.maximum(marginals[: problem.capacity.size], 0.0).reshape(problem.capacity.T.shape).T
    price = float(worth.max(initial=0.0))
    room_price = np.ascontiguousarray(worth / np.maximum(problem.capacity, 1))
    return Relaxation(bound, parts, costs, pressure, price, room_price)


def _program(problem: Problem, used: Ints) -> _Program:
    from scipy.sparse import csr_matrix, hstack  # noqa: PLC0415 - heavy

    counts = problem.choice_count[problem.class_row]
    task = np.repeat(np.arange(len(counts)), counts)
    inside = np.arange(problem.choices.shape[1])[None, :] < counts[:, None]
    agent = problem.choices[problem.class_row][inside].astype(np.int64)
    pairs = len(task)
    agents, columns = problem.capacity.shape
    time = problem.time[task, agent * problem.time_step]
    row, step = problem.demand_row[task], problem.demand_step
    cost = problem.k_time * time - problem.k_used * problem.used_share[row, agent * step]
    blocks, limits = [], []
    for k in range(columns):
        amount = problem.demand[row, agent * step, k].astype(np.float64)
        size = np.maximum(problem.capacity[:, k], 1).astype(np.float64)
        blocks.append(
            csr_matrix((amount / size[agent], (agent, np.arange(pairs))), (agents, pairs))
        )
        limits.append(np.maximum(0.0, (problem.capacity[:, k] - problem.used[:, k]) / size))
    extra = np.zeros((agents * columns, 1))
    if problem.k_longest > 0.0:
        blocks.append(
            csr_matrix((time / problem.scale, (agent, np.arange(pairs))), (agents, pairs))
        )
        limits.append(np.zeros(agents))
        extra = np.vstack([extra, -np.ones((agents, 1))])
    upper = _stack(blocks, pairs)
    placed = np.unique(task)
    equal = csr_matrix(
        (np.ones(pairs), (np.searchsorted(placed, task), np.arange(pairs))), (len(placed), pairs)
    )
    return _Program(
        task,
        agent,
        np.append(cost, problem.k_longest + problem.k_spread),
        hstack([upper, csr_matrix(extra)], format="csr"),
        np.concatenate([*limits, np.zeros(0)]),
        hstack([equal, csr_matrix((len(placed), 1))], format="csr"),
        _share(problem, used, task, agent),
        _before(problem, used),
    )


def _stack(blocks: list[Any], pairs: int) -> csr_matrix:
    from scipy.sparse import csr_matrix, vstack  # noqa: PLC0415 - heavy

    return csr_matrix(vstack(blocks, format="csr")) if blocks else csr_matrix((0, pairs))


def _column(problem: Problem, used: Ints) -> Ints:
    """int64 [M], the resource of greatest share on each agent."""
    if not problem.capacity.shape[1]:
        return np.zeros(len(problem.capacity), np.int64)
    column: Ints = (used * problem.inverse).argmax(axis=1)
    return column


def _share(problem: Problem, used: Ints, task: Ints, agent: Ints) -> Floats:
    """What each pair adds to its agent's share of that resource."""
    if not problem.capacity.shape[1]:
        return np.zeros(len(task))
    column = _column(problem, used)[agent]
    row, step = problem.demand_row[task], problem.demand_step
    share: Floats = problem.demand[row, agent * step, column] * problem.inverse[agent, column]
    return share


def _before(problem: Problem, used: Ints) -> Floats:
    if not problem.capacity.shape[1]:
        return problem.least_load
    column = _column(problem, used)
    every = np.arange(len(column))
    share: Floats = problem.used[every, column] * problem.inverse[every, column]
    return share


def _tangent(program: _Program, loads: Floats) -> tuple[Floats, float]:
    """(row, limit) of `B ≥ its tangent at loads`."""
    away = loads - loads.mean()
    length = float(np.linalg.norm(away))
    direction = away / (length * math.sqrt(len(loads))) if length > 1e-12 else 0.0 * away
    row = np.append(direction[program.agent] * program.share, -1.0)
    return row, -float(direction @ program.before)


def _with_tangents(
    program: _Program, tangents: list[tuple[Floats, float]]
) -> tuple[csr_matrix, Floats]:
    from scipy.sparse import csr_matrix, vstack  # noqa: PLC0415 - heavy

    if not tangents:
        return program.upper, program.limit
    rows = csr_matrix(np.array([row for row, _ in tangents]))
    upper = csr_matrix(vstack([program.upper, rows], format="csr"))
    return upper, np.concatenate([program.limit, [limit for _, limit in tangents]])


def rounded(relaxation: Relaxation, choice_count: Ints) -> Ints32:
    """Each task to the agent that has most of it; may go beyond the room."""
    place: Ints32 = relaxation.parts.argmax(axis=1).astype(np.int32)
    place[choice_count == 0] = -1
    return place
