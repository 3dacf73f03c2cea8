"""From runs to the table of docs/faults.md."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.oracle.catalogue import FAULTS
from benchmarks.oracle.scene import Run

_COUNTS = ("lost", "doubled", "stale", "charged", "moved", "fenced", "duplicates")
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
    "fenced",
    "duplicate executions",
    "detection p50 / p99, s",
    "recovery p50 / p99, s",
    "submissions refused",
    "longest gap, s",
    "also demanded",
    "held",
)
_EXPLAINED = """\
Of each run: a burst of tasks of 20 to 200 ms (a fifth of the submissions with `on_disconnect:
stop`) and two tasks every 50 ms until all is over, on a fresh cluster of {agents} agents and two
schedulers; the fault strikes at a seeded moment while the burst is in flight. Fault 30 instead
cancels every task, most of them at about the time when they end.

* **lost**: acknowledged tasks that did not end as they must. **doubled**: a submission with two
  sets of ids, a task with two ends, two executions of a `stop` task at a time. **stale
  accepted**: a recorded result that is not the recorded attempt's own, an attempt or a term that
  goes back. **charged wrongly**: a failure or an agent's death counted without one. **moved
  without reason**: an attempt taken from an agent that nothing had happened to, or such an agent
  given up. All of these must be 0.
* **fenced**: outcomes that leaders refused as stale, repeats of recorded ones included, counted
  by leaders that lived to be asked. **duplicate executions**: executions beyond the first of a
  task; they are what at-least-once allows.
* **detection**: of a dead agent until the leader gave it up, of a leader until the next one had
  its term, of other services until they were started again. **recovery**: for each task that ran
  on the lost agent until it ran again; of services until all are ready and a task sent after the
  fault has ended, from the end of the fault where it lasts (3, 4, 11, 27).
* **submissions refused**: answers other than 202, and broken connections; the client repeats
  them with the same key. **longest gap**: without an accepted submission.
* **held**: nothing was violated with any seed, and the limits hold for the 99th percentile.
"""


def percentile(values: Sequence[float], share: float) -> float:
    """Nearest rank; `share` in (0, 1]. `values` must not be empty."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def holds(number: str, runs: Sequence[Run]) -> bool:
    """Whether all runs are clean and the fault's limits are kept."""
    limits = FAULTS[number]().limits
    detections = [value for run in runs for value in run.detections_s]
    recoveries = [value for run in runs for value in run.recoveries_s]
    for limit, values in ((limits.detection_s, detections), (limits.recovery_s, recoveries)):
        if limit and values and percentile(values, 0.99) > limit:
            return False
    return bool(runs) and all(run.clean for run in runs)


def row(number: str, runs: Sequence[Run]) -> list[str]:
    """A line of the table."""
    fault = FAULTS[number]()
    counts = {name: sum(getattr(run, name) for run in runs) for name in _COUNTS}
    return [
        number,
        fault.name,
        str(len(runs)),
        f"{sum(run.tasks for run in runs):,}",
        *(str(counts[name]) for name in _COUNTS),
        _times([value for run in runs for value in run.detections_s]),
        _times([value for run in runs for value in run.recoveries_s]),
        str(sum(run.refused for run in runs)),
        f"{max((run.longest_gap_s for run in runs), default=0.0):.2f}",
        str(fault.limits),
        "yes" if holds(number, runs) else "**no**",
    ]


def markdown(runs: Iterable[Run], facts: Mapping[str, Any]) -> str:
    """The whole page. `facts`: machine, versions, command, agents, tasks."""
    by_fault: dict[str, list[Run]] = {}
    for run in runs:
        by_fault.setdefault(run.fault, []).append(run)
    rows = [row(number, by_fault[number]) for number in FAULTS if number in by_fault]
    lines = [
        "<!-- Printed by benchmarks/chaos.py; `make chaos` writes it anew. -->",
        "",
        "# Faults",
        "",
        "What happens when parts of a cluster are killed, frozen or cut off under load, and",
        "whether the books balance afterwards. Real processes, real etcd, real Redis with",
        "`appendfsync always`.",
        "",
        "| " + " | ".join(HEAD) + " |",
        "|" + "---|" * len(HEAD),
        *("| " + " | ".join(cells) + " |" for cells in rows),
        "",
        _EXPLAINED.format(**facts),
        *_failures(by_fault),
        _setting(facts),
        "",
    ]
    return "\n".join(lines)


def _times(values: Sequence[float]) -> str:
    if not values:
        return "–"
    return f"{percentile(values, 0.5):.2f} / {percentile(values, 0.99):.2f}"


def _failures(by_fault: Mapping[str, Sequence[Run]]) -> list[str]:
    said = [
        f"* fault {run.fault}, seed {run.seed}: {'; '.join([*run.violations, *run.problems][:3])}"
        for runs in by_fault.values()
        for run in runs
        if not run.clean
    ]
    return ["What did not hold:", "", *said, ""] if said else []


def _setting(facts: Mapping[str, Any]) -> str:
    machine, versions = facts["machine"], facts["versions"]
    return (
        f"Printed by `{facts['command']}`{facts['parts']} on "
        f"{machine['cores']} × {machine['cpu']}, {machine['memory_gib']} GiB, "
        f"Linux {machine['kernel']}, {machine['file_system']} "
        f"(fdatasync {machine['fsync_ms']} ms); "
        + ", ".join(f"{name} {value}" for name, value in versions.items())
        + ". Times depend on what else the machine does."
    )
