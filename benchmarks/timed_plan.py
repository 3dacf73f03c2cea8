"""One plan under a budget of CPU seconds, for the benchmarks that compare strategies."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np

from benchmarks.placement_instances import Instance
from muster.domain.errors import InvalidInput
from muster_scheduler.placement import Plan, Policy, Score, evaluate, get

# Longer than any run here; the clock ends them.
_NO_LIMIT = 10**9
# Enough that every compiled loop has run.
_WARM_UP_STEPS = 4


@dataclass(frozen=True, slots=True)
class Run:
    plan: Plan
    score: Score
    cpu_s: float


def run(instance: Instance, policy: Policy, seed: int) -> Run:
    """Plan with the policy's strategy for `budget_s` seconds of this process's CPU time."""
    begin = time.process_time()
    plan = get(policy.strategy).plan(
        instance.snapshot,
        instance.tasks,
        policy,
        0.0,
        np.random.default_rng(seed),
        lambda: time.process_time() - begin > policy.budget_s,
        _NO_LIMIT,
    )
    spent = time.process_time() - begin
    score = evaluate(instance.snapshot, instance.tasks, plan.assignment, policy)
    return Run(plan, score, spent)


def warm_up(instance: Instance, policy: Policy) -> None:
    """Load and compile what the strategy needs; a long-running scheduler does it once."""
    get(policy.strategy).plan(
        instance.snapshot,
        instance.tasks,
        policy,
        0.0,
        np.random.default_rng(0),
        lambda: False,
        _WARM_UP_STEPS,
    )


def is_feasible(instance: Instance, plan: Plan) -> bool:
    """Every task has a place that may take it, and no agent holds more than its capacity."""
    snapshot, tasks = instance.snapshot, instance.tasks
    used = snapshot.used.copy()
    for i, row in enumerate(plan.assignment.tolist()):
        class_id = int(tasks.class_id[i])
        if row < 0 or not tasks.classes.eligible(class_id, snapshot)[row]:
            return False
        if tasks.demand_by_agent is not None:
            used[row] += tasks.demand_by_agent[i, row]
        else:
            used[row] += np.array(tasks.classes.demand(class_id, snapshot).amounts)
    return bool((used <= snapshot.capacity).all())


def add_run_flags(parser: argparse.ArgumentParser, seconds: float) -> None:
    parser.add_argument("--strategy", default="search")
    parser.add_argument("--seconds", type=float, default=seconds, help="CPU seconds a run")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--json", action="store_true", help="one JSON line a run")


@contextmanager
def one_sentence(parser: argparse.ArgumentParser) -> Iterator[None]:
    """Bad input ends the script with one sentence and exit code 2."""
    try:
        yield
    except InvalidInput as error:
        parser.error(str(error))


def policy_of(asked: argparse.Namespace, objective: Literal["J", "T", "makespan"]) -> Policy:
    """Raises InvalidInput for a strategy or a time that there is not."""
    get(asked.strategy)
    if asked.seed < 0:
        raise InvalidInput("--seed", asked.seed, "at least 0")
    return Policy(asked.strategy, objective=objective, budget_s=asked.seconds)
