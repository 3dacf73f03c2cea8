"""P5: response times when agents differ in speed and nobody says so.

    python benchmarks/learned.py --trace AzureLLMInferenceTrace_conv.csv --agents 16 --json

The requests of a trace arrive at agents that look alike and whose speeds, 1 to 8, are drawn from
the seed: `--speeds log` makes each doubling as likely (1-2, 2-4, 4-8), `even` each number. Each has
4 slots. A request's work is its tokens; the work of
all is scaled so that the agents, if all were kept busy, would be busy for `--utilisation` of the
time, and each run time is off by log-normal noise of `--noise`. The estimate that comes with a
request is its work on an agent of speed 1, so it says nothing of the agents. `--hide-answer` leaves
the length of the answer out of the estimate and of what the model sees.

How far ahead of greedy even the oracle can be depends on the speeds and on the utilisation: with
even speeds, or on busier agents, it is less (20 to 29% with `--speeds even` and 0.3 to 0.5, seeds
7 to 9, the first 5,000 or 6,000 tasks), because then there are not enough fast agents for all.

Compared, all through the placement of the live system in virtual time, over the tasks after
`--skip`: `greedy` (on the declared estimates, which are the same for all agents), `worst_fit` (the
default), `learned` (knows what ended before) and the oracle (`learned`'s placement, given the true
run times).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import msgspec
import numpy as np

from muster.domain.errors import InvalidInput
from muster.domain.resources import ResourceVector
from muster_scheduler.placement.plan import Policy
from muster_scheduler.replay.azure import SLOTS, equal_agents, read_azure
from muster_scheduler.replay.report import Figures, figures
from muster_scheduler.replay.simulator import ORACLE, simulate
from muster_scheduler.replay.trace import Trace

STRATEGIES = ("greedy", "worst_fit", "learned", ORACLE)
SPEEDS = (1.0, 8.0)


def loaded(trace: Trace, utilisation: float, noise: float, seed: int) -> Trace:
    """The work scaled to the utilisation, with noise; estimates are scaled and have no noise."""
    span_s = trace.tasks[-1].arrival_s - trace.tasks[0].arrival_s
    offered = sum(agent.speed * agent.capacity.get("slots") for agent in trace.agents)
    scale = utilisation * span_s * offered / sum(task.work_s for task in trace.tasks)
    off = np.exp(np.random.default_rng([seed, 1]).normal(0.0, noise, len(trace.tasks)))
    tasks = tuple(
        msgspec.structs.replace(
            task,
            work_s=task.work_s * scale * factor,
            features=msgspec.structs.replace(
                task.features, declared_s=task.features.declared_s * scale
            ),
        )
        for task, factor in zip(trace.tasks, off.tolist(), strict=True)
    )
    return msgspec.structs.replace(trace, tasks=tasks)


def measure(args: argparse.Namespace, seed: int) -> dict[str, object]:
    """One run: every strategy on the same trace and the same agents."""
    capacity = ResourceVector.of({"cpu": 4000, "memory": 8 << 30, "network": 10**9, "slots": SLOTS})
    agents = equal_agents(args.agents, capacity, SPEEDS, seed, even=args.speeds == "even")
    trace = read_azure(args.trace, agents, hide_answer=args.hide_answer)
    trace = loaded(trace, args.utilisation, args.noise, seed)
    skip = min(args.skip, len(trace.tasks) - 1)
    found: dict[str, Figures] = {}
    for strategy in STRATEGIES:
        run = simulate(trace, strategy, Policy(), seed, max_steps=0)
        found[strategy] = figures(trace, run, skip)
    result: dict[str, object] = {
        "benchmark": "learned", "trace": args.trace.name, "agents": args.agents, "seed": seed,
        "utilisation": args.utilisation, "speeds": args.speeds,
        "noise": args.noise, "hide_answer": args.hide_answer,
        "tasks": len(trace.tasks), "skipped": skip,
    }  # fmt: skip
    for strategy, row in found.items():
        result[f"{strategy}_mean_s"] = row.response_mean_s
        result[f"{strategy}_p99_s"] = row.response_p99_s
        result[f"{strategy}_unplaced"] = row.unplaced
    learned, oracle = found["learned"].response_mean_s, found[ORACLE].response_mean_s
    greedy = found["greedy"].response_mean_s
    if learned and oracle and greedy:
        result["learned_above_oracle_pct"] = 100 * (learned / oracle - 1)
        result["learned_below_greedy_pct"] = 100 * (1 - learned / greedy)
    return result


def show(results: list[dict[str, object]]) -> None:
    """A line a seed, mean and p99 response in seconds, and the spread over the seeds."""
    heads = [f"{strategy} {part}" for strategy in STRATEGIES for part in ("mean", "p99")]
    keys = [f"{strategy}_{part}_s" for strategy in STRATEGIES for part in ("mean", "p99")]
    heads += ["above oracle %", "below greedy %"]
    keys += ["learned_above_oracle_pct", "learned_below_greedy_pct"]
    print("seed  " + "  ".join(heads))
    rows = np.array([[float(str(result.get(key, "nan"))) for key in keys] for result in results])
    names = [str(result["seed"]) for result in results]
    if len(results) > 1:
        rows = np.vstack([rows, rows.mean(axis=0), rows.min(axis=0), rows.max(axis=0)])
        names += ["mean", "min", "max"]
    for name, row in zip(names, rows.tolist(), strict=True):
        cells = (f"{value:.2f}".rjust(len(head)) for value, head in zip(row, heads, strict=True))
        print(name.ljust(4) + "  " + "  ".join(cells))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--trace", type=Path, required=True, help="CSV of an Azure LLM trace")
    parser.add_argument("--agents", type=int, default=16)
    parser.add_argument("--seed", type=int, nargs="+", default=[42], help="one run each")
    parser.add_argument("--utilisation", type=float, default=0.4)
    parser.add_argument("--speeds", choices=("log", "even"), default="log")
    parser.add_argument("--noise", type=float, default=0.1, help="sigma of log run times")
    parser.add_argument("--skip", type=int, default=2000, help="tasks that are not counted")
    parser.add_argument("--hide-answer", action="store_true")
    parser.add_argument("--json", action="store_true", help="one JSON line a run")
    args = parser.parse_args()
    results = []
    for seed in args.seed:
        try:
            results.append(measure(args, seed))
        except InvalidInput as error:
            print(f"learned.py: {error}", file=sys.stderr)
            return 2
        if args.json:
            print(json.dumps(results[-1]), flush=True)
    if not args.json:
        show(results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
