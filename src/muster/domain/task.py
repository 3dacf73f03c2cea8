"""What a task is: the submitted specification, its state so far, and how one attempt ended."""

from __future__ import annotations

import re
from enum import StrEnum

import msgspec

from muster.domain.errors import InvalidInput
from muster.domain.ids import DEFAULT_TENANT, AgentId, TaskId, TenantId
from muster.domain.resources import GivenDevices, ResourceVector
from muster.domain.task_lifecycle import TaskState

# A batch of this many tasks of 1 KiB fills the body limit of 10 MiB.
MAX_BATCH_TASKS = 10_000
# A plan stores nothing, and many alike tasks take little room in it; small ones fill the body's
# limit.
MAX_PLAN_TASKS = 100_000
# Each point of a front is an assignment of its own.
MAX_FRONT_TASKS = 10_000
MAX_BODY_BYTES = 10 * 1024 * 1024
# One task's input travels in every message about it, so it stays well under gRPC's message size.
MAX_INPUT_BYTES = 1024 * 1024
# Larger results go to the blob store and the result holds a reference.
MAX_INLINE_RESULT_BYTES = 64 * 1024
# An error's text is shown to people; the whole of it is in the task's log.
MAX_ERROR_CHARS = 4096
MAX_JSON_DEPTH = 64
MAX_LABELS = 32
MAX_LABEL_CHARS = 128
MAX_CONSTRAINTS = 16
MAX_PRIORITY = 100
DEFAULT_PRIORITY = 50
MAX_ATTEMPTS = 100
DEFAULT_MAX_ATTEMPTS = 3
# Ten years: a bound that catches a wrong unit, not one that anybody meets.
MAX_DURATION_MS = 10 * 365 * 24 * 3600 * 1000
# A task that three agents died with is poison.
POISON_DEATHS = 3
# Parents and children: deeper trees are runaway recursion.
MAX_DEPTH = 8
# As many as one batch may hold; a parent that needs more submits parents.
MAX_CHILDREN = 10_000

NO_AGENT = AgentId("")
NO_RESOURCES = ResourceVector()

_LABEL_KEY = re.compile(r"[a-z0-9]([-a-z0-9_./]{0,61}[a-z0-9])?")
SPREAD_OP = "max"
# Besides what is said of an agent's labels: how many tasks of a kind it may hold.
CONSTRAINT_OPS = ("==", "!=", "in", "not_in", "exists", "not_exists", ">", "<", SPREAD_OP)
# An agent has no more slots.
MAX_SPREAD = 10_000


class OnDisconnect(StrEnum):
    """What becomes of a started attempt whose agent is cut off from the leader."""

    KEEP = "keep"
    STOP = "stop"


class Lifetime(StrEnum):
    """Whether a task ends by itself, or is restarted until it is cancelled."""

    FINITE = "finite"
    SERVICE = "service"


class Wish(StrEnum):
    """An ending that was asked for while an attempt ran, persisted until the agent confirms."""

    NONE = "none"
    CANCEL = "cancel"
    TIME_OUT = "time_out"


