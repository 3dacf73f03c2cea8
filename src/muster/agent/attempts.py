"""One attempt in the hands of the executor, and the outcomes it may come to."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Protocol

from muster.agent import error_kinds
from muster.agent.events import AttemptKey, AttemptSpec, StopReason
from muster.agent.outputs import describe_signal
from muster.domain.ids import TenantId
from muster.domain.task import MAX_ERROR_CHARS, Outcome, OutcomeKind


@dataclass(slots=True)
class LiveAttempt:
    """An attempt from its Start to its end. `slot` names it to a runner."""

    spec: AttemptSpec
    slot: int
    mode: str
    started_at_ms: int = 0
    stop_reason: StopReason | None = None
    kill_timer: asyncio.TimerHandle | None = None
    storing: asyncio.Task[None] | None = None
    # Replies that wait until the core gives the waiting parent its slot back.
    held_replies: list[Any] | None = None
    # Children whose results it asks for now.
    waits: int = 0

    @property
    def stopping(self) -> bool:
        """Whether the core wants the attempt ended."""
        return self.stop_reason is not None

    @property
    def key(self) -> AttemptKey:
        """The attempt's name."""
        return self.spec.key


class BlobStore(Protocol):
    """Where large results go."""

    async def put_file(self, tenant: TenantId, path: str) -> tuple[str, int]:
        """SHA-256 and size once it is stored; tries until it is, or is cancelled."""


def failed(live: LiveAttempt, kind: str, error: str, now_ms: int, **more: Any) -> Outcome:
    """The skill failed; `now_ms` is wall time."""
    return Outcome(
        OutcomeKind.FAILED,
        error=error[:MAX_ERROR_CHARS],
        error_kind=kind,
        started_at_ms=live.started_at_ms,
        ended_at_ms=now_ms,
        **more,
    )


def returned(live: LiveAttempt, kind: str, error: str, now_ms: int) -> Outcome:
    """Given back without blame."""
    return Outcome(
        OutcomeKind.RETURNED,
        error=error[:MAX_ERROR_CHARS],
        error_kind=kind,
        started_at_ms=live.started_at_ms,
        ended_at_ms=now_ms,
    )


def stopped(live: LiveAttempt, now_ms: int) -> Outcome:
    """Ended because Muster wanted it; the core knows why."""
    return Outcome(OutcomeKind.CANCELLED, started_at_ms=live.started_at_ms, ended_at_ms=now_ms)


def died(live: LiveAttempt, code: int, now_ms: int) -> Outcome:
    """The process ended under the attempt; `code` is negative for a signal."""
    if code < 0:
        name = describe_signal(-code)
        hint = " (out of memory, perhaps)" if name == "SIGKILL" else ""
        error = f"the runner died of signal {name}{hint}"
        return failed(live, error_kinds.SIGNAL, error, now_ms)
    error = f"the runner ended with exit code {code} while the attempt ran"
    return failed(live, error_kinds.EXIT, error, now_ms, exit_code=code)
