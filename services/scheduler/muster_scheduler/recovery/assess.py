"""What each action would cost one failed agent's tasks, which bounds it breaks, what speaks for it.

Every policy chooses from this; none computes costs of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from muster_scheduler.recovery.backoff import longest_pause_s
from muster_scheduler.recovery.bounds import Measures, after, before, broken
from muster_scheduler.recovery.costs import MAX_WAIT_S, FloatArray, Price, Work, worth_of_slot
from muster_scheduler.recovery.induction import Problem, Table, seconds_away, seconds_held, table
from muster_scheduler.recovery.ledger import SpareLedger
from muster_scheduler.recovery.posterior import Beliefs, Beta, range_of_second
from muster_scheduler.recovery.settings import RecoverySettings
from muster_scheduler.recovery.situation import (
    Action,
    Cluster,
    Failure,
    FailureKind,
    Group,
    grouped,
    stepped,
    stepped_count,
)

# Chances of coming back are said for so many seconds ahead.
SAID_AHEAD_S: Final = 30


@dataclass(frozen=True, slots=True)
class Option:
    """One action, continued in the best way. `moved`: indices of the groups given away at once.

    `held_cost`: what it would cost with no group given away now.
    """

    action: Action
    cost: float
    held_cost: float
    moved: tuple[int, ...]
    then: Measures
    broken: dict[str, float]

    @property
    def violation(self) -> float:
        """How much all broken bounds are broken together."""
        return sum(self.broken.values())


@dataclass(frozen=True, slots=True)
class Assessment:
    """The options of one failure. `excluded`: why an action is not among them.

    `restart`: the posterior of a restart; None where none is offered. `back_soon`: the chance
    that it comes back by itself within SAID_AHEAD_S, `back_seen` on how many outcomes of its own
    that rests. `free` of `capacity` slots elsewhere were counted on. `slot_worth`: w of the page.
    `moved_now` and `untouched`: what giving all away now, and its return now, cost its tasks alone.
    """

    failure: Failure
    groups: tuple[Group, ...]
    options: dict[Action, Option]
    excluded: dict[Action, str]
    was: Measures
    restart: Beta | None
    back_soon: float
    back_seen: float
    free: int
    capacity: int
    slot_worth: float
    moved_now: float
    untouched: float


def assess(
    failure: Failure,
    cluster: Cluster,
    beliefs: Beliefs,
    ledger: SpareLedger,
    settings: RecoverySettings,
    now_s: float,
) -> Assessment:
    """Looks the failure up in its table, which is made when there is none yet."""
    groups = grouped(failure.tasks)
    free = ledger.left(cluster.free, failure.agent)
    problem = _problem(failure, groups, cluster, free, beliefs, settings, now_s)
    was = before(failure, cluster)
    everything = tuple(range(len(groups)))
    # A migration's U and B are the same at any time: where they break a bound, no later one helps.
    static = after(failure, cluster, len(failure.tasks), free, 0.0, 0.0)
    never = set(broken(was, static, settings.bounds)) & {"U", "B"} and bool(failure.tasks)
    if never:
        problem = replace(problem, may_migrate=False)
    solved = table(problem)
    costs, excluded = _looked_up(failure, solved, len(problem.works_after))
    moving = _moving(failure, solved)
    options: dict[Action, Option] = {}
    for action, per_group in costs.items():
        if never:
            moved: tuple[int, ...] = ()
        else:
            moved = tuple(np.flatnonzero(moving <= per_group).tolist())
        cost = float(per_group.sum() if never else np.minimum(moving, per_group).sum())
        tasks = [len(group.ids) for group in groups]
        count_moved = sum(tasks[g] for g in moved)
        idle_share = 1.0
        if settings.bounds.delta_u is not None:
            idle = _idle_s(failure, problem, action)
            held_s = sum(tasks[g] * float(idle[g]) for g in everything if g not in moved)
            held = len(failure.tasks) - count_moved
            idle_share = min(1.0, held_s / (max(1, held) * solved.horizon))
        then = after(failure, cluster, count_moved, free, idle_share, cost)
        options[action] = Option(
            action, cost, float(per_group.sum()), moved, then, broken(was, then, settings.bounds)
        )
    total = float(moving.sum())
    then = after(failure, cluster, len(failure.tasks), free, 0.0, total)
    options[Action.MIGRATE] = Option(
        Action.MIGRATE, total, total, everything, then, broken(was, then, settings.bounds)
    )
    t = min(failure.epoch, solved.horizon)
    alive = solved.ends.with_work if not problem.dead else solved.ends.empty
    kind = FailureKind.DIED if failure.tried else failure.kind
    back = beliefs.back(failure.agent, kind, now_s)
    return Assessment(
        failure=failure,
        groups=groups,
        options=options,
        excluded=excluded,
        was=was,
        restart=(
            beliefs.restart(failure.agent, failure.kind, now_s)
            if Action.RESTART in options
            else None
        ),
        back_soon=_back_within(back, failure.silent_s + failure.epoch, SAID_AHEAD_S),
        back_seen=sum(beta.seen for beta in beliefs.with_work(failure.agent, failure.kind, now_s)),
        free=free,
        capacity=cluster.capacity,
        slot_worth=problem.price.slot,
        moved_now=float(solved.ends.moved[t].sum()),
        untouched=float(alive[t].sum()),
    )


def sooner_by_restart(
    failure: Failure, beliefs: Beliefs, settings: RecoverySettings, now_s: float
) -> bool:
    """Whether a restart now has an agent back sooner that holds nothing, than another second's wait
    and what is best then."""
    problem = _problem(failure, (), Cluster((), ()), 0, beliefs, settings, now_s)
    away = seconds_away(problem)
    return bool(problem.works_after) and bool(away.going[0, 0, 0] < away.waiting_s)


def _problem(
    failure: Failure,
    groups: tuple[Group, ...],
    cluster: Cluster,
    free: int,
    beliefs: Beliefs,
    settings: RecoverySettings,
    now_s: float,
) -> Problem:
    """The failure in buckets, as of the second in which it was found DOWN."""
    agent, kind, failed = failure.agent, failure.kind, failure.failed_tries
    dead = kind is FailureKind.DIED or failure.tried > 0
    under_way = failure.restarting_s is not None
    offered = min(settings.tries - failure.tried, failure.restarts_left)
    tries = max(0, offered) + under_way if failure.can_restart else 0
    restart = beliefs.restart(agent, kind, now_s)
    # What hung is killed before it is started anew, and mends no more.
    later = _chances(beliefs.back(agent, FailureKind.DIED, now_s))
    over: tuple[float, ...] = ()
    shares = beliefs.restart_seconds(kind, settings.restart_deadline_s, now_s)
    if tries:
        over = _hazards(shares)
    later_s = MAX_WAIT_S
    if failure.can_restart and failure.restarts_left > max(0, offered):
        # Whoever cares for an agent without tasks goes on for as long as the hourly budget lets.
        each_s = sum(second * share for second, share in enumerate(shares, 1))
        each_s += longest_pause_s(failed + tries, settings) / 2.0
        later_s = min(MAX_WAIT_S, stepped(each_s / restart.after_failures(tries)))
    return Problem(
        works=tuple(
            Work(
                stepped_count(len(group.ids)),
                stepped(group.age_s),
                stepped(group.remaining_s),
                group.stop,
            )
            for group in groups
        ),
        silent_s=float(round(failure.silent_s)),
        free=stepped_count(free, down=True),
        capacity=stepped_count(cluster.capacity),
        dead=dead,
        may_migrate=True,
        back=later if failure.tried else _chances(beliefs.back(agent, kind, now_s)),
        back_later=later,
        with_work=tuple(
            0.0 if dead else round(beta.mean, 2) for beta in beliefs.with_work(agent, kind, now_s)
        ),
        works_after=tuple(round(restart.after_failures(r), 2) for r in range(tries)),
        over=over,
        pauses=tuple(math.ceil(longest_pause_s(failed + r, settings) / 2.0) for r in range(tries)),
        settings=settings,
        price=_price(failure, cluster, settings),
        later_s=later_s,
    )


def _price(failure: Failure, cluster: Cluster, settings: RecoverySettings) -> Price:
    """What the others lose by the agent's absence; who waits beside free slots waits not for it."""
    held = len(failure.tasks)
    slots = max(failure.slots, held)
    busy = cluster.capacity - cluster.free + held
    waiting = 0 if cluster.free else cluster.waiting
    slot = stepped(worth_of_slot(waiting, busy, cluster.capacity + slots, settings))
    # Tasks are counted in steps of 10%: rounded up, none is worth more than its slot.
    return Price(slot, slot * math.ceil(slots * 1.05))


