"""A scheduler's process in virtual time: a candidate around the production election core, and the
leader that it becomes, perhaps many times."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from tests.scenarios.sim_kernel import Part, SimulationError
from tests.scenarios.sim_leader import SimLeader
from tests.scenarios.sim_network import Link, call

from muster.etcd.election_core import LeaderView, Tenure
from muster.etcd.keyvalue import KeyValue
from muster.etcd.watch_core import WatchBatch

if TYPE_CHECKING:
    from tests.scenarios.sim_world import World

LEAD_TTL_S = 3.0
AGAIN_MS = 300
# An answer of etcd is waited for so long.
ETCD_MS = 1_000


class SimScheduler(Part):
    """One process, from its start to its end."""

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world.kernel, name)
        self.world = world
        self.leader: SimLeader | None = None
        self.tenure: Tenure | None = None
        self._view = LeaderView()
        self._watch: Link | None = None
        self._lease = 0
        self._attempting = False
        self._tried = 0
        self.later(200 * self.kernel.rng.random(), self._follow)

    # ---------------------------------------------------------------------- election

    def _now_s(self) -> float:
        return self.boot_ms() / 1_000

    @property
    def elected(self) -> bool:
        """As `Election.is_leader`: by its own clock nobody else can have been elected."""
        return self.tenure is not None and self._now_s() < self.tenure.valid_until_s

    def _follow(self) -> None:
        self._watch = self.world.etcd.watch(self)
        if self._watch is None:
            self.later(AGAIN_MS, self._follow)

    def on_cut(self, link: Link) -> None:
        if link is self._watch:
            self._watch = None
            self.later(AGAIN_MS * self.kernel.rng.random(), self._follow)

    def on_batch(self, link: Link, batch: WatchBatch) -> None:
        """What etcd's watch tells."""
        if link is self._watch:
            self._view = self._view.after(batch)
            self._reconsider()

    def _reconsider(self) -> None:
        if self.tenure is not None:
            why = self.tenure.ended_because(self._now_s(), self._view)
            if why is not None:
                self._deposed(why)
        if self.tenure is None and not self._attempting and (self._view.vacant or self._lease):
            self._attempt()

    def _attempt(self) -> None:
        """What an earlier attempt may have left is ended first."""
        etcd, lease = self.world.etcd, self._lease
        self._attempting = True
        self._tried += 1
        attempt = self._tried
        if lease:
            call(self, etcd, lambda: etcd.revoke(lease), lambda _: self._grant(attempt, lease))
        else:
            self._grant(attempt, 0)
        self.later(3 * ETCD_MS, lambda: self._give_up(attempt))

    def _give_up(self, attempt: int) -> None:
        if attempt == self._tried and self.tenure is None:
            self._attempting = False
            self._tried += 1
            self.later(AGAIN_MS * self.kernel.rng.random(), self._reconsider)

    def _grant(self, attempt: int, revoked: int) -> None:
        if revoked == self._lease:
            self._lease = 0
        if attempt != self._tried:
            return
        if not self._view.vacant:
            self._attempting = False
            return
        etcd, sent_s = self.world.etcd, self._now_s()

        def granted(answer: object) -> None:
            lease = cast("int", answer)
            if attempt != self._tried:
                return
            self._lease = lease
            self._put(attempt, lease, sent_s)

        call(self, etcd, lambda: etcd.grant(LEAD_TTL_S), granted, repeat=False)

    def _put(self, attempt: int, lease: int, sent_s: float) -> None:
        etcd, value = self.world.etcd, self.name.encode()

        def answered(answer: object) -> None:
            if attempt != self._tried:
                return
            self._attempting = False
            self._tried += 1
            found = cast("tuple[bool, KeyValue] | None", answer)
            if found is not None and found[0]:
                self._won(Tenure(lease, found[1].mod_revision, LEAD_TTL_S, sent_s))
            else:
                if found is not None:
                    self._view = self._view.found(found[1])
                self._reconsider()

        call(self, etcd, lambda: etcd.put_if_absent(value, lease), answered, repeat=False)

    def _won(self, tenure: Tenure) -> None:
        self.tenure = tenure
        if not self.elected:
            self._deposed("its lease had run out when it heard that it won")
            return
        self.say("is elected")
        self.kernel.tally["elected"] += 1
        others = [s.name for s in self.world.schedulers if s is not self and s.alive and s.elected]
        if others:
            raise SimulationError(f"{self.name} is elected, and {others} as well")
        if self.leader is not None:
            self.leader.restricted = False
            self.leader.state.place_again = True
        else:
            self._lead()
        self._renew(tenure.lease_id)
        self._look(tenure.lease_id)

    def _look(self, lease: int) -> None:
        if self.tenure is not None and self.tenure.lease_id == lease:
            left_ms = (self.tenure.valid_until_s - self._now_s()) * 1_000
            self._reconsider()
            self.later(max(1, left_ms), lambda: self._look(lease))

    def _renew(self, lease: int) -> None:
        tenure, etcd = self.tenure, self.world.etcd
        if tenure is None or tenure.lease_id != lease or tenure.gone:
            return
        sent_s = self._now_s()

        def answered(answer: object) -> None:
            if self.tenure is not None and self.tenure.lease_id == lease:
                self.tenure = self.tenure.renewed(sent_s, cast("float", answer))
                self._reconsider()

        call(self, etcd, lambda: etcd.renew(lease), answered, repeat=False)
        self.later(LEAD_TTL_S * 1_000 / 3, lambda: self._renew(lease))

    def _deposed(self, why: str) -> None:
        self.say("is no longer elected:", why)
        self.kernel.tally["lead lost"] += 1
        self.tenure = None
        if self.leader is not None and self.world.holds_back:
            # Storage still confirms the term: what runs is seen to its end.
            self.leader.restricted = True
        self.later(AGAIN_MS * self.kernel.rng.random(), self._reconsider)

    # ----------------------------------------------------------------------- leading

    def _lead(self) -> None:
        """One term begins, if it is still elected."""
        if self.leader is None and self.elected:
            self.leader = leader = SimLeader(self.world, self)
            self.world.leaders.append(leader)

    def on_leader_ended(self, leader: SimLeader) -> None:
        """Its term is over."""
        if self.leader is leader:
            self.leader = None
            self.later(1_000 * self.kernel.rng.random(), self._lead)

    # -------------------------------------------------------------------- its process

    def freeze(self, ms: int) -> None:
        super().freeze(ms)
        if self.leader is not None and self.leader.alive:
            self.leader.freeze(ms)

    def thawed(self) -> None:
        """Timers that are due run before anything that was received meanwhile."""
        self._reconsider()

    def kill(self) -> None:
        """kill -9; somebody starts it again."""
        self.say("is killed")
        self.end()
        if self.leader is not None and self.leader.alive:
            self.leader.end()
        self.world.start_scheduler_later(self.name)

    def resign(self) -> None:
        """SIGTERM: it gives its lead back, and is started again."""
        lease, etcd = self._lease, self.world.etcd
        self.say("resigns")
        if lease:
            call(self.world.gateway, etcd, lambda: etcd.revoke(lease), lambda _: None, repeat=False)
        self.kill()
