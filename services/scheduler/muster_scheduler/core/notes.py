"""Notes of attempts, taken where every task passes: a few field reads for the sampled ones.

What a model learns from is worked out of them later and elsewhere (`learning.records`).
"""

from __future__ import annotations

import msgspec

from muster.domain.ids import AgentId, TaskId, TenantId
from muster.domain.task import Outcome
from muster_scheduler.core.records import Begun, Now, OpenTask
from muster_scheduler.learning.attempts import MAX_PARSED_BYTES
from muster_scheduler.placement.snapshot import Snapshot

# Attempts noted a second, chosen when they are assigned and so whatever comes of them: the first
# of each moment, as many as have been saved up. A model needs thousands, not all.
NOTED_PER_S = 200
MAX_SAVED_UP = 200
# Notes that nobody has taken yet; some 20 s' worth. Those beyond are counted, not kept.
MAX_NOTES = 4096

LOST = "lost"


class Note(msgspec.Struct, frozen=True, gc=False):
    """One attempt that ended; times in milliseconds, of one clock each.

    `outcome` is an OutcomeKind, or LOST. `input_json` is empty where it is larger than
    MAX_PARSED_BYTES: the notes of a moment must not hold a gigabyte. `since_created_ms` counts from
    the task's creation to the attempt's end.
    """

    task_id: TaskId
    tenant: TenantId
    attempt: int
    agent: AgentId
    skill: str
    estimate_ms: int
    input_json: bytes
    input_bytes: int
    outcome: str
    started_at_ms: int
    ended_at_ms: int
    since_created_ms: int
    load: float
    reference_s: float
    choice: int


class Notes:
    """Those of one leader. `allowed` is how many more may be begun now."""

    def __init__(self) -> None:
        # Off until somebody takes them.
        self.per_s = 0
        self.allowed = 0
        self.dropped = 0
        self._ended: list[Note] = []
        self._refilled_boot_ms = 0

    def refill(self, now: Now) -> None:
        """Called before each round of placement."""
        passed_ms = now.boot_ms - self._refilled_boot_ms
        more = self.per_s * min(passed_ms, 1000) // 1000
        if more > 0:
            self._refilled_boot_ms = now.boot_ms
            self.allowed = min(MAX_SAVED_UP, self.allowed + more)

    def end(self, task: OpenTask, begun: Begun, outcome: str, at: Outcome | None, now: Now) -> None:
        """The task's present attempt has ended; `at` is its agent's word, where there is one."""
        task.begun = None
        if len(self._ended) >= MAX_NOTES:
            self.dropped += 1
            return
        spec, status = task.spec, task.status
        given = spec.input_json
        size = len(given)
        told = at is not None and at.ended_at_ms > 0 and at.started_at_ms > 0
        self._ended.append(
            Note(
                task.id,
                spec.tenant,
                status.attempt,
                status.agent,
                spec.skill,
                spec.estimate_ms,
                given if size <= MAX_PARSED_BYTES else b"",
                size,
                outcome,
                at.started_at_ms if told and at is not None else status.started_at_ms,
                at.ended_at_ms if told and at is not None else now.wall_ms,
                now.clock_ms - status.created_clock_ms,
                begun.load,
                begun.reference_s,
                begun.choice,
            )
        )

    def take(self) -> list[Note]:
        """What was noted since the last call."""
        ended, self._ended = self._ended, []
        return ended


def load_of(snapshot: Snapshot, row: int) -> float:
    """Dominant share of the row in use, 0 to about 1."""
    used, whole = snapshot.used, snapshot.divisor
    load = 0.0
    # A row is a few numbers: one by one they are read more quickly than as an array.
    for column in range(used.shape[1]):
        share = used.item(row, column) / whole.item(row, column)
        load = max(load, share)
    return load
