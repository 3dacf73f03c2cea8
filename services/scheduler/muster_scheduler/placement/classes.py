"""Tasks as arrays: equal demands share a class, and a class knows which agents may take it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from muster.domain.resources import ResourceVector
from muster.domain.task import SPREAD_OP, Constraint
from muster_scheduler.placement.dense import DenseClasses
from muster_scheduler.placement.snapshot import (
    AgentTable,
    BoolArray,
    ChangeLog,
    FloatArray,
    IntArray,
    Snapshot,
)

# A constraint's key that means the agent's own id instead of one of its labels.
AGENT_ID_LABEL = "agent.id"

# Distinct pairs of skill and constraints whose rows are remembered: 5 MiB at 5,000 agents.
_REMEMBERED_MASKS = 1024


@dataclass(frozen=True, slots=True)
class Spread:
    """An agent holds at most `most` (≥ 1) tasks of `group`: the task's tenant, a label's key, and
    the task's own word for it."""

    group: tuple[str, str, str]
    most: int

    def __str__(self) -> str:
        """As the constraint that it comes from."""
        return f"{self.group[1]} {SPREAD_OP} {self.most}"


_Key: TypeAlias = tuple[
    str, ResourceVector, tuple[Constraint, ...], frozenset[str], tuple[Spread, ...]
]


@dataclass(frozen=True, slots=True)
class TaskClass:
    """All that decides where a task may go; tasks that agree in it are interchangeable.

    `demand` includes the task's slot. Agents in `avoid` are refused outright: whether a task
    should rather run there than nowhere is for the caller to decide, by asking again without.
    Every resource counts as held until the task ends, whatever its kind. `spread` says more than
    the constraint that it was made of, which may stand among `constraints` and is not looked at.
    """

    skill: str
    demand: ResourceVector
    constraints: tuple[Constraint, ...] = ()
    avoid: frozenset[str] = frozenset()
    spread: tuple[Spread, ...] = ()


@dataclass(frozen=True, slots=True)
class Demand:
    """A class's demand over a snapshot's columns.

    `amounts` are all K, `columns` the (k, amount) with amount ≥ 1 by growing k. `missing` are
    resources that no agent ever offered: a class with any fits nowhere.
    """

    columns: tuple[tuple[int, int], ...]
    missing: tuple[str, ...]
    amounts: tuple[int, ...]


