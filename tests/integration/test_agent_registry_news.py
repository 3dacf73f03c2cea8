"""An agent takes what the registry tells between its beats at once, and no answer for another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from tests.polling import eventually
from tests.service_process import SECRET

from muster.agent.journal import Journal
from muster.agent.peers import Peers
from muster.agent.registration import RegistryLink
from muster.api.v1 import registry_pb2 as pb
from muster.api.v1 import registry_pb2_grpc
from muster.domain.agent import AgentSpec
from muster.domain.ids import AgentId
from muster.domain.resources import ResourceVector
from muster.rpc.server import RpcServer

# Beats are asked for by the test alone.
_NEVER_MS = 600_000


class _Registry(registry_pb2_grpc.RegistryServiceServicer):
    """Tells of two leaders after the first beat, and says by the leader which beat it answers."""

    def __init__(self) -> None:
        self.beats: list[int] = []

    async def Register(self, request: Any, context: Any) -> pb.RegisterResponse:
        return pb.RegisterResponse(
            incarnation=1, lease_id=7, lease_ttl_ms=10_000, heartbeat_interval_ms=_NEVER_MS
        )

    async def Heartbeat(
        self, request_iterator: AsyncIterator[pb.HeartbeatRequest], context: Any
    ) -> AsyncIterator[pb.HeartbeatResponse]:
        async for beat in request_iterator:
            self.beats.append(beat.seq)
            yield _said(beat.seq, f"answer:{beat.seq}")
            if len(self.beats) == 1:
                yield _said(0, "news:1")
                yield _said(0, "news:2")


def _said(seq: int, leader: str) -> pb.HeartbeatResponse:
    return pb.HeartbeatResponse(
        seq=seq,
        registered=True,
        heartbeat_interval_ms=_NEVER_MS,
        endpoints=pb.Endpoints(leader=leader),
    )


async def test_news_between_beats_is_heard_at_once_and_answers_stay_in_step() -> None:
    registry = _Registry()  # type: ignore[abstract]  # the rest answers UNIMPLEMENTED
    server = RpcServer("127.0.0.1:0", secret=SECRET, service="test")
    server.add(registry_pb2_grpc.add_RegistryServiceServicer_to_server, registry)
    port = await server.start()
    peers = Peers(SECRET)
    link = RegistryLink(
        addresses=(f"127.0.0.1:{port}",),
        secret=SECRET,
        spec=AgentSpec(AgentId("a"), ResourceVector((("slots", 1),))),
        key=b"k" * 32,
        peers=peers,
        journal=Journal("runtime", "a"),
        on_registered=lambda _incarnation: None,
    )
    await link.register()
    running = asyncio.create_task(link.run())
    try:
        link.poke()
        await eventually(lambda: peers.endpoints.leader == "news:2")
        for number in (2, 3):
            link.poke()
            await eventually(lambda: len(registry.beats) == number)  # noqa: B023
            await eventually(lambda: peers.endpoints.leader == f"answer:{number}")  # noqa: B023
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await link.close()
        await server.stop(0)
