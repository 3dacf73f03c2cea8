"""The JSON bodies as pydantic models: for the OpenAPI document only, requests never pass them.

`tests/unit/gateway` holds these against what is really decoded and encoded.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from muster.domain.policy import (
    DEFAULT_RECOVERY,
    DEFAULT_STRATEGY,
    MAX_WEIGHT,
    RECOVERIES,
    STRATEGIES,
)
from muster.domain.task import (
    CONSTRAINT_OPS,
    DEFAULT_MAX_ATTEMPTS,
    DEFAULT_PRIORITY,
    MAX_ATTEMPTS,
    MAX_BATCH_TASKS,
    MAX_CONSTRAINTS,
    MAX_LABELS,
    MAX_PRIORITY,
)
from muster_gateway.task_specs import MAX_CONSTRAINT_VALUES

TASK_ID = "01jd8k2v3m4n5p6q7r8s9t0v1w"[:26]
AT = "2026-01-31T12:00:00.123Z"
AGENT = "agent-1"

State = Literal[
    "PENDING", "ASSIGNED", "RUNNING", "SUCCEEDED", "FAILED", "CANCELLED", "TIMED_OUT", "DEAD"
]
Quantity = Annotated[
    str | int | float,
    Field(description="As in Kubernetes: 500m, 2, 1.5Gi, 1e3.", examples=["500m"]),
]
Duration = Annotated[
    str, Field(description="Units d, h, m, s, ms: 500ms, 60s, 1h30m.", examples=["60s"])
]


class Strict(BaseModel):
    """Unknown fields are refused."""

    model_config = ConfigDict(extra="forbid")


class Constraint(Strict):
    """A demand on an agent's labels; key and op together appear once."""

    key: str = Field(examples=["zone"])
    op: str = Field(description=f"One of {' '.join(CONSTRAINT_OPS)}.", examples=["in"])
    values: list[str] = Field([], max_length=MAX_CONSTRAINT_VALUES, examples=[["a", "b"]])


class NewTask(Strict):
    """A task to be run."""

    skill: str = Field(description="What agents offer; an unknown one waits.", examples=["echo"])
    input: Any = Field(None, description="Any JSON; checked against the skill's schema.")
    resources: dict[str, Quantity] | None = Field(
        None,
        description="What is not named: cpu 100m, memory 64Mi. Each task also holds one slot.",
        examples=[{"cpu": "500m", "memory": "256Mi", "network": "10M", "gpu": 0}],
    )
    labels: dict[str, str] | None = Field(None, max_length=MAX_LABELS)
    constraints: list[Constraint] | None = Field(None, max_length=MAX_CONSTRAINTS)
    priority: int = Field(DEFAULT_PRIORITY, ge=0, le=MAX_PRIORITY, description="Higher is sooner.")
    timeout: Duration | None = Field(None, description="Start to end of an attempt; none = no end.")
    start_deadline: Duration | None = Field(None, description="Submission to first start.")
    total_deadline: Duration | None = Field(None, description="Submission to end.")
    progress_timeout: Duration | None = Field(None, description="Longest silence of an attempt.")
    estimate: Duration | None = Field(None, description="How long it will take; learned if none.")
    max_attempts: int = Field(
        DEFAULT_MAX_ATTEMPTS, ge=1, le=MAX_ATTEMPTS, description="Tries that may fail."
    )
    on_disconnect: Literal["keep", "stop"] | None = Field(
        None, description="keep (default): runs on when its agent is cut off; stop: never overlaps."
    )
    lifetime: Literal["finite", "service"] | None = Field(
        None, description="finite (default), or a service that is restarted until cancelled."
    )


class NewTasks(Strict):
    """Many tasks: all are accepted, or none."""

    tasks: list[NewTask] = Field(min_length=1, max_length=MAX_BATCH_TASKS)


class Accepted(BaseModel):
    """The id of the one task, or the ids of the batch in its order."""

    id: str | None = None
    ids: list[str] | None = None


class TaskError(BaseModel):
    """Why a task has no result."""

    kind: str = Field(examples=["exit_code"])
    message: str
    exit_code: int | None = None
    output: Any = Field(None, description="What the skill gave all the same, e.g. stderr.")


class Progress(BaseModel):
    """How far the present attempt is."""

    fraction: float | None = Field(ge=0, le=1)
    note: str
    at: str | None


