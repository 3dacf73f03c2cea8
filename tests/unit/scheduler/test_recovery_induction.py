"""Backward induction against the enumeration of all policies, and what must hold of any table."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muster_scheduler.recovery.costs import (
    MAX_WAIT_S,
    Ends,
    Price,
    Work,
    ends,
    loads,
    priced,
    worth_of_slot,
)
from muster_scheduler.recovery.induction import Problem, seconds_away, seconds_held, solve
from muster_scheduler.recovery.posterior import RANGES_S, range_of_second
from muster_scheduler.recovery.settings import RecoverySettings

State = tuple[str, int, int, int]  # condition, t, restarts of this plan, seconds of the present one
Policy = dict[State, str]


def chances(low: float = 0.0) -> st.SearchStrategy[float]:
    return st.floats(low, 1.0)


works = st.builds(
    Work,
    tasks=st.integers(1, 30),
    age_s=st.floats(0, 500),
    remaining_s=st.floats(0, 100),
    stop=st.booleans(),
)


@st.composite
def problems(draw: st.DrawFn, horizon: int | None = None, groups: int = 1) -> Problem:
    horizon = horizon or draw(st.integers(1, 12))
    tries = draw(st.integers(0, 2))
    capacity = draw(st.integers(0, 60))
    dead = draw(st.booleans())
    ranges = len(RANGES_S) + 1
    return Problem(
        works=tuple(draw(works) for _ in range(groups)),
        silent_s=float(draw(st.integers(0, 15) | st.integers(0, 130))),
        free=draw(st.integers(0, capacity)),
        capacity=capacity,
        dead=dead,
        may_migrate=draw(st.booleans()),
        back=tuple(draw(chances()) for _ in range(ranges)),
        back_later=tuple(draw(chances()) for _ in range(ranges)),
        with_work=tuple(0.0 if dead else draw(chances()) for _ in range(ranges)),
        works_after=tuple(draw(chances()) for _ in range(tries)),
        over=(*(draw(chances()) for _ in range(draw(st.integers(0, 2)))), 1.0) if tries else (),
        pauses=tuple(draw(st.integers(0, 1)) for _ in range(tries)),
        settings=RecoverySettings(horizon_s=horizon),
        later_s=draw(st.floats(1, MAX_WAIT_S)),
        price=draw(st.builds(Price, st.floats(0, 3), st.floats(0, 200))),
    )


def chance_of(problem: Problem, t: int, r: int) -> float:
    """Back by itself within the second after t, r restarts tried."""
    return (problem.back_later if r else problem.back)[range_of_second(problem.silent_s + t)]


def next_of(
    problem: Problem, costs: Ends, state: State, action: str
) -> list[tuple[float, State | float]]:
    """What may follow, as the page has it: (chance, state or cost of the end)."""
    condition, t, r, j = state
    moved = float((costs.moved if condition == "down" and r == 0 else costs.moved_dead)[t].sum())
    if action == "migrate" or t == problem.settings.horizon_s:
        return [(1.0, moved + problem.price.away * least_away(problem, state))]
    empty = float(costs.empty[t + 1].sum())
    if action == "wait":
        back = chance_of(problem, t, r)
        kept = problem.with_work[range_of_second(problem.silent_s + t)] if r == 0 else 0.0
        return [
            (back * kept, float(costs.with_work[t + 1].sum())),
            (back * (1 - kept), empty),
            (1 - back, ("down", t + 1, r, 0)),
        ]
    if condition == "down":
        r, j = r + 1, 0
    over = (0.0,) * problem.pauses[r - 1] + problem.over + (1.0,)
    over_now = over[min(j, len(over) - 1)]
    worked = problem.works_after[r - 1]
    return [
        (over_now * worked, empty),
        (over_now * (1 - worked), ("down", t + 1, r, 0)),
        (1 - over_now, ("restarting", t + 1, r, j + 1)),
    ]


def least_away(problem: Problem, state: State) -> float:
    """Of an agent that holds nothing: the least that waiting and restarting it lead to."""
    _, t, r, _ = state
    used_up = r == len(problem.works_after)
    if t == problem.settings.horizon_s:
        chance = chance_of(problem, t, r)
        return min(problem.later_s, 1 / chance if chance else MAX_WAIT_S)
    actions = [action for action in actions_in(problem, state) if action != "migrate"]
    nothing = np.zeros((problem.settings.horizon_s + 1, 1))
    follows = (next_of(problem, Ends(*[nothing] * 4), state, action) for action in actions)
    least = 1 + min(
        sum(p * least_away(problem, then) for p, then in ends if isinstance(then, tuple))
        for ends in follows
    )
    return min(least, problem.later_s) if used_up and state[0] == "down" else least


def actions_in(problem: Problem, state: State) -> list[str]:
    condition, t, r, _ = state
    if t == problem.settings.horizon_s:
        return ["migrate"]
    actions = ["migrate"] if problem.may_migrate else []
    if condition == "restarting":
        return [*actions, "go on"]
    return [*actions, "wait", *(["restart"] if r < len(problem.works_after) else [])]


def reachable(problem: Problem, costs: Ends, start: State) -> list[State]:
    seen, ahead = [start], [start]
    while ahead:
        state = ahead.pop()
        for action in actions_in(problem, state):
            for _, then in next_of(problem, costs, state, action):
                if isinstance(then, tuple) and then not in seen:
                    seen.append(then)
                    ahead.append(then)
    return seen


def every_policy(problem: Problem, states: list[State]) -> Iterator[Policy]:
    for chosen in itertools.product(*(actions_in(problem, state) for state in states)):
        yield dict(zip(states, chosen, strict=True))


def cost_of(problem: Problem, costs: Ends, policy: Policy, state: State) -> float:
    return sum(
        chance * (cost_of(problem, costs, policy, then) if isinstance(then, tuple) else then)
        for chance, then in next_of(problem, costs, state, policy[state])
    )


def costs_of(problem: Problem) -> Ends:
    works, silent_s, defaults = problem.works, problem.silent_s, problem.settings
    own = ends(works, silent_s, problem.free, problem.capacity, problem.dead, defaults)
    return priced(own, works, silent_s, problem.price, defaults)


def value(problem: Problem, t: int = 0) -> float:
    """The least expected cost, down at epoch t with no restart tried."""
    table = solve(problem)
    options = [float(table.waits[t, 0].sum())]
    if problem.works_after:
        options.append(float(table.restarts[t, 0, 0].sum()))
    if problem.may_migrate:
        options.append(float(table.moves(t)[0].sum()))
    return min(options)


@settings(max_examples=60, deadline=None)
@given(problems(horizon=2))
def test_no_policy_of_all_is_better(problem: Problem) -> None:
    if len(problem.works_after) == 2:
        # Some ten thousand policies are enough.
        problem = replace(problem, works_after=problem.works_after[:1])
    costs, start = costs_of(problem), ("down", 0, 0, 0)
    states = reachable(problem, costs, start)
    best = min(cost_of(problem, costs, p, start) for p in every_policy(problem, states))
    assert value(problem) == pytest.approx(best, rel=1e-5, abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(problems(horizon=4))
def test_the_best_action_in_each_state_is_the_best_of_all_that_follows(problem: Problem) -> None:
    """Longer than can be enumerated: the page's transitions, from the end by plain recursion."""
    costs = costs_of(problem)
    known: dict[State, float] = {}

    def best(state: State) -> float:
        if state not in known:
            known[state] = min(
                sum(
                    chance * (best(then) if isinstance(then, tuple) else then)
                    for chance, then in next_of(problem, costs, state, action)
                )
                for action in actions_in(problem, state)
            )
        return known[state]

    assert value(problem) == pytest.approx(best(("down", 0, 0, 0)), rel=1e-5, abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(problems(), st.data())
def test_a_likelier_restart_never_costs_more(problem: Problem, data: st.DataObject) -> None:
    likelier = tuple(data.draw(st.floats(p, 1.0)) for p in problem.works_after)
    before, after = solve(problem), solve(replace(problem, works_after=likelier))
    # Beyond a restart nothing is alive any more; before it, work that is may be lost by it.
    slack = 1e-4 * (1.0 + np.abs(before.restarts))
    assert (after.restarts <= before.restarts + slack).all()


@settings(max_examples=60, deadline=None)
@given(st.lists(works, min_size=1, max_size=4), st.integers(0, 80), st.data())
def test_less_spare_capacity_never_makes_migrating_cheaper(
    groups: list[Work], capacity: int, data: st.DataObject
) -> None:
    free = data.draw(st.integers(0, capacity))
    less = data.draw(st.integers(0, free))
    defaults = RecoverySettings()
    roomy = loads(tuple(groups), free, capacity, defaults)
    tight = loads(tuple(groups), less, capacity, defaults)
    assert (tight >= roomy - 1e-9 * (1 + roomy)).all()


@settings(max_examples=40, deadline=None)
@given(problems(groups=3))
def test_groups_are_solved_as_if_each_were_alone(problem: Problem) -> None:
    """But for the load that the groups before put on the others, which is in its own costs. What
    the agent's absence costs is divided among them by tasks."""
    together = solve(replace(problem, capacity=10**9, free=10**9))
    tasks = sum(work.tasks for work in problem.works)
    for index, work in enumerate(problem.works):
        share = replace(problem.price, away=problem.price.away * work.tasks / tasks)
        alone = solve(replace(problem, works=(work,), capacity=10**9, free=10**9, price=share))
        assert together.waits[..., index] == pytest.approx(alone.waits[..., 0], rel=1e-6)
        assert together.restarts[..., index] == pytest.approx(alone.restarts[..., 0], rel=1e-5)


@settings(max_examples=40, deadline=None)
@given(problems())
def test_costs_and_seconds_lie_within_what_is_thinkable(problem: Problem) -> None:
    tasks = sum(work.tasks for work in problem.works)
    worth = replace(problem.price, away=problem.price.away + problem.price.slot * tasks)
    problem = replace(problem, price=worth)
    table = solve(problem)
    longest = worth.away * (problem.settings.horizon_s + MAX_WAIT_S)
    dearest = max(float(table.priced.moved.max()), float(table.priced.empty.max())) + longest
    assert (table.waits >= -1e-6).all()
    assert (table.waits <= dearest * (1 + 1e-5) + 1e-6).all()
    left = problem.settings.horizon_s - np.arange(problem.settings.horizon_s)
    waits, restarts = seconds_held(problem)
    assert waits.shape == table.waits.shape
    assert restarts.shape == table.restarts.shape
    assert (waits >= 1.0 - 1e-9).all()
    assert (waits <= left[:, None, None] + 1e-6).all()


def test_a_stop_task_waits_for_its_fence_and_a_dead_one_does_not() -> None:
    stop, keep = Work(2, 0.0, 20.0, True), Work(2, 0.0, 20.0, False)
    defaults = RecoverySettings()
    cut_off = ends((stop, keep), 10.0, 100, 1000, False, defaults)
    assert cut_off.moved[0] - cut_off.moved_dead[0] == pytest.approx([2 * 3.0, 0.0])
    assert cut_off.moved[3] == pytest.approx(cut_off.moved_dead[3])
    dead = ends((stop, keep), 10.0, 100, 1000, True, defaults)
    assert dead.moved[0] == pytest.approx(dead.moved_dead[0])


def test_work_that_runs_on_costs_only_what_comes_late() -> None:
    work = Work(1, 300.0, 50.0, False)
    costs = ends((work,), 10.0, 1000, 1000, False, RecoverySettings())
    late = 10 - 50 * (1 - np.exp(-10 / 50))
    assert costs.with_work[0, 0] == pytest.approx(late)
    assert costs.empty[0, 0] == 310.0
    assert costs.moved[0, 0] == pytest.approx(310.0 + 2.0, abs=0.01)


def test_tasks_are_held_until_the_expected_return() -> None:
    patient = Problem(
        works=(Work(3, 1e5, 1e5, False),),
        silent_s=10.0,
        free=0,
        capacity=0,
        dead=False,
        may_migrate=True,
        back=(0.5,) * (len(RANGES_S) + 1),
        back_later=(0.5,) * (len(RANGES_S) + 1),
        with_work=(1.0,) * (len(RANGES_S) + 1),
        works_after=(),
        over=(),
        pauses=(),
        settings=RecoverySettings(horizon_s=60),
    )
    waits, _ = seconds_held(patient)
    # A return with chance 1/2 in each second takes two seconds in the mean.
    assert waits[0, 0, 0] == pytest.approx(2.0)
    assert waits[59, 0, 0] == pytest.approx(1.0)


def test_who_is_given_away_a_second_later_is_held_for_one() -> None:
    lost = Problem(
        works=(Work(3, 0.0, 20.0, False), Work(3, 0.0, 20.0, True)),
        silent_s=20.0,
        free=100,
        capacity=100,
        dead=False,
        may_migrate=True,
        back=(0.0,) * (len(RANGES_S) + 1),
        back_later=(0.0,) * (len(RANGES_S) + 1),
        with_work=(0.0,) * (len(RANGES_S) + 1),
        works_after=(0.0, 0.0),
        over=(0.5, 1.0),
        pauses=(0, 1),
        settings=RecoverySettings(horizon_s=30),
    )
    waits, restarts = seconds_held(lost)
    assert (waits == 1.0).all()
    assert (restarts[:, :, :-1] == 1.0).all()
    kept_waits, _ = seconds_held(replace(lost, may_migrate=False))
    assert (kept_waits[:, 0] == 30.0 - np.arange(30)[:, None]).all()


def test_a_stop_task_is_given_away_once_its_fence_has_gone() -> None:
    """So a second of waiting costs it nothing, and the table must know."""
    stop = Problem(
        works=(Work(1, 0.0, 20.0, True),),
        silent_s=10.0,
        free=1_000,
        capacity=1_000,
        dead=False,
        may_migrate=True,
        back=(0.0,) * (len(RANGES_S) + 1),
        back_later=(0.0,) * (len(RANGES_S) + 1),
        with_work=(0.0,) * (len(RANGES_S) + 1),
        works_after=(),
        over=(),
        pauses=(),
        settings=RecoverySettings(horizon_s=30),
    )
    table = solve(stop)
    assert table.moves(3)[0] == pytest.approx([15.0], abs=1e-3)
    assert table.ends.moved[:4, 0] == pytest.approx([15.0, 15.0, 15.0, 15.0], abs=1e-3)
    assert table.ends.moved[4, 0] == pytest.approx(16.0, abs=1e-3)
    assert table.waits[:4, 0, 0] == pytest.approx([15.0, 15.0, 15.0, 16.0], abs=1e-3)


def an_outage(**changed: object) -> Problem:
    """A hung agent whose work is surely lost, which mends within 20 s in the mean."""
    hung = Problem(
        works=(Work(2, 0.0, 20.0, False),),
        silent_s=10.0,
        free=0,
        capacity=100,
        dead=False,
        may_migrate=True,
        back=(0.05,) * (len(RANGES_S) + 1),
        back_later=(0.0,) * (len(RANGES_S) + 1),
        with_work=(0.0,) * (len(RANGES_S) + 1),
        works_after=(0.5,),
        over=(0.0, 0.0, 0.0, 1.0),
        pauses=(0,),
        settings=RecoverySettings(),
    )
    return replace(hung, **changed)  # type: ignore[arg-type]


def test_an_agent_that_others_miss_is_not_risked_for_a_few_tasks() -> None:
    """A restart that fails ends what would have mended, and then nothing brings the agent back."""
    likely, far = (0.7,), RecoverySettings(move_s=30.0, slowdown=0.0)
    alone = solve(an_outage(works_after=likely, settings=far, free=100))
    missed = solve(an_outage(works_after=likely, settings=far, free=100, price=Price(away=5.0)))
    assert alone.restarts[0, 0, 0, 0] < alone.waits[0, 0, 0]
    assert missed.restarts[0, 0, 0, 0] > missed.waits[0, 0, 0]


def test_how_long_an_agent_stays_away_is_of_its_best_care() -> None:
    mends = seconds_away(an_outage(works_after=(), over=(), pauses=()))
    assert mends.down[0, 0] == pytest.approx(1 / 0.05)
    never = seconds_away(an_outage(back=(0.0,) * (len(RANGES_S) + 1), works_after=(1.0,)))
    assert never.down[0, 0] == never.going[0, 0, 0] == pytest.approx(4.0)
    assert never.down[0, 1] == MAX_WAIT_S
    going_on = replace(an_outage(works_after=(0.0,)), later_s=30.0)
    assert seconds_away(going_on).going[0, 0, 0] == pytest.approx(4.0 + 30.0)


def test_giving_tasks_away_does_not_bring_the_agent_back() -> None:
    """Waiting, restarting and giving away alike pay for the time that it is missed."""
    free_of_charge, missed = (solve(an_outage(price=Price(away=a))) for a in (0.0, 7.0))
    for t in (0, 60, 120):
        dearer = missed.moves(t) - free_of_charge.moves(t)
        assert dearer[:, 0] == pytest.approx(7.0 * (10.0 + t + missed.away.down[t]))
    empty = missed.priced.empty - missed.ends.empty
    assert empty[:, 0] == pytest.approx(7.0 * (10.0 + np.arange(121)))


def test_work_that_others_would_have_to_do_again_is_worth_a_wait() -> None:
    """Of two tasks that ran for 30 s and went on for 10, where a second of a slot is worth 3."""
    works = (Work(2, 30.0, 1e6, False),)
    own = ends(works, 10.0, 0, 100, False, RecoverySettings())
    costs = priced(own, works, 10.0, Price(3.0, 0.0), RecoverySettings())
    assert costs.empty[0, 0] - own.empty[0, 0] == pytest.approx(3.0 * 2 * 30.0)
    assert costs.moved[0, 0] - own.moved[0, 0] == pytest.approx(3.0 * 2 * 30.0)
    went_on = costs.with_work[0, 0] - own.with_work[0, 0]
    assert went_on == pytest.approx(-3.0 * 2 * 10.0, rel=1e-4)


def test_a_slot_is_worth_what_those_lose_who_wait_and_those_who_share() -> None:
    defaults = RecoverySettings(knee=0.5, slowdown=0.5)
    assert worth_of_slot(0, 40, 100, defaults) == 0.0
    assert worth_of_slot(300, 40, 100, defaults) == 3.0
    # The last task is slowed by half, and slows each of the others by a 120th more.
    assert worth_of_slot(240, 119, 120, defaults) == pytest.approx(2.0 + 0.5 + 119 / 120)
