"""What the runtime says to the leader: gathered until the stream takes the next message."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from muster.agent.conversion import events_from_proto, held_to_proto, ref_to_proto
from muster.agent.events import (
    AttemptKey,
    Event,
    SendBeat,
    SendDraining,
    SendHello,
    SendOutcome,
    SendStarted,
    SendWaiting,
    SessionLost,
    SessionOpened,
)
from muster.api.v1 import scheduler_pb2 as pb
from muster.domain.ids import AgentId, TenantId
from muster.rpc.conversion import VERSION, outcome_to_proto

# Outcomes hold up to 64 KiB each; gRPC takes messages of 16 MiB.
_MAX_OUTCOMES: Final = 1_000
_MAX_OUTCOME_BYTES: Final = 8 * 1024 * 1024
# A start is told after this long, and so never for a task that has ended by then: most do, and
# each word of a start would cost the leader a write.
STARTED_AFTER_MS: Final = 30
# From this many attempts on, their number counts for more than the millisecond of one.
CROWDED_FROM: Final = 8
# Progress is best effort: beyond this the oldest gives way.
_MAX_PROGRESS: Final = 4_096
_MAX_PROGRESS_PER_MESSAGE: Final = 500
_MAX_PROGRESS_BYTES: Final = 4 * 1024 * 1024


class RuntimeSpeech:
    """`emit` takes the leader's words as events; `identity` gives (incarnation, term)."""

    def __init__(
        self,
        agent: AgentId,
        emit: Callable[[Event], None],
        identity: Callable[[], tuple[int, int]],
        clock_ms: Callable[[], int],
        held: Callable[[], int] = lambda: 0,
    ) -> None:
        self._agent, self._emit, self._identity = agent, emit, identity
        self._clock_ms, self._held = clock_ms, held
        self._hello: SendHello | None = None
        self._spoken = False
        self._beat: SendBeat | None = None
        self._draining = False
        # In the order of time, with when it was heard of.
        self._started: dict[AttemptKey, tuple[int, SendStarted]] = {}
        self._outcomes: deque[SendOutcome] = deque()
        self._waiting: dict[AttemptKey, SendWaiting] = {}
        self._fractions: dict[AttemptKey, pb.AttemptProgress] = {}
        self._partials: deque[pb.AttemptProgress] = deque(maxlen=_MAX_PROGRESS)

    # --- from the core ----------------------------------------------------------------------

    def hello(self, command: SendHello) -> None:
        """First words."""
        self._hello = command

    def beat(self, command: SendBeat) -> None:
        """Only the latest beat counts."""
        self._beat = command

    def draining(self, _command: SendDraining) -> None:
        """Place nothing here."""
        self._draining = True

    def started(self, command: SendStarted) -> None:
        """Told in a while, unless the attempt ends before."""
        self._started[command.key] = (self._clock_ms(), command)

    def next_started_ms(self) -> int | None:
        """When there is a start to be told; None = there is none."""
        first = next(iter(self._started.values()), None)
        return first[0] + STARTED_AFTER_MS if first else None

    def outcome(self, command: SendOutcome) -> None:
        """How an attempt ended."""
        if self._started:
            self._started.pop(command.key, None)
        if self._fractions:
            self._fractions.pop(command.key, None)
        self._outcomes.append(command)

    def waiting(self, command: SendWaiting) -> None:
        """Only the latest word about an attempt counts."""
        self._waiting[command.key] = command

    # --- from skills ------------------------------------------------------------------------

    def progress(self, key: AttemptKey, tenant: TenantId, fraction: float, note: str) -> None:
        """Only the latest counts."""
        self._fractions[key] = pb.AttemptProgress(
            ref=ref_to_proto(key, tenant), fraction=fraction, note=note
        )

    def partial(self, key: AttemptKey, tenant: TenantId, index: int, content: bytes) -> None:
        """One yield of a generator."""
        self._partials.append(
            pb.AttemptProgress(
                ref=ref_to_proto(key, tenant),
                fraction=-1,
                partial_json=content,
                partial_index=index,
            )
        )

    # --- for the link -----------------------------------------------------------------------

    def opened(self) -> None:
        """Nothing of an earlier stream is said on a new one; the core says it again."""
        self._clear()
        self._emit(SessionOpened())

    def crowded(self) -> bool:
        """Few attempts want their outcome told at once, many want it told together."""
        return self._held() >= CROWDED_FROM

    def lost(self) -> None:
        """What was gathered is void: the next hello and the outbox cover it."""
        self._clear()
        self._emit(SessionLost())

    def heard(self, message: pb.SessionResponse) -> None:
        """The leader's words, as events."""
        for event in events_from_proto(message):
            self._emit(event)

    def _clear(self) -> None:
        self._hello = self._beat = None
        self._spoken = self._draining = False
        for gathered in (self._started, self._waiting, self._fractions):
            gathered.clear()
        self._outcomes.clear()
        self._partials.clear()

    def next_message(self) -> pb.SessionRequest | None:
        """All that has gathered, up to the size of a message."""
        incarnation, term = self._identity()
        message = pb.SessionRequest(incarnation=incarnation, term=term)
        if not self._spoken:
            if self._hello is None:
                return None
            message.hello.version = VERSION
            message.hello.agent = self._agent
            message.hello.role = pb.SESSION_ROLE_RUNTIME
            message.hello.held.extend(held_to_proto(self._hello.held))
            # A process that was never told a term must not claim one.
            self._spoken = True
            return message
        said = self._add_small(message)
        said |= self._add_outcomes(message)
        said |= self._add_progress(message)
        return message if said else None

    def _add_small(self, message: pb.SessionRequest) -> bool:
        said = False
        if self._beat is not None:
            message.beat.seq = self._beat.seq
            message.beat.sent_boot_ms = self._beat.sent_boot_ms
            self._beat = None
            said = True
        if self._draining:
            message.draining = True
            self._draining = False
            said = True
        now_ms = self._clock_ms() if self._started else 0
        while self._started:
            key, (heard_ms, start) = next(iter(self._started.items()))
            if heard_ms + STARTED_AFTER_MS > now_ms:
                break
            del self._started[key]
            message.started.add(
                ref=ref_to_proto(key, start.tenant), started_at_ms=start.started_at_ms
            )
            said = True
        if self._waiting:
            message.waiting.extend(
                pb.AttemptWaiting(ref=ref_to_proto(w.key, w.tenant), waiting=w.waiting)
                for w in self._waiting.values()
            )
            self._waiting.clear()
            said = True
        return said

    def _add_outcomes(self, message: pb.SessionRequest) -> bool:
        size = 0
        while self._outcomes and len(message.outcomes) < _MAX_OUTCOMES:
            item = self._outcomes.popleft()
            message.outcomes.append(
                pb.AttemptOutcome(
                    ref=ref_to_proto(item.key, item.tenant), outcome=outcome_to_proto(item.outcome)
                )
            )
            size += len(item.outcome.output_json) + len(item.outcome.error)
            if size > _MAX_OUTCOME_BYTES:
                break
        return bool(message.outcomes)

    def _add_progress(self, message: pb.SessionRequest) -> bool:
        if self._fractions:
            message.progress.extend(self._fractions.values())
            self._fractions.clear()
        size = 0
        while self._partials and len(message.progress) < _MAX_PROGRESS_PER_MESSAGE:
            item = self._partials.popleft()
            message.progress.append(item)
            size += len(item.partial_json)
            if size > _MAX_PROGRESS_BYTES:
                break
        return bool(message.progress)
