"""The runtime's place in the registry: registering, beating, and following what it says."""

from __future__ import annotations

import asyncio
import os
import random
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from muster.agent.conversion import endpoints_from_proto
from muster.agent.journal import Journal
from muster.agent.peers import Peers
from muster.api.v1 import registry_pb2 as pb
from muster.api.v1.registry_pb2_grpc import RegistryServiceStub
from muster.domain.agent import AgentSpec
from muster.domain.errors import (
    ConfigurationError,
    Conflict,
    DeadlineExceeded,
    InvalidInput,
    MusterError,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
)
from muster.rpc.channels import ServiceChannel, full_jitter
from muster.rpc.conversion import agent_spec_to_proto
from muster.rpc.status import rpc_errors

_KEY_BYTES: Final = 32
_REGISTER_S: Final = 5.0
_DEREGISTER_S: Final = 2.0
# Longer than any pause of a healthy registry, well below a lease's life of 10 s.
_ANSWER_S: Final = 3.0
# Answers that no beat has taken: each beat is answered once, and awaits that.
_MAX_UNREAD: Final = 16
_EAGER_ATTEMPTS: Final = 50
_LEAST_PAUSE_S: Final = 0.05
_FIRST_PAUSE_S: Final = 0.1
_LAST_PAUSE_S: Final = 2.0


class Superseded(Exception):
    """Another process runs this agent now."""


def instance_key(folder: Path) -> bytes:
    """The key that proves a restarted agent to be the same one; made at the first start."""
    path = folder / "instance.key"
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        key = path.read_bytes()
        if len(key) != _KEY_BYTES:
            raise ConfigurationError(
                "MUSTER_STATE_DIR", str(path), f"the key must have {_KEY_BYTES} bytes; remove it"
            ) from None
        return key
    key = secrets.token_bytes(_KEY_BYTES)
    with os.fdopen(fd, "wb") as out:
        out.write(key)
        out.flush()
        os.fsync(out.fileno())
    return key


