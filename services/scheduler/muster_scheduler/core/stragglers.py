"""Attempts that have run longer than nearly all attempts of their kind do."""

from __future__ import annotations

import msgspec

from muster.domain.ids import AgentId, TaskId
from muster.domain.task import Lifetime
from muster_scheduler.core.foretelling import elapsed_s, features_of_agent, features_of_task
from muster_scheduler.core.notes import load_of
from muster_scheduler.core.records import Now, OpenTask
from muster_scheduler.core.state import ClusterState
from muster_scheduler.learning.attempts import Attempt

# Most attempts are over before anybody would ask; they cost nothing here.
_LOOKED_AT_AFTER_S = 1.0
# Attempts judged for the first time in one look: some milliseconds. The rest has its turn next.
_NEW_AT_ONCE = 200


class Straggler(msgspec.Struct, frozen=True):
    """`bound_s` is what 99 of 100 such attempts end within, or three declared estimates."""

    task: OpenTask
    agent: AgentId
    attempt: int
    elapsed_s: float
    bound_s: float
    expected_s: float
    source: str


class _Known(msgspec.Struct):
    bound_s: float
    expected_s: float
    source: str
    told: bool = False


class Stragglers:
    """Those of one leader; each is told once."""

    def __init__(self) -> None:
        self._known: dict[tuple[TaskId, int], _Known] = {}
        self._version = 0

    def look(self, state: ClusterState, now: Now) -> list[Straggler]:
        """Which attempts have become stragglers since the last look; about once a second."""
        model = state.foresight.model
        version = 0 if model is None else model.version
        running = [
            (task, elapsed)
            for agent in state.agents.values()
            for task in agent.tasks.values()
            if task.started and (elapsed := elapsed_s(task, now)) >= _LOOKED_AT_AFTER_S
        ]
        # A newer model knows better; what was told stays told.
        fresh = self._version != version
        self._version = version
        before, self._known = self._known, {}
        strangers: list[tuple[OpenTask, float]] = []
        for task, elapsed in running:
            key = (task.id, task.status.attempt)
            known = before.get(key)
            if known is not None and (known.told or not fresh):
                self._known[key] = known
            elif len(strangers) < _NEW_AT_ONCE:
                strangers.append((task, elapsed))
        self._meet(state, [task for task, _ in strangers])
        return [
            found for task, elapsed in running if (found := self._judge(task, elapsed)) is not None
        ]

    def _meet(self, state: ClusterState, tasks: list[OpenTask]) -> None:
        if not tasks:
            return
        view = state.table.view()
        attempts = []
        for task in tasks:
            load = load_of(view, task.row) if task.row >= 0 else 0.0
            ident = task.status.agent
            agent = features_of_agent(state.agents.get(ident), ident, load)
            attempts.append(Attempt(features_of_task(task), agent, 1.0))
        for task, found in zip(tasks, state.foresight.quantiles_of(attempts), strict=True):
            # A service never ends, and of what nobody has said or seen nothing is late.
            unknown = found.source != "learned" and not task.spec.estimate_ms
            told = unknown or task.spec.lifetime is Lifetime.SERVICE
            self._known[task.id, task.status.attempt] = _Known(
                found.straggles_after_s, found.median_s, found.source, told
            )

    def _judge(self, task: OpenTask, elapsed: float) -> Straggler | None:
        known = self._known.get((task.id, task.status.attempt))
        if known is None or known.told or elapsed <= known.bound_s:
            return None
        known.told = True
        return Straggler(
            task,
            task.status.agent,
            task.status.attempt,
            elapsed,
            known.bound_s,
            known.expected_s,
            known.source,
        )
