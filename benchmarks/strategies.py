"""Which improving strategy wins where: P3, P4 and P8 at equal CPU time, as tables in Markdown.

    python benchmarks/strategies.py --hcsp HCSP/u_?_????.0 --gap GAP/[cde]????? --best-known CSV \
        --results FILE.jsonl --spend 100

runs, for up to `--spend` seconds, what is missing in FILE.jsonl, then prints the tables of what is
there; `--spend 0` prints alone. Called again it goes on, so that a machine is never held for long.
Seeds are 42 to 41 + `--seeds`. A run is one of `hcsp.py`, `gap.py` or `objective.py`, which say
what is measured; times are CPU time of the process.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import orjson

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.gap import best_known
from benchmarks.objective import bound_of, generate
from benchmarks.placement_instances import Instance, read_gap, read_hcsp
from benchmarks.timed_plan import is_feasible, one_sentence, run, warm_up
from muster.domain.errors import InvalidInput
from muster_scheduler.placement import Policy, get

STRATEGIES = ("search", "annealing", "genetic", "swarm")
# P8: tasks, agents; two fills, of which the second is tight.
SHAPES = ((50, 10), (200, 20))
FILLS = (0.5, 0.7)
FIRST_SEED = 42
MAX_SEEDS = 100

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Job:
    """One run; `key` finds it in the results."""

    table: str
    instance: str
    policy: Policy
    seed: int
    load: Callable[[], Instance]

    @property
    def key(self) -> tuple[str, str, str, int, float]:
        return self.table, self.instance, self.policy.strategy, self.seed, self.policy.budget_s

    def row(self) -> Row:
        """Runs it. `gap_pct` is None for a plan that is not feasible or has nothing beside it."""
        instance, policy = self.load(), self.policy
        best = bound_of(instance, policy) if self.table == "P8" else instance.best
        warm_up(instance, policy)
        done = run(instance, policy, self.seed)
        score, feasible = done.score, is_feasible(instance, done.plan)
        value = {"J": score.J, "T": score.T, "makespan": score.makespan}[policy.objective]
        gap = None if best is None or not feasible else 100.0 * (value / best - 1.0)
        names = ("table", "instance", "strategy", "seed", "budget_s")
        return {
            **dict(zip(names, self.key, strict=True)),
            "cpu_s": round(done.cpu_s, 3),
            "value": value,
            "beside": best,
            "feasible": feasible,
            "gap_pct": gap,
        }


def jobs(asked: argparse.Namespace) -> Iterator[Job]:
    best = best_known(asked.best_known) if asked.best_known else {}
    for seed in range(FIRST_SEED, FIRST_SEED + asked.seeds):
        for strategy in asked.strategy:
            long = {"budget_s": asked.seconds}
            for path in asked.hcsp:
                policy = Policy(strategy, objective="makespan", **long)
                yield Job("P3", path.name, policy, seed, partial(read_hcsp, path))
            for path in asked.gap:
                policy = Policy(strategy, objective="T", **long)
                yield Job("P4", path.name, policy, seed, partial(read_gap, path, best))
            for tasks, agents in SHAPES if asked.objective else ():
                for fill in FILLS:
                    # Each seed is an instance of its own.
                    name = f"{tasks}x{agents} fill {fill:g}"
                    shape = tasks, agents, fill, seed
                    policy = Policy(strategy, budget_s=asked.seconds / 2)
                    yield Job("P8", name, policy, seed, partial(generate, *shape))


def kept(path: Path) -> list[Row]:
    """Rows of earlier calls. Raises InvalidInput naming the line that is none."""
    rows = []
    lines = path.read_text().splitlines() if path.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            row = orjson.loads(line)
            _key(row)
        except (orjson.JSONDecodeError, KeyError, TypeError) as error:
            where = f"{path}: line {number}"
            raise InvalidInput(where, line[:80], "must be a row that this script wrote") from error
        rows.append(row)
    return rows


def _key(row: Row) -> tuple[str, str, str, int, float]:
    return row["table"], row["instance"], row["strategy"], row["seed"], row["budget_s"]


def tables(rows: list[Row]) -> str:
    """Mean gap in % over the seeds, least to greatest in brackets; columns are strategies."""
    parts = []
    heads = {
        "P3": "Longest time of an agent above the best published, %",
        "P4": "Total time above the best known, %",
        "P8": "J above the bound of split tasks, %",
    }
    for table, head in heads.items():
        mine = [row for row in rows if row["table"] == table]
        if not mine:
            continue
        shown = [name for name in STRATEGIES if any(row["strategy"] == name for row in mine)]
        budgets = sorted({row["budget_s"] for row in mine})
        seeds = len({row["seed"] for row in mine})
        parts.append(
            f"{head} ({table}; {', '.join(f'{b:g}' for b in budgets)} CPU s, {seeds} seeds)"
        )
        parts.append("")
        parts.append("| instance | " + " | ".join(shown) + " |")
        parts.append("|---" * (len(shown) + 1) + "|")
        names = sorted({row["instance"] for row in mine})
        for name in [*names, "mean"]:
            cells = [
                _cell([r for r in mine if r["strategy"] == s and name in (r["instance"], "mean")])
                for s in shown
            ]
            parts.append(f"| {name} | " + " | ".join(cells) + " |")
        parts.append("")
    return "\n".join(parts)


def _cell(rows: list[Row]) -> str:
    if not rows:
        return "-"
    infeasible = sum(not row["feasible"] for row in rows)
    gaps = [row["gap_pct"] for row in rows if row["gap_pct"] is not None]
    shown = "-"
    if gaps:
        shown = f"{statistics.fmean(gaps):.2f} ({min(gaps):.2f} to {max(gaps):.2f})"
    return shown + (f", {infeasible} infeasible" if infeasible else "")


def report(asked: argparse.Namespace) -> None:
    """Raises InvalidInput for what was asked or is in the files."""
    if not 1 <= asked.seeds <= MAX_SEEDS:
        raise InvalidInput("--seeds", asked.seeds, f"1 to {MAX_SEEDS}")
    for strategy in asked.strategy:
        get(strategy)
    rows = kept(asked.results)
    done = {_key(row) for row in rows}
    wanted = list(jobs(asked))
    began = time.monotonic()
    for job in wanted:
        if time.monotonic() - began >= asked.spend:
            break
        if job.key in done:
            continue
        row = job.row()
        with asked.results.open("ab") as out:
            out.write(orjson.dumps(row) + b"\n")
        rows.append(row)
        done.add(job.key)
    asked_for = {job.key for job in wanted}
    print(tables([row for row in rows if _key(row) in asked_for]))
    missing = len(asked_for - done)
    if missing:
        print(f"{missing} of {len(asked_for)} runs are missing; call again.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hcsp", nargs="*", type=Path, default=[], metavar="FILE")
    parser.add_argument("--gap", nargs="*", type=Path, default=[], metavar="FILE")
    parser.add_argument("--best-known", type=Path, metavar="CSV")
    parser.add_argument("--no-objective", dest="objective", action="store_false", help="not P8")
    parser.add_argument("--strategy", nargs="+", default=list(STRATEGIES))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="CPU s a run; P8 takes half")
    parser.add_argument("--results", type=Path, required=True, metavar="FILE.jsonl")
    parser.add_argument("--spend", type=float, default=100.0, help="seconds for missing runs")
    asked = parser.parse_args()
    with one_sentence(parser):
        report(asked)


if __name__ == "__main__":
    main()
