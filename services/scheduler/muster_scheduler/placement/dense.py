"""Task classes as arrays, kept from one plan to the next: no plan pays for classes one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from muster.domain.resources import ResourceVector
from muster_scheduler.placement.snapshot import FIRST_COLUMNS, BoolArray, IntArray

if TYPE_CHECKING:
    from muster.domain.task import Constraint

Int16Array = NDArray[np.int16]
Int32Array = NDArray[np.int32]
# What classes have in common that may go to the same agents, room apart.
GroupKey: TypeAlias = "tuple[str, tuple[Constraint, ...], frozenset[str]]"

_Number = TypeVar("_Number", np.int64, np.int32, np.bool_)

# The group of the classes that want a resource which no agent ever offered.
NOWHERE = 0
_FIRST_ROWS = 64


class DenseClasses:
    """Demands and groups by class id, over the columns of the table that was last asked about.

    amounts  int64 [C, K], demands in base units; rows of forgotten classes hold anything
    group    int32 [C], NOWHERE or a group that `key_of` knows
    is_spread  bool [C], whether agents hold only so many tasks of the class
    """

    def __init__(self) -> None:
        self.names: tuple[str, ...] = FIRST_COLUMNS
        self._columns = {name: k for k, name in enumerate(FIRST_COLUMNS)}
        self.amounts: IntArray = np.zeros((_FIRST_ROWS, len(FIRST_COLUMNS)), np.int64)
        self.group: Int32Array = np.zeros(_FIRST_ROWS, np.int32)
        self.is_spread: BoolArray = np.zeros(_FIRST_ROWS, np.bool_)
        self._demands: dict[int, tuple[ResourceVector, int]] = {}
        self._groups: dict[GroupKey, int] = {}
        self._keys: dict[int, GroupKey] = {}
        self._members: dict[int, int] = {}
        self._free_groups: list[int] = []

    @property
    def group_count(self) -> int:
        """One more than the greatest group in use."""
        return 1 + len(self._keys) + len(self._free_groups)

    def key_of(self, group: int) -> GroupKey:
        return self._keys[group]

    def add(
        self, class_id: int, key: GroupKey, demand: ResourceVector, *, is_spread: bool = False
    ) -> None:
        """Note a class under an id that is not in use."""
        group = self._groups.get(key)
        if group is None:
            group = self._free_groups.pop() if self._free_groups else self.group_count
            self._groups[key] = group
            self._keys[group] = key
            self._members[group] = 0
        self._members[group] += 1
        self._demands[class_id] = demand, group
        rows = self.group.shape[0]
        if class_id >= rows:
            self.amounts = _grown(self.amounts, 2 * rows)
            self.group = _grown(self.group, 2 * rows)
            self.is_spread = _grown(self.is_spread, 2 * rows)
        self.is_spread[class_id] = is_spread
        self._write(class_id, demand, group)

    def forget(self, class_id: int) -> None:
        _, group = self._demands.pop(class_id)
        self._members[group] -= 1
        if not self._members[group]:
            del self._members[group], self._groups[self._keys.pop(group)]
            self._free_groups.append(group)

    def over(self, names: tuple[str, ...]) -> None:
        """Lay the arrays out over these columns; costs nothing while they stay the same."""
        if names is self.names or names == self.names:
            return
        self.names = names
        self._columns = {name: k for k, name in enumerate(names)}
        self.amounts = np.zeros((self.group.shape[0], len(names)), np.int64)
        for class_id, (demand, group) in self._demands.items():
            self._write(class_id, demand, group)

    def _write(self, class_id: int, demand: ResourceVector, group: int) -> None:
        amounts = [0] * len(self.names)
        for name, amount in demand.items():
            column = self._columns.get(name)
            if column is None:
                group = NOWHERE
            else:
                amounts[column] = amount
        self.amounts[class_id] = amounts
        self.group[class_id] = group


def _grown(old: NDArray[_Number], rows: int) -> NDArray[_Number]:
    new = np.zeros((rows, *old.shape[1:]), old.dtype)
    new[: old.shape[0]] = old
    return new
