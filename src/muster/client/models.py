"""What the cluster answers, typed. Fields that this version does not know are ignored.

Names of states are plain text, so that a state of a later version can be read, too.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

import msgspec

from muster.domain.task_lifecycle import TaskState

ENDED: Final = frozenset(
    s.value
    for s in (
        TaskState.SUCCEEDED,
        TaskState.FAILED,
        TaskState.CANCELLED,
        TaskState.TIMED_OUT,
        TaskState.DEAD,
    )
)


class Problem(msgspec.Struct):
    """A problem document (RFC 9457)."""

    type: str = "about:blank"
    title: str = ""
    status: int = 0
    detail: str = ""
    field: str = ""
    value: str | int | float | None = None
    limit: str = ""
    request_id: str = ""


class TaskError(msgspec.Struct, frozen=True):
    """Why a task has no result. `output` is what the skill gave all the same, e.g. stderr."""

    kind: str
    message: str
    exit_code: int | None = None
    output: Any = None


class Progress(msgspec.Struct, frozen=True):
    """How far the present attempt is; `fraction` is 0 to 1, or unknown."""

    fraction: float | None = None
    note: str = ""
    at: datetime | None = None


class Constraint(msgspec.Struct, frozen=True):
    """A demand on an agent's labels."""

    key: str
    op: str
    values: list[str] = []


class Result(msgspec.Struct, frozen=True):
    """What came of a task. `state` None: there is no such task."""

    id: str
    state: str | None
    attempt: int = 0
    agent: str | None = None
    result: Any = None
    error: TaskError | None = None

    @property
    def succeeded(self) -> bool:
        """Whether `result` is the skill's. (Of a result that is lost, `error` tells.)"""
        return self.state == TaskState.SUCCEEDED and self.error is None


class Task(msgspec.Struct, frozen=True):
    """A task. Lists leave out results over 64 KiB; `result_blob` says where those lie."""

    id: str
    state: str
    skill: str
    attempt: int = 0
    agent: str | None = None
    submitted_at: datetime | None = None
    assigned_at: datetime | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    why: str = ""
    priority: int = 0
    labels: dict[str, str] = {}
    resources: dict[str, str] = {}
    constraints: list[Constraint] = []
    timeout: str | None = None
    start_deadline: str | None = None
    total_deadline: str | None = None
    progress_timeout: str | None = None
    estimate: str | None = None
    max_attempts: int = 0
    on_disconnect: str = ""
    lifetime: str = ""
    failures: int = 0
    agent_deaths: int = 0
    parent: str | None = None
    progress: Progress | None = None
    cancelling: bool = False
    input: Any = None
    result: Any = None
    result_blob: dict[str, Any] | None = None
    error: TaskError | None = None
    last_error: TaskError | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.state in ENDED


class Partial(msgspec.Struct, frozen=True):
    """One yield of a generator; `index` counts from 0 in each attempt."""

    value: Any
    index: int
    attempt: int


class LogLine(msgspec.Struct, frozen=True):
    """A line of a task's log; `stream` is stdout, stderr, log or agent."""

    text: str
    attempt: int = 0
    index: int = 0
    stream: str = "log"
    level: str | None = None
    at: datetime | None = None


class Event(msgspec.Struct, frozen=True):
    """Something that happened. Fields that say nothing for its kind are empty."""

    id: str
    kind: str
    at: datetime | None = None
    task: str = ""
    attempt: int = 0
    state: str = ""
    skill: str = ""
    agent: str = ""
    agent_state: str = ""
    incarnation: int = 0
    why: str = ""
    progress: Progress | None = None
    partial: Any = None
    partial_index: int | None = None


class Candidate(msgspec.Struct, frozen=True):
    """How an agent looks to the strategy in force; `terms["score"]` is what it compares."""

    agent: str
    rank: int
    fits: bool
    terms: dict[str, float] = {}


class Explanation(msgspec.Struct, frozen=True):
    """Why a task waits; `excluded` counts agents by reason, `change` is `smallest_change` in parts.

    `expected_start` is None where it is not known; `expected_start_why` says why.
    """

    id: str
    state: str
    summary: str = ""
    queue_position: int | None = None
    queue_length: int = 0
    agents: int = 0
    excluded: dict[str, int] = {}
    smallest_change: str | None = None
    expected_end: datetime | None = None
    change: dict[str, Any] | None = None
    strategy: str | None = None
    candidates: list[Candidate] = []
    expected_start: datetime | None = None
    expected_start_why: str | None = None


class Placement(msgspec.Struct, frozen=True):
    """Where a task would go; without an agent `reason` is its number in the plan's `reasons`."""

    agent: str | None
    reason: int | None = None
    devices: dict[str, list[int]] = {}


class PlanReason(msgspec.Struct, frozen=True):
    """Why so many tasks have no place; `excluded` counts agents by reason."""

    text: str
    tasks: int
    agents: int = 0
    excluded: dict[str, int] = {}


class PlanPoint(msgspec.Struct, frozen=True):
    """A plan of the front; `agents` in the order of the tasks."""

    T: float
    U: float
    B: float
    J: float
    unplaced: int
    agents: list[str | None] = []


class Plan(msgspec.Struct, frozen=True):
    """Where tasks would go, in their order, and what that is worth; J: smaller is better."""

    strategy: str
    T: float
    U: float
    B: float
    J: float
    unplaced: int
    placements: list[Placement]
    reasons: list[PlanReason] = []
    objective: str = "J"
    seed: int = 0
    budget: str = ""
    elapsed_s: float = 0.0
    lower_bound: float | None = None
    run_times: str = ""
    queued: int = 0
    front: list[PlanPoint] | None = None


class Agent(msgspec.Struct, frozen=True):
    """An agent. `offers`, `evidence`, its timeline, and `metrics` come with a single agent only."""

    id: str
    state: str
    health_state: str = ""
    wish: str = ""
    incarnation: int = 0
    health: float = 0.0
    health_reasons: list[str] = []
    phi: float = 0.0
    capacity: dict[str, str] = {}
    used: dict[str, str] = {}
    assigned_tasks: int = 0
    running_tasks: int = 0
    skills: list[str] = []
    labels: dict[str, str] = {}
    host: str = ""
    pid: int = 0
    version: str = ""
    registered_at: datetime | None = None
    offers: list[dict[str, Any]] | None = None
    evidence: list[dict[str, Any]] | None = None
    metrics: dict[str, Any] | None = None


class Cluster(msgspec.Struct, frozen=True):
    """The cluster's figures; None where a part did not answer."""

    leader: str | None = None
    tasks: dict[str, int] | None = None
    term: int | None = None
    queued: int | None = None
    assigned: int | None = None
    running: int | None = None
    agents: dict[str, int] | None = None
    capacity: dict[str, str] | None = None
    used: dict[str, str] | None = None
    tasks_per_s: float | None = None
    version: str | None = None
    strategy: str | None = None
