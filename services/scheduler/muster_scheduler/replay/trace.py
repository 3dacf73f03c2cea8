"""What a replay is made from: tasks with their arrivals and work, agents with their speeds."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from muster.domain.errors import InvalidInput
from muster.domain.resources import ResourceVector
from muster.domain.task import Constraint
from muster_scheduler.learning.attempts import TaskFeatures

# A replay holds all of it in memory.
MAX_TASKS = 1_000_000
MAX_AGENTS = 20_000


class TraceTask(msgspec.Struct, frozen=True):
    """`arrival_s` from the first arrival, ≥ 0; `work_s` on an agent of speed 1, above 0."""

    arrival_s: float
    work_s: float
    features: TaskFeatures
    demand: ResourceVector
    priority: int = 0
    constraints: tuple[Constraint, ...] = ()


class TraceAgent(msgspec.Struct, frozen=True):
    """A task's run time here is its work / speed, of its skill where `speeds` names it."""

    agent_id: str
    capacity: ResourceVector
    labels: Mapping[str, str] = {}
    speed: float = 1.0
    speeds: Mapping[str, float] = {}

    def run_s(self, task: TraceTask) -> float:
        return task.work_s / self.speeds.get(task.features.skill, self.speed)


class Trace(msgspec.Struct, frozen=True):
    """`tasks` by arrival. `notes` say what an adapter assumed or left out, for people."""

    tasks: tuple[TraceTask, ...]
    agents: tuple[TraceAgent, ...]
    notes: tuple[str, ...] = ()


def checked(trace: Trace) -> Trace:
    """Raises InvalidInput where there is nothing to replay, or more than fits."""
    if not 1 <= len(trace.tasks) <= MAX_TASKS:
        raise InvalidInput(
            "trace", f"{len(trace.tasks)} tasks", f"1 to {MAX_TASKS} can be replayed"
        )
    if not 1 <= len(trace.agents) <= MAX_AGENTS:
        raise InvalidInput("agents", len(trace.agents), f"must be from 1 to {MAX_AGENTS}")
    return trace


def thinned(trace: Trace, rate: float, limit: int | None) -> Trace:
    """The first `limit` tasks, arriving `rate` times as fast."""
    if not 0 < rate <= 1e6:
        raise InvalidInput("rate", rate, "must be above 0 and at most 1000000")
    if limit is not None and limit < 1:
        raise InvalidInput("limit", limit, "must be at least 1")
    kept = trace.tasks[:limit]
    tasks = tuple(msgspec.structs.replace(task, arrival_s=task.arrival_s / rate) for task in kept)
    return msgspec.structs.replace(trace, tasks=tasks)