class ClassTable:
    """Task classes by small integer. One table may serve any number of agent tables."""

    def __init__(self) -> None:
        self._ids: dict[_Key, int] = {}
        self._entries: list[_Entry | None] = []
        self._free_ids: list[int] = []
        self._masks: dict[tuple[str, tuple[Constraint, ...]], _Mask] = {}
        self.dense = DenseClasses()

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, class_id: int) -> TaskClass:
        return self._entry(class_id).task_class

    def intern(self, task_class: TaskClass) -> int:
        """The class's id, the same for equal classes until it is forgotten."""
        return self.id_of(
            task_class.skill,
            task_class.demand,
            task_class.constraints,
            task_class.avoid,
            task_class.spread,
        )

    def id_of(
        self,
        skill: str,
        demand: ResourceVector,
        constraints: tuple[Constraint, ...] = (),
        avoid: frozenset[str] = frozenset(),
        spread: tuple[Spread, ...] = (),
    ) -> int:
        """As `intern`, of a class that is only built when it is new."""
        key = (skill, demand, constraints, avoid, spread)
        class_id = self._ids.get(key)
        if class_id is not None:
            return class_id
        entry = _Entry(TaskClass(skill, demand, constraints, avoid, spread))
        if self._free_ids:
            class_id = self._free_ids.pop()
            self._entries[class_id] = entry
        else:
            class_id = len(self._entries)
            self._entries.append(entry)
        self._ids[key] = class_id
        self.dense.add(class_id, (skill, constraints, avoid), demand, is_spread=bool(spread))
        return class_id

    def forget_all_but(self, in_use: Collection[int]) -> int:
        """Drop the classes of no open task, whose ids may then mean others; returns how many.

        Clients can make up classes without end, so the owner calls this when `len` has grown
        well beyond its open tasks.
        """
        unused = [i for i in self._ids.values() if i not in in_use]
        for class_id in unused:
            gone = self._entry(class_id).task_class
            del self._ids[(gone.skill, gone.demand, gone.constraints, gone.avoid, gone.spread)]
            self._entries[class_id] = None
            self.dense.forget(class_id)
            self._free_ids.append(class_id)
        return len(unused)

    def spread(self, class_id: int) -> tuple[Spread, ...]:
        return self._entry(class_id).task_class.spread

    def demand(self, class_id: int, snapshot: Snapshot) -> Demand:
        entry = self._entry(class_id)
        if entry.demand is None or entry.names is not snapshot.names:
            entry.demand = compile_demand(entry.task_class.demand, snapshot.columns)
            entry.names = snapshot.names
        return entry.demand

    def demand_row(self, class_id: int, table: AgentTable) -> IntArray:
        """What `table.take` and `table.give_back` want for a task of this class."""
        entry = self._entry(class_id)
        if entry.demand_row is None or entry.table is not table:
            entry.demand_row = table.demand_row(entry.task_class.demand)
            entry.table = table
        return entry.demand_row

    def eligible(self, class_id: int, snapshot: Snapshot) -> BoolArray:
        """bool [M]: placeable, with the skill, meeting the constraints, not to be avoided, not
        holding its most of a group.

        Read only. Remembered per (skill, constraints) and brought up to date by looking at
        changed rows only. Room is not looked at.
        """
        task_class = self._entry(class_id).task_class
        return self.eligible_for(task_class, snapshot)

    def eligible_for(self, task_class: TaskClass, snapshot: Snapshot) -> BoolArray:
        """As `eligible`, of a class that need not be in the table."""
        bits = self._mask(task_class, snapshot)
        if not (task_class.avoid or task_class.spread):
            return bits
        bits = bits.copy()
        for agent_id in task_class.avoid:
            row = snapshot.rows.get(agent_id)
            if row is not None:
                bits[row] = False
        for spread in task_class.spread:
            for row, count in snapshot.crowds.get(spread.group, {}).items():
                bits[row] &= count < spread.most
        return bits

    def _entry(self, class_id: int) -> _Entry:
        entry = self._entries[class_id]
        assert entry is not None, "a class was used after it was forgotten"
        return entry

    def _mask(self, task_class: TaskClass, snapshot: Snapshot) -> BoolArray:
        log = snapshot.log
        if log is None:
            return _fresh_bits(task_class, snapshot)
        key = (task_class.skill, task_class.constraints)
        mask = self._masks.get(key)
        if mask is None or mask.log is not log:
            if mask is None and len(self._masks) == _REMEMBERED_MASKS:
                del self._masks[next(iter(self._masks))]
            mask = _Mask(log, snapshot.version, _fresh_bits(task_class, snapshot))
            self._masks[key] = mask
        elif mask.version != snapshot.version:
            mask.catch_up(task_class, snapshot)
        return mask.bits


class _Entry:
    __slots__ = ("demand", "demand_row", "names", "table", "task_class")

    def __init__(self, task_class: TaskClass) -> None:
        self.task_class = task_class
        self.demand: Demand | None = None
        self.names: tuple[str, ...] = ()
        self.demand_row: IntArray | None = None
        self.table: AgentTable | None = None


class _Mask:
    __slots__ = ("bits", "log", "version")

    def __init__(self, log: ChangeLog, version: int, bits: BoolArray) -> None:
        self.log, self.version, self.bits = log, version, bits

    def catch_up(self, task_class: TaskClass, snapshot: Snapshot) -> None:
        changed = self.log.since(self.version)
        rows = snapshot.row_count
        if changed is None or len(changed) >= rows:
            self.bits = _fresh_bits(task_class, snapshot)
        else:
            # A new array, for whoever still holds the old one was promised that it stays.
            bits = np.zeros(rows, np.bool_)
            bits[: self.bits.shape[0]] = self.bits
            for row in changed:
                bits[row] = row_is_eligible(task_class, snapshot, row)
            self.bits = bits
        self.version = snapshot.version


