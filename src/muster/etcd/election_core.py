"""When a candidate may try, and when a leader must step down. Pure: times are passed in."""

from __future__ import annotations

from dataclasses import dataclass, replace

from muster.etcd.keyvalue import KeyValue
from muster.etcd.watch_core import EventKind, WatchBatch, WatchKind

# A leader steps down this share of the TTL before its lease can have expired: room for clocks
# that run at different speeds and for the step itself.
SAFETY_SHARE = 0.1

# Three renewals per TTL: one may be lost without loss of the lead.
RENEWALS_PER_TTL = 3


@dataclass(frozen=True, slots=True)
class LeaderView:
    """What the leader's key holds, as far as it is known. `revision` 0: nothing known yet."""

    revision: int = 0
    holder: KeyValue | None = None

    @property
    def vacant(self) -> bool:
        return self.revision > 0 and self.holder is None

    def after(self, batch: WatchBatch) -> LeaderView:
        """A SNAPSHOT replaces the view, even with a lower revision: etcd may have been emptied."""
        if batch.kind is WatchKind.SNAPSHOT:
            holder = batch.events[-1].kv if batch.events else None
            return LeaderView(batch.revision, holder)
        if not batch.events or batch.revision <= self.revision:
            return self
        last = batch.events[-1]
        return LeaderView(batch.revision, last.kv if last.kind is EventKind.PUT else None)

    def found(self, holder: KeyValue) -> LeaderView:
        """After a lost attempt, which saw `holder`."""
        return LeaderView(max(self.revision, holder.mod_revision), holder)


@dataclass(frozen=True, slots=True)
class Tenure:
    """One lead. `valid_until_s` is by the same clock as all times passed in."""

    lease_id: int
    mod_revision: int
    ttl_s: float
    sent_at_s: float
    gone: bool = False

    @property
    def valid_until_s(self) -> float:
        """Counted from when the request was sent that last extended the lease: etcd cannot have
        counted from an earlier moment."""
        return self.sent_at_s + self.ttl_s * (1.0 - SAFETY_SHARE)

    @property
    def renew_at_s(self) -> float:
        return self.sent_at_s + self.ttl_s / RENEWALS_PER_TTL

    def renewed(self, sent_at_s: float, granted_ttl_s: float) -> Tenure:
        """After etcd's answer to a renewal sent at `sent_at_s`; a TTL of 0 says it is gone."""
        if granted_ttl_s <= 0:
            return replace(self, gone=True)
        # A longer life than asked for is not made use of: others reckon with the asked one.
        return replace(
            self,
            sent_at_s=max(self.sent_at_s, sent_at_s),
            ttl_s=min(self.ttl_s, granted_ttl_s),
        )

    def ended_because(self, now_s: float, view: LeaderView) -> str | None:
        """Why the lead is over, or None while it holds."""
        if now_s >= self.valid_until_s:
            return "the lease was not renewed in time"
        if self.gone:
            return "the lease is gone"
        # An older view is not evidence: the watch may lag behind the own write.
        if view.revision > self.mod_revision and (
            view.holder is None or view.holder.mod_revision != self.mod_revision
        ):
            return "the key was deleted or taken"
        return None
