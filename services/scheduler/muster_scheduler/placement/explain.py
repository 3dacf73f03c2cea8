"""Why a task fits nowhere, agent by agent; worked out when somebody asks, never while placing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from muster.domain.quantity import format_quantity
from muster.domain.resources import unit_of
from muster_scheduler.placement.change import constraint_text
from muster_scheduler.placement.classes import (
    ClassTable,
    TaskClass,
    compile_demand,
    first_unmet,
)
from muster_scheduler.placement.devices import WHOLE, device_fits
from muster_scheduler.placement.plan import Unplaceable
from muster_scheduler.placement.snapshot import IntArray, Snapshot


def explain(snapshot: Snapshot, task_class: TaskClass, free: IntArray | None = None) -> Unplaceable:
    """Count the agents that cannot take the class, each under its first reason.

    `free` (int64 [M, K]) replaces the snapshot's, to see the cluster as a plan left it.
    """
    free = snapshot.free if free is None else free
    counts: Counter[str] = Counter()
    left = []
    alive = np.flatnonzero(snapshot.alive).tolist()
    for row in alive:
        reason = why_not_meant(snapshot, task_class, row)
        if reason is None and not snapshot.placeable[row]:
            reason = snapshot.why_not[row]
        if reason is None:
            left.append(row)
        else:
            counts[reason] += 1
    for reason, count in _shortages(snapshot, task_class, left, free):
        counts[reason] += count
    return Unplaceable(dict(counts), agents=len(alive))


def why_not_meant(snapshot: Snapshot, task_class: TaskClass, row: int) -> str | None:
    """Why the class is not for this agent, whether that gets work or has room; None = it is."""
    if task_class.skill not in snapshot.skills[row]:
        return "skill"
    unmet = first_unmet(task_class.constraints, snapshot, row)
    if unmet is not None:
        return constraint_text(unmet)
    if snapshot.agent_ids[row] in task_class.avoid:
        return "avoided"
    for spread in task_class.spread:
        if snapshot.crowds.get(spread.group, {}).get(row, 0) >= spread.most:
            return str(spread)
    return None


def _shortages(
    snapshot: Snapshot, task_class: TaskClass, rows: Sequence[int], free: IntArray
) -> Iterator[tuple[str, int]]:
    """Each row under the first resource that it lacks, those that it lacks for ever first."""
    demand = compile_demand(task_class.demand, snapshot.columns)
    left: IntArray = np.array(rows, np.int64)
    for name in demand.missing:
        if left.shape[0]:
            yield _short_text(name, task_class.demand.get(name), " even when empty"), len(left)
            return
    for amounts, ending in ((snapshot.capacity, " even when empty"), (free, "")):
        for column, wanted in demand.columns:
            available = amounts[left, column]
            short = available < wanted
            if short.any():
                least = wanted - int(available[short].max())
                yield _short_text(snapshot.names[column], least, ending), int(short.sum())
                left = left[~short]
    for column, wanted in demand.columns:
        if column in snapshot.device_free:
            apart = ~device_fits(snapshot.device_free[column][left], wanted)
            if apart.any():
                kind = "a share of one device" if wanted <= WHOLE else "whole devices"
                yield f"{snapshot.names[column]} free but not as {kind}", int(apart.sum())
                left = left[~apart]


def _short_text(name: str, amount: int, ending: str) -> str:
    return f"{name} short by {format_quantity(amount, unit_of(name))}{ending}"


class LazyReasons(Mapping[int, Unplaceable]):
    """Unplaceable by index of unplaced task; worked out once per class, at first asking."""

    __slots__ = ("_by_class", "_class_of", "_classes", "_free", "_snapshot")

    def __init__(
        self,
        snapshot: Snapshot,
        classes: ClassTable,
        class_of: Mapping[int, int],
        free: Callable[[], IntArray],
    ) -> None:
        """`class_of`: class id by task index. `free`: the room that the plan left."""
        self._snapshot, self._classes = snapshot, classes
        self._class_of, self._free = class_of, free
        self._by_class: dict[int, Unplaceable] = {}

    def __getitem__(self, task: int) -> Unplaceable:
        class_id = self._class_of[task]
        reason = self._by_class.get(class_id)
        if reason is None:
            reason = explain(self._snapshot, self._classes[class_id], self._free())
            self._by_class[class_id] = reason
        return reason

    def __iter__(self) -> Iterator[int]:
        return iter(self._class_of)

    def __len__(self) -> int:
        return len(self._class_of)