@dataclass(frozen=True, slots=True, eq=False)
class TaskMix:
    """What kinds of tasks are expected to come: all that a strategy is told of the future.

    class_id  int32 [F], distinct, into the batch's `classes`
    weight    float64 [F], the relative numbers of tasks, each above 0
    """

    class_id: NDArray[np.int32]
    weight: FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class TaskBatch:
    """N tasks to be placed, in the order in which the constructive strategies take them.

    class_id    int32 [N], into `classes`
    priority    int32 [N], 0 to 100, higher is more urgent
    estimate_s  float64 [N], expected run time, seconds, ≥ 0
    response_s  float64 [N, M] where the response time differs by agent (t_ij), else None
    demand_by_agent  int64 [N, M, K] over the snapshot's columns where the demand differs by agent
                     (r_ijk), else None: the class's demand on every agent
    mix         what will come after the batch; None: the like of the batch
    """

    classes: ClassTable
    class_id: NDArray[np.int32]
    priority: NDArray[np.int32]
    estimate_s: FloatArray
    response_s: FloatArray | None = None
    demand_by_agent: IntArray | None = None
    mix: TaskMix | None = None

    def __len__(self) -> int:
        return len(self.class_id)

    @classmethod
    def of(
        cls,
        classes: ClassTable,
        class_ids: Sequence[int],
        priority: Sequence[int] | None = None,
        estimate_s: Sequence[float] | None = None,
    ) -> TaskBatch:
        """From plain sequences; priorities are 0 and estimates 1 s where not given."""
        count = len(class_ids)
        return cls(
            classes,
            np.array(class_ids, np.int32),
            np.zeros(count, np.int32) if priority is None else np.array(priority, np.int32),
            np.ones(count) if estimate_s is None else np.array(estimate_s, np.float64),
        )


def compile_demand(demand: ResourceVector, columns: Mapping[str, int]) -> Demand:
    known = sorted((columns[name], amount) for name, amount in demand.items() if name in columns)
    missing = tuple(name for name, _ in demand.items() if name not in columns)
    amounts = [0] * len(columns)
    for column, amount in known:
        amounts[column] = amount
    return Demand(tuple(known), missing, tuple(amounts))


def row_is_eligible(task_class: TaskClass, snapshot: Snapshot, row: int) -> bool:
    """Whether the row's agent may take the class, its `avoid` apart."""
    return (
        bool(snapshot.placeable[row])
        and task_class.skill in snapshot.skills[row]
        and first_unmet(task_class.constraints, snapshot, row) is None
    )


def first_unmet(
    constraints: Iterable[Constraint], snapshot: Snapshot, row: int
) -> Constraint | None:
    labels = snapshot.labels[row]
    for constraint in constraints:
        if constraint.key == AGENT_ID_LABEL:
            value: str | None = snapshot.agent_ids[row]
        else:
            value = labels.get(constraint.key)
        if not is_met(constraint, value):
            return constraint
    return None


def is_met(constraint: Constraint, value: str | None) -> bool:
    """Whether a label of `value` (None: absent) meets the constraint.

    As in Kubernetes an absent label meets `!=` and `not_in`, and one that is no number meets
    neither `>` nor `<`.
    """
    op = constraint.op
    if op in ("==", "in"):
        return value in constraint.values
    if op == SPREAD_OP:
        return True  # is about tasks, see Spread
    if op in ("!=", "not_in"):
        return value not in constraint.values
    if op in ("exists", "not_exists"):
        return (value is not None) == (op == "exists")
    left, right = _number(value), _number(constraint.values[0])
    if left is None or right is None:
        return False
    return left > right if op == ">" else left < right


def _number(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        return None


def _fresh_bits(task_class: TaskClass, snapshot: Snapshot) -> BoolArray:
    skill, count = task_class.skill, snapshot.row_count
    has_skill = (skill in skills for skills in snapshot.skills)
    bits = np.fromiter(has_skill, np.bool_, count) & snapshot.placeable
    if task_class.constraints:
        for row in np.flatnonzero(bits).tolist():
            bits[row] = first_unmet(task_class.constraints, snapshot, row) is None
    return bits
