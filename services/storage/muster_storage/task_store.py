"""What a store does, as protocols: tasks, events, the cluster's records, values, blobs' holders.

Two implementations share one contract suite: Redis (production) and memory (tests, simulation).
Every method may raise Unavailable("redis", ...); nothing was acknowledged then, though it may have
been done. Times called `clock` are cluster milliseconds: a counter that only a leader advances.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from muster_storage.records import (
    Change,
    Created,
    Creation,
    DeleteVerdict,
    Drop,
    Durability,
    Expired,
    LogBatch,
    LogEntry,
    LogRef,
    Notice,
    OldRequest,
    Page,
    PutVerdict,
    Removal,
    Reservation,
    Row,
    StoredKey,
    TaskFilter,
    Value,
    Verdict,
)


class TaskStore(Protocol):
    """Tasks and the requests that they came with. Lists of any length are taken."""

    async def create(self, term: int, tasks: Sequence[Creation]) -> Created:
        """Raises StaleTerm when `term` is neither 0 nor the present one."""
        ...

    async def apply(self, term: int, changes: Sequence[Change]) -> list[Verdict]:
        """One verdict per change, in order; raises StaleTerm when `term` is not the present one.

        A later change of the same list sees what an earlier one did. After StaleTerm some of a
        long list may have been applied under the old term: its writer is deposed anyway.
        """
        ...

    async def publish(self, term: int, notices: Sequence[Notice]) -> int:
        """How many were taken: what is about an attempt that is not under way is dropped."""
        ...

    async def reserve(self, tenant: str, key: str, body_hash: bytes, now_ms: int) -> Reservation:
        """The first caller fixes the request's time and body for all later ones."""
        ...

    async def get(self, tenant: str, ids: Sequence[str], most_bytes: int) -> list[Row | None]:
        """Rows in the order of `ids`; ends early, after the row that reached `most_bytes`."""
        ...

    async def page(
        self, tenant: str, wanted: TaskFilter, cursor: str, limit: int, *, newest_first: bool
    ) -> Page:
        """At most `limit` rows after `cursor`; may be short of it when few tasks match."""
        ...

    async def count(self, tenant: str) -> dict[int, int]:
        """Tasks by state, of all states; `tenant` "" = of all tenants."""
        ...

    async def tenants(self) -> list[str]:
        """Every tenant that has had a task."""
        ...

    async def expired(self, ended_before_clock_ms: int, limit: int) -> list[Expired]:
        """Tasks that ended before that clock, oldest first."""
        ...

    async def surplus(self, kept: int, ended_before_clock_ms: int, limit: int) -> list[Expired]:
        """The same, and of those only what there is beyond `kept` ended tasks of all tenants."""
        ...

    async def remove(self, removals: Sequence[Removal]) -> int:
        """Removes ended tasks with their index entries, logs and holds on blobs; how many."""
        ...

    async def old_requests(self, before_clock_ms: int, limit: int) -> list[OldRequest]:
        """Requests that were reserved, or last looked at, before that clock."""
        ...

    async def forget_requests(
        self, requests: Sequence[tuple[OldRequest, str]], look_again_clock_ms: int
    ) -> int:
        """Forgets those of which no task is left, by the prefix of their ids; how many.

        The others come back from `old_requests` for clocks after `look_again_clock_ms`.
        """
        ...


class EventLog(Protocol):
    """All events in order, numbered from 1 without holes; only the newest are kept."""

    async def last(self) -> int:
        """Number of the newest event, 0 when there was none."""
        ...

    async def after(self, seq: int, limit: int) -> list[LogEntry]:
        """The oldest kept events with higher numbers."""
        ...

    async def wait_beyond(self, seq: int, wait_s: float) -> int:
        """Number of the newest event, as soon as it is higher; else `seq`, after `wait_s`."""
        ...

    def attend(self, heard: Callable[[LogBatch | None], None]) -> None:
        """`heard` is told of events as this process writes them, and None when all its writes
        that were under way have ended. Not all events come this way: whoever finds a hole in
        their numbers reads the log."""
        ...

    @property
    def writing(self) -> bool:
        """Whether a write is under way of which `heard` will be told."""
        ...


