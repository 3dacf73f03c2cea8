"""The constructive pass over arrays, by compiled loops: what `constructive.py` hands large batches
to. Placement for placement the same as its plain pass.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Protocol

import numpy as np

from muster.domain.task import NO_RESOURCES
from muster_scheduler.placement.classes import TaskBatch, TaskClass
from muster_scheduler.placement.dense import NOWHERE, Int16Array, Int32Array
from muster_scheduler.placement.snapshot import BoolArray, FloatArray, IntArray, Snapshot

# Tasks between two questions to `stop`: a few milliseconds of work on the largest clusters.
_TASKS_PER_STOP = 512
# Bytes of trees of least keys in one plan; classes beyond them are looked for row by row.
_TREE_BYTES = 64 * 2**20
# A class that returns less often is found quicker by looking at every row.
_TREE_TASKS = 3
# So is one between whose tasks so many others come that mending its tree costs more: one per so
# many rows. What packs mends the same few rows again and again, what spreads mends all over
# (measured at 1,000 and 10,000 agents).
_ROWS_PER_MEND_PACKING = 3
_ROWS_PER_MEND_SPREADING = 10

_kernels: ModuleType | None = None
_is_left_to_shell = False
_missed_tasks = 0


def load() -> None:
    """Import numba and make both kernels ready; half a second from disk, several without."""
    global _kernels  # noqa: PLW0603 - once per process, and only from absent to present
    if _kernels is not None:
        return
    from muster_scheduler.placement.compiled import constructive as kernels  # noqa: PLC0415

    one, ids = np.ones((1, 1), np.int64), np.zeros(1, np.int32)
    eligible, mask = np.ones((1, 1), np.bool_), np.zeros(1, np.int32)
    room, four = np.ones((kernels.BLOCK, 1), np.int64), np.zeros(4, np.int64)
    sieve, all_ = np.zeros((4, 1, kernels.BLOCK), np.int16), np.ones((1, kernels.BLOCK), np.bool_)
    rest = mask, ids, one, one, ids.copy(), ids, ids.copy()
    kernels.place_in_order(sieve, four, four, sieve[:, 0, 0].copy(), room, all_, *rest)
    shares, trees, seen = np.ones((1, 1)), np.ones((1, 1)), np.full(1, -1)
    lists = mask, ids, one, one, one, trees, ids, seen, ids.copy(), 0, ids, ids.copy()
    kernels.place_by_share(one.copy(), shares, shares[0], False, eligible, *lists)
    _kernels = kernels


def is_loaded() -> bool:
    return _kernels is not None


def leave_loading_to_shell() -> None:
    """Let no plan of this process load the kernels by itself, however large it is."""
    global _is_left_to_shell  # noqa: PLW0603 - once per process
    _is_left_to_shell = True


def may_load() -> bool:
    return not _is_left_to_shell


def miss(tasks: int) -> None:
    """Note a batch that took the plain pass and would have been much quicker by the kernels."""
    global _missed_tasks  # noqa: PLW0603 - a count that only grows
    _missed_tasks += tasks


def missed_tasks() -> int:
    """The tasks of all such batches of this process: what a shell decides about loading by."""
    return _missed_tasks


def serves(snapshot: Snapshot, tasks: TaskBatch) -> bool:
    """Whether these passes know all that decides where the batch may go: they know no devices, and
    nothing of how many tasks of a group an agent holds."""
    dense = tasks.classes.dense
    if dense.is_spread[tasks.class_id].any():
        return False
    columns = list(snapshot.device_free)
    if not columns:
        return True
    dense.over(snapshot.names)
    return not dense.amounts[np.unique(tasks.class_id)][:, columns].any()


class Pass(Protocol):
    """One plan's pass: tasks by class id in, rows or -1 out, in their order."""

    def place(self, class_ids: Int32Array) -> Int32Array: ...

    def free(self) -> IntArray:
        """int64 [M, K], what is left on every row."""


def run(pass_: Pass, class_ids: Int32Array, stop: Callable[[], bool]) -> Int32Array:
    """Rows of the tasks that were considered before `stop`, -1 where none fits."""
    done = []
    for start in range(0, class_ids.shape[0], _TASKS_PER_STOP):
        if start and stop():
            break
        done.append(pass_.place(class_ids[start : start + _TASKS_PER_STOP]))
    return np.concatenate(done) if done else np.zeros(0, np.int32)


