"""Generalised assignment: least total time under capacity, against the best known.

python benchmarks/gap.py FILE… --best-known CSV --strategy search --seconds 10 [--seed 42] [--json]

FILE: `m n`, m rows of n costs, m rows of n weights, m capacities. CSV: columns `Path` (its last
part is the name of FILE) and `Best known solution value`. The cost is T of the plan.
The time is CPU time of one process; compiling and importing are not counted.
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

import orjson
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.placement_instances import read_gap
from benchmarks.timed_plan import (
    add_run_flags,
    is_feasible,
    one_sentence,
    policy_of,
    run,
    warm_up,
)
from muster.domain.errors import InvalidInput

_PATH, _VALUE = "Path", "Best known solution value"


def best_known(path: Path) -> dict[str, float]:
    """Raises InvalidInput naming the row and column that is wrong."""
    found = {}
    try:
        with path.open(newline="") as lines:
            reader = csv.DictReader(lines)
            missing = {_PATH, _VALUE} - set(reader.fieldnames or ())
            if missing:
                raise InvalidInput("file", str(path), f"has no column {min(missing)!r}")
            for number, row in enumerate(reader, 1):
                try:
                    found[Path(row[_PATH]).name] = float(row[_VALUE])
                except (TypeError, ValueError) as error:
                    where = f"{path}: row {number}, column {_VALUE}"
                    raise InvalidInput(where, row[_VALUE], "must be a number") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput("file", str(path), f"cannot be read: {error}") from error
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--best-known", type=Path, metavar="CSV")
    add_run_flags(parser, seconds=10.0)
    asked = parser.parse_args()
    with one_sentence(parser):
        report(asked)


def report(asked: argparse.Namespace) -> None:
    """Raises InvalidInput for what was asked or is in the files."""
    best = best_known(asked.best_known) if asked.best_known else {}
    policy = policy_of(asked, "T")
    table = Table("instance", "cost", "best known", "gap %", "feasible", "CPU s")
    for path in asked.files:
        instance = read_gap(path, best)
        warm_up(instance, policy)
        done = run(instance, policy, asked.seed)
        cost, feasible = done.score.T, is_feasible(instance, done.plan)
        known = instance.best
        gap = None if known is None or not feasible else 100.0 * (cost / known - 1.0)
        row = {
            "instance": instance.name,
            "strategy": asked.strategy,
            "seed": asked.seed,
            "seconds": round(done.cpu_s, 3),
            "cost": cost,
            "best_known": known,
            "feasible": feasible,
            "gap_pct": None if gap is None else round(gap, 4),
            "bound": done.plan.lower_bound,
        }
        if asked.json:
            print(orjson.dumps(row).decode(), flush=True)
        shown = ("-" if known is None else f"{known:g}", "-" if gap is None else f"{gap:.3f}")
        table.add_row(path.name, f"{cost:g}", *shown, str(feasible), f"{done.cpu_s:.2f}")
    if not asked.json:
        Console().print(table)


if __name__ == "__main__":
    main()