class Task(BaseModel):
    """A task. `result` is there once it has succeeded, `error` once it has ended otherwise."""

    id: str = Field(examples=[TASK_ID])
    state: State
    attempt: int = Field(description="Grows with every assignment; 0 = never assigned.")
    agent: str | None
    skill: str
    submitted_at: str | None = Field(examples=[AT])
    assigned_at: str | None
    started_at: str | None
    ended_at: str | None
    why: str = Field(description="What a waiting task waits for, or why an attempt was given up.")
    priority: int
    labels: dict[str, str]
    resources: dict[str, str]
    constraints: list[Constraint]
    timeout: str | None
    start_deadline: str | None
    total_deadline: str | None
    progress_timeout: str | None
    estimate: str | None
    max_attempts: int
    on_disconnect: Literal["keep", "stop"]
    lifetime: Literal["finite", "service"]
    failures: int = Field(description="Counts against max_attempts.")
    agent_deaths: int = Field(description="Agents that died with it; at 3 it is DEAD.")
    parent: str | None
    progress: Progress | None
    cancelling: bool = Field(description="Cancelled while it ran; the agent is being told.")
    input: Any = Field(None, description="With ?include=input only.")
    result: Any = None
    result_blob: dict[str, Any] | None = Field(
        None, description="In lists: where a result over 64 KiB lies."
    )
    error: TaskError | None = None
    last_error: TaskError | None = Field(None, description="Of the attempt before, while it waits.")
    devices: dict[str, list[int]] | None = Field(
        None, description="Those that the attempt was given, by resource; left out without any."
    )


class Result(BaseModel):
    """What came of a task; neither `result` nor `error` while it is open."""

    id: str = Field(examples=[TASK_ID])
    state: State
    attempt: int
    agent: str | None
    result: Any = None
    error: TaskError | None = None


class Gather(Strict):
    """Tasks whose results are wanted."""

    ids: list[str] = Field(min_length=1, max_length=MAX_BATCH_TASKS, examples=[[TASK_ID]])
    wait: Duration | None = Field(None, description="At most 10m; none = what has ended by now.")


class TaskPage(BaseModel):
    """Tasks, newest first, without inputs."""

    items: list[Task]
    next: str | None = Field(description="The cursor of the next page; null = there is none.")


class LogLine(BaseModel):
    """A line of a task's log."""

    attempt: int
    index: int
    at: str | None
    stream: Literal["stdout", "stderr", "log", "agent"]
    level: str | None
    text: str


class LogPage(BaseModel):
    """A task's log, by attempt and index."""

    items: list[LogLine]
    next: None = None
    truncated: bool = Field(description="The log reached its cap and was cut.")


class Candidate(BaseModel):
    """How one agent looks to the strategy in force."""

    agent: str = Field(examples=[AGENT])
    rank: int = Field(description="1 = the best; those that fit come first.")
    fits: bool
    terms: dict[str, float] = Field(
        description="`score` is what is compared, the others are what it is made of.",
        examples=[{"score": 0.5, "free_share_after": 0.5, "health": 1.0}],
    )


class Change(BaseModel):
    """A single change; only the fields of its kind are there."""

    kind: Literal[
        "cut", "raise_max", "lift_constraint", "drop_avoid", "uncordon", "add_agent", "unknown"
    ]
    resource: str | None = None
    before: str | int | None = Field(None, alias="from")
    to: str | int | None = None
    constraint: Constraint | None = None
    agent: str | None = None
    skill: str | None = None
    labels: dict[str, str] | None = None
    capacity: dict[str, str] | None = None


class Explanation(BaseModel):
    """Why a task waits, or why it is where it is."""

    id: str
    state: State
    summary: str
    queue_position: int | None = Field(description="1 = next; null = it does not wait.")
    queue_length: int
    agents: int
    excluded: dict[str, int] = Field(description="Reason → number of agents excluded by it.")
    strategy: str | None = Field(description="What the candidates are scored by.")
    candidates: list[Candidate] = Field(
        description="The agents that the strategy likes best, without the task where it has a "
        "place; the first of those that fit is chosen."
    )
    expected_start: str | None = Field(
        description="When it should start, if run times are as expected; null = it does not wait, "
        "or that is not known."
    )
    expected_start_why: str | None = Field(
        description="Why that is not known, or on what it rests."
    )
    expected_end: str | None = Field(
        description="When its running attempt should end, by what was learned or declared, given "
        "how long it has run; null = it does not run, or nothing is known."
    )
    change: Change | None = Field(description="The smallest change, in parts for a program.")
    smallest_change: str | None = Field(
        description="The smallest single change that would give it a place."
    )


