"""Which kinds of tasks come: a count by class in which the newer weigh more, of bounded size."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import numpy as np

from muster_scheduler.placement.classes import TaskMix

# Strategies that weigh what is likely to come, or may choose one that does.
TOLD_THE_MIX: Final = frozenset({"fragmentation", "quota", "auto"})
# So many tasks later an arrival counts half: some minutes of a busy cluster, days of an idle one.
HALF_LIFE_TASKS: Final = 10_000
# What is rarer than so many other classes does not move an expectation.
MAX_MIX_CLASSES: Final = 256
# Counts are kept up to twice as many, so that forgetting costs little per task.
_FORGET_AT: Final = 2 * MAX_MIX_CLASSES
_GROWTH: Final = 2.0 ** (1.0 / HALF_LIFE_TASKS)
# Weights are scaled back long before a float could overflow.
_RESCALE_AT: Final = 1e100
# In arrivals; it becomes this little only after some forty half-lives.
_NOTHING: Final = 1e-12


class ArrivalMix:
    """Arrivals grow in weight instead of old ones decaying, so that each costs one addition."""

    def __init__(self) -> None:
        self._weights: dict[int, float] = {}
        self._next = 1.0

    def note(self, class_id: int) -> None:
        """A task of the class has come."""
        weights = self._weights
        weights[class_id] = weights.get(class_id, 0.0) + self._next
        self._next *= _GROWTH
        if len(weights) > _FORGET_AT:
            self._weights = dict(self._heaviest())
        if self._next > _RESCALE_AT:
            scaled = {c: weight / self._next for c, weight in self._weights.items()}
            self._weights = {c: weight for c, weight in scaled.items() if weight > _NOTHING}
            self._next = 1.0

    def classes(self) -> Collection[int]:
        """Classes that are counted: their ids must keep their meaning."""
        return self._weights.keys()

    def mix(self) -> TaskMix | None:
        """The expected next task, the heaviest classes first; None while none has come.

        Weights add up to 1.
        """
        if not self._weights:
            return None
        ids, weights = zip(*self._heaviest(), strict=True)
        amounts = np.array(weights, np.float64)
        return TaskMix(np.array(ids, np.int32), amounts / amounts.sum())

    def _heaviest(self) -> list[tuple[int, float]]:
        ranked = sorted(self._weights.items(), key=lambda item: (-item[1], item[0]))
        return ranked[:MAX_MIX_CLASSES]
