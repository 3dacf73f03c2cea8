"""Lists of tasks cut into calls of one script: one tenant each, no task twice, of bounded length.

Within a call tasks are grouped by what they have in common, which is sent once for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias, TypeVar

# Redis does nothing else while a script runs, so none may run for more than about 5 ms. A task
# costs 10 to 20 µs plus 2 µs for each label, and its bytes are copied twice.
CHUNK_TASKS = 150
CHUNK_BYTES = 1024 * 1024
LABELS_AS_ONE_TASK = 8

# What the tasks of a group share, in the order of the script's arguments.
Group: TypeAlias = tuple[object, ...]
_T = TypeVar("_T")


class Batch:
    """What one call of a script gets: positions in the whole list, by group."""

    __slots__ = ("_ids", "_size", "_weight", "groups", "tenant")

    def __init__(self, tenant: str) -> None:
        self.tenant = tenant
        self.groups: dict[Group, list[int]] = {}
        self._ids: set[str] = set()
        self._weight = 0.0
        self._size = 0

    def add(self, position: int, ident: str, group: Group, weight: float, size: int) -> bool:
        """False, and nothing is added, when it belongs into a later call."""
        if self._ids and (
            ident in self._ids
            or self._weight + weight > CHUNK_TASKS
            or self._size + size > CHUNK_BYTES
        ):
            return False
        self._ids.add(ident)
        self._weight += weight
        self._size += size
        members = self.groups.get(group)
        if members is None:
            self.groups[group] = [position]
        else:
            members.append(position)
        return True

    def positions(self) -> list[int]:
        """In the order in which the script sees, and answers, them."""
        return [position for members in self.groups.values() for position in members]


def batches(
    items: Sequence[_T],
    about: Callable[[_T], tuple[str, str, Group, float, int]],
) -> list[Batch]:
    """The calls in the order in which they must be made.

    `about` gives an item's tenant, id, group, weight in tasks and size in bytes.
    """
    found: list[Batch] = []
    open_of: dict[str, Batch] = {}
    for position, item in enumerate(items):
        tenant, ident, group, weight, size = about(item)
        batch = open_of.get(tenant)
        if batch is None or not batch.add(position, ident, group, weight, size):
            batch = open_of[tenant] = Batch(tenant)
            found.append(batch)
            batch.add(position, ident, group, weight, size)
    return found
