"""From single runs to rows: medians, spreads, and merging of documents. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SPEED_FIGURES = ("tasks_per_s", "latency_ms_median", "latency_ms_p99")

Row = dict[str, Any]
Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Spread:
    """Of one figure over runs."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Of at least one value."""
    return Spread(statistics.median(values), min(values), max(values))


def speed_of(row: Mapping[str, Any]) -> dict[str, Spread]:
    """Empty when the row has no finished run."""
    runs: Sequence[Mapping[str, float]] = row.get("speed", ())
    if not runs:
        return {}
    return {name: spread([run[name] for run in runs]) for name in SPEED_FIGURES}


def new_row(peer: str, variant: str) -> Row:
    """Empty: `speed` is a list of runs, `kill` a list of deaths, `failures` says what failed."""
    return {"peer": peer, "variant": variant, "speed": [], "kill": [], "failures": {}}


def note(row: Row, part: str, measured: Mapping[str, Any]) -> None:
    """Adds a run's figures to the row's `speed` or `kill`."""
    kept = dict(measured)
    row.setdefault("versions", {}).update(kept.pop("versions", {}))
    row[part].append(kept)


def merge(documents: Sequence[Document]) -> Document:
    """One document with all rows; what a later one measured replaces the same of an earlier one.

    A part (`speed`, or the deaths of one case) counts as measured when it has a run or a failure.
    Machine and options are the last document's; what differs in the earlier ones is in `differs`.
    Raises ValueError when there is no document.
    """
    if not documents:
        raise ValueError("nothing to merge")
    rows: dict[tuple[str, str], Row] = {}
    for document in documents:
        for row in document["rows"]:
            key = (row["peer"], row["variant"])
            rows[key] = _merged(rows[key], row) if key in rows else _copy(row)
    last = documents[-1]
    return {**last, "rows": list(rows.values()), "differs": _differences(documents)}


def _merged(old: Row, new: Row) -> Row:
    merged = _copy(old)
    if new["speed"] or "speed" in new["failures"]:
        merged["speed"] = list(new["speed"])
        merged["failures"].pop("speed", None)
    replaced = {death["case"] for death in new["kill"]} | set(new["failures"])
    merged["kill"] = [d for d in merged["kill"] if d["case"] not in replaced] + list(new["kill"])
    for case in replaced:
        merged["failures"].pop(case, None)
    merged["failures"] |= new["failures"]
    merged["versions"] = merged.get("versions", {}) | new.get("versions", {})
    return merged


def _copy(row: Row) -> Row:
    return {
        **row,
        "speed": list(row["speed"]),
        "kill": list(row["kill"]),
        "failures": dict(row["failures"]),
    }


def _differences(documents: Iterable[Document]) -> list[str]:
    """What the documents do not agree on, so that a table of unlike runs says so itself."""
    seen: dict[str, list[str]] = {}
    for document in documents:
        # Of a merged document, what it found; then what it says of itself.
        said = [line.partition(": ")[::2] for line in document.get("differs", ())]
        facts = [(name, value) for name, values in said for value in values.split(" | ")]
        facts += [(f"machine.{k}", str(v)) for k, v in document["machine"].items()]
        facts += [
            (name, str(document[name]))
            for name in ("tasks", "latency_tasks", "workers", "python", "redis")
        ]
        for name, value in facts:
            values_of = seen.setdefault(name, [])
            # Measured anew by each run, so never quite the same.
            if name != "machine.fsync_ms" and value not in values_of:
                values_of.append(value)
    return [f"{name}: {' | '.join(values)}" for name, values in seen.items() if len(values) > 1]
