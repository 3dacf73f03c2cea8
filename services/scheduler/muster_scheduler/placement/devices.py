"""Indexed devices, whole or a fraction of one: what is free on each, kept change by change.

A device resource ("gpu", "gpu.a100") is counted in thousandths. An agent that offers 2000 has the
devices 0 and 1; a task that asks for at most 1000 is given a share of one device, a task that asks
for more is given whole idle ones. So what is free in total does not say what fits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from muster.domain.errors import InvalidInput
from muster.domain.resources import MAX_DEVICES

# Indices of the devices that a task is given, ascending, by resource name.
Devices: TypeAlias = Mapping[str, tuple[int, ...]]
NO_DEVICES: Devices = MappingProxyType({})

WHOLE = 1000


class DeviceGrid:
    """The devices of one resource on all rows.

    free  int64 [rows, D], thousandths that are free on each device; 0 where a row has no such
          device; negative where an agent shrank under what it holds
    """

    __slots__ = ("_size", "free")

    def __init__(self, rows: int) -> None:
        self.free: NDArray[np.int64] = np.zeros((rows, 0), np.int64)
        self._size: NDArray[np.int64] = np.zeros((rows, 0), np.int64)

    def set_amount(self, row: int, amount: int) -> bool:
        """The row now offers `amount` thousandths; returns whether `free` is another array."""
        count = -(-amount // WHOLE)
        widened = bool(count > self.free.shape[1])
        if widened:
            self._widen(self.free.shape[0], count)
        sizes = np.clip(amount - WHOLE * np.arange(self.free.shape[1]), 0, WHOLE)
        self.free[row] += sizes - self._size[row]
        self._size[row] = sizes
        return widened

    def add(self, row: int, indices: Sequence[int], amount: int, sign: int) -> None:
        """Take (`sign` -1) or give back (1) what a task of `amount` holds on these devices."""
        assert len(indices) == device_count(amount), f"{amount} thousandths on devices {indices}"
        assert len(set(indices)) == len(indices), f"a device is named twice in {indices}"
        each = min(amount, WHOLE)
        for index in indices:
            self.free[row, index] += sign * each

    def has(self, row: int, indices: Sequence[int], amount: int) -> bool:
        """Whether these are devices of the row, and as many as a demand of `amount` is given."""
        if len(indices) != device_count(amount) or len(set(indices)) != len(indices):
            return False
        count = self.free.shape[1]
        return all(0 <= index < count and self._size[row, index] > 0 for index in indices)

    def has_room(self, row: int, indices: Sequence[int], amount: int) -> bool:
        """Whether each of these devices of the row has its part of `amount` free."""
        each = min(amount, WHOLE)
        return all(self.free[row, index] >= each for index in indices)

    def clear(self, row: int) -> None:
        self.free[row] = self._size[row] = 0

    def grow(self, rows: int) -> None:
        self._widen(rows, self.free.shape[1])

    def _widen(self, rows: int, devices: int) -> None:
        for name in ("free", "_size"):
            old = getattr(self, name)
            new = np.zeros((rows, devices), np.int64)
            new[: old.shape[0], : old.shape[1]] = old
            setattr(self, name, new)


def check_amount(name: str, amount: int) -> None:
    """Raises InvalidInput where an agent offers more devices than are kept."""
    if amount > MAX_DEVICES * WHOLE:
        raise InvalidInput(f"capacity.{name}", amount, f"at most {MAX_DEVICES} devices")


def device_count(amount: int) -> int:
    """How many devices a demand of `amount` thousandths is given: one for a fraction."""
    return -(-amount // WHOLE)


def device_fits(free: NDArray[np.int64], amount: int) -> NDArray[np.bool_]:
    """bool [M]: whether the demand fits on the devices of each row of `free` [M, D]."""
    each = free >= min(amount, WHOLE)
    enough: NDArray[np.bool_] = each.sum(axis=1) >= device_count(amount)
    return enough


def pick_devices(free: Sequence[int], amount: int) -> tuple[int, ...] | None:
    """The devices of one row that a demand is best given; None where it does not fit.

    A fraction goes to the fullest device that has room, whole ones to the lowest idle; the lower
    index among equal ones.
    """
    if amount <= WHOLE:
        fitting = [(left, index) for index, left in enumerate(free) if left >= amount]
        return (min(fitting)[1],) if fitting else None
    count = device_count(amount)
    idle = [index for index, left in enumerate(free) if left >= WHOLE]
    return tuple(idle[:count]) if len(idle) >= count else None
