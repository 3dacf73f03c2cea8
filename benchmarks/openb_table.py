"""The table of `openb.py --table`: each list and order, ours beside the published figures.

Runs are kept one JSON line each in a file, so that a table may be made in pieces: what is there is
not run again, and what there was no time for is left out.
"""

from __future__ import annotations

import csv
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

# List, strategy, order, seed, inflate.
Key = tuple[str, str, str, int, float]
Row = Mapping[str, Any]
ORDERS = ("fixed", "shuffled")
# As the published file calls FGD.
_PUBLISHED = "FGD"
_AT = ("gpu_allocation_pct_at_100", "gpu_allocation_pct_at_130")


def key_of(row: Row) -> Key:
    """What a run is told from others by."""
    return row["pods"], row["strategy"], row["order"], row["seed"], row["inflate"]


def kept(path: Path) -> dict[Key, Row]:
    """The runs in a file of JSON lines, none where there is no file yet; the last of equals."""
    if not path.exists():
        return {}
    rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    return {key_of(row): row for row in rows}


def wanted(lists: Sequence[str], strategies: Sequence[str], seeds: range) -> Iterator[Key]:
    """Seed by seed, so that a table that ran out of time has as many seeds of each."""
    for seed in seeds:
        for strategy in strategies:
            for name in lists:
                for order in ORDERS:
                    yield name, strategy, order, seed, 1.3


def fill(path: Path, keys: Iterator[Key], run: Callable[[Key], Row], seconds: float) -> None:
    """Runs what is missing in the file, until the time is up; the run under way is finished."""
    until = time.monotonic() + seconds
    there = kept(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for key in keys:
        if key in there:
            continue
        if time.monotonic() >= until:
            return
        with path.open("a") as file:
            file.write(json.dumps(dict(run(key))) + "\n")


def published(path: Path) -> dict[str, tuple[str, str]]:
    """FGD's figures by list: (at 100%, at 130%), mean ± deviation over the seeds of the file."""
    found: dict[str, list[tuple[float, float]]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            if row["policy"].endswith(_PUBLISHED):
                found.setdefault(row["pod_list"], []).append(
                    (float(row[_AT[0]]), float(row[_AT[1]]))
                )
    return {
        name: (_spread([p[0] for p in pairs]), _spread([p[1] for p in pairs]))
        for name, pairs in found.items()
    }


def table(rows: Mapping[Key, Row], peers: Mapping[str, tuple[str, str]]) -> str:
    """Markdown: a line per list, order and strategy; published figures have no order told."""
    lines = [
        "| list | order | strategy | runs | % at 100% asked | % at 130% asked | s |",
        "|---|---|---|---:|---:|---:|---:|",
    ]
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows.values():
        groups.setdefault((row["pods"], row["order"], row["strategy"]), []).append(row)
    for name in sorted({name for name, _, _ in groups}):
        short = name.removeprefix("openb_pod_list_")
        if name in peers:
            lines.append(f"| {short} | | FGD, published | | {' | '.join(peers[name])} | |")
        for (_, order, strategy), runs in sorted(g for g in groups.items() if g[0][0] == name):
            figures = " | ".join(_spread([run[at] for run in runs]) for at in _AT)
            seconds = statistics.fmean(run["seconds"] for run in runs)
            count = len(runs)
            lines.append(
                f"| {short} | {order} | {strategy} | {count} | {figures} | {seconds:.0f} |"
            )
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    mean = f"{statistics.fmean(values):.2f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.2f}"
