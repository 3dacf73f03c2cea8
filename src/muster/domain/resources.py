"""What tasks ask for and agents offer: named integer amounts, and their algebra."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from typing import Self, TypeAlias

from muster.domain.errors import InvalidInput
from muster.domain.quantity import MAX_AMOUNT, Unit, format_quantity, parse_quantity

# No known agent offers more; bounds the work of a placement and the size of a record.
MAX_RESOURCE_NAMES = 32

# How many tasks an agent holds at once when its operator says nothing.
DEFAULT_AGENT_SLOTS = 64

# Of one resource on one agent. The densest machines have 16; the bound keeps an agent that claims
# a million devices from widening the scheduler's arrays of all agents.
MAX_DEVICES = 128

_NAME = re.compile(r"[a-z][a-z0-9_.-]{0,62}")
_NAME_LIMIT = "must be 1 to 63 of a-z, 0-9, '_', '.' and '-', beginning with a letter"

_MILLIS_PER_DEVICE = 1000

# Indices of the devices that an attempt is given, ascending, by resource in the order of names.
GivenDevices: TypeAlias = tuple[tuple[str, tuple[int, ...]], ...]


class ResourceKind(Enum):
    """How a resource is taken: that decides what free capacity means."""

    HELD = "held from assignment to end"
    DEVICE = "whole indexed devices, or a fraction of one"
    RATE = "used up per period, free again in the next"


# Names arrive from clients: the cache is bounded, and errors are not cached.
@lru_cache(maxsize=1024)
def _classify(name: str) -> tuple[ResourceKind, Unit]:
    if _NAME.fullmatch(name) is None:
        raise InvalidInput("resource name", name, _NAME_LIMIT)
    if name == "gpu" or name.startswith("gpu."):
        return ResourceKind.DEVICE, Unit.DEVICE_MILLI
    if name.endswith(("_per_minute", "_per_second")):
        return ResourceKind.RATE, Unit.COUNT
    unit = {"cpu": Unit.MILLI, "memory": Unit.BYTE, "network": Unit.BIT_PER_S}.get(name)
    return ResourceKind.HELD, unit or Unit.COUNT


def kind_of(name: str) -> ResourceKind:
    """Raises InvalidInput when `name` is not a resource name."""
    return _classify(name)[0]


def unit_of(name: str) -> Unit:
    """Raises InvalidInput when `name` is not a resource name."""
    return _classify(name)[1]


@dataclass(frozen=True, slots=True)
class ResourceVector:
    """Amounts in base units by resource name; a name that is absent stands for zero.

    Invariant: `pairs` is sorted by name, names are distinct, amounts are at least 1. So equal
    vectors compare and hash equal. Build with `of` or `parse`, which establish this.
    """

    pairs: tuple[tuple[str, int], ...] = ()
    # Vectors are looked up far more often than they are made.
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        last = ""
        for name, amount in self.pairs:
            assert name > last, f"{name!r} after {last!r} in a resource vector"
            assert amount > 0, f"{name}={amount} in a resource vector"
            last = name
        object.__setattr__(self, "_hash", hash(self.pairs))

    def __hash__(self) -> int:
        return self._hash

    @classmethod
    def of(cls, mapping: Mapping[str, int]) -> Self:
        """Take amounts that are already in base units, 0 to MAX_AMOUNT each.

        Raises InvalidInput on a bad name or amount.
        """
        for name, amount in mapping.items():
            _classify(name)
            if isinstance(amount, bool) or not isinstance(amount, int):
                raise InvalidInput(f"resources.{name}", amount, "must be an integer in base units")
            if not 0 <= amount <= MAX_AMOUNT:
                raise InvalidInput(
                    f"resources.{name}", amount, f"must be from 0 to {MAX_AMOUNT} base units"
                )
        return cls._from_amounts(mapping)

    @classmethod
    def parse(cls, mapping: Mapping[str, str | int | float], field: str = "resources") -> Self:
        """Take quantities as people write them.

        Raises InvalidInput on more than MAX_RESOURCE_NAMES names, on a bad name or quantity,
        and on devices that are neither whole nor a fraction of one ("1.5").
        """
        if len(mapping) > MAX_RESOURCE_NAMES:
            limit = f"must have at most {MAX_RESOURCE_NAMES} names"
            raise InvalidInput(field, f"{len(mapping)} names", limit)
        amounts: dict[str, int] = {}
        for name, quantity in mapping.items():
            kind, unit = _classify(name)
            amount = parse_quantity(quantity, field=f"{field}.{name}", unit=unit)
            partial = amount % _MILLIS_PER_DEVICE
            if kind is ResourceKind.DEVICE and amount > _MILLIS_PER_DEVICE and partial:
                limit = "must be a whole number of devices or a fraction of one"
                raise InvalidInput(f"{field}.{name}", quantity, limit)
            amounts[name] = amount
        return cls._from_amounts(amounts)

    @classmethod
    def _from_amounts(cls, amounts: Mapping[str, int]) -> Self:
        return cls(tuple(sorted((name, amount) for name, amount in amounts.items() if amount)))

    def get(self, name: str) -> int:
        for own_name, amount in self.pairs:
            if own_name == name:
                return amount
        return 0

    def items(self) -> tuple[tuple[str, int], ...]:
        return self.pairs

    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.pairs)

    def as_dict(self) -> dict[str, int]:
        return dict(self.pairs)

    def formatted(self) -> dict[str, str]:
        """The canonical text of each amount; `parse` takes it back."""
        return {name: format_quantity(amount, unit_of(name)) for name, amount in self.pairs}

    def with_slot(self) -> Self:
        """The same with at least one slot: every task holds one besides what it asks for."""
        if self.get("slots"):
            return self
        return self._from_amounts({**self.as_dict(), "slots": 1})

    def __add__(self, other: "ResourceVector") -> Self:
        """Sums may pass MAX_AMOUNT: a cluster's total is no single quantity."""
        amounts = self.as_dict()
        for name, amount in other.pairs:
            amounts[name] = amounts.get(name, 0) + amount
        return self._from_amounts(amounts)

    def minus(self, other: "ResourceVector") -> Self:
        """Raises ValueError when an amount would become negative: our own bug, never input."""
        amounts = self.as_dict()
        for name, amount in other.pairs:
            left = amounts.get(name, 0) - amount
            if left < 0:
                raise ValueError(f"{name}: {amount} cannot be taken from {self.get(name)}")
            amounts[name] = left
        return self._from_amounts(amounts)

    def fits_in(self, free: "ResourceVector") -> bool:
        """Whether `free` has at least this much of every name, whatever its kind."""
        available = free.as_dict()
        return all(amount <= available.get(name, 0) for name, amount in self.pairs)

    def shortfall(self, free: "ResourceVector") -> dict[str, int]:
        """What is missing in `free`, in base units; empty exactly when this fits."""
        available = free.as_dict()
        return {
            name: amount - available.get(name, 0)
            for name, amount in self.pairs
            if amount > available.get(name, 0)
        }

    def dominant_share(self, capacity: "ResourceVector") -> float:
        """The largest share of any one capacity that this takes: 0 for nothing.

        Infinite where `capacity` has none of a name (Ghodsi et al., NSDI'11, for the measure).
        """
        available = capacity.as_dict()
        return max(
            (
                amount / available[name] if name in available else math.inf
                for name, amount in self.pairs
            ),
            default=0.0,
        )


# What a task is charged for when it does not say: small enough for many idle waiters per core,
# large enough that a thousand undeclared tasks do not land on one machine.
DEFAULT_TASK_RESOURCES = ResourceVector.of({"cpu": 100, "memory": 64 * 1024**2})
