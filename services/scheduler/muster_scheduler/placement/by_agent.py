"""The constructive pass where demands differ by agent (r_ijk): every row for every task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from muster_scheduler.placement.classes import TaskBatch
from muster_scheduler.placement.dense import Int32Array
from muster_scheduler.placement.snapshot import FloatArray, IntArray, Snapshot

_TASKS_PER_STOP = 64


@dataclass(frozen=True, slots=True)
class DemandByRow:
    """One task's demand on every row; stands where a Demand does.

    `amounts` are all K, each int64 [M]; `columns` those in which some row is asked for something.
    """

    columns: tuple[tuple[int, IntArray], ...]
    amounts: tuple[IntArray, ...]


class KeysByRow(Protocol):
    """What `ConstructiveStrategy.scan_keys` is."""

    def __call__(
        self, snapshot: Snapshot, free: IntArray, demand: DemandByRow
    ) -> FloatArray | IntArray: ...


def place_by_agent(
    snapshot: Snapshot, tasks: TaskBatch, scan_keys: KeysByRow, stop: Callable[[], bool]
) -> tuple[Int32Array, IntArray]:
    """Rows of the tasks that were considered, -1 where none fits; int64 [M, K], what is left.

    Devices are counted by their amounts alone: who knows demands by agent knows no devices.
    """
    by_agent = tasks.demand_by_agent
    assert by_agent is not None, "the batch's demands do not differ by agent"
    free = snapshot.free.copy(order="K")
    choices: list[int] = []
    for index, class_id in enumerate(tasks.class_id.tolist()):
        if index and index % _TASKS_PER_STOP == 0 and stop():
            break
        wanted = by_agent[index]
        fits = tasks.classes.eligible(class_id, snapshot).copy()
        asked = np.flatnonzero(wanted.any(axis=0)).tolist()
        for k in asked:
            fits &= (free[:, k] >= wanted[:, k]) | (wanted[:, k] == 0)
        rows = np.flatnonzero(fits)
        row = -1
        if rows.size:
            columns = tuple((k, wanted[:, k]) for k in asked)
            keys = scan_keys(snapshot, free, DemandByRow(columns, tuple(wanted.T)))
            row = int(rows[keys[rows].argmin()])
            free[row] -= wanted[row]
        choices.append(row)
    return np.array(choices, np.int32), free
