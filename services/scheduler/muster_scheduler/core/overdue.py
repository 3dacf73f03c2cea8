"""Agents that are heard and do not do what they were told: attempts are taken back from them.

An agent has a slot for each attempt that it is given, so it starts one at once, and ends one within
seconds of being told to. One that does not is broken in a way that its beats do not show.
"""

from __future__ import annotations

from typing import Final

from muster.domain.task import OnDisconnect, Wish
from muster_scheduler.core import tasks
from muster_scheduler.core.health import Blame
from muster_scheduler.core.records import AgentEntry, Now, OpenTask
from muster_scheduler.core.state import ClusterState

# Far longer than a loaded machine needs to fork a process for a task.
UNSTARTED_MS: Final = 30_000
# An agent kills what does not end by itself after 2 s.
UNENDED_MS: Final = 60_000
# Such an agent gets nothing new for so long; then it is tried again.
DISTRUSTED_MS: Final = 5 * 60_000


def look_at(state: ClusterState, agent: AgentEntry, now: Now) -> bool:
    """Takes back what the agent has not started in time; called about once a second while the
    agent is heard. True: only a new runtime can bring the rest back, and its supervisor is there.
    """
    before, agent.owed = agent.owed, {}
    unstarted, stuck = [], False
    for task in agent.tasks.values():
        status = task.status
        if (task.started and status.wish is Wish.NONE) or not _was_pushed(task):
            continue
        # A wish counts from when it came, a start from the assignment.
        key = (task.id, status.attempt, status.wish if task.started else Wish.NONE)
        since_ms = agent.owed[key] = before.get(key, now.boot_ms)
        waited_ms = now.boot_ms - since_ms
        if task.started:
            stuck = stuck or waited_ms >= UNENDED_MS
        elif waited_ms >= UNSTARTED_MS:
            # A `stop` task may run all the same, and must not run twice at once.
            if task.spec.on_disconnect is OnDisconnect.STOP:
                stuck = True
            else:
                unstarted.append(task)
    if unstarted:
        agent.distrusted_until_boot_ms = now.boot_ms + DISTRUSTED_MS
        state.health.blame(agent.id, Blame.UNSTARTED, now.clock_ms)
    for task in unstarted:
        seconds = UNSTARTED_MS // 1000
        why = f"agent {agent.id} was given it and did not start it within {seconds} s"
        tasks.take_back(state, task, why, now)
    return stuck and agent.supervised and not agent.restarting


def _was_pushed(task: OpenTask) -> bool:
    """Whether the agent was told of the attempt, and of the wish that it be ended."""
    durable = task.stored == (task.status.state, task.status.attempt)
    return durable and task.write is None and not task.effects
