"""One account of spare capacity for all failures that are being dealt with."""

from __future__ import annotations

from muster_scheduler.recovery.settings import whole
from muster_scheduler.recovery.situation import MAX_SLOTS


class SpareLedger:
    """Slots that decisions have promised, by the agent whose work takes them.

    A promise is dropped once its work is placed (it is in use then, and no longer free) or its
    plan is given up.
    """

    def __init__(self) -> None:
        self._promised: dict[str, int] = {}

    def promise(self, agent: str, slots: int) -> None:
        """The agent's work takes these many free slots, in place of what it was promised before."""
        whole("slots", slots, 0, MAX_SLOTS)
        self._promised.pop(agent, None)
        if slots:
            self._promised[agent] = slots

    def settle(self, agent: str) -> None:
        """The agent's work is placed, or its plan dropped; harmless when nothing was promised."""
        self._promised.pop(agent, None)

    def left(self, free: int, agent: str) -> int:
        """Of `free` slots, those that the agent's work may count on: no other was promised them."""
        taken = sum(slots for name, slots in self._promised.items() if name != agent)
        return max(0, free - taken)

    def promised(self) -> dict[str, int]:
        """By agent."""
        return dict(self._promised)