class Cancelled(BaseModel):
    """The cancellation is durable; a running attempt is being told."""

    id: str
    state: State


class AgentEvidence(BaseModel):
    """One entry of an agent's timeline."""

    at: str | None
    state: str = Field(description="The state that this left it in.")
    what: str | None = Field(description="An event of its lifecycle, WISH, or what else was done.")
    why: str
    who: str | None = Field(description="Whose API key asked for it.")
    phi: float
    silent_ms: int = Field(description="For how long it had not been heard.")
    incarnation: int


class Drain(BaseModel):
    """How an agent is drained."""

    deadline: str | None = Field(
        None,
        description="After so long what still runs goes back to the queue, uncharged; at most 1d.",
        examples=["60s"],
    )


class Agent(BaseModel):
    """An agent as the leader sees it."""

    id: str = Field(examples=[AGENT])
    state: str = Field(description="Health and wish in one word, e.g. READY, CORDONED, DOWN.")
    health_state: str
    wish: Literal["NONE", "CORDON", "DRAIN"]
    incarnation: int
    health: float = Field(description="1 = nothing is known against it; enters the placement.")
    health_reasons: list[str] = Field(description="What lowers its health, in words.")
    phi: float
    capacity: dict[str, str]
    used: dict[str, str]
    assigned_tasks: int
    running_tasks: int
    skills: list[str]
    labels: dict[str, str]
    host: str
    pid: int
    version: str
    registered_at: str | None
    offers: list[dict[str, Any]] | None = Field(None, description="Skills with their schemas.")
    evidence: list[AgentEvidence] | None = Field(
        None, description="Its timeline: the newest 50 entries, oldest first."
    )
    timeline: list[AgentEvidence] | None = Field(None, description="The same as `evidence`.")
    metrics: dict[str, Any] | None = Field(None, description="The monitor's newest figures.")


class AgentPage(BaseModel):
    """Agents by id."""

    items: list[Agent]
    next: str | None


class RecoveryAction(BaseModel):
    """What was decided at one moment of a recovery, and what it was weighed against."""

    at: str = Field(examples=[AT])
    after_s: float = Field(description="Since the agent was found DOWN.")
    action: Literal["wait", "restart", "migrate"]
    policy: str
    kind: str
    silent_s: float
    epoch: int
    restarts_tried: int
    tasks: int = Field(description="Held at that moment.")
    given_away: int = Field(description="Tasks that were given to others at once.")
    expected_cost_task_s: float
    alternatives: dict[str, float] = Field(description="Expected costs of the other actions.")
    excluded: dict[str, str] = Field(description="Why an action was not to be had.")
    evidence: dict[str, Any] = Field(description="Chances, outcomes behind them, spare slots.")
    before: dict[str, float] = Field(description="T, U and B before the failure.")
    after: dict[str, float] = Field(description="T, U and B with this action.")
    violated: dict[str, float] = Field(description="Bounds that are broken, and by how much.")
    sentence: str


class Recovery(BaseModel):
    """One outage of one agent: what was seen, what was done, what came of it."""

    id: str = Field(examples=[f"1769860800123-{AGENT}"])
    agent: str = Field(examples=[AGENT])
    incarnation: int = Field(description="The one that failed.")
    term: int = Field(description="Of the leader that decided.")
    kind: Literal["died", "hung", "unreachable"]
    evidence: str = Field(description="Why the agent was given up.")
    policy: str
    began_at: str = Field(examples=[AT])
    silent_s: float = Field(description="Since it was last heard, when it was found DOWN.")
    tasks: int = Field(description="That it had then.")
    kept: int = Field(description="Went on when it came back.")
    rerun: int = Field(description="Began again when it came back without its work.")
    moved: int = Field(description="Were given to others.")
    waiting: int = Field(description="Do not run again yet.")
    action: Literal["wait", "restart", "migrate"] = Field(description="The first one.")
    actions: list[RecoveryAction] | None = Field(None, description="Each change of mind.")
    restarts: int
    restart_took_s: float | None
    back_after_s: float | None = Field(description="When the agent was READY again; null = never.")
    longest_wait_s: float = Field(description="Of a lost task, until it ran again.")
    expected_cost_task_s: float = Field(description="Task-seconds, when it began.")
    realised_cost_task_s: float | None = Field(description="Null while it is open.")
    outcome: Literal["open", "kept", "rerun", "moved", "no tasks", "interrupted"]
    ended_at: str | None
    sentence: str = Field(description="All of it in words.")