class OutcomeKind(StrEnum):
    """How one attempt ended, in the agent's words; the scheduler decides what that means."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"
    # Never ran, or ran and was given back: drained, refused for want of room. Charges nobody.
    RETURNED = "returned"


class Constraint(msgspec.Struct, frozen=True):
    """A demand on an agent's labels: `key op values`, e.g. `zone in (a, b)`.

    `max` is about tasks instead: with `app max 2` an agent holds at most 2 tasks that bear this
    constraint's key and the same word as their own label `app` (a task without it bears "").
    """

    key: str
    op: str
    values: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.op not in CONSTRAINT_OPS:
            raise InvalidInput("constraints.op", self.op, "one of " + " ".join(CONSTRAINT_OPS))
        if self.op in ("exists", "not_exists"):
            if self.values:
                raise InvalidInput("constraints.values", self.values, f"{self.op} takes no value")
        elif not self.values:
            raise InvalidInput("constraints.values", self.values, f"{self.op} takes a value")
        if self.op in ("==", "!=", ">", "<", SPREAD_OP) and len(self.values) != 1:
            raise InvalidInput("constraints.values", self.values, f"{self.op} takes one value")
        if self.op == SPREAD_OP and not _is_spread(self.values[0]):
            limit = f"{self.op} takes a whole number from 1 to {MAX_SPREAD}"
            raise InvalidInput("constraints.values", self.values, limit)


def _is_spread(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= MAX_SPREAD


class TaskSpec(msgspec.Struct, frozen=True):
    """What was submitted, with every default filled in. Never changes.

    `input_json` is UTF-8 JSON. Durations are milliseconds, 0 = none. `resources` do not hold
    the slot that every task takes besides. `root` and `parent` are empty for a task that no
    other task submitted.
    """

    id: TaskId
    skill: str
    input_json: bytes = b"null"
    tenant: TenantId = DEFAULT_TENANT
    resources: ResourceVector = NO_RESOURCES
    labels: tuple[tuple[str, str], ...] = ()
    constraints: tuple[Constraint, ...] = ()
    priority: int = DEFAULT_PRIORITY
    timeout_ms: int = 0
    start_deadline_ms: int = 0
    total_deadline_ms: int = 0
    progress_timeout_ms: int = 0
    estimate_ms: int = 0
    max_attempts: int = DEFAULT_MAX_ATTEMPTS
    on_disconnect: OnDisconnect = OnDisconnect.KEEP
    lifetime: Lifetime = Lifetime.FINITE
    parent: str = ""
    depth: int = 0
    submitted_at_ms: int = 0


class Outcome(msgspec.Struct, frozen=True):
    """How an attempt ended. Exactly one of `output_json` and `output_blob` is set on success."""

    kind: OutcomeKind
    output_json: bytes = b""
    output_blob: str = ""
    output_bytes: int = 0
    error: str = ""
    error_kind: str = ""
    exit_code: int | None = None
    started_at_ms: int = 0
    ended_at_ms: int = 0


class TaskStatus(msgspec.Struct, frozen=True):
    """All of a task that changes. `*_at_ms` are wall time, `*_clock_ms` cluster time.

    `not_before_clock_ms`: a retry waits until then. `why` says in one sentence what a PENDING
    task waits for, or why the last attempt was given up. `avoid` are agents that failed it.
    `devices` are those of the agent that the attempt was given.
    """

    state: TaskState = TaskState.PENDING
    attempt: int = 0
    failures: int = 0
    agent_deaths: int = 0
    agent: AgentId = NO_AGENT
    incarnation: int = 0
    wish: Wish = Wish.NONE
    created_clock_ms: int = 0
    assigned_at_ms: int = 0
    started_at_ms: int = 0
    started_clock_ms: int = 0
    ended_at_ms: int = 0
    not_before_clock_ms: int = 0
    avoid: tuple[AgentId, ...] = ()
    why: str = ""
    outcome: Outcome | None = None
    devices: GivenDevices = ()


class Task(msgspec.Struct, frozen=True):
    """One task as storage holds it."""

    spec: TaskSpec
    status: TaskStatus


def parse_labels(labels: dict[str, str], name: str = "labels") -> tuple[tuple[str, str], ...]:
    """Labels sorted by key; raises InvalidInput naming the label."""
    if len(labels) > MAX_LABELS:
        raise InvalidInput(name, len(labels), f"at most {MAX_LABELS} labels")
    for key, value in labels.items():
        if not _LABEL_KEY.fullmatch(key):
            raise InvalidInput(
                f"{name}.{key[:64]}", key, "a label's key is 1 to 63 of a-z 0-9 - _ . /"
            )
        if len(value) > MAX_LABEL_CHARS or any(ord(c) < 32 for c in value):
            raise InvalidInput(
                f"{name}.{key}", value, f"at most {MAX_LABEL_CHARS} printable characters"
            )
    return tuple(sorted(labels.items()))
