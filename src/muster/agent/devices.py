"""What the devices of this agent are called: for the programs that are given some of them.

Muster counts the devices of a resource from 0. CUDA counts those of the machine, or those that
CUDA_VISIBLE_DEVICES names. An agent that was started with this variable gives its tasks names from
it, in its order; several resources of kind device take theirs in the order of their names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, TypeAlias

from muster.agent.events import DeviceShare
from muster.domain.errors import ConfigurationError
from muster.domain.resources import MAX_DEVICES, ResourceKind, ResourceVector, kind_of

VISIBLE: Final = "CUDA_VISIBLE_DEVICES"
# For programs, which have no context to ask: {"gpu": [0, 2]}
GIVEN: Final = "MUSTER_DEVICES"
_MILLIS = 1000

# Indices by resource; never empty where there is one.
DeviceIndices: TypeAlias = Mapping[str, Sequence[int]]


class DeviceNames:
    """Raises ConfigurationError when the agent offers more devices than it may see or have."""

    def __init__(self, capacity: ResourceVector, environ: Mapping[str, str]) -> None:
        named = [name.strip() for name in environ.get(VISIBLE, "").split(",") if name.strip()]
        self._names: dict[str, tuple[str, ...]] = {}
        first = 0
        for resource, amount in capacity.items():
            if kind_of(resource) is not ResourceKind.DEVICE:
                continue
            count = -(-amount // _MILLIS)
            key, shown = "MUSTER_AGENT_RESOURCES", f"{resource}={count}"
            if count > MAX_DEVICES:
                raise ConfigurationError(key, shown, f"at most {MAX_DEVICES} devices of a resource")
            if named and first + count > len(named):
                limit = f"{VISIBLE} lets this agent see {len(named)} devices only"
                raise ConfigurationError(key, shown, limit)
            numbers = range(first, first + count)
            self._names[resource] = tuple(named[n] if named else str(n) for n in numbers)
            first += count

    def hidden(self) -> dict[str, str]:
        """What a task that was given no device finds in its environment."""
        return {VISIBLE: ""} if self._names else {}

    def has_all(self, shares: Iterable[DeviceShare]) -> bool:
        """Whether these are devices of this agent."""
        return all(
            0 <= index < len(self._names.get(share.resource, ()))
            for share in shares
            for index in share.indices
        )

    def visible(self, given: DeviceIndices) -> str:
        """CUDA_VISIBLE_DEVICES for a task that was given these devices of the agent."""
        names = [self._names[resource][index] for resource in given for index in given[resource]]
        return ",".join(names)
