"""Lets experience choose the strategy; the default one watches over it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from muster_scheduler.learning.bandit import Bandit, Choice
from muster_scheduler.placement.classes import TaskBatch
from muster_scheduler.placement.objective import dominant_shares, evaluate
from muster_scheduler.placement.plan import DEFAULT_STRATEGY, Plan, Policy
from muster_scheduler.placement.snapshot import Snapshot
from muster_scheduler.placement.strategy import get, names, register

GUARD = DEFAULT_STRATEGY
# What is chosen among, where it is there; those of the second line with steps to spend only.
_ARMS = ("worst_fit", "best_fit", "first_fit", "dot_product", "fragmentation", "learned")
_IMPROVING_ARMS = ("search", "annealing")
# Constant, load, heterogeneity, queue, batch.
CONTEXT_WIDTH = 5


@dataclass(frozen=True, slots=True, eq=False)
class ChosenPlan(Plan):
    """A plan with how its strategy was chosen. `guarded`: the guard's plan was the better one."""

    choice: Choice | None = None
    guarded: bool = False


@register("auto")
class Auto:
    """The strategy that has done best in such a situation, never worse than the default's plan.

    A bandit draws a strategy by (load, heterogeneity, queue, batch); GUARD plans too, and the
    better plan by the policy's order counts. `plan` changes nothing: who carries a plan out tells
    `bandit.learn` the plan's `choice` and -J as it was realised, and logs the propensities.
    """

    name = "auto"

    def __init__(self) -> None:
        self.bandit = Bandit(CONTEXT_WIDTH)

    def plan(
        self,
        snapshot: Snapshot,
        tasks: TaskBatch,
        policy: Policy,
        now_s: float,
        rng: Generator,
        stop: Callable[[], bool],
        max_steps: int,
    ) -> ChosenPlan:
        """See Strategy."""
        arms = _ARMS + (_IMPROVING_ARMS if max_steps > 0 else ())
        known = [arm for arm in arms if arm in names()]
        choice = self.bandit.choose(known, context_of(snapshot, tasks), rng)
        guard = get(GUARD).plan(snapshot, tasks, policy, now_s, rng, stop, 0)
        plan, guarded = guard, False
        if choice.arm != GUARD:
            plan = get(choice.arm).plan(snapshot, tasks, policy, now_s, rng, stop, max_steps)
            guarded = not self._no_worse(snapshot, tasks, policy, plan, guard)
        if guarded:
            plan = guard
        return ChosenPlan(
            plan.assignment,
            plan.reasons,
            self.name,
            plan.considered,
            plan.T,
            plan.U,
            plan.B,
            plan.J,
            plan.lower_bound,
            plan.devices,
            choice,
            guarded,
        )

    def _no_worse(
        self, snapshot: Snapshot, tasks: TaskBatch, policy: Policy, plan: Plan, guard: Plan
    ) -> bool:
        ours = evaluate(snapshot, tasks, plan.assignment, policy).order(policy)
        return ours <= evaluate(snapshot, tasks, guard.assignment, policy).order(policy)


def context_of(snapshot: Snapshot, tasks: TaskBatch) -> tuple[float, ...]:
    """(1, load, heterogeneity, queue, batch), each about 0 to 2.

    load           mean dominant share in use
    heterogeneity  standard deviation over mean of the agents' capacities, the largest resource's
    queue          what waits against what is free: the batch's demand / free, its largest share
    batch          log10(1 + N) / 4
    """
    alive = snapshot.alive
    capacity = snapshot.capacity[alive].astype(np.float64)
    batch = math.log10(1 + len(tasks)) / 4
    if not capacity.size:
        return 1.0, 0.0, 0.0, 2.0, batch
    used = snapshot.used[alive].astype(np.float64)
    load = float(dominant_shares(used, snapshot.capacity[alive]).mean())
    mean = capacity.mean(axis=0)
    unequal = (capacity.std(axis=0) / np.maximum(mean, 1.0)).max()
    wanted = np.zeros(capacity.shape[1])
    class_ids, counts = np.unique(tasks.class_id, return_counts=True)
    for class_id, count in zip(class_ids.tolist(), counts.tolist(), strict=True):
        for column, amount in tasks.classes.demand(class_id, snapshot).columns:
            wanted[column] += amount * count
    free = np.maximum(snapshot.free[alive], 0).sum(axis=0)
    queue = float((wanted / np.maximum(free, 1.0)).max(initial=0.0))
    return 1.0, min(load, 2.0), min(float(unequal), 2.0), min(queue, 2.0), batch
