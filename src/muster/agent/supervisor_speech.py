"""What the supervisor says to the leader: signs of life, and deaths until they are delivered."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from muster.agent.conversion import ref_to_proto
from muster.agent.slot_table import StartedAttempt
from muster.api.v1 import scheduler_pb2 as pb
from muster.domain.ids import AgentId
from muster.rpc.clock import boot_ms
from muster.rpc.conversion import VERSION

# A leader that has not heard of these many deaths has long given the agent up.
_MAX_DEATHS: Final = 16


class SupervisorSpeech:
    """`on_restart(incarnation, why)`: the leader wants a new runtime."""

    def __init__(
        self, agent: AgentId, incarnation: Callable[[], int], on_restart: Callable[[int, str], None]
    ) -> None:
        self._agent, self._incarnation, self._on_restart = agent, incarnation, on_restart
        # Each with the number of the beat that followed it on this stream, 0 = not said.
        self._deaths: deque[tuple[pb.RuntimeDied, int]] = deque(maxlen=_MAX_DEATHS)
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
        message = pb.RuntimeDied(
            incarnation=incarnation,
            started=[ref_to_proto(s.key, s.tenant) for s in started],
            started_known=known,
            why=why,
        )
        self._deaths.append((message, 0))

    def beat(self) -> None:
        """A beat is due."""
        self._beat_due = True

    def opened(self) -> None:
        """Whatever an earlier stream carried may have been lost with it."""
        self._spoken = False
        self._beat_due = True
        self._deaths = deque(((died, 0) for died, _ in self._deaths), maxlen=_MAX_DEATHS)

    def crowded(self) -> bool:
        """It has little to say."""
        return False

    def lost(self) -> None:
        """The next stream begins anew."""

    def heard(self, message: pb.SessionResponse) -> None:
        """Messages on a stream arrive in order: an answered beat confirms what came before."""
        if message.term < self._term:
            return
        self._term = message.term
        if message.HasField("beat_ack"):
            while self._deaths and 0 < self._deaths[0][1] <= message.beat_ack.seq:
                self._deaths.popleft()
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
        unsaid = next((i for i, (_, seq) in enumerate(self._deaths) if seq == 0), None)
        if unsaid is None and not self._beat_due:
            return None
        self._seq += 1
        self._beat_due = False
        message.beat.seq = self._seq
        message.beat.sent_boot_ms = boot_ms()
        if unsaid is not None:
            died, _ = self._deaths[unsaid]
            self._deaths[unsaid] = (died, self._seq)
            message.runtime_died.CopyFrom(died)
        return message
