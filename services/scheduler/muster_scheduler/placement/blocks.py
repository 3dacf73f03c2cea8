"""Exact sub-blocks: the tasks of a few agents placed anew at once, all others left alone.

Large-neighbourhood search (Shaw 1998) with a mixed-integer program (HiGHS through scipy) as the
repair. Only the cheapest choices of each task enter, by the relaxation's order.
"""

from __future__ import annotations

import math

import numpy as np

from muster_scheduler.placement.improvement import Work
from muster_scheduler.placement.problem import Floats, Ints, Ints32
from muster_scheduler.placement.relaxation import Relaxation

# Choices of a task in a block beside the one that it has.
_CHOICES = 3
# HiGHS ends at the first of these. Nodes keep a plan the same from run to run; the share of the
# budget is for machines where even they take too long.
_NODES = 300
_BUDGET_SHARE = 0.05
_GAP = 1e-5
# The whole instance over the choices that cost at most this much of the bound: worth its time
# where few choices are that cheap, a number of pairs for each task.
_CORE_COST = 1e-3
_CORE_PAIRS = 3.0
_CORE_NODES = 2000
_CORE_SHARE = 0.5


def solve_block(work: Work, agents: Ints) -> bool:
    """Place the tasks of `agents` (distinct indices) anew; whether that was better.

    For the objectives T and makespan.
    """
    inside = np.zeros(len(work.problem.capacity), np.bool_)
    inside[agents] = True
    free = work.movable[inside[work.place[work.movable]] & (work.place[work.movable] >= 0)]
    if not len(free):
        return False
    task, agent = _pairs(work, free, inside)
    chosen = _solve(work, free, agents, task, agent, _NODES, _BUDGET_SHARE)
    return chosen is not None and _offer(work, free[task[chosen]], agent[chosen])


def solve_core(work: Work, relaxation: Relaxation) -> bool:
    """Place every task anew over the cheapest choices alone; whether that was better.

    For the objective makespan. Nothing happens where too many choices cost about the same: the
    program is as slow as the whole one then, and blocks serve better.
    """
    bound = relaxation.bound
    if bound is None or (work.place[work.movable] < 0).any() or not work.goes_on():
        return False
    cheap = relaxation.reduced <= _CORE_COST * bound / work.problem.scale
    cheap |= relaxation.parts > _GAP
    free = work.movable
    cheap[free, work.place[free]] = True
    task, agent = np.nonzero(cheap[free])
    if len(task) > _CORE_PAIRS * len(free):
        return False
    agents = np.arange(len(work.problem.capacity))
    chosen = _solve(work, free, agents, task, agent, _CORE_NODES, _CORE_SHARE)
    return chosen is not None and _offer(work, free[task[chosen]], agent[chosen])


def _offer(work: Work, tasks: Ints32, agents: Ints) -> bool:
    """Offer the best plan with these tasks moved to these agents."""
    from muster_scheduler.placement.compiled.annealer import exact_energy  # noqa: PLC0415
    from muster_scheduler.placement.compiled.delta import new_state  # noqa: PLC0415

    place = work.place.copy()
    place[tasks] = agents
    state = new_state(work.problem, place)
    return work.offer(place, float(exact_energy(work.problem, state)))


def _pairs(
    work: Work, free: Ints32, inside: np.ndarray[tuple[int], np.dtype[np.bool_]]
) -> tuple[Ints, Ints]:
    """(index into `free`, agent) of each pair that the program may choose."""
    problem = work.problem
    task, agent = [], []
    for index, i in enumerate(free.tolist()):
        row = problem.class_row[i]
        choices = problem.choices[row, : problem.choice_count[row]]
        near = choices[inside[choices]][:_CHOICES].tolist()
        if work.place[i] not in near:
            near.append(int(work.place[i]))
        task += [index] * len(near)
        agent += near
    return np.array(task, np.int64), np.array(agent, np.int64)


def _solve(
    work: Work, free: Ints32, agents: Ints, task: Ints, agent: Ints, nodes: int, share: float
) -> Ints | None:
    """Indices of the chosen pairs, by so many nodes and at most this share of the budget."""
    from scipy.optimize import Bounds, LinearConstraint, milp  # noqa: PLC0415 - heavy
    from scipy.sparse import csr_matrix  # noqa: PLC0415

    problem = work.problem
    pairs = len(task)
    position = np.full(len(problem.capacity), -1, np.int64)
    position[agents] = np.arange(len(agents))
    time = problem.time[free[task], agent * problem.time_step]
    shape = (len(agents), pairs + 1)
    at = (position[agent], np.arange(pairs))
    each = csr_matrix((np.ones(pairs), (task, np.arange(pairs))), (len(free), pairs + 1))
    limits = [LinearConstraint(each, 1.0, 1.0)]
    row, step = problem.demand_row[free[task]], problem.demand_step
    room = _room(work, free, agents)
    for k in range(problem.capacity.shape[1]):
        amounts = problem.demand[row, agent * step, k].astype(np.float64)
        limits.append(LinearConstraint(csr_matrix((amounts, at), shape), -np.inf, room[:, k]))
    cost = np.append(problem.k_time * time, 0.0)
    now = work.place[free[task]] == agent
    if problem.k_longest > 0.0:
        busy = csr_matrix((time / problem.scale, at), shape).tolil()
        busy[:, pairs] = -1.0
        limits.append(LinearConstraint(busy.tocsr(), -np.inf, 0.0))
        cost[pairs] = 1.0
        worth = float(np.bincount(position[agent[now]], time[now]).max()) / problem.scale
    else:
        worth = float(cost[:pairs][now].sum())
    # Nothing but a better block is of use, which ends most programs early.
    limits.append(LinearConstraint(cost[None, :], -np.inf, worth - _GAP * abs(worth)))
    found = milp(
        cost,
        integrality=np.append(np.ones(pairs), 0.0),
        bounds=Bounds(0.0, np.append(np.ones(pairs), math.inf)),
        constraints=limits,
        options={
            "node_limit": nodes,
            "time_limit": share * work.policy.budget_s,
            "mip_rel_gap": _GAP,
        },
    )
    if found.x is None:
        return None
    chosen: Ints = np.flatnonzero(found.x[:pairs] > 0.5)
    return chosen if len(chosen) == len(free) else None


def _room(work: Work, free: Ints32, agents: Ints) -> Floats:
    """float64 [agents, K], what the block's tasks may take."""
    problem = work.problem
    used = problem.used.copy()
    fixed = np.ones(len(work.place), np.bool_)
    fixed[free] = False
    rest = np.flatnonzero(fixed & (work.place >= 0))
    at = work.place[rest]
    np.add.at(used, at, problem.demand[problem.demand_row[rest], at * problem.demand_step])
    room: Floats = (problem.capacity - used)[agents].astype(np.float64)
    return np.maximum(room, 0.0)
