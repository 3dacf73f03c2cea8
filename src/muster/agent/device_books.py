"""Which attempts hold which devices of this agent, and which wait until theirs are free. Pure.

The leader books devices by what it knows. An attempt that it has given up may still be ending here
while the next one with the same device arrives: that one starts when the device has room.
"""

from __future__ import annotations

from muster.agent.events import AttemptKey, DeviceShare

_WHOLE_MILLIS = 1000


class DeviceBooks:
    """Bounded by the attempts that the agent holds."""

    def __init__(self) -> None:
        self._load_millis: dict[tuple[str, int], int] = {}
        self._holds: dict[AttemptKey, tuple[DeviceShare, ...]] = {}
        self._waiting: dict[AttemptKey, tuple[DeviceShare, ...]] = {}

    def take(self, key: AttemptKey, shares: tuple[DeviceShare, ...]) -> bool:
        """Whether the devices are the attempt's now; if not it waits for them."""
        if not self._fits(shares):
            self._waiting[key] = shares
            return False
        self._add(shares, 1)
        self._holds[key] = shares
        return True

    def leave(self, key: AttemptKey) -> list[AttemptKey]:
        """The attempt is over; gives those whose devices have become theirs by that."""
        self._waiting.pop(key, None)
        shares = self._holds.pop(key, None)
        if shares is None:
            return []
        self._add(shares, -1)
        waiting, self._waiting = self._waiting, {}
        return [other for other, wanted in waiting.items() if self.take(other, wanted)]

    def _fits(self, shares: tuple[DeviceShare, ...]) -> bool:
        return all(
            self._load_millis.get((share.resource, index), 0) + share.millis <= _WHOLE_MILLIS
            for share in shares
            for index in share.indices
        )

    def _add(self, shares: tuple[DeviceShare, ...], sign: int) -> None:
        for share in shares:
            for index in share.indices:
                device = (share.resource, index)
                load = self._load_millis.get(device, 0) + sign * share.millis
                if load:
                    self._load_millis[device] = load
                else:
                    del self._load_millis[device]
