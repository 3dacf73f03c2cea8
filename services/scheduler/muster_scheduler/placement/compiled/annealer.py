"""Moves and swaps under a temperature (Kirkpatrick et al., Science 1983), best kept apart."""

from __future__ import annotations

import math

from muster_scheduler.placement.compiled.delta import (
    State,
    apply,
    energy,
    makespan,
    may_take,
    refresh,
    sums_of,
    trial,
)
from muster_scheduler.placement.compiled.jit import inlined, kernel
from muster_scheduler.placement.compiled.random_numbers import Words, below, uniform
from muster_scheduler.placement.problem import Floats, Ints32, Problem

# Shares below this are rounding.
_NOTHING = 1e-9
# Draws for a task on a given agent; with 16 agents two of three find one.
_TRIES = 16


@kernel
def exact_energy(problem: Problem, state: State) -> float:
    """With the true makespan; infinite where an agent holds more than it has room for."""
    for j in range(state.over.shape[0]):
        if state.over[j] > 0.0:
            return math.inf
    return energy(problem, sums_of(state), makespan(state))


@inlined
def draw(
    problem: Problem, state: State, movable: Ints32, words: Words, bias: float
) -> tuple[int, int, int]:
    """(task, agent, task that comes back or -1); the task is -1 where the draw means nothing.

    A third are moves. A move's agent is drawn among the class's choices; with bias above 1 the
    first ones, which the caller has sorted to be the best, are drawn more often, and what comes
    back in a swap is a task of that agent.
    """
    i = movable[below(words, movable.shape[0])]
    a = state.place[i]
    row = problem.class_row[i]
    if a < 0 or uniform(words) < 0.34:
        count = problem.choice_count[row]
        if count == 0:
            return -1, -1, -1
        at = uniform(words)
        if bias > 1.0:
            at = at**bias
        b = problem.choices[row, int(count * at)]
        if b == a:
            return -1, -1, -1
        if a >= 0 or uniform(words) < 0.5:
            return i, b, -1
    i2 = movable[below(words, movable.shape[0])]
    if bias > 1.0:
        b = problem.choices[row, int(problem.choice_count[row] * uniform(words) ** bias)]
        if b == a:
            return -1, -1, -1
        for _ in range(_TRIES):
            if state.place[i2] == b:
                break
            i2 = movable[below(words, movable.shape[0])]
    b = state.place[i2]
    if b < 0 or a == b or not may_take(problem, i, b):
        return -1, -1, -1
    if a >= 0 and not may_take(problem, i2, a):
        return -1, -1, -1
    return i, b, i2


@kernel
def anneal(
    problem: Problem,
    state: State,
    best: Ints32,
    best_energy: float,
    movable: Ints32,
    words: Words,
    draws: int,
    hot: float,
    cold: float,
    price: float,
    bias: float,
) -> float:
    """Draw and accept by Metropolis while the temperature falls from hot to cold.

    `state` is left where the walk ended. `best` holds the best plan without overload and its
    energy is returned. A price below 0 forbids overload, else it is paid per unit of it.
    """
    refresh(problem, state)
    current = energy(problem, sums_of(state), -1.0) + max(0.0, price) * state.sums[7]
    cooling = (cold / hot) ** (1.0 / draws) if hot > 0.0 else 1.0
    temperature = hot
    unsaved = False
    lowest, slack = math.inf, 0.0
    for _ in range(draws):
        temperature *= cooling
        i, b, i2 = draw(problem, state, movable, words, bias)
        if i < 0:
            continue
        fits, sums = trial(problem, state, i, b, i2)
        if price < 0.0 and not fits:
            continue
        value = energy(problem, sums, -1.0) + max(0.0, price) * sums.over
        rise = value - current
        if rise > 0.0:
            if rise >= 30.0 * temperature or uniform(words) >= math.exp(-rise / temperature):
                continue
            if unsaved:
                best_energy = _keep(problem, state, best, best_energy)
                unsaved = False
        apply(problem, state, i, b, i2, sums)
        current = value
        # A plan is copied when the walk leaves it, so a long descent copies once.
        if sums.over < _NOTHING and value < lowest + slack:
            lowest = min(lowest, value)
            slack = 1e-3 * abs(lowest) * _smooth(problem)
            unsaved = True
    if unsaved:
        best_energy = _keep(problem, state, best, best_energy)
    return best_energy


@inlined
def _smooth(problem: Problem) -> float:
    """1 where the walk's energy only stands for the true one, which may fall while it rises."""
    return 1.0 if problem.k_longest > 0.0 else 0.0


@kernel
def _keep(problem: Problem, state: State, best: Ints32, best_energy: float) -> float:
    value = exact_energy(problem, state)
    if value < best_energy:
        for i in range(best.shape[0]):
            best[i] = state.place[i]
        return value
    return best_energy


@kernel
def typical_rises(
    problem: Problem, state: State, movable: Ints32, words: Words, rises: Floats
) -> int:
    """Fill `rises` with what drawn changes that fit and worsen would cost; returns how many."""
    current = energy(problem, sums_of(state), -1.0)
    found = 0
    for _ in range(20 * rises.shape[0]):
        i, b, i2 = draw(problem, state, movable, words, 1.0)
        if i < 0 or state.place[i] < 0:
            continue
        fits, sums = trial(problem, state, i, b, i2)
        rise = energy(problem, sums, -1.0) - current
        if fits and rise > 0.0:
            rises[found] = rise
            found += 1
            if found == rises.shape[0]:
                break
    return found


@kernel
def descend(
    problem: Problem, state: State, movable: Ints32, words: Words, draws: int, bias: float
) -> float:
    """Drawn changes that fit and do not worsen; returns the true energy."""
    current = energy(problem, sums_of(state), -1.0)
    for _ in range(draws):
        i, b, i2 = draw(problem, state, movable, words, bias)
        if i < 0:
            continue
        fits, sums = trial(problem, state, i, b, i2)
        if fits:
            value = energy(problem, sums, -1.0)
            if value <= current:
                apply(problem, state, i, b, i2, sums)
                current = value
    return exact_energy(problem, state)


@kernel
def place_greedily(problem: Problem, state: State, order: Ints32) -> None:
    """Give each task of `order` that has no place the agent where the energy rises least."""
    for position in range(order.shape[0]):
        i = order[position]
        if state.place[i] >= 0:
            continue
        row = problem.class_row[i]
        best_agent, best_value = -1, math.inf
        best_sums = sums_of(state)
        for choice in range(problem.choice_count[row]):
            b = problem.choices[row, choice]
            fits, sums = trial(problem, state, i, b, -1)
            if fits:
                value = energy(problem, sums, -1.0)
                if value < best_value:
                    best_agent, best_value, best_sums = b, value, sums
        if best_agent >= 0:
            apply(problem, state, i, best_agent, -1, best_sums)


@kernel
def drop_overload(problem: Problem, state: State, order: Ints32) -> None:
    """Take tasks of `order` from agents that hold too much until nothing is beyond the room."""
    for position in range(order.shape[0]):
        i = order[position]
        j = state.place[i]
        if j >= 0 and state.over[j] > 0.0:
            _, sums = trial(problem, state, i, -1, -1)
            if sums.over < state.sums[7]:
                apply(problem, state, i, -1, -1, sums)
