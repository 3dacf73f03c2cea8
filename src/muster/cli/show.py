"""What people see of tasks, agents and keys: plain words and tables that fit 80 columns."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import Any

from rich.cells import cell_len, set_cell_size
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
_MIN_LAST = 6
_GAP = "  "
_ROWS_AT_ONCE = 1000


def console() -> Console:
    """Standard output; as wide as the terminal, wide where there is none."""
    return Console(width=None if sys.stdout.isatty() else _FILE_WIDTH, highlight=False)


def clean(value: object) -> str:
    """A value from the cluster that cannot drive the terminal: control characters are shown."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return "".join(
        char if char.isprintable() or char == "\t" else repr(char)[1:-1] for char in text
    )


def cell(value: object) -> str:
    """What a table shows of a value."""
    text = "" if value is None else clean(value).replace("\t", " ")
    return text if len(text) <= _MAX_CELL_CHARS else text[: _MAX_CELL_CHARS - 1] + "…"


def is_narrow() -> bool:
    """Whether there is no room for a column of sentences."""
    return console().width < _WIDE


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str) -> None:
    """Prints rows under their heads, or `empty`. Where room is short the last column is cut.

    Rows are printed as they come, a thousand at a time, so that a long list needs little memory;
    by ourselves, because Rich takes half a millisecond for each.
    """
    out = console()
    paint = _paint(out)
    widths = [len(name) for name in columns]
    began = False
    left = iter(rows)
    while chunk := [[cell(value) for value in row] for row in islice(left, _ROWS_AT_ONCE)]:
        for index, width in enumerate(widths):
            widths[index] = max(width, *(cell_len(row[index]) for row in chunk))
        fitted = fit(widths, out.width)
        if not began:
            began = True
            print(_line(columns, fitted, lambda text, _: paint(text, "bold")))
        print(
            "\n".join(_line(row, fitted, lambda text, of: paint(text, _style(of))) for row in chunk)
        )
    if not began:
        print(empty)


def fit(widths: Sequence[int], room: int) -> list[int]:
    """Widths of columns that fit into `room` with their gaps, as far as that can be.

    First the last column gives way, then those that are wider than a task's id.
    """
    fitted = list(widths)
    for index, least in ((-1, _MIN_LAST), *((i, _MAX_WIDTH) for i in range(len(fitted)))):
        excess = sum(fitted) + len(_GAP) * (len(fitted) - 1) - room
        if excess > 0:
            fitted[index] = max(min(least, fitted[index]), fitted[index] - excess)
    return fitted


def _line(cells: Sequence[str], widths: Sequence[int], paint: Callable[[str, str], str]) -> str:
    """One line without the blanks that would fill it."""
    painted = []
    for text, width in zip(cells, widths, strict=True):
        size = cell_len(text)
        shown = text if size <= width else set_cell_size(text, width - 1) + "…"
        painted.append(paint(shown, text) + " " * (width - size))
    return _GAP.join(painted).rstrip()


def _style(text: str) -> str:
    return _STYLES.get(text, "")


def _paint(out: Console) -> Callable[[str, str], str]:
    """Gives a text a style, where the terminal has colours."""
    if out.color_system is None or out.no_color:
        return lambda text, _: text
    marks = {"": ("", "")}
    for style in {"bold", *_STYLES.values()}:
        before, _, after = out.get_style(style).render("\0").partition("\0")
        marks[style] = (before, after)
    return lambda text, style: text.join(marks[style])


def pairs(rows: Iterable[tuple[str, object]]) -> None:
    """Prints names and values, leaving out what is not set."""
    shown = Table(box=None, pad_edge=False, show_header=False)
    shown.add_column(style="bold", no_wrap=True)
    shown.add_column(overflow="fold")
    for name, value in rows:
        if value not in (None, "", [], {}):
            text = cell(value)
            shown.add_row(name, Text(text, style=_style(text)))
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
