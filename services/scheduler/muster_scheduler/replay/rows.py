"""Rows of CSV files, and sentences that name the row and the column of what is wrong in them."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from muster.domain.errors import InvalidInput


class Row:
    """One row: `number` counts lines of data from 1, as `place` says it to people."""

    __slots__ = ("_cells", "_file", "number")

    def __init__(self, file: str, number: int, cells: dict[str, str]) -> None:
        self._file, self.number, self._cells = file, number, cells

    def place(self, column: str) -> str:
        return f"{self._file} row {self.number} column {column}"

    def text(self, column: str) -> str:
        return self._cells[column].strip()

    def integer(self, column: str, least: int = 0, most: int = 2**53) -> int:
        text = self.text(column)
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or not least <= value <= most:
            limit = f"must be an integer from {least} to {most}"
            raise InvalidInput(self.place(column), text, limit)
        return value

    def number_of(self, column: str, least: float = 0.0) -> float:
        text = self.text(column)
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value >= least):
            raise InvalidInput(self.place(column), text, f"must be a number from {least:g} up")
        return value


def read_rows(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    """The rows of a CSV file with a head that names at least `columns`.

    Raises InvalidInput naming the file, and the row and column where there is one.
    """
    name = path.name
    try:
        file = path.open(newline="", encoding="utf-8-sig")
    except OSError as error:
        raise InvalidInput("trace", str(path), f"cannot be read: {error.strerror}") from None
    with file:
        reader = csv.reader(file, strict=True)
        try:
            head = [cell.strip() for cell in next(reader, [])]
            for column in columns:
                if column not in head:
                    raise InvalidInput(f"{name} head", head, f"there is no column {column}")
            number = 0
            for cells in reader:
                if not cells:
                    continue
                number += 1
                if len(cells) < len(head):
                    missing = head[len(cells)]
                    raise InvalidInput(
                        f"{name} row {number} column {missing}", ",".join(cells), "is missing"
                    )
                if len(cells) > len(head):
                    place = f"{name} row {number} column {len(head) + 1}"
                    limit = f"the head names {len(head)} columns only"
                    raise InvalidInput(place, cells[len(head)], limit)
                yield Row(name, number, dict(zip(head, cells, strict=True)))
        except (csv.Error, UnicodeDecodeError) as error:
            raise InvalidInput(f"{name} line {reader.line_num + 1}", str(error), "no CSV") from None
