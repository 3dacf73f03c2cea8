"""What processes under test have said, for the report of a test that failed.

A failure that comes once in a thousand runs cannot be asked again: what is needed to explain it
has to be in its first report.
"""

from __future__ import annotations

from typing import Protocol
from weakref import WeakSet

# Of each process.
MAX_CHARS = 8_000


class Witness(Protocol):
    """Something that a test has started, with words of its own."""

    def testimony(self) -> tuple[str, str]:
        """A title and all that it has said."""
        ...


_witnesses: WeakSet[Witness] = WeakSet()


def is_witness(witness: Witness) -> None:
    """It is heard at every failure for as long as somebody holds it."""
    _witnesses.add(witness)


def testimonies() -> list[tuple[str, str]]:
    """Titles and the ends of what was said, of those who said something."""
    found = []
    for witness in list(_witnesses):
        try:
            title, said = witness.testimony()
        except OSError as error:
            # Its files may go while they are read; the failure itself must be told all the same.
            title, said = f"{witness}", str(error)
        if said:
            found.append((title, said[-MAX_CHARS:]))
    return sorted(found)
