"""P1 and P2: how much of the GPUs of a cluster a strategy gives out, on the openb trace.

    python benchmarks/openb.py --nodes NODES.csv --pods PODS.csv --strategy quota --seed 42

The protocol of FGD (Weng et al., USENIX ATC'23): pods arrive one after another until they have
asked for `--inflate` x the GPUs of the cluster, none leaves, and what does not fit at once is gone.
First comes the list itself (`--order fixed`: as it stands in the file; `shuffled`: by the seed),
then pods drawn from it with replacement. Reported is the share of the GPUs that is given out when
100% has been asked for, and at the end.

The strategy is told the nodes and how often each kind of pod stands in the list, as FGD is, and
neither the order nor the number of arrivals: the place of a pod does not depend on later ones.
`fgd` is FGD's own rule, for comparison.

    python benchmarks/openb.py --table --nodes NODES.csv --pods PODS.csv… --published FGD.csv \
        --strategy fragmentation quota --seeds 10 --results FILE.jsonl --seconds 100

prints a table over lists and orders of the runs in FILE.jsonl, after it has spent up to so many
seconds on those that are missing there (0: none; the run under way is finished).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.datasets.openb import (
    WHOLE,
    Node,
    Pod,
    arrivals,
    batch_of,
    cluster_of,
    read_nodes,
    read_pods,
)
from benchmarks.openb_table import Key, fill, kept, published, table, wanted
from muster.domain.errors import InvalidInput
from muster_scheduler.placement import Policy, Strategy, get, names
from muster_scheduler.placement.fragmentation import FGD, Fragmentation

BASELINE = "fgd"
# Steps of improvement: far more than any strategy takes within its budget.
MAX_STEPS = 1_000_000
MAX_INFLATE = 10.0
RESULTS = Path(__file__).parent / "results" / "openb.jsonl"


@dataclass(frozen=True, slots=True)
class Run:
    pods: str
    strategy: str
    order: str
    seed: int
    inflate: float
    arrived: int
    unplaced: int
    gpu_allocation_pct_at_100: float
    gpu_allocation_pct_at_130: float
    seconds: float


def measure(
    nodes: list[Node], pods: list[Pod], strategy: Strategy, order: str, seed: int, inflate: float
) -> tuple[NDArray[np.int64], NDArray[np.int32], float]:
    """(arrivals, their rows or -1, seconds of the plan)."""
    capacity = WHOLE * sum(node.gpus for node in nodes)
    sequence = arrivals(pods, capacity, inflate, order, seed)
    batch, snapshot = batch_of(pods, sequence), cluster_of(nodes).view()
    rng = np.random.default_rng([seed, 1])
    begin = time.perf_counter()
    plan = strategy.plan(snapshot, batch, Policy(), 0.0, rng, lambda: False, MAX_STEPS)
    return sequence, plan.assignment, time.perf_counter() - begin


def run_once(nodes: list[Node], pods: list[Pod], key: Key) -> Run:
    name, strategy_name, order, seed, inflate = key
    strategy: Strategy = Fragmentation(FGD) if strategy_name == BASELINE else get(strategy_name)
    sequence, rows, seconds = measure(nodes, pods, strategy, order, seed, inflate)
    capacity = WHOLE * sum(node.gpus for node in nodes)
    wanted = np.array([pod.gpu_milli for pod in pods], np.int64)[sequence]
    given = np.cumsum(np.where(rows >= 0, wanted, 0))
    at_100 = min(int(np.searchsorted(np.cumsum(wanted), capacity)), len(given) - 1)
    return Run(
        pods=name,
        strategy=strategy_name,
        order=order,
        seed=seed,
        inflate=inflate,
        arrived=len(sequence),
        unplaced=int((rows < 0).sum()),
        gpu_allocation_pct_at_100=round(100.0 * float(given[at_100]) / capacity, 3),
        gpu_allocation_pct_at_130=round(100.0 * float(given[-1]) / capacity, 3),
        seconds=round(seconds, 3),
    )


def show(runs: list[Run]) -> None:
    first = runs[0]
    table = Table(title=f"{first.pods}, {first.order} order, {first.inflate:.0%} of the GPUs asked")
    for head in ("strategy", "seed", "% at 100%", f"% at {first.inflate:.0%}", "s"):
        table.add_column(head, justify="right")
    ends = [run.gpu_allocation_pct_at_130 for run in runs]
    for run in runs:
        pct = f"{run.gpu_allocation_pct_at_100:.2f}", f"{run.gpu_allocation_pct_at_130:.2f}"
        table.add_row(run.strategy, str(run.seed), *pct, f"{run.seconds:.2f}")
    if len(runs) > 1:
        mean_100 = statistics.fmean(run.gpu_allocation_pct_at_100 for run in runs)
        spread = f"{statistics.fmean(ends):.2f} ± {statistics.stdev(ends):.2f}"
        seconds = statistics.fmean(run.seconds for run in runs)
        table.add_row(first.strategy, "mean", f"{mean_100:.2f}", spread, f"{seconds:.2f}")
    Console().print(table)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", type=Path, required=True)
    parser.add_argument("--pods", type=Path, required=True, nargs="+")
    known = f"{BASELINE}, " + ", ".join(names())
    parser.add_argument("--strategy", default=["quota"], nargs="+", help=known)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--seeds", type=int, default=1, help="runs, with seeds from --seed on")
    parser.add_argument("--order", choices=("fixed", "shuffled"), default="fixed")
    parser.add_argument("--inflate", type=float, default=1.3)
    parser.add_argument("--json", action="store_true", help="one JSON line a run")
    parser.add_argument("--table", action="store_true", help="over all lists and both orders")
    parser.add_argument("--results", type=Path, default=RESULTS, help="runs of the table")
    parser.add_argument("--published", type=Path, help="figures of peers for the table")
    parser.add_argument("--seconds", type=float, default=0.0, help="for missing runs of the table")
    args = parser.parse_args(argv)
    if not 0.0 < args.inflate <= MAX_INFLATE:
        raise InvalidInput("--inflate", args.inflate, f"must be above 0 and at most {MAX_INFLATE}")
    if args.seed < 0 or not 1 <= args.seeds <= 1000:
        raise InvalidInput("--seed, --seeds", (args.seed, args.seeds), "from 0, and 1 to 1000")
    if not args.table and (len(args.pods) > 1 or len(args.strategy) > 1):
        raise InvalidInput("--pods, --strategy", "several", "one each without --table")
    for name in args.strategy:
        if name != BASELINE:
            get(name)
    return args


def print_table(args: argparse.Namespace, seeds: range) -> None:
    nodes = read_nodes(args.nodes)
    lists = {path.stem: read_pods(path) for path in args.pods}
    keys = list(wanted(list(lists), args.strategy, seeds))

    def run(key: Key) -> dict[str, object]:
        return as_row(run_once(nodes, lists[key[0]], key))

    fill(args.results, iter(keys), run, args.seconds)
    rows = {key: row for key, row in kept(args.results).items() if key in set(keys)}
    print(table(rows, published(args.published) if args.published else {}))


def as_row(run: Run) -> dict[str, object]:
    return {name: getattr(run, name) for name in Run.__slots__}


def main(argv: list[str] | None = None) -> int:
    try:
        args = parse(argv)
        seeds = range(args.seed, args.seed + args.seeds)
        if args.table:
            print_table(args, seeds)
            return 0
        (path,), (strategy,) = args.pods, args.strategy
        nodes, pods = read_nodes(args.nodes), read_pods(path)
        runs = []
        for seed in seeds:
            key = (path.stem, strategy, args.order, seed, args.inflate)
            runs.append(run_once(nodes, pods, key))
            if args.json:
                print(json.dumps(as_row(runs[-1])), flush=True)
    except InvalidInput as error:
        print(f"openb.py: {error}", file=sys.stderr)
        return 2
    if not args.json:
        show(runs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
