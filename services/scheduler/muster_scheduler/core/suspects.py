"""Tasks that two agents have died with run alone, so that a third death is nobody else's fault.

Whoever had begun when an agent died is charged with the death, and most of them merely stood
beside the culprit. A third charge makes a task DEAD: before that it is given an agent of its own.
The agent is kept free for it until it is empty, then the task is placed there, and nothing beside
it until it has ended; for a minute each, so that tasks without an end block nobody. A suspect
that found no agent in time is placed like any other task.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np

from muster.domain.agent_lifecycle import AgentState
from muster.domain.ids import AgentId
from muster_scheduler.core.records import NOBODY, SUSPECT_DEATHS, AgentEntry, Now, OpenTask
from muster_scheduler.core.state import ClusterState

# As long as an agent is kept for a suspect: first to become empty, then while the suspect runs.
# A task that kills its agent does so within seconds.
KEPT_MS: Final = 60_000
# Of the agents, at most one in so many is kept, but always one.
KEPT_SHARE: Final = 4
# Suspects that are looked at in one go while none of them finds an agent.
_LOOKED_AT: Final = 16


def charged(begun: Iterable[OpenTask]) -> set[OpenTask]:
    """Which of the tasks that had begun on a dead agent are charged with its death.

    All of them, but of the suspects only one that was alone: a task is not buried for a death
    that another suspect may have caused.
    """
    tasks = set(begun)
    suspects = {t for t in tasks if t.status.agent_deaths >= SUSPECT_DEATHS}
    return tasks - suspects if len(suspects) > 1 else tasks


def place_alone(state: ClusterState, now: Now) -> list[tuple[OpenTask, AgentEntry]]:
    """Which waiting suspects go where now. They are out of the waiting room then."""
    placed = []
    for agent in list(state.kept.values()):
        task = state.suspects.get(agent.kept_for)
        if not agent.usable:
            state.open_again(agent)
        elif task is not None and not agent.tasks:
            placed.append((task, agent))
    room = max(1, len(state.table) // KEPT_SHARE) - len(state.kept)
    has_one = {agent.kept_for for agent in state.kept.values()}
    waiting = (t for i, t in state.suspects.items() if i not in has_one)
    for task, _ in zip(waiting, range(_LOOKED_AT), strict=False):
        if room <= 0:
            break
        agent_found = _emptiest(state, task)
        if agent_found is None:
            continue
        room -= 1
        state.keep(agent_found, task, now.boot_ms + KEPT_MS)
        if not agent_found.tasks:
            placed.append((task, agent_found))
    for task, agent in placed:
        del state.suspects[task.id]
        agent.kept_until_boot_ms = now.boot_ms + KEPT_MS
    return placed


def resume(state: ClusterState, now: Now) -> None:
    """A new leader has loaded all tasks: agents on which a suspect runs alone are kept for it
    again. Those that an older leader kept free for one that still waits are found anew."""
    for agent in state.agents.values():
        if len(agent.tasks) == 1 and agent.kept_for == NOBODY:
            (task,) = agent.tasks.values()
            if task.status.agent_deaths >= SUSPECT_DEATHS:
                state.keep(agent, task, now.boot_ms + KEPT_MS)


def judge_kept(state: ClusterState, now: Now) -> None:
    """Opens agents that were kept for long enough; called about once a second."""
    for agent in list(state.kept.values()):
        if now.boot_ms >= agent.kept_until_boot_ms:
            state.let_join(agent.kept_for)
            state.open_again(agent)
    if not state.suspects:
        return
    has_one = {agent.kept_for for agent in state.kept.values()}
    for task in list(state.suspects.values()):
        since_ms = task.alone_since_boot_ms = task.alone_since_boot_ms or now.boot_ms
        if task.id not in has_one and now.boot_ms - since_ms >= KEPT_MS:
            state.let_join(task.id)


def _emptiest(state: ClusterState, task: OpenTask) -> AgentEntry | None:
    snapshot = state.table.view()
    for class_id in dict.fromkeys((task.class_id, task.plain_class_id)):
        demand = state.classes.demand(class_id, snapshot)
        if demand.missing:
            return None
        large = state.classes.eligible(class_id, snapshot).copy()
        for column, amount in demand.columns:
            large &= snapshot.capacity[:, column] >= amount
        rows = np.flatnonzero(large).tolist()
        found = [state.agents[AgentId(state.table.agent_id_at(row))] for row in rows]
        found = [agent for agent in found if agent.state is AgentState.READY]
        if found:
            return min(found, key=lambda agent: len(agent.tasks))
    return None
