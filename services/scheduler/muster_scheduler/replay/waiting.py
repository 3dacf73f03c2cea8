"""The tasks that wait, in lines of equal class and priority, as the leader's queue has them."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice


class Waiting:
    """Higher priority first, then the order of arrival. When a class finds no place, all of its
    tasks wait until room comes that one of them may fit in.
    """

    def __init__(self) -> None:
        self._lines: dict[tuple[int, int], deque[int]] = {}
        self.blocked: set[int] = set()

    def __len__(self) -> int:
        return sum(len(line) for line in self._lines.values())

    def add(self, task: int, class_id: int, priority: int) -> None:
        """`task` is its place in the order of arrival."""
        self._lines.setdefault((-priority, class_id), deque()).append(task)

    def take(
        self, places: Callable[[int], int], beyond: int, most: int
    ) -> list[tuple[int, int, int]]:
        """Up to `most` tasks as (-priority, task, class).

        Of each class with any room no more than `places` and `beyond`.
        """
        runs = []
        for (priority, class_id), line in self._lines.items():
            if line and class_id not in self.blocked:
                count = places(class_id)
                if count:
                    runs.append(_entries(line, priority, class_id, min(count + beyond, most)))
                else:
                    self.blocked.add(class_id)
        return list(islice(heapq.merge(*runs), most))

    def remove(self, taken: list[tuple[int, int, int]]) -> None:
        """What `take` gave and found a place; near the heads of their lines, so quickly found."""
        for priority, task, class_id in taken:
            line = self._lines[(priority, class_id)]
            line.remove(task)
            if not line:
                del self._lines[(priority, class_id)]


def _entries(
    line: deque[int], priority: int, class_id: int, count: int
) -> Iterator[tuple[int, int, int]]:
    return ((priority, task, class_id) for task in islice(line, count))
