"""The objective J of a plan against a lower bound, on generated instances (P8).

python benchmarks/objective.py --tasks 200 --agents 20 --fill 0.7 --strategy search --seconds 5
    --seed 42 [--json]

Generator, all draws from numpy's default_rng(seed): agent j has cpu c_j, 16 to 64 cores, and speed
s_j, 0.5 to 2, uniform; task i wants r_i ∝ uniform(0.5, 1.5) cpu, scaled so that Σ r = fill · Σ c,
and has work w_i, uniform 10 to 100 s; t_ij = w_i / s_j · uniform(0.8, 1.25). One resource, as in
the article's U = Σ x r / (M R); with it L_j is linear and the bound below is one. Weights .4 (T),
.3 (U), .3 (B).

Bound: tasks may be split (LP, HiGHS), B = |L - mean| / sqrt(M) held from below by tangents at each
solution until they close: the optimum of the second-order cone relaxation. It is independent of
what the strategies do, and is not part of their time.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import orjson
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.placement_instances import Instance, build
from benchmarks.timed_plan import (
    add_run_flags,
    is_feasible,
    one_sentence,
    policy_of,
    run,
    warm_up,
)
from muster_scheduler.placement import Policy
from muster_scheduler.placement.problem import frame
from muster_scheduler.placement.relaxation import relax
from muster_scheduler.placement.snapshot import FIRST_COLUMNS

# Tangents at which the bound has long closed.
_BOUND_ROUNDS = 200


def generate(tasks: int, agents: int, fill: float, seed: int) -> Instance:
    """See the head of the file."""
    rng = np.random.default_rng(seed)
    capacity = np.zeros((agents, len(FIRST_COLUMNS)), np.int64)
    capacity[:, 0] = (1000 * rng.uniform(16, 64, agents)).astype(np.int64)
    speed = rng.uniform(0.5, 2.0, agents)
    wanted = rng.uniform(0.5, 1.5, tasks)
    demand = np.zeros((tasks, len(FIRST_COLUMNS)), np.int64)
    demand[:, 0] = np.maximum(1, wanted / wanted.sum() * fill * capacity[:, 0].sum())
    work = rng.uniform(10.0, 100.0, tasks)
    times = work[:, None] / speed * rng.uniform(0.8, 1.25, (tasks, agents))
    snapshot, batch = build(capacity, demand, times)
    return Instance(f"{tasks}x{agents} fill {fill:g} seed {seed}", snapshot, batch)


def bound_of(instance: Instance, policy: Policy) -> float | None:
    """None where not even split tasks fit."""
    framed = frame(instance.snapshot, instance.tasks, policy)
    assert framed is not None, "there are tasks and agents"
    problem = framed.problem
    loads = np.linspace(0.0, 1.0, len(problem.capacity))
    relaxation = relax(problem, loads, problem.used, lambda: False, rounds=_BOUND_ROUNDS)
    return None if relaxation is None else relaxation.bound


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--agents", type=int, default=20)
    parser.add_argument("--fill", type=float, default=0.7, help="Σ demand / Σ capacity, 0 to 1")
    add_run_flags(parser, seconds=5.0)
    asked = parser.parse_args()
    if asked.tasks < 1 or asked.agents < 1 or not 0.0 < asked.fill <= 1.0:
        parser.error("--tasks and --agents are at least 1, --fill is above 0 and at most 1")
    with one_sentence(parser):
        policy = policy_of(asked, "J")
    instance = generate(asked.tasks, asked.agents, asked.fill, asked.seed)
    bound = bound_of(instance, policy)
    warm_up(instance, policy)
    done = run(instance, policy, asked.seed)
    feasible = is_feasible(instance, done.plan)
    above = None if bound is None or not feasible else 100.0 * (done.score.J / bound - 1.0)
    row = {
        "tasks": asked.tasks,
        "agents": asked.agents,
        "fill": asked.fill,
        "strategy": asked.strategy,
        "seed": asked.seed,
        "seconds": round(done.cpu_s, 3),
        "j": done.score.J,
        "t": done.score.T,
        "u": done.score.U,
        "b": done.score.B,
        "bound": bound,
        "above_bound_pct": None if above is None else round(above, 4),
        "feasible": feasible,
    }
    if asked.json:
        print(orjson.dumps(row).decode())
        return
    table = Table("", *(name for name in row if name not in ("tasks", "agents", "fill", "seed")))
    cells = [str(v) for k, v in row.items() if k not in ("tasks", "agents", "fill", "seed")]
    table.add_row(instance.name, *cells)
    Console().print(table)


if __name__ == "__main__":
    main()
