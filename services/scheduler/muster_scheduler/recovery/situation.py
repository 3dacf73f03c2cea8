"""What is known of a failed agent and of the cluster around it when its recovery is decided."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from muster.domain.errors import InvalidInput
from muster_scheduler.recovery.settings import MAX_SECONDS, MAX_TASK_SECONDS, number, whole

# Ages, in seconds, that divide an agent's tasks: not begun, then up to each, then older.
AGE_BOUNDS_S: Final = (0.0, 10.0, 60.0)
_EXACT_TO: Final = 20
_STEP: Final = math.log(1.1)
MAX_SLOTS: Final = 100_000_000


class FailureKind(StrEnum):
    """What the leader can see of a failure; the cause behind it is hidden."""

    DIED = "died"
    HUNG = "hung"
    UNREACHABLE = "unreachable"


class Action(StrEnum):
    """What may be done."""

    WAIT = "wait"
    RESTART = "restart"
    MIGRATE = "migrate"


@dataclass(frozen=True, slots=True)
class HeldTask:
    """A task that stands still. `age_s` since its attempt began (0 = not begun), `remaining_s`
    expected, both as of when its agent was last heard; `stop`: it ends when cut off."""

    id: str
    age_s: float
    remaining_s: float
    stop: bool = False


@dataclass(frozen=True, slots=True)
class Group:
    """Tasks of one agent that are alike; ages and remaining times are their means."""

    ids: tuple[str, ...]
    age_s: float
    remaining_s: float
    stop: bool


@dataclass(frozen=True, slots=True)
class Failure:
    """One agent that is down, at one moment.

    `silent_s`: since it was last heard (since it died, for `died`) when it was found DOWN.
    `epoch`: whole seconds since then. `tried`: restarts ordered in this outage, the present one
    included. `restarting_s`: since the present one was ordered, its pause included; None = none
    is under way. `reachable`: its supervisor has a session. `restarts_left` this hour. `slots`:
    how many it had. `down_s` = silent_s + epoch.
    """

    agent: str
    kind: FailureKind
    silent_s: float
    tasks: tuple[HeldTask, ...]
    slots: int
    epoch: int = 0
    tried: int = 0
    restarting_s: int | None = None
    reachable: bool = True
    restarts_left: int = 6

    def __post_init__(self) -> None:
        number("failure.silent_s", self.silent_s, 0.0, MAX_SECONDS)
        whole("failure.epoch", self.epoch, 0, int(MAX_SECONDS))
        whole("failure.tried", self.tried, 0, 1_000)
        whole("failure.slots", self.slots, 0, MAX_SLOTS)
        whole("failure.restarts_left", self.restarts_left, 0, 3_600)
        if self.restarting_s is not None:
            whole("failure.restarting_s", self.restarting_s, 0, int(MAX_SECONDS))
            if not self.tried:
                raise InvalidInput("failure.tried", self.tried, "a restart under way counts as one")
        for index, task in enumerate(self.tasks):
            number(f"failure.tasks[{index}].age_s", task.age_s, 0.0, MAX_TASK_SECONDS)
            number(f"failure.tasks[{index}].remaining_s", task.remaining_s, 0.0, MAX_TASK_SECONDS)

    @property
    def failed_tries(self) -> int:
        """Restarts of this outage that are over: all of them in vain."""
        return self.tried - (self.restarting_s is not None)

    @property
    def can_restart(self) -> bool:
        """Whether a supervisor is there that can be told to, and may be told again."""
        return self.kind is not FailureKind.UNREACHABLE and self.reachable


@dataclass(frozen=True, slots=True)
class Cluster:
    """The agents that are there, the failed ones not among them.

    `used` and `slots` per agent. `able_free` and `able_slots`: of those that could take the failed
    agent's work; None = all could. `open_response_s`: T, response
    times of all open tasks. `waiting`: tasks that wait for a place.
    """

    used: tuple[int, ...]
    slots: tuple[int, ...]
    open_response_s: float = 0.0
    able_free: int | None = None
    able_slots: int | None = None
    waiting: int = 0

    def __post_init__(self) -> None:
        number("cluster.open_response_s", self.open_response_s, 0.0, MAX_TASK_SECONDS)
        whole("cluster.waiting", self.waiting, 0, MAX_SLOTS)
        if len(self.used) != len(self.slots):
            raise InvalidInput("cluster.used", len(self.used), "one number per agent, as in slots")
        for index, (used, slots) in enumerate(zip(self.used, self.slots, strict=True)):
            whole(f"cluster.slots[{index}]", slots, 0, MAX_SLOTS)
            whole(f"cluster.used[{index}]", used, 0, MAX_SLOTS)
        if self.able_free is not None:
            whole("cluster.able_free", self.able_free, 0, MAX_SLOTS)
        if self.able_slots is not None:
            whole("cluster.able_slots", self.able_slots, 0, MAX_SLOTS)

    @property
    def capacity(self) -> int:
        """Slots of the agents that could take the work."""
        return sum(self.slots) if self.able_slots is None else self.able_slots

    @property
    def free(self) -> int:
        """Free slots of the agents that could take the work."""
        if self.able_free is not None:
            return min(self.able_free, self.capacity)
        spare = sum(max(0, s - u) for u, s in zip(self.used, self.slots, strict=True))
        return min(spare, self.capacity)


def grouped(tasks: Sequence[HeldTask]) -> tuple[Group, ...]:
    """The tasks by age and by whether they stop when cut off, youngest first; at most 8 groups."""
    members: dict[tuple[int, bool], list[HeldTask]] = {}
    for task in tasks:
        older_than = sum(task.age_s > bound for bound in AGE_BOUNDS_S)
        members.setdefault((older_than, task.stop), []).append(task)
    return tuple(
        Group(
            ids=tuple(task.id for task in held),
            age_s=sum(task.age_s for task in held) / len(held),
            remaining_s=sum(task.remaining_s for task in held) / len(held),
            stop=stop,
        )
        for (_, stop), held in sorted(members.items())
    )


def stepped(value: float) -> float:
    """`value` ≥ 0 rounded to a grid whose steps are 10%; 0 stays 0. Never reorders two values."""
    if value < 1e-6:
        return 0.0
    return math.exp(_STEP * round(math.log(value) / _STEP))


def stepped_count(count: int, *, down: bool = False) -> int:
    """A count, exact to 20, beyond on the grid; `down`: never more than it was."""
    if count <= _EXACT_TO:
        return count
    steps = math.log(count / _EXACT_TO) / _STEP
    whole_steps = math.floor(steps + 1e-9) if down else round(steps)
    rounded = int(_EXACT_TO * math.exp(_STEP * whole_steps))
    return min(rounded, count) if down else rounded
