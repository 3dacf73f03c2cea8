"""Ejection chains under a temperature: least total time where room is tight.

A task leaves its agent, another takes its room, a third the room of that one, and so on; the first
goes to where the last came from or anywhere else (Yagiura, Ibaraki and Glover, INFORMS Journal on
Computing 2004). Here chains are drawn, and accepted by Metropolis; room may be exceeded at a price.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from muster_scheduler.placement.compiled.jit import inlined, kernel
from muster_scheduler.placement.compiled.random_numbers import Words, below, uniform
from muster_scheduler.placement.problem import Floats, Ints, Ints32, Problem

# Tasks that take another's room before a chain must close.
DEPTH = 4
# Draws for the task that fills a room best.
_TRIES = 16
# Exponent of the draws: the cheap agents of a task and the cheap tasks of an agent come more often.
_BIAS = 2.5
_NOTHING = 1e-9


class Chains(NamedTuple):
    """Where a walk stands; changed in place. All tasks of `movable` have an agent.

    place    int32 [N]               room   int64 [M, K], what is left; below 0 where exceeded
    reduced  float64 [N, M], what a choice costs above the task's best at the prices of room,
             infinite where it is not allowed
    price    float64 [M, K], what a unit of room is worth, in energy
    fine     float64 [M, K], what a unit beyond the room costs
    fans     int32 [M, N], the movable tasks that the agent may take, cheapest first; fan_count
             int64 [M]
    moved, left  int64 [DEPTH], the chain under way: its tasks and the agents that they left
    """

    place: Ints32
    room: Ints
    reduced: Floats
    price: Floats
    fine: Floats
    fans: Ints32
    fan_count: Ints
    moved: Ints
    left: Ints


@inlined
def _fine(chains: Chains, j: int) -> float:
    value = 0.0
    for k in range(chains.room.shape[1]):
        if chains.room[j, k] < 0:
            value -= chains.fine[j, k] * chains.room[j, k]
    return value


@inlined
def _fine_with(problem: Problem, chains: Chains, i: int, j: int) -> float:
    """The fine of agent j once task i is there."""
    row, value = problem.demand_row[i], 0.0
    for k in range(chains.room.shape[1]):
        left = chains.room[j, k] - problem.demand[row, j * problem.demand_step, k]
        if left < 0:
            value -= chains.fine[j, k] * left
    return value


@inlined
def _take(problem: Problem, chains: Chains, i: int, j: int, sign: int) -> None:
    row = problem.demand_row[i]
    for k in range(chains.room.shape[1]):
        chains.room[j, k] -= sign * problem.demand[row, j * problem.demand_step, k]


@inlined
def _cost(problem: Problem, i: int, j: int) -> float:
    return float(problem.k_time * problem.time[i, j * problem.time_step])


@inlined
def _undo(problem: Problem, chains: Chains, length: int, keep: int) -> None:
    for at in range(length - 1, keep - 1, -1):
        i, home = chains.moved[at], chains.left[at]
        _take(problem, chains, i, chains.place[i], -1)
        _take(problem, chains, i, home, 1)
        chains.place[i] = home


@inlined
def _filler(
    problem: Problem, chains: Chains, words: Words, gap: int, first: int, length: int
) -> int:
    """The drawn task that would fill the room of `gap` best, -1 without one."""
    best, least = -1, math.inf
    for _ in range(_TRIES):
        i = chains.fans[gap, int(chains.fan_count[gap] * uniform(words) ** _BIAS)]
        home = chains.place[i]
        if home == gap or i == first:
            continue
        again = False
        for at in range(length):
            if chains.moved[at] == i:
                again = True
        if again:
            continue
        score = chains.reduced[i, gap] - chains.reduced[i, home]
        row = problem.demand_row[i]
        for k in range(chains.room.shape[1]):
            over = problem.demand[row, gap * problem.demand_step, k] - chains.room[gap, k]
            if over > 0:
                score += (chains.fine[gap, k] - chains.price[gap, k]) * over
        if score < least:
            best, least = i, score
    return best


@inlined
def _overloaded(chains: Chains) -> bool:
    for j in range(chains.room.shape[0]):
        for k in range(chains.room.shape[1]):
            if chains.room[j, k] < 0:
                return True
    return False


@inlined
def _copy(chains: Chains, best: Ints32) -> None:
    for i in range(best.shape[0]):
        best[i] = chains.place[i]


@kernel
def energy_of(problem: Problem, chains: Chains, movable: Ints32) -> float:
    """Of the movable tasks, with fines."""
    value = 0.0
    for position in range(movable.shape[0]):
        i = movable[position]
        value += _cost(problem, i, chains.place[i])
    for j in range(chains.room.shape[0]):
        value += _fine(chains, j)
    return value


@kernel
def walk(
    problem: Problem,
    chains: Chains,
    best: Ints32,
    best_energy: float,
    movable: Ints32,
    words: Words,
    draws: int,
    hot: float,
    cold: float,
) -> tuple[float, int]:
    """Draw chains while the temperature falls; (energy of `best`, draws after which all fitted).

    `best` holds the best plan without overload among those seen; its energy is that of the
    movable tasks.
    """
    current = energy_of(problem, chains, movable)
    fitted, fits = 0, not _overloaded(chains)
    if fits and current < best_energy - _NOTHING:
        best_energy = current
        _copy(chains, best)
    cooling = (cold / hot) ** (1.0 / draws)
    temperature = hot
    for _ in range(draws):
        temperature *= cooling
        if fits:
            fitted += 1
        first = movable[below(words, movable.shape[0])]
        limit = -temperature * math.log(max(uniform(words), 1e-300))
        rise = _drawn_chain(problem, chains, words, first, limit)
        if rise == math.inf:
            continue
        current += rise
        fits = not _overloaded(chains)
        if fits and current < best_energy - _NOTHING:
            best_energy = current
            _copy(chains, best)
    return best_energy, fitted


@inlined
def _drawn_chain(problem: Problem, chains: Chains, words: Words, first: int, limit: float) -> float:
    """Change the plan by one chain that raises the energy by at most `limit`, and say by how much.

    Infinite, and nothing changed, where none was found.
    """
    home = chains.place[first]
    gap = int(home)
    # Of the agent with the gap no fine is in `rise` until it is known who stays there.
    rise = -_cost(problem, first, home) - _fine(chains, home)
    _take(problem, chains, first, home, -1)
    choices = problem.choice_count[problem.class_row[first]]
    best, best_length, goal = math.inf, 0, -1
    length = 0
    while True:
        if length:
            value = rise + _cost(problem, first, gap) + _fine_with(problem, chains, first, gap)
            if chains.reduced[first, gap] < math.inf and value < best:
                best, best_length, goal = value, length, gap
        pick = int(choices * uniform(words) ** _BIAS)
        other = int(problem.choices[problem.class_row[first], pick])
        if other not in (gap, home):
            value = rise + _fine(chains, gap) + _cost(problem, first, other)
            value += _fine_with(problem, chains, first, other) - _fine(chains, other)
            if value < best:
                best, best_length, goal = value, length, other
        if best <= limit or length == DEPTH or chains.fan_count[gap] == 0:
            break
        filler = _filler(problem, chains, words, gap, first, length)
        if filler < 0:
            break
        left = int(chains.place[filler])
        chains.moved[length], chains.left[length] = filler, left
        rise += _cost(problem, filler, gap) - _cost(problem, filler, left)
        rise += _fine_with(problem, chains, filler, gap) - _fine(chains, left)
        _take(problem, chains, filler, gap, 1)
        _take(problem, chains, filler, left, -1)
        chains.place[filler] = gap
        gap = left
        length += 1
    if best <= limit:
        _undo(problem, chains, length, best_length)
        chains.place[first] = goal
        _take(problem, chains, first, goal, 1)
        return best
    _undo(problem, chains, length, 0)
    _take(problem, chains, first, home, 1)
    return math.inf
