"""What people see of tasks, agents and keys: plain words and tables that fit 80 columns."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

_STYLES: Mapping[str, str] = {
    "SUCCEEDED": "green",
    "READY": "green",
    "RUNNING": "cyan",
    "ASSIGNED": "cyan",
    "JOINING": "cyan",
    "RESTARTING": "cyan",
    "FAILED": "red",
    "DEAD": "red",
    "DOWN": "red",
    "TIMED_OUT": "red",
    "SUSPECT": "yellow",
    "QUARANTINED": "yellow",
    "PAROLE": "yellow",
    "CORDONED": "yellow",
    "DRAINING": "yellow",
    "CANCELLED": "dim",
    "LEFT": "dim",
}
# Of a value in a table; the whole of it is in --json.
_MAX_CELL_CHARS = 200
_UNITS = ((86_400, "d"), (3600, "h"), (60, "m"))
# Where there is no terminal to fit.
_FILE_WIDTH = 160
# Above this a table's last column has room for a sentence.
_WIDE = 110
# Of a column that is not the last one; task ids have 26 characters.
_MAX_WIDTH = 32


def console() -> Console:
    """Standard output; as wide as the terminal, wide where there is none."""
    return Console(width=None if sys.stdout.isatty() else _FILE_WIDTH, highlight=False)


def clean(value: object) -> str:
    """A value from the cluster that cannot drive the terminal: control characters are shown."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return "".join(
        char if char.isprintable() or char == "\t" else repr(char)[1:-1] for char in text
    )


def cell(value: object) -> Text:
    """A table's cell; states have their colour."""
    text = "" if value is None else clean(value)
    if len(text) > _MAX_CELL_CHARS:
        text = text[: _MAX_CELL_CHARS - 1] + "…"
    return Text(text, style=_STYLES.get(text, ""))


def is_narrow() -> bool:
    """Whether there is no room for a column of sentences."""
    return console().width < _WIDE


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str) -> None:
    """Prints rows under their heads, or `empty`. Where room is short the last column is cut."""
    cells = [[cell(value) for value in row] for row in rows]
    if not cells:
        print(empty)
        return
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for index, name in enumerate(columns):
        widest = max(len(name), *(len(row[index].plain) for row in cells))
        last = index == len(columns) - 1
        shown.add_column(
            name,
            no_wrap=True,
            overflow="ellipsis",
            min_width=0 if last else min(widest, _MAX_WIDTH),
        )
    for row in cells:
        shown.add_row(*row)
    _print(shown)


def pairs(rows: Iterable[tuple[str, object]]) -> None:
    """Prints names and values, leaving out what is not set."""
    shown = Table(box=None, pad_edge=False, show_header=False)
    shown.add_column(style="bold", no_wrap=True)
    shown.add_column(overflow="fold")
    for name, value in rows:
        if value not in (None, "", [], {}):
            shown.add_row(name, cell(value))
    _print(shown)


def _print(shown: Table) -> None:
    """Without the blanks that fill a table's lines."""
    out = console()
    with out.capture() as captured:
        out.print(shown)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))


def parse_time(text: object) -> datetime | None:
    """An RFC 3339 time of the REST interface."""
    if not isinstance(text, str) or not text:
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def local_time(text: object) -> str:
    """A time of the REST interface as the user's clock shows it."""
    time = parse_time(text)
    return time.astimezone().strftime("%Y-%m-%d %H:%M:%S") if time else ""


def clock(text: object) -> str:
    """The same without the day, in milliseconds."""
    time = parse_time(text)
    return time.astimezone().strftime("%H:%M:%S.%f")[:-3] if time else ""


def age(text: object, now: datetime) -> str:
    """How long ago that was, in its two largest units."""
    time = parse_time(text)
    return duration((now - time).total_seconds()) if time else ""


def took(task: Mapping[str, Any], now: datetime) -> str:
    """How long the last attempt ran, or has run until now."""
    start = parse_time(task.get("started_at"))
    end = parse_time(task.get("ended_at")) or now
    return duration((end - start).total_seconds()) if start else ""


def duration(seconds: float) -> str:
    """`12ms`, `3.4s`, `5m10s`, `2h5m`, `3d4h`."""
    if seconds < 1:
        return f"{max(0, round(seconds * 1000))}ms"
    if seconds < 60:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    for index, (size, unit) in enumerate(_UNITS):
        if whole >= size:
            below, below_unit = _UNITS[index + 1] if index + 1 < len(_UNITS) else (1, "s")
            rest = whole % size // below
            return f"{whole // size}{unit}" + (f"{rest}{below_unit}" if rest else "")
    raise AssertionError(seconds)


def result_text(result: object) -> str:
    """A task's result: text as it is, anything else as indented JSON."""
    return json.dumps(result, ensure_ascii=False, indent=2)


def reason(task: Mapping[str, Any]) -> str:
    """Why a task ended other than well, or waits, in one line."""
    error = task.get("error")
    if isinstance(error, Mapping):
        error = error.get("message") or error.get("kind") or dict(error)
    return clean(error or task.get("why") or "")