class RecoveryPage(BaseModel):
    """Recoveries, the newest first."""

    items: list[Recovery]
    next: str | None


class Objective(BaseModel):
    """T, U and B of what is placed now, at most a second old."""

    T: float = Field(description="Seconds that the placed tasks still take, in sum.")
    U: float = Field(description="Mean over resources of used / capacity of the cluster.")
    B: float = Field(description="Standard deviation of the agents' dominant shares.")


class Cluster(BaseModel):
    """The cluster's figures; `leader` is null and the rest left out while nobody leads."""

    leader: str | None
    halted: str | None = Field(
        None, description="Why nothing is scheduled until an operator decides; else left out."
    )
    alarms: dict[str, str] | None = Field(
        None, description="What the leader has raised an alarm about, by name; else left out."
    )
    tasks: dict[str, int] | None = Field(description="The tenant's tasks by state.")
    term: int | None = None
    clock_ms: int | None = None
    queued: int | None = None
    assigned: int | None = None
    running: int | None = None
    agents: dict[str, int] | None = None
    capacity: dict[str, str] | None = None
    used: dict[str, str] | None = None
    tasks_per_s: float | None = None
    version: str | None = None
    strategy: str | None = None
    policy_etag: str | None = Field(None, description="Which stored policy the leader places by.")
    objective: Objective | None = None


class AcceptedStore(BaseModel):
    """An operator has accepted a store that was rolled back."""

    accepted: str


class Weights(Strict):
    """Of the terms of J; those left out are 0, and one at least is above 0."""

    t: float = Field(0, ge=0, le=MAX_WEIGHT)
    u: float = Field(0, ge=0, le=MAX_WEIGHT)
    b: float = Field(0, ge=0, le=MAX_WEIGHT)


class Bounds(Strict):
    """What a plan should keep to, before J counts."""

    T: float | None = Field(None, ge=0, description="At most so many seconds.")
    U: float | None = Field(None, ge=0, le=1, description="At least this share.")
    B: float | None = Field(None, ge=0, description="At most this.")
    J: float | None = Field(None, ge=0, description="At most this; not below weights.t.")


class RecoveryBounds(Strict):
    """By how much a recovery may raise T and B, and lower U."""

    T: float | None = Field(None, ge=0, description="Task-seconds.")
    U: float | None = Field(None, ge=0, le=1)
    B: float | None = Field(None, ge=0, le=1)


class RecoveryPolicy(Strict):
    """What is done about agents that are down."""

    policy: str = Field(DEFAULT_RECOVERY, json_schema_extra={"enum": list(RECOVERIES)})
    bounds: RecoveryBounds = Field(
        default_factory=lambda: RecoveryBounds.model_validate({}),
        description="Only those that are named.",
    )


class PolicyDocument(Strict):
    """How tasks are placed."""

    strategy: str = Field(DEFAULT_STRATEGY, json_schema_extra={"enum": list(STRATEGIES)})
    weights: Weights = Field(
        Weights(t=0.4, u=0.3, b=0.3), description="J = t T / T_ref + u (1 - U) + b B."
    )
    penalty: float = Field(10, ge=0, le=MAX_WEIGHT, description="Of unplaced demand in J.")
    objective: Literal["J", "T", "makespan"] = "J"
    bounds: Bounds = Field(
        default_factory=lambda: Bounds.model_validate({}), description="Only those that are named."
    )
    budget: Duration = Field("100ms", description="What an improving strategy may take; to 1h.")
    recovery: RecoveryPolicy = Field(
        default_factory=lambda: RecoveryPolicy.model_validate({}),
        description="Agents that are down: waited for, restarted, or their tasks moved.",
    )


class KeyNames(BaseModel):
    """Names of shared values, in order."""

    items: list[str]
    next: str | None


class Blob(BaseModel):
    """A stored blob."""

    sha256: str = Field(
        examples=["9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"]
    )
    size_bytes: int


class NewKey(Strict):
    """An API key to be made, in the caller's tenant."""

    name: str = Field("", max_length=100, examples=["ci"])
    role: Literal["viewer", "submitter", "operator", "admin"]
    expires_in: Duration | None = None


class Key(BaseModel):
    """An API key, without its secret."""

    id: str
    name: str
    role: str
    tenant: str
    created_at: str | None
    expires_at: str | None
    revoked_at: str | None
    last_used_at: str | None


class MadeKey(Key):
    """A new API key. `key` is shown this once and stored nowhere."""

    key: str


