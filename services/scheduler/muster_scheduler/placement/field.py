"""What the loops of `fragmentation` work on, made from a snapshot, a batch and a taste."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from muster_scheduler.placement.classes import TaskBatch, TaskMix
from muster_scheduler.placement.devices import WHOLE, Devices
from muster_scheduler.placement.snapshot import BoolArray, FloatArray, Group, IntArray, Snapshot

if TYPE_CHECKING:
    from muster_scheduler.placement.compiled.fragments import Field, Memo, Rows

# Types that the expectation is taken over, the most frequent ones: as in FGD, whose authors cut
# at 95% of the tasks. Bounds the work of one score.
MAX_TYPES = 256
# Scores that are kept: 72 MiB. Classes beyond take turns.
_MEMO_CELLS = 4 * 2**20
# A resource that is scarce by less than this share of the scarcest one strands nothing.
_SCARCE = 0.25
# More tasks than any agent holds of a group.
_CROWD = 2**40


@dataclass(frozen=True, slots=True)
class Taste:
    """How much each consideration weighs. Unit: a thousandth of a device that turns useless.

    The defaults are FGD as published, but for its rounding: the growth of the expected fragments
    and nothing else.

    size_power    types weigh number x (devices asked for) to this power
    plain_weight  types that ask for no device weigh number x this
    strand        per thousandth of a device's worth of the scarcest held resource that is free
                  beyond what the mix uses with the devices that are free
    strand_other  the same for other scarce resources
    lack          the same for free devices beyond what a free held resource can go with
    yield_        the share of the free devices that is thought to be used in the end
    open_row      per device of an agent where nothing runs yet
    open_device   a fraction that begins an idle device
    leftover      per device's worth that a fraction leaves on its device
    idle_device   per idle device of the agent
    order         the last row against the first
    step          scores are rounded up to multiples of this; 0: not
    """

    size_power: float = 0.0
    plain_weight: float = 1.0
    strand: float = 0.0
    strand_other: float = 0.0
    lack: float = 0.0
    yield_: float = 1.0
    open_row: float = 0.0
    open_device: float = 0.0
    leftover: float = 0.0
    idle_device: float = 0.0
    order: float = 0.0
    step: float = 0.0


class Scene:
    """The arrays of one plan: classes of the batch and of the mix by a dense index of their own."""

    def __init__(self, snapshot: Snapshot, tasks: TaskBatch) -> None:
        self.snapshot, self.tasks = snapshot, tasks
        mix = tasks.mix if tasks.mix is not None else _mix_of(tasks)
        self.class_ids: list[int] = np.union1d(tasks.class_id, mix.class_id).tolist()
        ids = np.array(self.class_ids, np.int64)
        self.sequence = np.searchsorted(ids, tasks.class_id).astype(np.int32)
        most = np.argsort(-mix.weight, kind="stable")[:MAX_TYPES]
        self.types: IntArray = np.searchsorted(ids, mix.class_id[most]).astype(np.int64)
        self.frequency: FloatArray = mix.weight[most] / max(float(mix.weight[most].sum()), 1e-300)
        amounts = np.zeros((len(ids), len(snapshot.names)), np.int64)
        for position, class_id in enumerate(self.class_ids):
            for column, amount in tasks.classes.demand(class_id, snapshot).columns:
                amounts[position, column] = amount
        wanted = np.zeros(amounts.shape[1], np.bool_)
        wanted[np.nonzero(amounts)[1]] = True
        self.columns: list[int] = np.flatnonzero(wanted).tolist()
        self.device_columns = [k for k in sorted(snapshot.device_free) if wanted[k]]
        self.held = np.ascontiguousarray(amounts[:, self.columns])
        self._count_groups()
        self.ask = np.ascontiguousarray(amounts[:, self.device_columns])
        self.eligible, self.mask_of = self._masks()
        self.start = np.zeros(len(self.device_columns) + 1, np.int64)
        for s, column in enumerate(self.device_columns):
            self.start[s + 1] = self.start[s] + snapshot.device_free[column].shape[1]
        self._measure()

    def _count_groups(self) -> None:
        """`need` and `find`: what tasks take of held columns and what they must find there.

        A group of which an agent holds at most so many tasks is a column besides: a task takes
        one, and finds enough while fewer than its most are there.
        """
        classes = self.tasks.classes
        spreads = [classes.spread(class_id) for class_id in self.class_ids]
        self.groups: list[Group] = sorted({one.group for spread in spreads for one in spread})
        taken = np.zeros((len(self.class_ids), len(self.groups)), np.int64)
        found = np.zeros_like(taken)
        for c, spread in enumerate(spreads):
            for one in spread:
                column = self.groups.index(one.group)
                taken[c, column] = 1
                found[c, column] = max(found[c, column], _CROWD - one.most + 1)
        self.need = np.concatenate([self.held, taken], axis=1)
        self.find = np.concatenate([self.held, found], axis=1)

    def _masks(self) -> tuple[BoolArray, IntArray]:
        """bool [M, G] and int64 [C]: which rows may take a class, room apart."""
        found: dict[bytes, int] = {}
        masks: list[BoolArray] = []
        mask_of = np.zeros(len(self.class_ids), np.int64)
        for position, class_id in enumerate(self.class_ids):
            bits = self.tasks.classes.eligible(class_id, self.snapshot)
            if self.tasks.classes.demand(class_id, self.snapshot).missing:
                bits = np.zeros_like(bits)
            mask = found.setdefault(bits.tobytes(), len(found))
            if mask == len(masks):
                masks.append(bits)
            mask_of[position] = mask
        shape = (self.snapshot.row_count, len(masks))
        return np.ascontiguousarray(np.array(masks, np.bool_).reshape(shape[::-1]).T), mask_of

    def _measure(self) -> None:
        """What counts as value, what classes take of it, and how scarce the held columns are."""
        snapshot = self.snapshot
        capacity = snapshot.capacity[snapshot.alive][:, self.columns].sum(axis=0).astype(np.float64)
        asked = self.frequency @ self.held[self.types].astype(np.float64)
        scarcity: FloatArray = asked / np.maximum(capacity, 1.0)
        self.value_at, self.value_scale = 0, 1.0
        if self.device_columns:
            self.size: FloatArray = self.ask.sum(axis=1).astype(np.float64)
        else:
            # Without devices the scarcest resource takes their part, an average task that of one.
            self.value_at = int(scarcity.argmax()) if scarcity.size else 0
            mean = float(asked[self.value_at]) if asked.size else 0.0
            self.value_scale = WHOLE / mean if mean > 0 else 1.0
            self.size = np.zeros(len(self.class_ids))
            if asked.size:
                self.size += self.held[:, self.value_at] * self.value_scale
        valued = self.device_columns or self.columns[self.value_at : self.value_at + 1]
        beside = np.array([column not in valued for column in self.columns], np.bool_)
        value = float(self.frequency @ self.size[self.types])
        self.per_value: FloatArray = np.where(beside, asked / value if value > 0 else 0.0, 0.0)
        scarcity = np.where(beside, scarcity, 0.0)
        top = float(scarcity.max(initial=0.0))
        self.scarcity: FloatArray = scarcity / (top or 1.0)

    def field(self, taste: Taste) -> Field:
        from muster_scheduler.placement.compiled.fragments import Field  # noqa: PLC0415 - heavy

        sizes = self.size[self.types] / WHOLE
        powers = np.where(sizes > 0, np.maximum(sizes, 1e-9) ** taste.size_power, 0.0)
        weight: FloatArray = self.frequency * np.where(sizes > 0, powers, taste.plain_weight)
        total = float(weight.sum())
        uncounted = np.zeros(len(self.groups))
        scarce = self.scarcity >= _SCARCE
        strand = np.where(scarce, taste.strand_other, 0.0)
        strand[self.scarcity == 1.0] = taste.strand
        levels: dict[tuple[int, int], int] = {}
        level = np.full(self.ask.shape, -1, np.int64)
        for c, s in np.argwhere(self.ask > 0).tolist():
            level[c, s] = levels.setdefault((s, int(self.ask[c, s])), len(levels))
        return Field(
            need=self.need,
            find=self.find,
            size=self.size,
            ask=self.ask,
            level=level,
            level_of=np.array(list(levels), np.int64).reshape(len(levels), 2),
            mask_of=self.mask_of,
            types=self.types,
            weight=weight / total if total > 0 else weight,
            start=self.start,
            per_value=np.append(taste.yield_ * self.per_value, uncounted),
            strand=np.append(strand, uncounted),
            lack=np.append(np.where(scarce, taste.lack, 0.0), uncounted),
            value_at=self.value_at,
            value_scale=self.value_scale,
            open_row=taste.open_row,
            open_device=taste.open_device,
            leftover=taste.leftover,
            idle_device=taste.idle_device,
            order=taste.order,
            step=taste.step,
        )

    def rows(self, kind: IntArray | None = None, quota: IntArray | None = None) -> Rows:
        """What is free at the start; `kind` int64 [M] and `quota` int64 [C, kinds] where wanted."""
        from muster_scheduler.placement.compiled.fragments import Rows  # noqa: PLC0415 - heavy

        snapshot = self.snapshot
        count = snapshot.row_count
        parts = [snapshot.device_free[column] for column in self.device_columns]
        devices = np.concatenate(parts, axis=1) if parts else np.zeros((count, 0), np.int64)
        room = np.full((count, len(self.groups)), _CROWD, np.int64)
        for column, group in enumerate(self.groups):
            for row, crowd in snapshot.crowds.get(group, {}).items():
                room[row, column] -= crowd
        return Rows(
            free=np.concatenate([snapshot.free[:, self.columns], room], axis=1),
            devices=np.ascontiguousarray(devices),
            eligible=self.eligible,
            untouched=np.ascontiguousarray((snapshot.used == 0).all(axis=1)),
            kind=np.zeros(count, np.int64) if kind is None else kind,
            quota=np.zeros((0, 0), np.int64) if quota is None else quota.copy(),
        )

    def free_value(self) -> float:
        """What is free on the rows that may take any of the classes."""
        rows = self.eligible.any(axis=1)
        if self.device_columns:
            parts = (self.snapshot.device_free[column][rows] for column in self.device_columns)
            return float(sum(int(np.maximum(part, 0).sum()) for part in parts))
        if not self.columns:
            return 0.0
        free = self.snapshot.free[rows, self.columns[self.value_at]]
        return float(np.maximum(free, 0).sum()) * self.value_scale

    def memo(self) -> Memo:
        from muster_scheduler.placement.compiled.fragments import Memo  # noqa: PLC0415 - heavy

        count = self.snapshot.row_count
        slots = max(1, min(len(self.class_ids), _MEMO_CELLS // max(1, count)))
        levels = self.ask.size + 1
        return Memo(
            version=np.zeros(count, np.int64),
            owner=np.full(slots, -1, np.int64),
            at=np.full((slots, count), -1, np.int64),
            score=np.zeros((slots, count)),
            option=np.zeros((slots, count), np.int16),
            before=np.zeros(count),
            before_at=np.full(count, -1, np.int64),
            can=np.zeros(levels, np.bool_),
            loss=np.zeros(levels, np.int64),
            kept=np.zeros(int(self.start[-1]), np.int64),
            left=np.zeros(self.need.shape[1], np.int64),
        )

    def devices_of(self, given: BoolArray, first: int) -> Mapping[int, Devices]:
        """By index of task, from `given` bool [n, D] of the tasks from `first` on."""
        found: dict[int, dict[str, tuple[int, ...]]] = {}
        for s, column in enumerate(self.device_columns):
            name = self.snapshot.names[column]
            begin = int(self.start[s])
            part = given[:, begin : int(self.start[s + 1])]
            for index in np.flatnonzero(part.any(axis=1)).tolist():
                indices = tuple(np.flatnonzero(part[index]).tolist())
                found.setdefault(first + index, {})[name] = indices
        return found

    def free_after(self, rows: Rows) -> IntArray:
        """int64 [M, K], what a plan left."""
        free = self.snapshot.free.copy()
        free[:, self.columns] = rows.free[:, : len(self.columns)]
        return free


def _mix_of(tasks: TaskBatch) -> TaskMix:
    ids, counts = np.unique(tasks.class_id, return_counts=True)
    return TaskMix(ids.astype(np.int32), counts.astype(np.float64))


def draw(scene: Scene, value: float, sample: FloatArray) -> NDArray[np.int32]:
    """Classes of expected tasks in turn until they ask for `value`: one per number of `sample`.

    `sample` is float64 in [0, 1).
    """
    edges = np.cumsum(scene.frequency)
    picks = np.minimum(np.searchsorted(edges, sample * edges[-1], side="right"), len(edges) - 1)
    classes: NDArray[np.int32] = scene.types[picks].astype(np.int32)
    arrived = np.cumsum(scene.size[classes])
    return classes[: int(np.searchsorted(arrived, value, side="right"))]


def sequence_parts(count: int, length: int) -> Sequence[slice]:
    return [slice(at, min(at + length, count)) for at in range(0, count, length)]
