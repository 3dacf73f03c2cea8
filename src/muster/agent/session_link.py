"""One stream to the scheduler's leader, opened again for as long as the process lives.

The same link serves the runtime and its supervisor; they differ in what they say.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, Protocol

from muster.agent.journal import Journal
from muster.agent.peers import Peers
from muster.api.v1 import scheduler_pb2 as pb
from muster.api.v1.scheduler_pb2_grpc import SchedulerServiceStub
from muster.domain.errors import Conflict, MusterError, NotLeader, Unauthenticated, Unavailable
from muster.rpc.channels import ServiceChannel, full_jitter
from muster.rpc.clock import boot_ms
from muster.rpc.status import REASON_LOST, rpc_errors

# The leader answers a beat each second; a stream that is silent for longer is dead.
SILENCE_MS: Final = 5_000
_FIRST_PAUSE_S: Final = 0.05
_LAST_PAUSE_S: Final = 1.0
# How long one word of a standby about the leader is followed before the registry's counts again.
_WATCH_S: Final = 0.5
_CROWDED_S: Final = 0.001
# A scheduler that ended a stream without a reason is asked for it; it answers from memory.
_ASK_S: Final = 0.5


class Speaker(Protocol):
    """What a link needs of its owner."""

    def opened(self) -> None:
        """A stream stands: what `next_message` gives first must be the hello."""

    def next_message(self) -> pb.SessionRequest | None:
        """All that is to be said now, or None."""

    def heard(self, message: pb.SessionResponse) -> None:
        """The leader said something."""

    def crowded(self) -> bool:
        """Whether so much is under way that more will be said within a millisecond."""

    def lost(self) -> None:
        """The stream is gone, with all that was said and not confirmed."""


class SessionLink:
    """`want_leader` is called when the leader is unknown or does not answer."""

    def __init__(
        self,
        *,
        peers: Peers,
        secret: str,
        speaker: Speaker,
        journal: Journal,
        want_leader: Callable[[], None],
    ) -> None:
        self._peers, self._secret, self._speaker = peers, secret, speaker
        self._journal, self._want_leader = journal, want_leader
        self._wake = asyncio.Event()
        self._channel: ServiceChannel | None = None
        self._heard_ms = 0
        self._hint = ""
        self.leader = ""

    def wake(self) -> None:
        """There is something to be said."""
        self._wake.set()

    async def run(self) -> None:
        """For ever. Raises Conflict when the leader says that this process must end."""
        failures = 0
        while True:
            leader = self._hint or self._peers.endpoints.leader
            if not leader:
                self._want_leader()
                await self._wait_for_change(full_jitter(failures, 0.1, _LAST_PAUSE_S) + 0.05)
                failures += 1
                continue
            began_ms = boot_ms()
            try:
                await self._hold(leader)
            except NotLeader as error:
                self._hint = error.leader if error.leader != leader else ""
            except Conflict:
                raise
            except MusterError as error:
                lost = isinstance(error, Unavailable) and error.detail == REASON_LOST
                self._hint = await self._ask_who_leads(leader) if lost else ""
                if failures == 0:
                    self._journal.warning("the leader was lost", leader=leader, why=str(error))
                if isinstance(error, Unauthenticated):
                    self._journal.error("the leader refuses the join secret", leader=leader)
            failures = failures + 1 if boot_ms() - began_ms < SILENCE_MS else 0
            another = self._hint or self._peers.endpoints.leader
            if another and another != leader and failures <= 1:
                continue
            self._want_leader()
            await self._wait_for_change(full_jitter(failures, _FIRST_PAUSE_S, _LAST_PAUSE_S))

    async def _ask_who_leads(self, asked: str) -> str:
        """Another leader than the scheduler that was asked, when that knows one."""
        assert self._channel is not None
        request = pb.GetClusterStatusRequest()
        try:
            answer = await self._channel.call(
                SchedulerServiceStub, "GetClusterStatus", request, timeout_s=_ASK_S
            )
        except NotLeader as error:
            return error.leader if error.leader != asked else ""
        except MusterError:
            # It has nothing to say; the registry is asked next.
            return ""
        return str(answer.leader) if answer.leader != asked else ""

    async def _wait_for_change(self, seconds: float) -> None:
        """A pause that ends at once when the registry names another leader."""
        self._peers.changed.clear()
        try:
            async with asyncio.timeout(seconds):
                await self._peers.changed.wait()
        except TimeoutError:
            return

    async def _hold(self, leader: str) -> None:
        """Speaks with this leader until the stream ends, always by an error."""
        if self._channel is None or self._channel.address != leader:
            if self._channel is not None:
                await self._channel.close()
            self._channel = ServiceChannel((leader,), secret=self._secret, what="the leader")
        stream: Any = self._channel.stream(SchedulerServiceStub, "Session")
        self._heard_ms = boot_ms()
        self._speaker.opened()
        self._wake.set()
        writer = asyncio.create_task(self._write(stream), name="session writer")
        watcher = asyncio.create_task(self._watch(leader), name="session watcher")
        # Whichever ends first ends the stream, and with it the reader below.
        for task in (writer, watcher):
            task.add_done_callback(lambda _: stream.cancel())
        try:
            with rpc_errors("the leader"):
                await self._read(stream, leader)
        except asyncio.CancelledError:
            this = asyncio.current_task()
            if this is not None and this.cancelling():
                raise
            raise Unavailable("the leader", "the stream was given up") from None
        finally:
            self.leader = ""
            self._speaker.lost()
            stream.cancel()
            for task in (writer, watcher):
                task.cancel()
            await asyncio.gather(writer, watcher, return_exceptions=True)

    async def _read(self, stream: Any, leader: str) -> None:
        while True:
            message = await stream.read()
            if not isinstance(message, pb.SessionResponse):
                raise Unavailable("the leader", "it ended the session")
            self._heard_ms = boot_ms()
            if message.HasField("welcome"):
                self.leader = leader
            self._speaker.heard(message)

    async def _write(self, stream: Any) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            # What else is ready in this turn of the loop joins; while a message is under way the
            # next one gathers. With much under way, a moment more saves both ends many messages.
            await asyncio.sleep(_CROWDED_S if self._speaker.crowded() else 0)
            while (message := self._speaker.next_message()) is not None:
                await stream.write(message)

    async def _watch(self, leader: str) -> None:
        """Ends when the leader is silent for too long, or when there is another one."""
        while boot_ms() - self._heard_ms < SILENCE_MS:
            await asyncio.sleep(_WATCH_S)
            named = self._peers.endpoints.leader
            if self._peers.changed.is_set() and named and named != leader:
                self._hint = ""
                return

    def give_up(self) -> None:
        """Ends the present stream; a new one is opened at once."""
        self._heard_ms = 0

    async def close(self) -> None:
        """Closes the connection."""
        if self._channel is not None:
            await self._channel.close()