def _chances(back: tuple[Beta, ...]) -> tuple[float, ...]:
    return tuple(min(1.0, stepped(beta.mean)) for beta in back)


def _hazards(shares: list[float]) -> tuple[float, ...]:
    """From the chance of each second to the chance of it when it was none before; the last is 1."""
    left, hazards = 1.0, []
    for share in shares[:-1]:
        hazards.append(min(1.0, round(share / left, 2)) if left > 1e-9 else 1.0)
        left -= share
    return (*hazards, 1.0)


def _looked_up(
    failure: Failure, solved: Table, tries: int
) -> tuple[dict[Action, FloatArray], dict[Action, str]]:
    """Costs per group of waiting and restarting; why one of them is missing."""
    costs: dict[Action, FloatArray] = {}
    excluded: dict[Action, str] = {}
    t = failure.epoch
    if t >= solved.horizon:
        why = f"what is held for {solved.horizon} s is given away"
        return costs, {Action.WAIT: why, Action.RESTART: why}
    if failure.restarting_s is not None and tries:
        j = min(failure.restarting_s, solved.restarts.shape[2] - 1)
        costs[Action.RESTART] = solved.restarts[t, 0, j].astype(np.float64)
        return costs, {Action.WAIT: "a restart is under way"}
    costs[Action.WAIT] = solved.waits[t, 0]
    if tries:
        costs[Action.RESTART] = solved.restarts[t, 0, 0].astype(np.float64)
    elif not failure.can_restart:
        excluded[Action.RESTART] = "its supervisor is not reachable"
    elif not failure.restarts_left:
        excluded[Action.RESTART] = "no restarts left this hour"
    else:
        excluded[Action.RESTART] = f"it was restarted {failure.tried} times in vain"
    return costs, excluded


def _idle_s(failure: Failure, problem: Problem, action: Action) -> FloatArray:
    """Per group: for how many seconds it is expected to be held."""
    waits, restarts = seconds_held(problem)
    held: FloatArray = waits[failure.epoch, 0]
    if action is Action.RESTART:
        held = restarts[failure.epoch, 0, min(failure.restarting_s or 0, restarts.shape[2] - 1)]
    return held


def _moving(failure: Failure, solved: Table) -> FloatArray:
    """What giving each group away now costs."""
    t = min(failure.epoch, solved.horizon)
    costs: FloatArray = solved.moves(t)[0]
    if failure.restarting_s is not None and solved.restarts.shape[1]:
        j = min(failure.restarting_s, solved.restarts.shape[2] - 1)
        costs = solved.moves_restarting(t)[0, j]
    return costs


def _back_within(back: tuple[Beta, ...], age_s: float, seconds: int) -> float:
    away = 1.0
    for second in range(seconds):
        away *= 1.0 - back[range_of_second(age_s + second)].mean
    return 1.0 - away
