"""What one change of an assignment does to T, U, B, the makespan and the objective, in O(K).

`objective.py` says what the numbers mean; a property test holds the two together. A change takes
task `i` to agent `b` (-1: nowhere) and, where `i2` is given, task `i2` from `b` to where `i` was.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from muster_scheduler.placement.compiled.jit import inlined, kernel
from muster_scheduler.placement.compiled.random_numbers import Words
from muster_scheduler.placement.problem import Floats, Ints, Ints32, Problem

__all__ = ["State", "Sums", "Words"]


class Sums(NamedTuple):
    """What the objective is made of. All float64.

    time        T, seconds
    used        the placed tasks' part of U
    unplaced    demand without a place, as U measures it
    weight      Σ (1 + priority) of the tasks without a place
    load, load2 Σ (L_j - centre) and Σ (L_j - centre)² over the agents
    power       Σ pressure_j (busy_j / scale)^p, the smooth form of the makespan
    over        Σ of what is beyond the room, in shares of the agents' capacity
    """

    time: float
    used: float
    unplaced: float
    weight: float
    load: float
    load2: float
    power: float
    over: float


class State(NamedTuple):
    """An assignment and what follows from it; changed in place.

    place  int32 [N], agent or -1          used  int64 [M, K], running work among it
    load   float64 [M], L_j                busy  float64 [M], Σ t_ij of the batch's tasks on j
    over   float64 [M], beyond the room    sums  float64 [8], the fields of Sums in their order
    """

    place: Ints32
    used: Ints
    load: Floats
    busy: Floats
    over: Floats
    sums: Floats


def new_state(problem: Problem, place: Ints32) -> State:
    agents, columns = problem.capacity.shape
    state = State(
        place.astype(np.int32),
        np.zeros((agents, columns), np.int64),
        np.zeros(agents),
        np.zeros(agents),
        np.zeros(agents),
        np.zeros(8),
    )
    refresh(problem, state)
    return state


@inlined
def power_of(problem: Problem, j: int, busy: float) -> float:
    value: float = busy / problem.scale
    for _ in range(problem.doublings):
        value *= value
    return float(value * problem.pressure[j])


@kernel
def refresh(problem: Problem, state: State) -> None:
    """Everything anew from `state.place`: ends the drift of sums of differences."""
    agents, columns = problem.capacity.shape
    for j in range(agents):
        state.busy[j] = 0.0
        for k in range(columns):
            state.used[j, k] = problem.used[j, k]
    time = used = unplaced = weight = 0.0
    for i in range(state.place.shape[0]):
        j = state.place[i]
        row = problem.demand_row[i]
        if j < 0:
            unplaced += problem.unplaced_share[row]
            weight += problem.weight[i]
            continue
        for k in range(columns):
            state.used[j, k] += problem.demand[row, j * problem.demand_step, k]
        taken = problem.time[i, j * problem.time_step]
        state.busy[j] += taken
        time += taken
        used += problem.used_share[row, j * problem.demand_step]
    load = load2 = power = over = 0.0
    for j in range(agents):
        largest, beyond = problem.least_load[j], 0.0
        for k in range(columns):
            largest = max(largest, state.used[j, k] * problem.inverse[j, k])
            room = max(problem.capacity[j, k], problem.used[j, k])
            if state.used[j, k] > room:
                beyond += (state.used[j, k] - room) / max(1.0, float(problem.capacity[j, k]))
        state.load[j] = largest
        state.over[j] = beyond
        over += beyond
        load += largest - problem.centre
        load2 += (largest - problem.centre) ** 2
        power += power_of(problem, j, state.busy[j])
    sums = state.sums
    sums[0], sums[1], sums[2], sums[3] = time, used, unplaced, weight
    sums[4], sums[5], sums[6], sums[7] = load, load2, power, over


@inlined
def sums_of(state: State) -> Sums:
    s = state.sums
    return Sums(s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7])


@inlined
def imbalance(problem: Problem, sums: Sums) -> float:
    """B."""
    agents = problem.capacity.shape[0]
    mean = sums.load / agents
    return math.sqrt(max(0.0, sums.load2 / agents - mean * mean))


@inlined
def makespan(state: State) -> float:
    longest = 0.0
    for j in range(state.busy.shape[0]):
        longest = max(longest, state.busy[j])
    return longest


@inlined
def energy(problem: Problem, sums: Sums, longest: float) -> float:
    """What is minimised: the policy's order of plans as one number.

    `longest` is the makespan; a negative one stands for its smooth form.
    """
    spread = 0.0
    if problem.k_spread > 0.0 or problem.bounded:
        spread = imbalance(problem, sums)
    value = (
        problem.k_time * sums.time
        - problem.k_used * sums.used
        + problem.k_unplaced * sums.unplaced
        + problem.k_spread * spread
        + problem.k_weight * sums.weight
    )
    if problem.k_longest > 0.0:
        if longest < 0.0:
            longest = problem.scale * sums.power ** (1.0 / (1 << problem.doublings))
        value += problem.k_longest * longest
    if problem.bounded:
        used = problem.used_before + sums.used
        j_value = (
            problem.j_time * sums.time
            + problem.j_used * (1.0 - used)
            + problem.j_spread * spread
            + problem.j_unplaced * sums.unplaced
        )
        excess = max(0.0, sums.time - problem.bound_t) + max(0.0, problem.bound_u - used)
        excess += max(0.0, spread - problem.bound_b) + max(0.0, j_value - problem.bound_j)
        value += problem.k_excess * excess
    return value


@inlined
def may_take(problem: Problem, i: int, j: int) -> bool:
    return bool(problem.allowed[problem.class_row[i], j])


@inlined
def after(
    problem: Problem, state: State, j: int, leaves: int, comes: int
) -> tuple[bool, float, float]:
    """(fits, L_j, over_j) once task `leaves` is gone from j and `comes` is there (-1: neither)."""
    step = problem.demand_step
    largest, beyond = problem.least_load[j], 0.0
    fits = True
    for k in range(problem.capacity.shape[1]):
        change = 0
        if comes >= 0:
            change += problem.demand[problem.demand_row[comes], j * step, k]
        if leaves >= 0:
            change -= problem.demand[problem.demand_row[leaves], j * step, k]
        amount = state.used[j, k] + change
        if amount > problem.capacity[j, k]:
            if change > 0:
                fits = False
            room = max(problem.capacity[j, k], problem.used[j, k])
            if amount > room:
                beyond += (amount - room) / max(1.0, float(problem.capacity[j, k]))
        largest = max(largest, amount * problem.inverse[j, k])
    return fits, largest, beyond


@inlined
def _placed(problem: Problem, s: Sums, i: int, j: int, sign: float) -> Sums:
    """The sums that do not need the agent's state, with task i's part for agent j added."""
    row = problem.demand_row[i]
    if j < 0:
        return Sums(
            s.time,
            s.used,
            s.unplaced + sign * problem.unplaced_share[row],
            s.weight + sign * problem.weight[i],
            s.load,
            s.load2,
            s.power,
            s.over,
        )
    return Sums(
        s.time + sign * problem.time[i, j * problem.time_step],
        s.used + sign * problem.used_share[row, j * problem.demand_step],
        s.unplaced,
        s.weight,
        s.load,
        s.load2,
        s.power,
        s.over,
    )


@inlined
def _agent(
    problem: Problem, state: State, s: Sums, j: int, load: float, over: float, busy: float
) -> Sums:
    """The sums with agent j's part replaced."""
    old, new = state.load[j] - problem.centre, load - problem.centre
    power = s.power
    if problem.k_longest > 0.0:
        power += power_of(problem, j, busy) - power_of(problem, j, state.busy[j])
    return Sums(
        s.time,
        s.used,
        s.unplaced,
        s.weight,
        s.load + new - old,
        s.load2 + new * new - old * old,
        power,
        s.over + over - state.over[j],
    )


