"""RegistryService: agents join, beat and leave; others list and watch them."""

# The contract names the methods and gives each a context.

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from muster.api.v1 import registry_pb2 as pb
from muster.api.v1 import registry_pb2_grpc
from muster.domain.errors import InvalidInput, MusterError, Overloaded, Unavailable
from muster.domain.ids import AgentId, parse_agent_id
from muster.rpc.conversion import agent_record_to_proto, agent_spec_from_proto
from muster.rpc.listeners import wait_for
from muster_registry import metrics
from muster_registry.agent_view import Update
from muster_registry.assignment import by_preference
from muster_registry.cluster import Cluster
from muster_registry.heartbeat_policy import HeartbeatPolicy
from muster_registry.membership import Beat, Membership
from muster_registry.spec_rules import check_instance_key, check_spec

# More agents than one registry is meant for; each holds a stream.
MAX_STREAMS = 20_000
MAX_WATCHERS = 200
# Beats that came while one is being renewed: an agent sends one and awaits its answer.
_MAX_INBOX = 16
# A watch without the first list yet waits this long before it says that etcd is away.
_FIRST_VIEW_S = 5.0


class RegistryService(registry_pb2_grpc.RegistryServiceServicer):
    """Every method may raise any MusterError, which the server turns into a status."""

    def __init__(
        self,
        cluster: Cluster,
        membership: Membership,
        policy: HeartbeatPolicy,
        *,
        storage: tuple[str, ...],
        monitors: tuple[str, ...],
        chance: Callable[[], float],
        wall_ms: Callable[[], int],
    ) -> None:
        self._cluster = cluster
        self._membership = membership
        self._policy = policy
        self._storage = storage
        self._monitors = monitors
        self._chance = chance
        self._wall_ms = wall_ms
        self._streams = 0
        self._watchers = 0

    async def Register(self, request: pb.RegisterRequest, context: Any) -> pb.RegisterResponse:
        try:
            if request.incarnation < 0:
                raise InvalidInput("incarnation", request.incarnation, "0 (a new start) or more")
            spec = agent_spec_from_proto(request.spec)
            check_spec(spec)
            check_instance_key(request.instance_key)
            agents = len(self._cluster.view) + 1
            done = await self._membership.register(
                spec,
                request.instance_key,
                request.incarnation,
                ttl_s=self._policy.lease_ttl_s(agents),
                at_ms=self._wall_ms(),
            )
        except MusterError as error:
            metrics.REGISTRATIONS.labels(error.code).inc()
            raise
        metrics.REGISTRATIONS.labels("ok").inc()
        return pb.RegisterResponse(
            incarnation=done.incarnation,
            lease_id=done.lease_id,
            lease_ttl_ms=done.ttl_s * 1000,
            heartbeat_interval_ms=self._policy.first_interval_ms(agents, self._chance()),
            endpoints=self._endpoints(spec.id),
        )

    async def Heartbeat(
        self, request_iterator: AsyncIterator[pb.HeartbeatRequest], context: Any
    ) -> AsyncIterator[pb.HeartbeatResponse]:
        """Answers each beat; a change of leader is told at once, unasked, with seq 0."""
        if self._streams >= MAX_STREAMS:
            raise Overloaded(f"{MAX_STREAMS} agents beat at this registry already")
        self._streams += 1
        metrics.STREAMS.set(self._streams)
        inbox: asyncio.Queue[pb.HeartbeatRequest] = asyncio.Queue(_MAX_INBOX)
        with self._cluster.endpoints_changed.listening() as news:
            reading = asyncio.create_task(_read(request_iterator, inbox, news))
            context.add_done_callback(lambda _: reading.cancel())
            told, agent, last = 0, AgentId(""), pb.HeartbeatResponse()
            try:
                while not (reading.done() and inbox.empty()):
                    await news.wait()
                    news.clear()
                    while not inbox.empty():
                        beat = inbox.get_nowait()
                        last, agent = await self._answer(beat), AgentId(beat.agent)
                        told = self._cluster.endpoints_version
                        yield last
                    # Who has been told to register again, or to end, needs no leader.
                    if last.registered and told != self._cluster.endpoints_version:
                        told = self._cluster.endpoints_version
                        metrics.PUSHES.inc()
                        yield pb.HeartbeatResponse(
                            registered=True,
                            heartbeat_interval_ms=last.heartbeat_interval_ms,
                            endpoints=self._endpoints(agent),
                        )
                await reading
            finally:
                reading.cancel()
                self._streams -= 1
                metrics.STREAMS.set(self._streams)

    async def Deregister(
        self, request: pb.DeregisterRequest, context: Any
    ) -> pb.DeregisterResponse:
        agent = parse_agent_id(request.agent)
        if request.incarnation <= 0:
            raise InvalidInput("incarnation", request.incarnation, "a positive number")
        await self._membership.deregister(agent, request.incarnation)
        return pb.DeregisterResponse()

    async def ListAgents(
        self, request: pb.ListAgentsRequest, context: Any
    ) -> pb.ListAgentsResponse:
        if not self._cluster.view.known:
            raise Unavailable("etcd", "the agents have not been listed yet")
        update = self._cluster.view.snapshot()
        return pb.ListAgentsResponse(
            agents=[agent_record_to_proto(record) for record in update.agents],
            revision=update.position.revision,
            endpoints=self._endpoints(AgentId("")),
        )

    async def WatchAgents(
        self, request: pb.WatchAgentsRequest, context: Any
    ) -> AsyncIterator[pb.WatchAgentsResponse]:
        """Goes on after `from_revision` where history reaches back to it, else with a snapshot."""
        if self._watchers >= MAX_WATCHERS:
            raise Overloaded(f"{MAX_WATCHERS} watch this registry already")
        self._watchers += 1
        metrics.WATCHERS.set(self._watchers)
        view = self._cluster.view
        try:
            with self._cluster.view_changed.listening() as changed:
                if not view.known and not await wait_for(changed, _FIRST_VIEW_S):
                    raise Unavailable("etcd", "the agents have not been listed yet")
                wanted = request.from_revision
                position = view.position_of(wanted) if wanted else None
                update = view.snapshot() if position is None else view.since(position)
                # Also when nothing changed since: it says that the watch stands, and where.
                yield _update(update)
                while True:
                    await changed.wait()
                    changed.clear()
                    update = view.since(update.position)
                    if not update.empty:
                        yield _update(update)
        finally:
            self._watchers -= 1
            metrics.WATCHERS.set(self._watchers)

    async def _answer(self, beat: pb.HeartbeatRequest) -> pb.HeartbeatResponse:
        agent = parse_agent_id(beat.agent)
        found = await self._membership.beat(agent, beat.incarnation, beat.lease_id)
        metrics.BEATS.labels(_result(found)).inc()
        agents = len(self._cluster.view)
        interval_ms = self._policy.interval_ms(agents)
        if found.ttl_s:
            interval_ms = self._policy.beat_within_ms(agents, found.ttl_s)
        else:
            # How long its lease lasts is not known: not less often than the smallest needs.
            interval_ms = min(interval_ms, self._policy.interval_ms(0))
        return pb.HeartbeatResponse(
            seq=beat.seq,
            registered=found.registered,
            superseded=found.superseded,
            heartbeat_interval_ms=interval_ms,
            endpoints=self._endpoints(agent),
        )

    def _endpoints(self, agent: AgentId) -> pb.Endpoints:
        return pb.Endpoints(
            leader=self._cluster.leader,
            storage=self._storage,
            monitors=by_preference(agent, self._monitors),
        )


async def _read(
    requests: AsyncIterator[pb.HeartbeatRequest],
    inbox: asyncio.Queue[pb.HeartbeatRequest],
    news: asyncio.Event,
) -> None:
    try:
        async for request in requests:
            await inbox.put(request)
            news.set()
    finally:
        news.set()


def _result(beat: Beat) -> str:
    if beat.superseded:
        return "superseded"
    if not beat.registered:
        return "gone"
    return "renewed" if beat.ttl_s else "unknown"


def _update(update: Update) -> pb.WatchAgentsResponse:
    return pb.WatchAgentsResponse(
        snapshot=update.snapshot,
        revision=update.position.revision,
        agents=[agent_record_to_proto(record) for record in update.agents],
        removed=update.removed,
    )
