"""What a replay's runs were worth: figures of one strategy, and a table of several."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from muster_scheduler.placement.snapshot import FloatArray
from muster_scheduler.replay.simulator import Run
from muster_scheduler.replay.trace import Trace


class Figures(msgspec.Struct, frozen=True):
    """Waiting is arrival to start, response arrival to end, over tasks that were placed; seconds.

    T is the sum of the responses. U and B are means over the time in which tasks arrive, as
    `objective` defines them. `None` where no task was placed.
    """

    strategy: str
    tasks: int
    unplaced: int
    waiting_mean_s: float | None
    waiting_p99_s: float | None
    response_mean_s: float | None
    response_p50_s: float | None
    response_p99_s: float | None
    T: float
    U: float
    B: float
    plans: int


def figures(trace: Trace, run: Run, skip: int = 0) -> Figures:
    """Of the tasks from number `skip` on, in the order of arrival; U and B are of all."""
    arrival = np.array([task.arrival_s for task in trace.tasks])
    counted = ~np.isnan(run.start_s)
    counted[:skip] = False
    waiting = (run.start_s - arrival)[counted]
    response = (run.end_s - arrival)[counted]
    return Figures(
        strategy=run.strategy,
        tasks=len(trace.tasks) - skip,
        unplaced=int(np.isnan(run.start_s[skip:]).sum()),
        waiting_mean_s=_mean(waiting),
        waiting_p99_s=_percentile(waiting, 99),
        response_mean_s=_mean(response),
        response_p50_s=_percentile(response, 50),
        response_p99_s=_percentile(response, 99),
        T=float(response.sum()),
        U=_mean(run.U) or 0.0,
        B=_mean(run.B) or 0.0,
        plans=run.plans,
    )


def table(rows: Sequence[Figures]) -> str:
    """For people: one line a strategy, columns aligned."""
    heads = (
        "strategy", "waiting mean", "p99", "response mean", "p50", "p99", "T", "U", "B", "unplaced",
    )  # fmt: skip
    cells = [heads]
    cells.extend(
        (
            row.strategy,
            _seconds(row.waiting_mean_s),
            _seconds(row.waiting_p99_s),
            _seconds(row.response_mean_s),
            _seconds(row.response_p50_s),
            _seconds(row.response_p99_s),
            f"{row.T:.0f} s",
            f"{row.U:.1%}",
            f"{row.B:.3f}",
            f"{row.unplaced} of {row.tasks}",
        )
        for row in rows
    )
    widths = [max(len(line[column]) for line in cells) for column in range(len(heads))]
    lines = []
    for line in cells:
        first, *others = zip(line, widths, strict=True)
        aligned = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
        lines.append("  ".join(aligned).rstrip())
    return "\n".join(lines)


def _mean(values: FloatArray) -> float | None:
    return float(values.mean()) if values.size else None


def _percentile(values: FloatArray, share: float) -> float | None:
    return float(np.percentile(values, share)) if values.size else None


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f} s" if value < 1000 else f"{value:.0f} s"