class RegistryLink:
    """`on_registered(incarnation)` is called after each registration."""

    def __init__(
        self,
        *,
        addresses: tuple[str, ...],
        secret: str,
        spec: AgentSpec,
        key: bytes,
        peers: Peers,
        journal: Journal,
        on_registered: Callable[[int], None],
    ) -> None:
        # Every beat is timed here: no ping is needed beside it.
        self._channel = ServiceChannel(addresses, secret=secret, what="the registry", brisk=False)
        self._spec, self._key, self._peers = spec, key, peers
        self._journal, self._on_registered = journal, on_registered
        self.incarnation = 0
        self._lease_id = 0
        self._interval_s = 3.0
        self._seq = 0
        self._beat_now = asyncio.Event()

    def poke(self) -> None:
        """Beat now: the caller misses a leader that the answer may name."""
        self._beat_now.set()

    async def register(self) -> None:
        """Tries until it is done. Raises ConfigurationError when trying again cannot help."""
        attempt = 0
        while True:
            address = self._channel.address
            try:
                await self._register_once()
            except (Unavailable, DeadlineExceeded) as error:
                failure: MusterError = error
                if attempt % 20 == 0:
                    self._journal.warning("the registry does not answer", why=str(error))
            except (Unauthenticated, PermissionDenied):
                raise ConfigurationError(
                    "MUSTER_JOIN_SECRET", "…", "the registry refuses this secret"
                ) from None
            except Conflict as error:
                raise ConfigurationError("MUSTER_AGENT_ID", self._spec.id, str(error)) from None
            except InvalidInput as error:
                raise ConfigurationError(error.field, error.value, error.limit) from None
            except MusterError as error:
                failure = error
                self._journal.error("the registry failed", why=str(error))
            else:
                return
            self._channel.turn_from(address, failure)
            # While a cluster comes up everything is there within seconds: no long pauses yet.
            last_s = _LAST_PAUSE_S if attempt > _EAGER_ATTEMPTS else _FIRST_PAUSE_S
            await asyncio.sleep(full_jitter(attempt, _FIRST_PAUSE_S, last_s) + _LEAST_PAUSE_S)
            attempt += 1

    async def _register_once(self) -> None:
        request = pb.RegisterRequest(
            spec=agent_spec_to_proto(self._spec),
            instance_key=self._key,
            incarnation=self.incarnation,
        )
        answer: pb.RegisterResponse = await self._channel.call(
            RegistryServiceStub, "Register", request, timeout_s=_REGISTER_S
        )
        self.incarnation = answer.incarnation
        self._lease_id = answer.lease_id
        self._interval_s = max(0.1, answer.heartbeat_interval_ms / 1000)
        self._peers.update(endpoints_from_proto(answer.endpoints))
        self._journal.info("registered", incarnation=answer.incarnation)
        self._on_registered(answer.incarnation)

    async def run(self) -> None:
        """Beats for ever; registers again when told. Raises Superseded and ConfigurationError."""
        # Agents that were started together do not beat together.
        await self._pause(random.random() * self._interval_s)  # noqa: S311
        failures = 0
        while True:
            address = self._channel.address
            try:
                await self._beat_on_one_stream()
            except (Unavailable, DeadlineExceeded) as error:
                if failures == 0:
                    self._journal.warning("the registry was lost", why=str(error))
                self._channel.turn_from(address, error)
                await asyncio.sleep(full_jitter(failures, _FIRST_PAUSE_S, _LAST_PAUSE_S))
                failures += 1
            else:
                failures = 0

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._beat_now.wait()
        except TimeoutError:
            return
        finally:
            self._beat_now.clear()

    async def _beat_on_one_stream(self) -> None:
        """Until the registry wants a new registration."""
        stream: Any = self._channel.stream(RegistryServiceStub, "Heartbeat")
        answers: asyncio.Queue[pb.HeartbeatResponse] = asyncio.Queue(_MAX_UNREAD)
        reader = asyncio.create_task(self._read(stream, answers), name="registry answers")
        # The end of the stream is met by a beat on another one at once.
        reader.add_done_callback(lambda _: self.poke())
        try:
            with rpc_errors("the registry"):
                while await self._beat(stream, reader, answers):
                    await self._pause(self._interval_s)
        finally:
            stream.cancel()
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
        await self.register()

    async def _read(self, stream: Any, answers: asyncio.Queue[pb.HeartbeatResponse]) -> None:
        """Until the stream ends. A change of leader is told between the beats, unasked (seq 0)."""
        while isinstance(message := await stream.read(), pb.HeartbeatResponse):
            if message.HasField("endpoints"):
                self._peers.update(endpoints_from_proto(message.endpoints))
            if message.seq:
                await answers.put(message)

    async def _beat(
        self,
        stream: Any,
        reader: asyncio.Task[None],
        answers: asyncio.Queue[pb.HeartbeatResponse],
    ) -> bool:
        self._seq += 1
        request = pb.HeartbeatRequest(
            agent=self._spec.id,
            incarnation=self.incarnation,
            lease_id=self._lease_id,
            seq=self._seq,
        )
        try:
            async with asyncio.timeout(_ANSWER_S):
                await stream.write(request)
                answer = await self._answer(reader, answers)
        except TimeoutError:
            raise DeadlineExceeded("the registry", _ANSWER_S) from None
        except asyncio.InvalidStateError:
            raise Unavailable("the registry", "the stream ended") from None
        if answer.superseded:
            raise Superseded
        if answer.heartbeat_interval_ms:
            self._interval_s = answer.heartbeat_interval_ms / 1000
        return answer.registered

    async def _answer(
        self, reader: asyncio.Task[None], answers: asyncio.Queue[pb.HeartbeatResponse]
    ) -> pb.HeartbeatResponse:
        """To the beat that was sent last; raises what ended the stream."""
        while True:
            getting = asyncio.create_task(answers.get())
            try:
                await asyncio.wait((getting, reader), return_when=asyncio.FIRST_COMPLETED)
                if not getting.done():
                    reader.result()
                    raise Unavailable("the registry", "it ended the stream")
                if getting.result().seq == self._seq:
                    return getting.result()
            finally:
                getting.cancel()

    async def deregister(self) -> None:
        """Says goodbye; a registry that does not answer notices by itself."""
        if not self.incarnation:
            return
        request = pb.DeregisterRequest(agent=self._spec.id, incarnation=self.incarnation)
        try:
            await self._channel.call(
                RegistryServiceStub, "Deregister", request, timeout_s=_DEREGISTER_S, retry=True
            )
        except MusterError as error:
            self._journal.warning("the registry was not told of the end", why=str(error))

    async def close(self) -> None:
        """Closes the connections."""
        await self._channel.close()
