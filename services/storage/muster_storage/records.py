"""What passes between the servicers and a store: mostly bytes that nobody here looks into.

Specifications, statuses, outcomes and events stay serialized protobuf between gRPC and the store,
because this process is on the path of every write of every task. Only what a compare-and-set
compares, an index is keyed by, or a subscriber filters on is held apart. These are tuples and not
dataclasses for the same reason: their fields are, in this order, the arguments of the scripts.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

# Numbers of TaskState: 1 to 3 are open, 4 to 8 ended.
PENDING, ASSIGNED, RUNNING = 1, 2, 3
FIRST_ENDED = 4
LAST_STATE = 8
# AgentWish NONE, which is stored by storing nothing.
NO_WISH = 1

# Of rows in one answer: half of gRPC's message bound, so that the last row may overshoot.
MAX_PAGE_BYTES = 8 * 1024 * 1024


class Creation(NamedTuple):
    """A new task. `agent` is empty unless it is ASSIGNED; labels are `key=value`.

    `stamp` 1 = the store adds the cluster's clock to the status, as created_clock_ms.
    """

    tenant: str
    id: str
    skill: str
    state: int
    attempt: int
    agent: str
    spec: bytes
    status: bytes
    stamp: int
    event_head: str
    event: bytes
    labels: tuple[str, ...]


class Created(NamedTuple):
    """`standing` holds b"" per task that was created, else the status of the one that exists."""

    clock_ms: int
    standing: list[bytes]


class Change(NamedTuple):
    """A compare-and-set of one task. `outcome` b"" keeps the one that is there.

    `output_blob` is the blob that the outcome refers to, "" = none.
    """

    tenant: str
    id: str
    expect_state: int
    expect_attempt: int
    state: int
    attempt: int
    agent: str
    status: bytes
    outcome: bytes
    output_blob: str
    event_head: str
    event: bytes


class VerdictCode(IntEnum):
    """Numbers of ApplyCode."""

    OK = 1
    STALE = 2
    NOT_FOUND = 3


class Durability(NamedTuple):
    """`weak`: it may lose the last seconds of what it acknowledged whenever it is started anew;
    `run` then names the present start, "" = it does not tell."""

    weak: bool = False
    run: str = ""


class Verdict(NamedTuple):
    """What became of a Change; `standing` is the status that won when the code is STALE.

    A Change whose very status stands already is OK and changes nothing, so a call whose answer
    was lost may be repeated.
    """

    code: VerdictCode
    standing: bytes


APPLIED = Verdict(VerdictCode.OK, b"")
MISSING = Verdict(VerdictCode.NOT_FOUND, b"")


class Notice(NamedTuple):
    """An event without a change of state; about an attempt of a task unless `task_id` is ""."""

    tenant: str
    task_id: str
    attempt: int
    progress: bytes
    event_head: str
    event: bytes


class Row(NamedTuple):
    """A stored task; `outcome` and `progress` are b"" when there is none."""

    spec: bytes
    status: bytes
    outcome: bytes
    progress: bytes


class TaskFilter(NamedTuple):
    """All that is given must hold. `state` 0 and "" mean any; labels are `key=value`."""

    state: int = 0
    skill: str = ""
    agent: str = ""
    labels: tuple[str, ...] = ()


class Page(NamedTuple):
    """`next` is the cursor of the page after this one, "" when this is the last."""

    rows: list[Row]
    next: str


class Reservation(NamedTuple):
    """`gone`: tasks of the request have been removed since, so nothing may be created for it."""

    first_ms: int
    first: bool
    conflict: bool
    gone: bool


class Expired(NamedTuple):
    """A task that ended longer ago than tasks are kept."""

    tenant: str
    id: str
    spec: bytes


class Removal(NamedTuple):
    """Names the indexes that an expired task stands in."""

    tenant: str
    id: str
    skill: str
    labels: tuple[str, ...]


class OldRequest(NamedTuple):
    tenant: str
    key: str
    first_ms: int


class LogEntry(NamedTuple):
    """One event of the log: its number, what subscribers filter on, and its bytes without id."""

    seq: int
    head: bytes
    event: bytes


class LogBatch(NamedTuple):
    """Events of one write, numbered from `first` on: runs of (head, events) in their order."""

    first: int
    runs: list[tuple[bytes, list[bytes]]]

    @property
    def last(self) -> int:
        return self.first - 1 + sum([len(events) for _, events in self.runs])

    @property
    def size(self) -> int:
        """Bytes of the events."""
        return sum([len(event) for _, events in self.runs for event in events])


class StoredKey(NamedTuple):
    """An API key's record as it was made, and what happened to it since (unix ms, 0 = never)."""

    record: bytes
    revoked_at_ms: int
    last_used_at_ms: int


class Value(NamedTuple):
    value: bytes
    content_type: str
    etag: str


class PutVerdict(NamedTuple):
    """`etag` is the one that stands now, "" when there is no value."""

    written: bool
    etag: str
    created: bool


class DeleteVerdict(NamedTuple):
    """`etag` is the one that was there, "" when there was no value."""

    deleted: bool
    etag: str


class LogRef(NamedTuple):
    """`record` is the TaskLogRef of the attempt.

    `rank` grows with what is in the log: a log of a lower rank replaces none of a higher one.
    """

    tenant: str
    task_id: str
    attempt: int
    sha256: str
    record: bytes
    rank: int = 0


class Drop(IntEnum):
    """What giving up a blob came to."""

    UNKNOWN = 0
    # Something still refers to it; it goes when nothing does.
    HELD = 1
    # The caller deletes the file, then says so with `buried`.
    DOOMED = 2


def event_head(kind: int, tenant: str, term: int, *, ended: bool = False) -> str:
    """What subscribers filter events on: kind, who wrote it and of what, tenant.

    The middle is 0 for whoever is no scheduler, 1 for a scheduler, 2 for its end of a task.
    """
    return f"{kind}:{2 if ended else 1 if term else 0}:{tenant}"
