"""How far the store has come, written down in etcd, and compared when a term is taken."""

from __future__ import annotations

import asyncio

import msgspec
import structlog

from muster.domain.alarms import ETCD_REFUSES, STORE_LOST_WRITES
from muster.domain.errors import Unavailable
from muster.etcd.client import EtcdClient
from muster.etcd.keys import STORE_KEY
from muster_scheduler.alarms import Alarms
from muster_scheduler.core.generation import Found, Marker, Verdict, judge
from muster_scheduler.leader import Leader

_LOG = structlog.get_logger("muster.scheduler")

WRITE_EVERY_S = 1.0
# etcd's own words when its database is full, or when it is told to take no writes.
_REFUSALS = ("RESOURCE_EXHAUSTED", "NOSPACE", "database space exceeded")
# How long the alarm of lost writes stands: nothing ends the loss.
LOST_SHOWN_S = 600.0


class StoreMarker:
    """Of one scheduler process. What it has seen itself counts as well as what etcd holds."""

    def __init__(self, client: EtcdClient, alarms: Alarms) -> None:
        self._client = client
        self._alarms = alarms
        # Of the key when it was read last; None = to be read before it is written.
        self._revision: int | None = None
        self._known: Marker | None = None
        self._seen: Marker | None = None

    @property
    def above_term(self) -> int:
        """Terms up to here were given out, as far as is known."""
        return max((m.term for m in (self._known, self._seen) if m is not None), default=0)

    async def read(self) -> None:
        """Raises Unavailable while etcd does not answer."""
        kv = await self._client.get(STORE_KEY)
        self._revision = kv.mod_revision if kv is not None else 0
        self._known = _decoded(kv.value) if kv is not None else None

    def judge(self, found: Found) -> Verdict:
        """What the store is, by the last `read` and by what this process has seen."""
        known = self._seen if self._known is None else self._known.or_later(self._seen)
        return judge(known, found)

    async def write(self, marker: Marker) -> bool:
        """False when another scheduler has written since; raises Unavailable."""
        if self._revision is None:
            await self.read()
        revision, self._revision = self._revision or 0, None
        value = msgspec.json.encode(marker)
        if await self._client.compare_and_put(STORE_KEY, value, revision):
            self._known = marker
            return True
        # A write whose answer was lost looks like somebody else's.
        await self.read()
        return self._known == marker

    async def accept(self, found: Found, term: int) -> None:
        """From now on this is the store, whatever was known before. Raises Unavailable."""
        marker = Marker(found.clock_ms, term, found.store, found.run)
        if not await self.write(marker):
            raise Unavailable("etcd", "another scheduler has written how far the store is")
        self._seen = None

    async def keep(self, leader: Leader, store: str) -> None:
        """Writes down every second what storage has confirmed, until cancelled."""
        failing = False
        try:
            while True:
                await asyncio.sleep(WRITE_EVERY_S)
                try:
                    await self._write_of(leader, store)
                except Unavailable as error:
                    if not failing:
                        _LOG.warning("etcd is not told how far the store is", reason=str(error))
                    failing = True
                    if any(word in str(error) for word in _REFUSALS):
                        self._alarms.start(ETCD_REFUSES, _refusal(error))
                else:
                    failing = False
                    self._alarms.end(ETCD_REFUSES)
        finally:
            self._seen = self._marker_of(leader, store).or_later(self._seen)

    async def _write_of(self, leader: Leader, store: str) -> None:
        marker = self._marker_of(leader, store)
        if await self.write(marker):
            return
        if self._known is not None and self._known.term > leader.term:
            _LOG.warning("another leader has written how far the store is", term=self._known.term)
            return
        await self.write(marker)

    def _marker_of(self, leader: Leader, store: str) -> Marker:
        return Marker(leader.stored_clock_ms, leader.term, store, leader.store_run)


async def show_lost(alarms: Alarms, why: str) -> None:
    """Lets the alarm of lost writes stand for a while."""
    alarms.start(STORE_LOST_WRITES, why)
    await asyncio.sleep(LOST_SHOWN_S)
    alarms.end(STORE_LOST_WRITES)


def _refusal(error: Unavailable) -> str:
    return (
        f"etcd takes no writes ({error.detail}): no agent can register and no leader be elected"
        " until its database has room again; compact and defragment it, then disarm its alarm"
    )


def _decoded(value: bytes) -> Marker | None:
    try:
        return msgspec.json.decode(value, type=Marker)
    except msgspec.DecodeError as error:
        _LOG.error("what etcd says of the store is not understood", why=str(error))
        return None
