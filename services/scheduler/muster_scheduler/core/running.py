"""T, U and B of the running cluster, from what is placed now."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from muster_scheduler.core.records import AgentEntry, Now
from muster_scheduler.core.state import ClusterState
from muster_scheduler.learning.evaluation import UNKNOWN_S
from muster_scheduler.placement.objective import of_running

# Agents looked at in one step: below a millisecond with four tasks each.
_AGENTS_PER_STEP = 500


class RunningObjective:
    """T in seconds, U and B as shares, as they were when the last round of steps was over.

    T sums over the placed tasks what was predicted of them, else estimated by who submitted them,
    less the time that they have run; a task that takes longer than that counts 0.
    """

    def __init__(self) -> None:
        self.now = (0.0, 0.0, 0.0)
        self._agents: Sequence[AgentEntry] = ()
        self._next = 0
        self._under_way = False
        self._left_s = 0.0

    def begin(self, state: ClusterState) -> None:
        """Begins a round, unless one is under way."""
        if not self._under_way:
            self._under_way = True
            self._agents = list(state.agents.values())
            self._next, self._left_s = 0, 0.0

    def step(self, state: ClusterState, now: Now) -> bool:
        """Looks at some more agents; True when that ends a round."""
        if not self._under_way:
            return False
        some = self._agents[self._next : self._next + _AGENTS_PER_STEP]
        self._next += _AGENTS_PER_STEP
        self._left_s += _left_s(some, now.clock_ms)
        if self._next < len(self._agents):
            return False
        self._under_way = False
        self.now = of_running(state.table.view(), np.array([self._left_s]), state.policy)
        return True


def _left_s(agents: Sequence[AgentEntry], clock_ms: int) -> float:
    predicted, since = [], []
    for agent in agents:
        for task in agent.tasks.values():
            predicted.append(task.predicted_s or task.spec.estimate_ms / 1000 or UNKNOWN_S)
            since.append(task.status.started_clock_ms if task.started else 0)
    began = np.array(since, np.float64)
    elapsed = np.where(began > 0, (clock_ms - began) / 1000, 0.0)
    return float(np.maximum(np.array(predicted, np.float64) - elapsed, 0.0).sum())
