"""Makespan on unequal machines (R||Cmax) against the best published.

python benchmarks/hcsp.py FILE… --strategy search --seconds 10 --seed 42 [--json]

FILE: an ETC matrix of Braun et al. (JPDC 2001), `n m …` and n * m times, task by task. Where
`FILE_…MAKESPAN.sol` lies beside it, the least makespan in such a name is `published_best`.
The time is CPU time of one process; compiling and importing are not counted.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import orjson
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.placement_instances import read_hcsp
from benchmarks.timed_plan import add_run_flags, one_sentence, policy_of, run, warm_up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    add_run_flags(parser, seconds=10.0)
    asked = parser.parse_args()
    with one_sentence(parser):
        report(asked)


def report(asked: argparse.Namespace) -> None:
    """Raises InvalidInput for what was asked or is in the files."""
    policy = policy_of(asked, "makespan")
    table = Table("instance", "makespan", "published best", "gap %", "CPU s")
    gaps = []
    for path in asked.files:
        instance = read_hcsp(path)
        warm_up(instance, policy)
        done = run(instance, policy, asked.seed)
        makespan, best = done.score.makespan, instance.best
        gap = None if best is None else 100.0 * (makespan / best - 1.0)
        gaps += [] if gap is None else [gap]
        row = {
            "instance": instance.name,
            "strategy": asked.strategy,
            "seed": asked.seed,
            "seconds": round(done.cpu_s, 3),
            "makespan": makespan,
            "published_best": best,
            "gap_pct": None if gap is None else round(gap, 4),
            "bound": done.plan.lower_bound,
        }
        if asked.json:
            print(orjson.dumps(row).decode(), flush=True)
        shown = ("-" if best is None else f"{best:.1f}", "-" if gap is None else f"{gap:.3f}")
        table.add_row(instance.name, f"{makespan:.1f}", *shown, f"{done.cpu_s:.2f}")
    if not asked.json:
        Console().print(table)
        if gaps:
            print(f"{asked.strategy}, seed {asked.seed}: mean gap {sum(gaps) / len(gaps):.3f}%")


if __name__ == "__main__":
    main()
