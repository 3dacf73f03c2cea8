"""What the supervisor says to the leader: signs of life, and deaths until they are delivered."""

from __future__ import annotations

from collections.abc import Callable

from muster.agent.conversion import ref_to_proto
from muster.agent.slot_table import StartedAttempt
from muster.agent.supervisor_core import Death, Deaths
from muster.api.v1 import scheduler_pb2 as pb
from muster.domain.ids import AgentId
from muster.rpc.clock import boot_ms
from muster.rpc.conversion import VERSION


class SupervisorSpeech:
    """`on_restart(incarnation, why)`: the leader wants a new runtime."""

    def __init__(
        self, agent: AgentId, incarnation: Callable[[], int], on_restart: Callable[[int, str], None]
    ) -> None:
        self._agent, self._incarnation, self._on_restart = agent, incarnation, on_restart
        self._deaths = Deaths()
        self._term = 0
        self._seq = 0
        self._spoken = False
        self._beat_due = False

    @property
    def undelivered(self) -> int:
        """Deaths that no leader has confirmed."""
        return len(self._deaths)

    def died(
        self, incarnation: int, started: tuple[StartedAttempt, ...], known: bool, why: str
    ) -> None:
        """A runtime is dead and all of its processes are gone."""
        self._deaths.add(Death(incarnation, started, known, why))

    def beat(self) -> None:
        """A beat is due."""
        self._beat_due = True

    def opened(self) -> None:
        """Whatever an earlier stream carried may have been lost with it."""
        self._spoken = False
        self._beat_due = True
        self._deaths.unsay()

    def crowded(self) -> bool:
        """It has little to say."""
        return False

    def lost(self) -> None:
        """The next stream begins anew."""

    def heard(self, message: pb.SessionResponse) -> None:
        """The leader answers beats, and may want a new runtime."""
        if message.term < self._term:
            return
        self._term = message.term
        if message.HasField("beat_ack"):
            self._deaths.confirm(message.beat_ack.seq)
        if message.HasField("restart"):
            self._on_restart(message.restart.incarnation, message.restart.why)

    def next_message(self) -> pb.SessionRequest | None:
        """The hello, then one death at a time, each with a beat."""
        message = pb.SessionRequest(incarnation=self._incarnation(), term=self._term)
        if not self._spoken:
            self._spoken = True
            message.hello.version = VERSION
            message.hello.agent = self._agent
            message.hello.role = pb.SESSION_ROLE_SUPERVISOR
            return message
        if not (self._deaths.unsaid or self._beat_due):
            return None
        self._seq += 1
        self._beat_due = False
        message.beat.seq = self._seq
        message.beat.sent_boot_ms = boot_ms()
        died = self._deaths.say_next(self._seq)
        if died is not None:
            message.runtime_died.incarnation = died.incarnation
            message.runtime_died.started.extend(ref_to_proto(s.key, s.tenant) for s in died.started)
            message.runtime_died.started_known = died.known
            message.runtime_died.why = died.why
        return message