class OrderPass:
    """Each task to the first of `order` that fits."""

    def __init__(self, snapshot: Snapshot, tasks: TaskBatch, order: IntArray) -> None:
        """`order`: int64 [M], the rows from the best to the worst for every class."""
        assert _kernels is not None, "the kernels are loaded first"
        self._snapshot, self._order = snapshot, order
        dense = tasks.classes.dense
        dense.over(snapshot.names)
        rows = snapshot.row_count
        block: int = _kernels.BLOCK
        blocks = -(-rows // block)
        self._room = np.zeros((blocks * block, len(snapshot.names)), np.int64)
        np.maximum(snapshot.free[order], 0, out=self._room[:rows])
        self._sieve, self._sifted, self._shift = _sieve(self._room, dense.amounts, block)
        masks, self._mask_of = _masks(snapshot, tasks)
        self._eligible = np.zeros((masks.shape[0], blocks * block), np.bool_)
        self._eligible[:, :rows] = masks[:, order]
        self._group_of, self._amounts = dense.group, dense.amounts
        self._first = np.zeros(dense.group.shape[0], np.int32)
        # Where -1, no position, leads: to no row.
        self._row_at = np.append(order, -1).astype(np.int32)

    def place(self, class_ids: Int32Array) -> Int32Array:
        assert _kernels is not None
        out = np.empty(class_ids.shape[0], np.int32)
        _kernels.place_in_order(
            self._sieve,
            self._sifted,
            self._shift,
            np.zeros(4, np.int16),
            self._room,
            self._eligible,
            self._mask_of,
            self._group_of,
            self._amounts,
            self._amounts,
            self._first,
            class_ids,
            out,
        )
        return self._row_at[out]

    def free(self) -> IntArray:
        left = np.empty_like(self._snapshot.free)
        left[self._order] = self._room[: self._order.shape[0]]
        return _with_debts(self._snapshot, left)


class SharePass:
    """Each task to the row of least factor x free share, of the rows where it fits."""

    def __init__(
        self, snapshot: Snapshot, tasks: TaskBatch, factor: FloatArray, only_worsens: bool
    ) -> None:
        """`factor`: float64 [M]; `only_worsens`: it is 0 or below everywhere."""
        dense = tasks.classes.dense
        dense.over(snapshot.names)
        self._snapshot, self._factor, self._only_worsens = snapshot, factor, only_worsens
        self._room = np.ascontiguousarray(np.maximum(snapshot.free, 0))
        self._divisor = np.ascontiguousarray(snapshot.divisor)
        self._eligible, self._mask_of = _masks(snapshot, tasks)
        self._group_of, self._amounts = dense.group, dense.amounts
        width = _tree_width(snapshot.row_count)
        rows_per_mend = _ROWS_PER_MEND_SPREADING if only_worsens else _ROWS_PER_MEND_PACKING
        least = max(_TREE_TASKS, rows_per_mend * len(tasks) // max(1, snapshot.row_count))
        self._tree_of = _classes_with_trees(tasks, dense.group.shape[0], least, width)
        trees = int(self._tree_of.max(initial=-1)) + 1
        self._trees = np.empty((trees, width))
        self._seen = np.full(trees, -1, np.int64)
        self._log = np.empty(len(tasks), np.int32)
        self._logged = 0

    def place(self, class_ids: Int32Array) -> Int32Array:
        assert _kernels is not None, "the kernels are loaded first"
        out = np.empty(class_ids.shape[0], np.int32)
        self._logged = _kernels.place_by_share(
            self._room,
            self._divisor,
            self._factor,
            self._only_worsens,
            self._eligible,
            self._mask_of,
            self._group_of,
            self._amounts,
            self._amounts,
            self._amounts,
            self._trees,
            self._tree_of,
            self._seen,
            self._log,
            self._logged,
            class_ids,
            out,
        )
        return out

    def free(self) -> IntArray:
        return _with_debts(self._snapshot, self._room)


def _sieve(room: IntArray, amounts: IntArray, block: int) -> tuple[Int16Array, IntArray, IntArray]:
    """The int16 view of four columns that `place_in_order` wants: those that are asked for most,
    measured in what there is of them."""
    most = room.max(axis=0, initial=0)
    scarcity = amounts.max(axis=0, initial=0) / np.maximum(most, 1)
    columns = np.argsort(-scarcity, kind="stable")[:4]
    columns = columns[scarcity[columns] > 0]
    sifted, shift = np.full(4, -1, np.int64), np.zeros(4, np.int64)
    sieve = np.zeros((4, room.shape[0] // block, block), np.int16)
    for place, column in enumerate(columns.tolist()):
        sifted[place] = column
        shift[place] = max(0, int(most[column]).bit_length() - 15)
        sieve[place] = (room[:, column] >> shift[place]).reshape(sieve.shape[1:])
    return sieve, sifted, shift


def _tree_width(rows: int) -> int:
    """Numbers in a tree of least keys over so many rows."""
    leaves = 1
    while leaves < rows:
        leaves *= 8
    return (8 * leaves - 1) // 7


def _with_debts(snapshot: Snapshot, left: IntArray) -> IntArray:
    """The passes take what is below 0 for 0; nothing can have been placed on it since."""
    kept: IntArray = np.where(snapshot.free < 0, snapshot.free, left)
    return kept


def _masks(snapshot: Snapshot, tasks: TaskBatch) -> tuple[BoolArray, Int32Array]:
    """bool [E, M] for the groups of the batch; int32 [G], row of it by group."""
    dense = tasks.classes.dense
    used = np.bincount(dense.group[tasks.class_id], minlength=dense.group_count)
    mask_of = np.zeros(dense.group_count, np.int32)
    masks = [np.zeros(snapshot.row_count, np.bool_)]
    for group in np.flatnonzero(used).tolist():
        if group != NOWHERE:
            skill, constraints, avoid = dense.key_of(group)
            task_class = TaskClass(skill, NO_RESOURCES, constraints, avoid)
            mask_of[group] = len(masks)
            masks.append(tasks.classes.eligible_for(task_class, snapshot))
    return np.array(masks), mask_of


def _classes_with_trees(tasks: TaskBatch, classes: int, least: int, width: int) -> Int32Array:
    """int32 [C], a number from 0 for the most frequent classes, -1 for those of fewer tasks than
    `least` and beyond the memory for trees of `width` keys."""
    counts = np.bincount(tasks.class_id, minlength=classes)
    often = np.flatnonzero(counts >= least)
    allowed = max(1, _TREE_BYTES // (8 * width))
    if often.shape[0] > allowed:
        often = often[np.argsort(-counts[often], kind="stable")[:allowed]]
    tree_of = np.full(classes, -1, np.int32)
    tree_of[often] = np.arange(often.shape[0])
    return tree_of
