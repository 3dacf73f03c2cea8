"""Compares recovery policies in a simulated cluster: delay per task over restart chances × loads.

python benchmarks/recovery.py [--json] [--seeds 10] [--first-seed 42] [--jobs 1]

The delay of a policy is its mean response time less that of the same tape without failures. All
policies meet the same arrivals and the same failures (`recovery_simulation`). `±` is the standard
error over seeds; the last column compares `planned` seed by seed with the best of the others at
that point, which is chosen in hindsight. `--prior low|high` starts the planner with a wrong prior.
`--json` prints one line per point and one with the summary; `--read FILE` makes the table of such
lines instead of running, so that a grid may be run in parts (`--restarts`, `--loads`).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.recovery_simulation import Simulation, draw
from muster_scheduler.recovery import POLICIES, FailureKind, Prior, RecoverySettings

RESTARTS, LOADS = (0.1, 0.5, 0.9), (0.3, 0.5, 0.7)
MAX_SEEDS = 1_000
# Failures come so often here that an hour's budget would be gone in minutes.
SETTINGS = RecoverySettings(restarts_per_hour=60)


def _prior(restart: float, with_work: float, back_per_s: float) -> Prior:
    kinds = tuple((kind, back_per_s) for kind in (FailureKind.HUNG, FailureKind.UNREACHABLE))
    return Prior(restart, with_work, ((FailureKind.DIED, 0.001), *kinds))


PRIORS = {
    "default": Prior(),
    # Believes in nothing, or in everything.
    "low": _prior(0.05, 0.05, 0.001),
    "high": _prior(0.99, 0.95, 0.1),
}


def delays(job: tuple[int, float, float, float, str]) -> dict[str, float]:
    """One tape under every policy: delay per task in seconds, and what was met."""
    seed, restart, load, length_s, prior = job
    tape = draw(seed, restart, load, length_s)
    undisturbed = Simulation(tape, None, SETTINGS).run()
    out = {"tasks": float(len(tape.tasks)), "response_s": undisturbed}
    for policy in POLICIES:
        simulation = Simulation(tape, policy, SETTINGS, PRIORS[prior])
        out[policy] = simulation.run() - undisturbed
        out["outages"], out["hit"] = float(simulation.outages), float(simulation.hit)
    return out


def point(restart: float, load: float, prior: str, seeds: list[int], runs: list[Any]) -> Any:
    """One point of the grid, with every seed's delays."""
    return {
        "restart": restart,
        "load": load,
        "prior": prior,
        "seeds": seeds,
        "delay_s": {policy: [run[policy] for run in runs] for policy in POLICIES},
        "outages": sum(run["outages"] for run in runs),
        "tasks": sum(run["tasks"] for run in runs),
        "response_s": float(np.mean([run["response_s"] for run in runs])),
    }


def compared(row: Any) -> dict[str, Any]:
    """Means, and `planned` against `fixed` and against the best of the others, seed by seed."""
    delay = {policy: np.array(values) for policy, values in row["delay_s"].items()}
    others = [policy for policy in delay if policy != "planned"]
    best = min(others, key=lambda policy: float(delay[policy].mean()))
    behind = delay["planned"] - delay[best]
    return {
        "mean": {policy: float(values.mean()) for policy, values in delay.items()},
        "error": {policy: _error(values) for policy, values in delay.items()},
        "best_other": best,
        "behind_best_s": float(behind.mean()),
        "behind_best_error_s": _error(behind),
        "better_than_fixed": 1.0 - float(delay["planned"].mean() / delay["fixed"].mean()),
    }


def summary(rows: list[Any]) -> dict[str, Any]:
    """Over the grid: the mean gain over `fixed`, and where `planned` is worse than the best."""
    seen = [compared(row) for row in rows]
    return {
        "points": len(rows),
        "seeds": len(rows[0]["seeds"]),
        "better_than_fixed_mean": float(np.mean([s["better_than_fixed"] for s in seen])),
        "mean_delay_s": {p: float(np.mean([s["mean"][p] for s in seen])) for p in POLICIES},
        "worse_than_best_beyond_noise": [
            [row["restart"], row["load"]]
            for row, s in zip(rows, seen, strict=True)
            if s["behind_best_s"] > 2 * s["behind_best_error_s"]
        ],
    }


def _error(values: Any) -> float:
    return float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0


def table(rows: list[Any]) -> str:
    """Markdown."""
    lines = [
        "| restart works | load | "
        + " | ".join(POLICIES)
        + " | than `fixed` | best other: behind |",
        "|---|---|" + "---|" * (len(POLICIES) + 2),
    ]
    for row in rows:
        seen = compared(row)
        cells = [f"{seen['mean'][p]:.2f} ± {seen['error'][p]:.2f}" for p in POLICIES]
        behind = f"{seen['behind_best_s']:+.2f} ± {seen['behind_best_error_s']:.2f}"
        lines.append(
            f"| {row['restart']} | {row['load']} | "
            + " | ".join(cells)
            + f" | {seen['better_than_fixed']:+.0%} | `{seen['best_other']}`: {behind} |"
        )
    total = summary(rows)
    means = " | ".join(f"{total['mean_delay_s'][p]:.2f}" for p in POLICIES)
    gain = f"{total['better_than_fixed_mean']:+.1%}"
    lines.append(f"| mean | | {means} | {gain} | |")
    worse = total["worse_than_best_beyond_noise"] or "nowhere"
    lines.append(f"\nWorse than the best other by more than two standard errors: {worse}.")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=42)
    parser.add_argument("--length-s", type=float, default=1_500.0)
    parser.add_argument("--restarts", default=",".join(map(str, RESTARTS)))
    parser.add_argument("--loads", default=",".join(map(str, LOADS)))
    parser.add_argument("--prior", choices=list(PRIORS), default="default")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--read", type=Path, help="lines of --json, instead of running")
    asked = parser.parse_args(argv)
    if not 1 <= asked.seeds <= MAX_SEEDS:
        parser.error(f"--seeds: 1 to {MAX_SEEDS}")
    rows: list[Any] = []
    if asked.read is not None:
        lines = asked.read.read_text().splitlines()
        rows = [row for row in map(json.loads, lines) if "delay_s" in row]
    else:
        seeds = list(range(asked.first_seed, asked.first_seed + asked.seeds))
        with get_context("spawn").Pool(asked.jobs) as pool:
            for restart in map(float, asked.restarts.split(",")):
                for load in map(float, asked.loads.split(",")):
                    jobs = [(seed, restart, load, asked.length_s, asked.prior) for seed in seeds]
                    runs = pool.map(delays, jobs, chunksize=1)
                    rows.append(point(restart, load, asked.prior, seeds, runs))
                    if asked.json:
                        print(json.dumps(rows[-1]), flush=True)
    print(json.dumps(summary(rows)) if asked.json else table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