class ClusterStore(Protocol):
    """Term, clock, incarnations, policy, wishes of operators, API keys."""

    async def acquire_term(self, head: str, event: bytes, above: int = 0) -> tuple[int, int]:
        """The next term, higher than `above`, and the clock; the event gets its term here."""
        ...

    async def confirm_term(self, term: int, advance_ms: int) -> tuple[bool, int]:
        """Whether it is the present term, and the clock, advanced if so."""
        ...

    async def term(self) -> int: ...

    async def clock_ms(self) -> int: ...

    async def next_incarnation(self, agent: str, above: int = 0) -> int:
        """Higher than all before, and than `above`."""
        ...

    async def name(self, offered: str) -> str:
        """The name of this data, for good: `offered` when it has none yet."""
        ...

    @property
    def durability(self) -> Durability:
        """As found when the store was connected."""
        ...

    async def policy(self) -> tuple[bytes, str]:
        """The policy, b"" when none was ever put, and its etag ("0" then)."""
        ...

    async def put_policy(
        self, policy: bytes, if_match: str, head: str, event: bytes
    ) -> tuple[bool, str]:
        """Whether it was written, and the etag that stands now; `if_match` "" = any."""
        ...

    async def set_wish(self, agent: str, wish: int, who: str, head: str, event: bytes) -> None: ...

    async def wishes(self) -> dict[str, int]:
        """Wishes by agent; agents without one are left out."""
        ...

    async def create_api_key(self, ident: str, record: bytes) -> bool:
        """False when the id is taken; raises Conflict when there are too many keys."""
        ...

    async def api_key(self, ident: str) -> StoredKey | None: ...

    async def api_keys(self) -> list[StoredKey]: ...

    async def revoke_api_key(self, ident: str, now_ms: int) -> None:
        """The first revocation's time stands."""
        ...

    async def touch_api_keys(self, last_used_at_ms: Mapping[str, int]) -> None:
        """Last uses never go back; unknown keys are left out."""
        ...


class ValueStore(Protocol):
    """Shared data under keys of a tenant. An etag never comes back, not even after a deletion."""

    async def value(self, tenant: str, key: str) -> Value | None: ...

    async def put_value(
        self, tenant: str, key: str, value: Value, *, if_match: str, if_none_match: bool
    ) -> PutVerdict:
        """`if_match` "" = any, "*" = must be there. `value.etag` is not looked at."""
        ...

    async def delete_value(self, tenant: str, key: str, if_match: str) -> DeleteVerdict: ...

    async def value_keys(
        self, tenant: str, prefix: str, cursor: str, limit: int
    ) -> tuple[list[str], str]:
        """Keys after `cursor` in the order of their UTF-8, and the next cursor ("" = the end)."""
        ...


class BlobIndex(Protocol):
    """Who refers to which blob, and the logs of tasks. Holds no blob's content.

    The files follow the index: one is put in place only after `claim_blob`, and deleted only by
    who was told to by `drop_blob` or `doom_blobs`, who says `buried` afterwards.
    """

    async def claim_blob(self, tenant: str, sha256: str, size_bytes: int, *, pinned: bool) -> bool:
        """False while a file of that name is being deleted: ask again later."""
        ...

    async def drop_blob(self, tenant: str, sha256: str) -> Drop: ...

    async def doom_blobs(
        self, idle_before_clock_ms: int, dying_before_clock_ms: int, limit: int
    ) -> list[tuple[str, str]]:
        """(tenant, sha256) of files for the caller to delete.

        These are idle since before the first clock, or were taken by somebody else before the
        second and never buried.
        """
        ...

    async def buried(self, blobs: Sequence[tuple[str, str]]) -> None: ...

    async def set_logs(self, logs: Sequence[LogRef]) -> int:
        """How many were taken: logs of unknown tasks are left out."""
        ...

    async def logs(self, tenant: str, task_id: str) -> list[bytes]:
        """Records by attempt, ascending."""
        ...


class Store(Protocol):
    """All of them over one set of data."""

    @property
    def tasks(self) -> TaskStore: ...
    @property
    def events(self) -> EventLog: ...
    @property
    def cluster(self) -> ClusterStore: ...
    @property
    def values(self) -> ValueStore: ...
    @property
    def blobs(self) -> BlobIndex: ...

    async def run(self) -> None:
        """Keeps the store connected until it is cancelled."""
        ...

    def why_not_ready(self) -> str | None:
        """One sentence while the store cannot be used."""
        ...