@inlined
def busy_after(problem: Problem, state: State, j: int, leaves: int, comes: int) -> float:
    busy: float = state.busy[j]
    if leaves >= 0:
        busy -= problem.time[leaves, j * problem.time_step]
    if comes >= 0:
        busy += problem.time[comes, j * problem.time_step]
    return busy


@inlined
def trial(problem: Problem, state: State, i: int, b: int, i2: int) -> tuple[bool, Sums]:
    """(it fits, the sums) after the change; `state` stays. `i` must not be on `b` already."""
    a = state.place[i]
    s = sums_of(state)
    fits = True
    s = _placed(problem, s, i, a, -1.0)
    s = _placed(problem, s, i, b, 1.0)
    if i2 >= 0:
        s = _placed(problem, s, i2, b, -1.0)
        s = _placed(problem, s, i2, a, 1.0)
    if b >= 0:
        ok, load, over = after(problem, state, b, i2, i)
        fits = ok
        s = _agent(problem, state, s, b, load, over, busy_after(problem, state, b, i2, i))
    if a >= 0:
        ok, load, over = after(problem, state, a, i, i2)
        fits = fits and ok
        s = _agent(problem, state, s, a, load, over, busy_after(problem, state, a, i, i2))
    return fits, s


@inlined
def _shift(problem: Problem, state: State, i: int, j: int, sign: int) -> None:
    if j < 0:
        return
    for k in range(problem.capacity.shape[1]):
        state.used[j, k] += sign * problem.demand[problem.demand_row[i], j * problem.demand_step, k]


@inlined
def apply(problem: Problem, state: State, i: int, b: int, i2: int, sums: Sums) -> None:
    """Make the change whose `trial` gave `sums`."""
    a = state.place[i]
    if a >= 0:
        _, state.load[a], state.over[a] = after(problem, state, a, i, i2)
        state.busy[a] = busy_after(problem, state, a, i, i2)
    if b >= 0:
        _, state.load[b], state.over[b] = after(problem, state, b, i2, i)
        state.busy[b] = busy_after(problem, state, b, i2, i)
    _shift(problem, state, i, a, -1)
    _shift(problem, state, i, b, 1)
    state.place[i] = b
    if i2 >= 0:
        _shift(problem, state, i2, b, -1)
        _shift(problem, state, i2, a, 1)
        state.place[i2] = a
    s = state.sums
    s[0], s[1], s[2], s[3] = sums.time, sums.used, sums.unplaced, sums.weight
    s[4], s[5], s[6], s[7] = sums.load, sums.load2, sums.power, sums.over
