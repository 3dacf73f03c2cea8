"""The link to the leader moves on from a scheduler that refuses it, whatever gRPC makes of that."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from tests.agent_cluster import SECRET, until
from tests.polling import HANG_S

from muster.agent.journal import Journal
from muster.agent.peers import Endpoints, Peers
from muster.agent.session_link import SessionLink
from muster.api.v1 import scheduler_pb2 as pb
from muster.api.v1 import scheduler_pb2_grpc
from muster.domain.errors import NotLeader, Unavailable
from muster.domain.ids import AgentId
from muster.rpc.channels import ServiceChannel
from muster.rpc.server import RpcServer
from muster.rpc.status import REASON_LOST, rpc_errors


class Scheduler(scheduler_pb2_grpc.SchedulerServiceServicer):
    """Refuses at once when it knows another leader, else welcomes."""

    def __init__(self, leader: str = "") -> None:
        self.leader = leader
        self.dialled = 0

    async def Session(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:
        self.dialled += 1
        if self.leader:
            raise NotLeader(self.leader)
        async for _ in request_iterator:
            yield pb.SessionResponse(term=1, welcome=pb.SessionWelcome(clock_ms=1))

    async def GetClusterStatus(self, request: Any, context: Any) -> Any:
        if self.leader:
            raise NotLeader(self.leader)
        return pb.GetClusterStatusResponse()


class Talkative:
    """Writes a few messages at once, so that some meet a stream that has been refused."""

    def __init__(self) -> None:
        self.left = 0
        self.welcomed = asyncio.Event()

    def opened(self) -> None:
        self.left = 5

    def next_message(self) -> pb.SessionRequest | None:
        self.left -= 1
        return pb.SessionRequest(incarnation=1) if self.left >= 0 else None

    def heard(self, message: pb.SessionResponse) -> None:
        self.welcomed.set()

    def crowded(self) -> bool:
        return False

    def lost(self) -> None:
        pass


async def serve(scheduler: Scheduler) -> tuple[RpcServer, str]:
    server = RpcServer("127.0.0.1:0", secret=SECRET, service="scheduler")
    server.add(scheduler_pb2_grpc.add_SchedulerServiceServicer_to_server, scheduler)
    return server, f"127.0.0.1:{await server.start()}"


async def test_an_agent_that_is_refused_while_it_writes_finds_the_leader_without_a_pause(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Within half a second, as a rule: a machine that stalls for longer shall change nothing here.
    monkeypatch.setattr("muster.agent.session_link._ASK_S", HANG_S)
    leading = Scheduler()  # type: ignore[abstract]
    leader, address = await serve(leading)
    standing_by = Scheduler(address)  # type: ignore[abstract]
    standby, refuses = await serve(standing_by)
    try:
        for count in range(1, 11):
            peers, asked = Peers(SECRET), []
            peers.update(Endpoints(leader=refuses))
            speaker = Talkative()
            link = SessionLink(
                peers=peers,
                secret=SECRET,
                speaker=speaker,
                journal=Journal("runtime", AgentId("a")),
                want_leader=lambda: asked.append(1),  # noqa: B023  used within this round
            )
            work = asyncio.create_task(link.run())
            try:
                async with asyncio.timeout(HANG_S):
                    await speaker.welcomed.wait()
                await until(lambda: link.leader == address)  # noqa: B023  as above
            finally:
                work.cancel()
                await asyncio.gather(work, return_exceptions=True)
                await link.close()
                await peers.close()
            # One refusal is enough: it is told the leader, and asks nobody else.
            assert (standing_by.dialled, leading.dialled, asked) == (count, count, [])
    finally:
        await standby.stop(0)
        await leader.stop(0)


async def test_a_status_that_grpc_has_lost_is_an_absence_and_not_a_bug() -> None:
    """This is how grpc.aio puts it; should it change, the table of `status` must follow."""
    server, address = await serve(Scheduler("elsewhere:1"))  # type: ignore[abstract]
    channel = ServiceChannel([address], secret=SECRET, what="the leader")
    met: set[str] = set()
    try:
        for _ in range(100):
            stream = channel.stream(scheduler_pb2_grpc.SchedulerServiceStub, "Session")
            try:
                with rpc_errors("the leader"):
                    for _ in range(20):
                        await stream.write(pb.SessionRequest(incarnation=1))
            except NotLeader as error:
                met.add(error.leader)
            except Unavailable as error:
                met.add(error.detail)
            except asyncio.InvalidStateError:
                continue
            if REASON_LOST in met:
                return
    finally:
        await channel.close()
        await server.stop(0)
    pytest.skip(f"grpcio {grpc.__version__} keeps the server's words: {met}")
