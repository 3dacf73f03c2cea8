"""The bar of a `map`: on a terminal, and nowhere else."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sized
from typing import Any


class NoBar:
    """Nobody watches."""

    def submitted(self, tasks: int) -> None:
        """As `Bar.submitted`."""

    def ended(self, tasks: int, failed: int) -> None:
        """As `Bar.ended`."""

    def close(self) -> None:
        """As `Bar.close`."""


class Bar:
    """One line on stderr."""

    def __init__(self, title: str, total: int | None) -> None:
        from rich.console import Console  # noqa: PLC0415  nobody else needs it
        from rich.progress import (  # noqa: PLC0415  as above
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
        )

        self._failed, self._ended = 0, 0
        self._bar: Any = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}", style="red"),
            console=Console(stderr=True),
        )
        self._known = total is not None
        self._row = self._bar.add_task(title, total=total, note="")
        self._bar.start()

    def submitted(self, tasks: int) -> None:
        """So many in all, by now."""
        if not self._known:
            self._bar.update(self._row, total=tasks)

    def ended(self, tasks: int, failed: int) -> None:
        """So many more, and how many of them without a result."""
        self._ended += tasks
        self._failed += failed
        note = f"{self._failed} failed" if self._failed else ""
        self._bar.update(self._row, completed=self._ended, note=note)

    def close(self) -> None:
        """Leaves the bar as it is."""
        self._bar.stop()


def bar_for(title: str, inputs: Iterable[Any], *, wanted: bool) -> Bar | NoBar:
    """A bar, when one is wanted and stderr is a terminal."""
    if not (wanted and sys.stderr is not None and sys.stderr.isatty()):
        return NoBar()
    return Bar(title, len(inputs) if isinstance(inputs, Sized) else None)
