"""What one registry knows of the cluster, kept up to date from etcd for as long as it runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing

import structlog

from muster.domain.errors import Unavailable
from muster.domain.ids import AgentId
from muster.etcd import election, keys
from muster.etcd.client import EtcdClient
from muster.etcd.watch import EventKind, WatchBatch, WatchKind, watch_prefix
from muster.rpc.listeners import Signal
from muster_registry.agent_view import AgentView, Member
from muster_registry.records import decode

_LOG = structlog.get_logger("muster.registry")

_PROBE_EVERY_S = 1.0
# A few probes in a row: one slow answer is no outage.
_SILENT_FOR_MS = 5_000


class Cluster:
    """`leader` is host:port, empty while there is none; without etcd it is the last one known."""

    def __init__(self, boot_ms: Callable[[], int]) -> None:
        self.view = AgentView()
        self.view_changed = Signal()
        self.leader = ""
        # Grows with every change of what agents are told.
        self.endpoints_version = 0
        self.endpoints_changed = Signal()
        self._boot_ms = boot_ms
        self._answered_ms: int | None = None

    def why_not_ready(self) -> str | None:
        """None while etcd answers and its agents are known."""
        answered_ms = self._answered_ms
        silent = answered_ms is None or self._boot_ms() - answered_ms > _SILENT_FOR_MS
        return "etcd does not answer" if silent or not self.view.known else None

    async def follow_agents(self, client: EtcdClient) -> None:
        """Until cancelled. The watch itself outlives every outage of etcd."""
        async with aclosing(watch_prefix(client, keys.AGENTS_PREFIX)) as batches:
            async for batch in batches:
                self.apply(batch)

    async def follow_leader(self, client: EtcdClient) -> None:
        async with aclosing(election.observe(client, keys.LEADER_KEY)) as values:
            async for value in values:
                self.set_leader(value.decode(errors="replace") if value else "")

    async def probe(self, client: EtcdClient) -> None:
        """Asks etcd for a sign of life once a second: a watch is silent by nature."""
        while True:
            try:
                await client.status()
                self._answered_ms = self._boot_ms()
            except Unavailable as error:
                _LOG.warning("etcd does not answer", reason=str(error))
            await asyncio.sleep(_PROBE_EVERY_S)

    def set_leader(self, leader: str) -> None:
        if leader != self.leader or not self.endpoints_version:
            _LOG.info("the leader changed", leader=leader, before=self.leader)
            self.leader = leader
            self.endpoints_version += 1
            self.endpoints_changed.fire()

    def apply(self, batch: WatchBatch) -> None:
        """One batch whole, without a pause: no watcher sees half of a revision."""
        if batch.kind is WatchKind.SNAPSHOT:
            found = (self._member(event.kv.key, decode(event.kv)) for event in batch.events)
            self.view.replace((m for m in found if m is not None), batch.revision)
        else:
            for event in batch.events:
                agent = AgentId(event.kv.key.removeprefix(keys.AGENTS_PREFIX))
                member = None
                if event.kind is EventKind.PUT:
                    member = self._member(event.kv.key, decode(event.kv))
                if member is not None:
                    self.view.put(member)
                else:
                    self.view.remove(agent, event.kv.mod_revision)
        self.view_changed.fire()

    def _member(self, key: str, member: Member | None) -> Member | None:
        """Only what stands under its own name: nobody may speak for another agent."""
        if member is None or keys.agent_key(member.agent) != key:
            _LOG.error("a registration is not understood", key=key)
            return None
        return member
