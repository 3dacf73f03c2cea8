"""etcd in virtual time: one key, the lead's, on leases of its own clock, and those who watch it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.scenarios.sim_kernel import Kernel
from tests.scenarios.sim_network import Link, Network, Server

from muster.etcd.keys import LEADER_KEY
from muster.etcd.keyvalue import KeyValue
from muster.etcd.watch_core import EventKind, WatchBatch, WatchEvent, WatchKind

if TYPE_CHECKING:
    from tests.scenarios.sim_scheduler import SimScheduler


@dataclass(slots=True)
class _Lease:
    ttl_ms: int
    ends_ms: int


class SimEtcd(Server):
    """It may be away (its leases then begin anew when it is back, as etcd's do), cut off, or
    frozen (then they may all have run out at its thaw)."""

    def __init__(self, kernel: Kernel, network: Network) -> None:
        super().__init__(kernel, network, "etcd")
        self.holder: KeyValue | None = None
        self._revision = 1
        self._leases: dict[int, _Lease] = {}
        self._last_lease = 0
        self._watchers: dict[SimScheduler, Link] = {}

    def grant(self, ttl_s: float) -> int:
        self._last_lease += 1
        ttl_ms = int(ttl_s * 1_000)
        self._leases[self._last_lease] = _Lease(ttl_ms, self.boot_ms() + ttl_ms)
        self._expect(self._last_lease, ttl_ms)
        return self._last_lease

    def renew(self, ident: int) -> float:
        """The granted TTL in seconds; 0 = the lease is gone."""
        lease = self._leases.get(ident)
        if lease is None:
            return 0.0
        lease.ends_ms = self.boot_ms() + lease.ttl_ms
        return lease.ttl_ms / 1_000

    def revoke(self, ident: int) -> int:
        """A gone lease is no error."""
        self._leases.pop(ident, None)
        if self.holder is not None and self.holder.lease_id == ident:
            self._delete()
        return ident

    def put_if_absent(self, value: bytes, lease: int) -> tuple[bool, KeyValue] | None:
        """Whether the key was free, and what it holds; None: the lease is gone."""
        if lease not in self._leases:
            return None
        if self.holder is not None:
            return False, self.holder
        self._revision += 1
        self.holder = KeyValue(LEADER_KEY, value, self._revision, self._revision, lease)
        self._tell(WatchEvent(EventKind.PUT, self.holder))
        return True, self.holder

    # ------------------------------------------------------------------- its own clock

    def _expect(self, ident: int, ms: float) -> None:
        self.later(ms + 1, lambda: self._expire(ident))

    def _expire(self, ident: int) -> None:
        lease = self._leases.get(ident)
        if lease is None:
            return
        left_ms = lease.ends_ms - self.boot_ms()
        if left_ms >= 0 or self.away:
            self._expect(ident, max(left_ms, 100))
            return
        self.say("sees lease", ident, "expire")
        self.kernel.tally["lead's lease expired"] += 1
        self.revoke(ident)

    def come_back(self) -> None:
        """Started again: leases begin anew, and watches are told everything."""
        for lease in self._leases.values():
            lease.ends_ms = self.boot_ms() + lease.ttl_ms
        for link in list(self._watchers.values()):
            link.cut("etcd has ended")
        self._watchers.clear()

    def sleep(self, ms: int) -> None:
        """With everything else: its clock stands still meanwhile."""
        self.freeze(ms)
        for lease in self._leases.values():
            lease.ends_ms += ms

    # ----------------------------------------------------------------------- watches

    def _delete(self) -> None:
        assert self.holder is not None
        self._revision += 1
        gone = KeyValue(LEADER_KEY, b"", self._revision, 0, 0)
        self.holder = None
        self._tell(WatchEvent(EventKind.DELETE, gone))

    def watch(self, scheduler: SimScheduler) -> Link | None:
        """None: nobody answers."""
        if self.away or not self.network.passes(scheduler, self):
            return None
        link = self._watchers[scheduler] = Link(self.network, self, scheduler)
        events = (WatchEvent(EventKind.PUT, self.holder),) if self.holder is not None else ()
        self._send(scheduler, link, WatchBatch(WatchKind.SNAPSHOT, self._revision, events))
        return link

    def on_cut(self, link: Link) -> None:
        self._watchers = {s: kept for s, kept in self._watchers.items() if kept is not link}

    def _tell(self, event: WatchEvent) -> None:
        for scheduler, link in self._watchers.items():
            self._send(scheduler, link, WatchBatch(WatchKind.CHANGES, self._revision, (event,)))

    def _send(self, scheduler: SimScheduler, link: Link, batch: WatchBatch) -> None:
        link.send(scheduler, lambda: scheduler.on_batch(link, batch))
