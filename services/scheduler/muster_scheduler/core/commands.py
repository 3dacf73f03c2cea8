"""What the core wants done. The shell drains it after each batch of events and carries it out."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from muster.domain.agent_lifecycle import AgentState
from muster.domain.ids import AgentId, TaskId, TenantId
from muster.domain.task import Wish
from muster_scheduler.core.mass_failure import Alarm
from muster_scheduler.core.records import AttemptRef, OpenTask, Write
from muster_scheduler.core.recoveries import Recovery


@dataclass(slots=True)
class Push:
    """What one agent's runtime is sent next."""

    assign: list[OpenTask] = field(default_factory=list)
    cancel: list[tuple[AttemptRef, Wish]] = field(default_factory=list)
    # (attempt, whether its outcome was recorded): the agent forgets it in both cases.
    acks: list[tuple[AttemptRef, bool]] = field(default_factory=list)
    drop: list[AttemptRef] = field(default_factory=list)
    drain: bool = False


@dataclass(frozen=True, slots=True)
class AgentChanged:
    """An agent entered a state; becomes an event."""

    agent: AgentId
    incarnation: int
    state: AgentState
    why: str


@dataclass(frozen=True, slots=True)
class Stuck:
    """An attempt was found to show no progress; becomes an event."""

    task: OpenTask
    agent: AgentId
    attempt: int
    why: str


@dataclass(slots=True)
class Commands:
    """All that is to be done, in no order between the lists.

    writes    creations and compare-and-sets
    pushes    by agent
    restarts  (agent, incarnation, why) for the agents' supervisors
    changed   agents that entered a state
    noted     agents whose timeline has grown
    alarms    of the whole cluster or a zone
    stuck     attempts that show no progress
    reload    tasks whose stored status is not what was believed
    recoveries  those that began, ended, or have another action; one may be there more than once
    """

    writes: list[Write] = field(default_factory=list)
    pushes: dict[AgentId, Push] = field(default_factory=lambda: defaultdict(Push))
    restarts: list[tuple[AgentId, int, str]] = field(default_factory=list)
    changed: list[AgentChanged] = field(default_factory=list)
    reload: list[tuple[TenantId, TaskId]] = field(default_factory=list)
    noted: set[AgentId] = field(default_factory=set)
    alarms: list[Alarm] = field(default_factory=list)
    stuck: list[Stuck] = field(default_factory=list)
    recoveries: list[Recovery] = field(default_factory=list)
