"""What the load script prints: how right and how fast the service desk was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from rich.console import Console
from rich.table import Table

PERCENTILES: Final = (50, 90, 99)
ALL: Final = "all"


@dataclass(frozen=True, slots=True)
class Served:
    """One message. `response_s` runs from its arrival, also while it waited to be submitted."""

    intent: str
    routed: str
    escalated: bool
    response_s: float


@dataclass(frozen=True, slots=True)
class Summary:
    """One line of the table; shares from 0 to 1."""

    name: str
    messages: int
    right: float
    escalated: float
    response_ms: tuple[float, ...]


def summary_of(name: str, served: Sequence[Served]) -> Summary:
    """`served` has one message or more."""
    times_ms = [one.response_s * 1000 for one in served]
    return Summary(
        name,
        len(served),
        float(np.mean([one.routed == one.intent for one in served])),
        float(np.mean([one.escalated for one in served])),
        tuple(float(value) for value in np.percentile(times_ms, PERCENTILES)),
    )


def summaries(served: Sequence[Served]) -> list[Summary]:
    """One for each intent, by name; then answered at once, escalated, and all."""
    groups = {
        intent: [one for one in served if one.intent == intent]
        for intent in sorted({one.intent for one in served})
    }
    groups["answered at once"] = [one for one in served if not one.escalated]
    groups["escalated"] = [one for one in served if one.escalated]
    groups[ALL] = list(served)
    return [summary_of(name, group) for name, group in groups.items() if group]


def as_json(found: Sequence[Summary]) -> list[dict[str, Any]]:
    """For other programs."""
    return [
        {
            "name": one.name,
            "messages": one.messages,
            "right": round(one.right, 4),
            "escalated": round(one.escalated, 4),
            **{
                f"p{percent}_ms": round(value, 1)
                for percent, value in zip(PERCENTILES, one.response_ms, strict=True)
            },
        }
        for one in found
    ]


def print_table(console: Console, found: Sequence[Summary]) -> None:
    """Response times in milliseconds."""
    table = Table(title="Messages by what they were about, response times in ms")
    for name in ("", "messages", "routed right", "escalated", *(f"p{p}" for p in PERCENTILES)):
        table.add_column(name, justify="left" if not name else "right")
    sections = {"answered at once", ALL}
    for place, one in enumerate(found):
        if one.name in sections and place:
            table.add_section()
        table.add_row(
            one.name,
            str(one.messages),
            f"{one.right:.0%}",
            f"{one.escalated:.0%}",
            *(f"{value:.0f}" for value in one.response_ms),
        )
    console.print(table)
