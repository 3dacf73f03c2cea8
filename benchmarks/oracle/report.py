"""From runs to the table of docs/reliability.md."""

from __future__ import annotations

import math
from collections.abc import Sequence

from benchmarks.oracle.catalogue import FAULTS
from benchmarks.oracle.scene import Run

_MUST_BE_0 = ("lost", "doubled", "stale", "charged", "moved")
HEAD = (
    "fault",
    "what",
    "seeds",
    "tasks",
    "lost",
    "doubled",
    "stale accepted",
    "charged wrongly",
    "moved without reason",
    "false positives",
    "fenced",
    "duplicate executions",
    "detection p50 / p99, s",
    "recovery p50 / p99, s",
    "submissions refused",
    "longest gap, s",
    "also demanded",
    "held",
)


def percentile(values: Sequence[float], share: float) -> float:
    """Nearest rank; `share` in (0, 1]. `values` must not be empty."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def holds(number: str, runs: Sequence[Run]) -> bool:
    """Whether all runs are clean and the fault's limits are kept; one that cannot be made is."""
    limits = FAULTS[number]().limits
    detections = [value for run in runs for value in run.detections_s]
    recoveries = [value for run in runs for value in run.recoveries_s]
    # Of each run its longest.
    again = noted(runs, "begun_after_decision_max_s")
    suspected = noted(runs, "suspected_s")
    for limit, values, share in (
        (limits.detection_s, detections, 0.99),
        (limits.recovery_s, recoveries, 0.99),
        (limits.again_s, again, 0.99),
        (limits.suspected_s, suspected, 0.5),
    ):
        if limit and values and percentile(values, share) > limit:
            return False
    return bool(runs) and all(run.clean for run in runs)


def row(number: str, runs: Sequence[Run]) -> list[str]:
    """A line of the table."""
    fault = FAULTS[number]()
    if all(run.skipped for run in runs):
        blank = ["–"] * (len(HEAD) - 4)
        return [number, fault.name, "0", *blank, f"skipped: {runs[0].skipped}"]
    return [
        number,
        fault.name,
        str(len(runs)),
        f"{sum(run.tasks for run in runs):,}",
        *(str(sum(getattr(run, name) for run in runs)) for name in _MUST_BE_0),
        f"{sum(r.false_deaths for r in runs)} / {sum(r.false_suspicions for r in runs)}",
        str(sum(run.fenced for run in runs)),
        str(sum(run.duplicates for run in runs)),
        _times([value for run in runs for value in run.detections_s]),
        _times([value for run in runs for value in run.recoveries_s]),
        str(sum(run.refused for run in runs)),
        f"{max((run.longest_gap_s for run in runs), default=0.0):.2f}",
        str(fault.limits),
        "yes" if holds(number, runs) else "**no**",
    ]


def noted(runs: Sequence[Run], name: str) -> list[float]:
    """A further figure of the runs that have it."""
    return [float(run.notes[name]) for run in runs if name in run.notes]


def _times(values: Sequence[float]) -> str:
    if not values:
        return "–"
    return f"{percentile(values, 0.5):.2f} / {percentile(values, 0.99):.2f}"