class KeyPage(BaseModel):
    """All keys of the tenant."""

    items: list[Key]
    next: None = None


class Problem(BaseModel):
    """RFC 9457. `field`, `value` and `limit` are there when one value is to blame."""

    type: str = Field(examples=["urn:muster:problem:invalid_input"])
    title: str
    status: int
    detail: str
    field: str | None = Field(None, examples=["tasks[17].resources.cpu"])
    value: str | int | float | None = None
    limit: str | None = None
    request_id: str | None = None


_TASK: dict[str, Any] = {
    "id": TASK_ID,
    "state": "RUNNING",
    "attempt": 1,
    "agent": AGENT,
    "skill": "echo",
    "submitted_at": AT,
    "assigned_at": AT,
    "started_at": AT,
    "ended_at": None,
    "why": "",
    "priority": 50,
    "labels": {},
    "resources": {"cpu": "100m", "memory": "64Mi"},
    "constraints": [],
    "timeout": "1m",
    "start_deadline": None,
    "total_deadline": None,
    "progress_timeout": None,
    "estimate": None,
    "max_attempts": 3,
    "on_disconnect": "keep",
    "lifetime": "finite",
    "failures": 0,
    "agent_deaths": 0,
    "parent": None,
    "progress": {"fraction": 0.5, "note": "page 3 of 6", "at": AT},
    "cancelling": False,
}
_AGENT: dict[str, Any] = {
    "id": AGENT,
    "state": "READY",
    "health_state": "READY",
    "wish": "NONE",
    "incarnation": 3,
    "health": 1.0,
    "health_reasons": [],
    "phi": 0.1,
    "capacity": {"cpu": "4", "memory": "8Gi", "slots": "64"},
    "used": {"cpu": "200m", "memory": "128Mi", "slots": "2"},
    "assigned_tasks": 2,
    "running_tasks": 2,
    "skills": ["command", "echo", "sleep"],
    "labels": {"zone": "a"},
    "host": "host-1",
    "pid": 4711,
    "version": "0.1.0",
    "registered_at": AT,
}
_KEY: dict[str, Any] = {
    "id": "0a1b2c3d4e5f",
    "name": "ci",
    "role": "submitter",
    "tenant": "default",
    "created_at": AT,
    "expires_at": None,
    "revoked_at": None,
    "last_used_at": AT,
}
_LINE = {"attempt": 1, "index": 0, "at": AT, "stream": "stdout", "level": None, "text": "hello"}

# By model; a test holds each against its model.
EXAMPLES: dict[str, Any] = {
    "Accepted": {"id": TASK_ID},
    "Task": _TASK,
    "TaskPage": {"items": [_TASK], "next": None},
    "Result": {
        "id": TASK_ID,
        "state": "SUCCEEDED",
        "attempt": 1,
        "agent": AGENT,
        "result": {"text": "hallo"},
    },
    "LogPage": {"items": [_LINE], "next": None, "truncated": False},
    "Explanation": {
        "id": TASK_ID,
        "state": "PENDING",
        "summary": "no agent can take it now: 1 × memory short by 512Mi",
        "queue_position": 1,
        "queue_length": 1,
        "agents": 1,
        "excluded": {"memory short by 512Mi": 1},
        "strategy": "worst_fit",
        "candidates": [
            {
                "agent": AGENT,
                "rank": 1,
                "fits": False,
                "terms": {"free_share_after": -0.25, "health": 1.0, "score": -0.25},
            }
        ],
        "expected_start": AT,
        "expected_start_why": None,
        "expected_end": None,
        "change": {"kind": "cut", "resource": "memory", "from": "1Gi", "to": "512Mi"},
        "smallest_change": "memory 1Gi → 512Mi",
    },
    "Cancelled": {"id": TASK_ID, "state": "CANCELLED"},
    "Agent": _AGENT,
    "AgentPage": {"items": [_AGENT], "next": None},
    "Cluster": {
        "leader": "127.0.0.1:7001",
        "tasks": {"PENDING": 0, "RUNNING": 2, "SUCCEEDED": 40},
        "term": 7,
        "queued": 0,
        "running": 2,
        "agents": {"READY": 4},
        "tasks_per_s": 12.5,
    },
    "KeyNames": {"items": ["models/current"], "next": None},
    "Blob": {
        "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "size_bytes": 4,
    },
    "MadeKey": {**_KEY, "last_used_at": None, "key": "mst_0a1b2c3d4e5f_<secret>"},
    "KeyPage": {"items": [_KEY], "next": None},
}
