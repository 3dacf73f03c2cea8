"""Where a replay's t_ij come from: nowhere, from what was learned so far, or from the truth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from muster_scheduler.learning.attempts import AgentFeatures, Attempt
from muster_scheduler.learning.foresight import Foresight
from muster_scheduler.learning.training import train
from muster_scheduler.placement.snapshot import FIRST_COLUMNS, FloatArray
from muster_scheduler.replay.trace import Trace, TraceAgent, TraceTask

# Seconds of virtual time from the start of a training to its model being in use.
TRAINING_S = 5.0


class Forecast(Protocol):
    """Predictions of a replay."""

    def response_s(self, tasks: Sequence[TraceTask], load: FloatArray) -> FloatArray | None:
        """t_ij, float64 [N, M]; None: the declared estimates are all that is known."""

    def remaining_s(
        self, predicted_s: FloatArray, true_s: FloatArray, elapsed_s: FloatArray
    ) -> FloatArray | None:
        """Of what runs, float64 [R] each; `true_s` is for the oracle's eyes only."""

    def ended(self, task: TraceTask, row: int, load: float, now_s: float) -> None:
        """A task has run on an agent whose load was `load` when it began."""


class Declared:
    """The clients' estimates, the same on every agent."""

    def response_s(self, tasks: Sequence[TraceTask], load: FloatArray) -> FloatArray | None:  # noqa: ARG002
        return None

    def remaining_s(
        self,
        predicted_s: FloatArray,  # noqa: ARG002
        true_s: FloatArray,  # noqa: ARG002
        elapsed_s: FloatArray,  # noqa: ARG002
    ) -> FloatArray | None:
        return None

    def ended(self, task: TraceTask, row: int, load: float, now_s: float) -> None:
        pass


class Oracle:
    """The true run times."""

    def __init__(self, trace: Trace) -> None:
        self._agents = trace.agents

    def response_s(self, tasks: Sequence[TraceTask], load: FloatArray) -> FloatArray | None:  # noqa: ARG002
        return np.array([[agent.run_s(task) for agent in self._agents] for task in tasks])

    def remaining_s(
        self,
        predicted_s: FloatArray,  # noqa: ARG002
        true_s: FloatArray,
        elapsed_s: FloatArray,
    ) -> FloatArray | None:
        return true_s - elapsed_s

    def ended(self, task: TraceTask, row: int, load: float, now_s: float) -> None:
        pass


class Learning:
    """What a leader would have learned by then; a training takes TRAINING_S of virtual time."""

    def __init__(self, trace: Trace, seed: int) -> None:
        self.foresight = Foresight()
        self._agents = [features_of(agent) for agent in trace.agents]
        self._trace_agents = trace.agents
        self.foresight.set_agents(self._agents)
        self._seed = seed
        self._ready_at = 0.0
        self._window: tuple[Attempt, ...] = ()

    def response_s(self, tasks: Sequence[TraceTask], load: FloatArray) -> FloatArray | None:
        return self.foresight.response_s([task.features for task in tasks], load)

    def remaining_s(
        self,
        predicted_s: FloatArray,
        true_s: FloatArray,  # noqa: ARG002
        elapsed_s: FloatArray,
    ) -> FloatArray | None:
        return self.foresight.remaining_s(predicted_s, elapsed_s)

    def ended(self, task: TraceTask, row: int, load: float, now_s: float) -> None:
        foresight = self.foresight
        agent = self._agents[row]
        known = AgentFeatures(agent.agent_id, agent.labels, agent.capacity, load)
        foresight.observe([Attempt(task.features, known, self._run_s(task, row))])
        if self._window and now_s >= self._ready_at:
            foresight.install(train(self._window, foresight.model, self._seed))
            self._window = ()
        if not self._window and foresight.training_due():
            foresight.training_began()
            self._window = foresight.history.window()
            self._ready_at = now_s + TRAINING_S

    def _run_s(self, task: TraceTask, row: int) -> float:
        return self._trace_agents[row].run_s(task)


def features_of(agent: TraceAgent) -> AgentFeatures:
    capacity = tuple(float(agent.capacity.get(name)) for name in FIRST_COLUMNS)
    return AgentFeatures(agent.agent_id, tuple(sorted(agent.labels.items())), capacity)
