"""A failed agent, its tasks and the cluster around it, as the recovery planner takes them."""

from __future__ import annotations

from typing import Final

import numpy as np

from muster.domain.task import OnDisconnect
from muster_scheduler.core.foretelling import elapsed_s
from muster_scheduler.core.records import AgentEntry, Now, OpenTask
from muster_scheduler.core.recoveries import Recovery
from muster_scheduler.core.state import ClusterState
from muster_scheduler.recovery import Cluster, Failure, HeldTask
from muster_scheduler.recovery.settings import MAX_SECONDS

# A supervisor beats every second.
SUPERVISOR_SILENT_MS: Final = 3_500
# Kinds of tasks by which it is judged who could take an agent's work: the first so many.
_CLASSES_LOOKED_AT: Final = 8
# Of a task of which nothing is known: it will run as long again as it has run, at least this.
_LEAST_REMAINING_S: Final = 1.0
_LONGEST_S: Final = 1e9


def is_reachable(agent: AgentEntry, now: Now) -> bool:
    """Whether the agent's supervisor is heard, and so may be told to restart it."""
    return agent.supervised and now.boot_ms - agent.supervisor_boot_ms < SUPERVISOR_SILENT_MS


def failure_of(state: ClusterState, recovery: Recovery, agent: AgentEntry, now: Now) -> Failure:
    """The recovery's agent as of now."""
    book = state.recoveries
    restarting_ms = recovery.restarting_boot_ms
    found_ms = recovery.began.boot_ms - recovery.heard_boot_ms
    tasks = agent.tasks.values() if recovery.holding else ()
    # A supervisor that has told of a death is at it, whether it is heard or not.
    at_it = recovery.dead and restarting_ms is not None
    return Failure(
        agent=agent.id,
        kind=recovery.kind,
        silent_s=min(MAX_SECONDS, max(0, found_ms) / 1000),
        tasks=tuple(_held(state, task, recovery, now) for task in tasks),
        slots=recovery.slots,
        epoch=min(int(MAX_SECONDS), max(0, now.boot_ms - recovery.began.boot_ms) // 1000),
        tried=recovery.tried,
        restarting_s=None if restarting_ms is None else (now.boot_ms - restarting_ms) // 1000,
        reachable=at_it or is_reachable(agent, now),
        restarts_left=book.budget(agent.id).left(now.clock_ms / 1000),
    )


def _held(state: ClusterState, task: OpenTask, recovery: Recovery, now: Now) -> HeldTask:
    silent_s = max(0, now.boot_ms - recovery.heard_boot_ms) / 1000
    age_s = min(_LONGEST_S, max(0.0, elapsed_s(task, now) - silent_s))
    predicted_s = task.predicted_s or task.spec.estimate_ms / 1000
    remaining_s = max(_LEAST_REMAINING_S, age_s)
    if predicted_s:
        pair = np.array([predicted_s]), np.array([age_s])
        remaining_s = float(state.foresight.remaining_s(*pair)[0])
    stop = task.spec.on_disconnect is OnDisconnect.STOP
    return HeldTask(task.id, age_s, min(_LONGEST_S, max(0.0, remaining_s)), stop)


def cluster_of(state: ClusterState, tasks: list[OpenTask]) -> Cluster:
    """The agents that may get work now, and which part of them could take these tasks."""
    view = state.table.view()
    column = view.columns["slots"]
    there = view.placeable
    slots, used = view.capacity[:, column], view.used[:, column]
    able = np.zeros(view.row_count, np.bool_)
    classes = dict.fromkeys(task.plain_class_id for task in tasks if task.plain_class_id >= 0)
    for class_id, _ in zip(classes, range(_CLASSES_LOOKED_AT), strict=False):
        able |= state.classes.eligible(class_id, view)
    able = able & there if classes else there
    free = np.maximum(slots - used, 0)
    return Cluster(
        used=tuple(np.maximum(used[there], 0).tolist()),
        slots=tuple(slots[there].tolist()),
        open_response_s=state.recoveries.open_response_s,
        able_free=int(free[able].sum()),
        able_slots=int(slots[able].sum()),
        waiting=len(state.queue),
    )
