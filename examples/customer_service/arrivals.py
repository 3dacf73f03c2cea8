"""When messages arrive: as the requests of a recorded trace did, or as a Poisson process has it."""

from __future__ import annotations

import csv
import random
from datetime import datetime
from pathlib import Path
from typing import Final

TIME_COLUMN: Final = "TIMESTAMP"
# Recorded with seven digits of a second; the last one is less than a microsecond.
_MICROSECONDS: Final = len("2023-11-16 18:15:46.680590")


class TraceUnreadable(Exception):
    """The file is no trace; the text names file, line and what is wrong."""


def from_trace(path: Path, count: int, speed_up: float) -> list[float]:
    """Seconds from the first request to each of the first `count`, `speed_up` times as fast.

    The file is a CSV with a column TIMESTAMP, in order of time, as in Azure's LLM inference
    traces. Raises TraceUnreadable.
    """
    times: list[datetime] = []
    try:
        with path.open(newline="", encoding="utf-8") as lines:
            reader = csv.DictReader(lines)
            if TIME_COLUMN not in (reader.fieldnames or ()):
                raise TraceUnreadable(f"{path}: there is no column {TIME_COLUMN}")
            for row in reader:
                if len(times) == count:
                    break
                times.append(_time(path, reader.line_num, row[TIME_COLUMN] or ""))
    except (OSError, UnicodeDecodeError) as error:
        raise TraceUnreadable(f"{path}: {error}") from None
    if len(times) < count:
        raise TraceUnreadable(f"{path}: {len(times)} requests, {count} are needed")
    offsets = [(time - times[0]).total_seconds() / speed_up for time in times]
    if offsets != sorted(offsets):
        raise TraceUnreadable(f"{path}: the requests are not in order of time")
    return offsets


def _time(path: Path, line: int, text: str) -> datetime:
    try:
        return datetime.fromisoformat(text[:_MICROSECONDS])
    except ValueError:
        raise TraceUnreadable(f"{path}:{line}: {text!r} is no time") from None


def poisson(rate_per_s: float, count: int, speed_up: float, seed: int) -> list[float]:
    """Seconds to each arrival; the same for the same seed."""
    chance = random.Random(seed)  # noqa: S311  arrivals, no secret
    at, offsets = 0.0, []
    for _ in range(count):
        offsets.append(at)
        at += chance.expovariate(rate_per_s * speed_up)
    return offsets
