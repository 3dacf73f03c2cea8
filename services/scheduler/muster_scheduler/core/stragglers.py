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
_LOOKED_AT_AFTER_MS = 1000
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
    attempt: int
    bound_s: float
    expected_s: float
    source: str
    told: bool = False


class Stragglers:
    """Those of one leader; each is told once."""

    def __init__(self) -> None:
        self._known: dict[TaskId, _Known] = {}
        self._version = 0

    def look(self, state: ClusterState, now: Now) -> list[Straggler]:
        """Which attempts have become stragglers since the last look; about once a second.

        Some 5 ms for 10,000 attempts that run.
        """
        model = state.foresight.model
        version = 0 if model is None else model.version
        # A newer model knows better; what was told stays told.
        fresh, self._version = self._version != version, version
        before, self._known = self._known, {}
        strangers: list[OpenTask] = []
        found = []
        started_before = now.clock_ms - _LOOKED_AT_AFTER_MS
        for agent in state.agents.values():
            for task in agent.tasks.values():
                status = task.status
                if not task.started or not 0 < status.started_clock_ms <= started_before:
                    continue
                known = before.get(task.id)
                if known is None or known.attempt != status.attempt or (fresh and not known.told):
                    if len(strangers) < _NEW_AT_ONCE:
                        strangers.append(task)
                    continue
                self._known[task.id] = known
                if not known.told and elapsed_s(task, now) > known.bound_s:
                    found.append(_tell(task, known, now))
        self._meet(state, strangers)
        for task in strangers:
            known = self._known[task.id]
            if not known.told and elapsed_s(task, now) > known.bound_s:
                found.append(_tell(task, known, now))
        return found

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
            self._known[task.id] = _Known(
                task.status.attempt, found.straggles_after_s, found.median_s, found.source, told
            )


def _tell(task: OpenTask, known: _Known, now: Now) -> Straggler:
    known.told = True
    return Straggler(
        task,
        task.status.agent,
        known.attempt,
        elapsed_s(task, now),
        known.bound_s,
        known.expected_s,
        known.source,
    )
