"""Registrations in etcd: one key per agent on the agent's own lease."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog

from muster.domain.agent import AgentRecord, AgentSpec
from muster.domain.errors import NotFound, Overloaded, Unavailable
from muster.domain.ids import AgentId
from muster.etcd.client import EtcdClient
from muster.etcd.keys import agent_key
from muster.etcd.lease import LeaseKeeper
from muster_registry.admission import Holder, admit
from muster_registry.agent_view import AgentView, Member
from muster_registry.records import decode, encode
from muster_registry.spec_rules import check_size

_LOG = structlog.get_logger("muster.registry")

# Each lost race means that another registration of the same id won it.
_MAX_RACES = 8


@dataclass(frozen=True, slots=True)
class Registered:
    """`ttl_s` is what the lease was granted for."""

    incarnation: int
    lease_id: int
    ttl_s: int


@dataclass(frozen=True, slots=True)
class Beat:
    """What a heartbeat found. `ttl_s` 0 = not known (etcd does not answer)."""

    registered: bool
    superseded: bool = False
    ttl_s: int = 0


class Membership:
    """The only part that writes registrations; any number of registries may do so at once."""

    def __init__(
        self,
        client: EtcdClient,
        keeper: LeaseKeeper,
        view: AgentView,
        next_incarnation: Callable[[AgentId, int], Awaitable[int]],
    ) -> None:
        self._client = client
        self._keeper = keeper
        self._view = view
        self._next_incarnation = next_incarnation

    async def register(
        self,
        spec: AgentSpec,
        instance_key: bytes,
        incarnation: int,
        *,
        ttl_s: int,
        at_ms: int,
    ) -> Registered:
        """Takes the place of an older registration of the same instance at once.

        Raises Conflict (see `admit`), Unavailable (etcd or storage), TooLarge.
        """
        key, key_hash = agent_key(spec.id), hashlib.sha256(instance_key).digest()
        check_size(len(encode(AgentRecord(spec, 0), key_hash)))
        given, lease_id = 0, 0
        try:
            for _ in range(_MAX_RACES):
                kv = await self._client.get(key)
                before = decode(kv) if kv is not None else None
                admission = admit(spec.id, _holder(before), key_hash, incarnation)
                # A store that was rolled back may have forgotten what it gave out.
                above = before.record.incarnation if before is not None else 0
                given = (
                    admission.incarnation or given or await self._next_incarnation(spec.id, above)
                )
                lease_id = lease_id or await self._client.grant(ttl_s)
                value = encode(AgentRecord(spec, given, lease_id, at_ms), key_hash)
                try:
                    won = await self._client.compare_and_put(
                        key, value, kv.mod_revision if kv is not None else 0, lease_id
                    )
                except NotFound:
                    # The lease ended while we waited: a paused registry, an emptied etcd.
                    lease_id = 0
                    continue
                if won:
                    done = Registered(given, lease_id, ttl_s)
                    lease_id = kv.lease_id if kv is not None and kv.lease_id != lease_id else 0
                    return done
        finally:
            # The replaced registration's lease, or the one that won nothing. No key hangs on it.
            if lease_id:
                await self._revoke(lease_id)
        raise Overloaded(f"agent {spec.id} is being registered by several at once")

    async def beat(self, agent: AgentId, incarnation: int, lease_id: int) -> Beat:
        """Renews the agent's lease. Without etcd nothing is known to be wrong."""
        known = self._view.get(agent)
        if known is not None and known.record.incarnation > incarnation:
            return Beat(False, superseded=True)
        try:
            ttl_s = await self._keeper.renew(lease_id) if lease_id else 0
            if ttl_s and known is not None and known.record.lease_id == lease_id:
                return Beat(True, ttl_s=ttl_s)
            # The view may lag behind, or the registration is gone: etcd itself knows.
            kv = await self._client.get(agent_key(agent))
        except Unavailable:
            return Beat(True)
        found = decode(kv) if kv is not None else None
        if found is None or found.record.incarnation < incarnation:
            return Beat(False)
        if found.record.incarnation > incarnation:
            return Beat(False, superseded=True)
        return Beat(found.record.lease_id == lease_id and ttl_s > 0, ttl_s=ttl_s)

    async def deregister(self, agent: AgentId, incarnation: int) -> None:
        """Removes exactly this incarnation; harmless when it is gone or replaced."""
        for _ in range(_MAX_RACES):
            kv = await self._client.get(agent_key(agent))
            member = decode(kv) if kv is not None else None
            if kv is None or member is None or member.record.incarnation != incarnation:
                return
            if await self._client.compare_and_delete(kv.key, kv.mod_revision):
                await self._revoke(kv.lease_id)
                return
        raise Overloaded(f"agent {agent} is being registered by several at once")

    async def _revoke(self, lease_id: int) -> None:
        try:
            await self._client.revoke(lease_id)
        except Unavailable as error:
            # It ends by itself, and nothing hangs on it any more.
            _LOG.info("a lease is left to expire", lease=f"{lease_id:x}", reason=str(error))


def _holder(member: Member | None) -> Holder | None:
    if member is None:
        return None
    return Holder(member.record.incarnation, member.key_hash)
