"""Registry and monitor: leases by the production rules, suspicions by the production detector."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.scenarios.sim_kernel import Kernel, Part, SimulationError
from tests.scenarios.sim_network import Link, Network, Server
from tests.scenarios.sim_store import SimStore

from muster.domain.agent import AgentRecord
from muster.domain.errors import Conflict
from muster.domain.ids import AgentId
from muster_monitor.failure_detector import FailureTable, ObserverSettings
from muster_monitor.suspicions import SuspicionBoard
from muster_registry.admission import Holder, admit
from muster_registry.heartbeat_policy import HeartbeatPolicy

if TYPE_CHECKING:
    from tests.scenarios.sim_agent import Machine, Runtime
    from tests.scenarios.sim_leader import SimLeader

LEASE_MS = 1_000 * HeartbeatPolicy().lease_ttl_s(3)
_KEY = b"key of the instance"
# Looked at more rarely than in production, to spare steps.
OBSERVER = ObserverSettings(tick_ms=500, stall_ms=1_500)
# An agent that was silent for longer than this is suspected; nobody is who was heard this lately.
MUST_SUSPECT_MS = 15_000
MAY_SUSPECT_MS = 2_900


@dataclass(slots=True)
class _Lease:
    record: AgentRecord
    ends_ms: int


class SimRegistry(Server):
    """Registrations on leases, and watchers that hear of them in order; none while it is away."""

    def __init__(self, kernel: Kernel, network: Network, store: SimStore) -> None:
        super().__init__(kernel, network, "registry")
        self._store = store
        self._shown: dict[AgentId, _Lease] = {}
        self._watchers: dict[SimLeader, Link] = {}

    def register(self, machine: Machine, incarnation: int) -> int:
        """The incarnation; 0 = another runtime has taken its place."""
        lease = self._shown.get(machine.id)
        holder = Holder(lease.record.incarnation, _KEY) if lease is not None else None
        try:
            admitted = admit(machine.id, holder, _KEY, incarnation)
        except Conflict:
            return 0
        given = admitted.incarnation or self._store.next_incarnation(machine.id)
        self._show(machine.record(given))
        return given

    def beat(self, machine: Machine, incarnation: int) -> str:
        lease = self._shown.get(machine.id)
        if lease is None or lease.record.incarnation < incarnation:
            return "unregistered"
        if lease.record.incarnation > incarnation:
            return "superseded"
        lease.ends_ms = self.kernel.now_ms + LEASE_MS
        return "renewed"

    def leave_later(self, runtime: Runtime) -> None:
        """A last word, which may be lost."""
        ident, incarnation = runtime.machine.id, runtime.core.incarnation
        if not self.kernel.is_lost() and self.network.passes(runtime, self):
            self.kernel.at(self.kernel.delay_ms(), lambda: self._leave(ident, incarnation))

    def _leave(self, ident: AgentId, incarnation: int) -> None:
        lease = self._shown.get(ident)
        if not self.away and lease is not None and lease.record.incarnation == incarnation:
            del self._shown[ident]
            self._tell(lambda leader: leader.on_unregistered(ident))

    def _show(self, record: AgentRecord) -> None:
        ident = record.spec.id
        lease = self._shown[ident] = _Lease(record, self.kernel.now_ms + LEASE_MS)
        self.kernel.at(LEASE_MS + 1, lambda: self._expire(ident, lease))
        self._tell(lambda leader: leader.on_registered(record))

    def _expire(self, ident: AgentId, lease: _Lease) -> None:
        """etcd's clock runs on while the registry is away, or is frozen itself."""
        if self._shown.get(ident) is not lease:
            return
        left_ms = lease.ends_ms - self.kernel.now_ms
        if left_ms >= 0:
            self.kernel.at(left_ms + 1, lambda: self._expire(ident, lease))
        else:
            del self._shown[ident]
            self.say("sees the lease of", ident, "expire")
            self.kernel.tally["agent lost its lease"] += 1
            self._tell(lambda leader: leader.on_unregistered(ident))

    def watch(self, leader: SimLeader) -> None:
        """A leader watches anew."""
        self._watchers = {w: link for w, link in self._watchers.items() if w.alive}
        self._watchers[leader] = link = Link(self.network, self, leader)
        leader.registry_link = link
        if not self.away:
            self._snapshot(leader, link)

    def sleep(self, ms: int) -> None:
        """With everything else: etcd's clock stands still, too."""
        self.away_until_ms = max(self.away_until_ms, self.kernel.now_ms + ms)
        for lease in self._shown.values():
            lease.ends_ms += ms
        self.kernel.at(ms, self.come_back)

    def come_back(self) -> None:
        for leader, link in self._watchers.items():
            self._snapshot(leader, link)

    def _snapshot(self, leader: SimLeader, link: Link) -> None:
        records = [lease.record for lease in self._shown.values()]
        link.send(leader, lambda: leader.on_registry(records))

    def _tell(self, say: Callable[[SimLeader], None]) -> None:
        if not self.away:
            for leader, link in self._watchers.items():
                link.send(leader, lambda leader=leader: say(leader))  # type: ignore[misc]


class SimMonitor(Part):
    """Reports in, suspicions out. It may freeze, and must then distrust itself."""

    def __init__(self, kernel: Kernel, network: Network) -> None:
        super().__init__(kernel, "monitor")
        self._network = network
        self.table = FailureTable(observer=OBSERVER)
        self._board = SuspicionBoard()
        self._watchers: dict[SimLeader, tuple[Link, int]] = {}
        # By an own clock that stands still while the monitor does.
        self._reported_ms: dict[AgentId, int] = {}
        self._stood_still_ms = 0
        self.later(0, self._look)

    def on_report(self, agent: AgentId, incarnation: int) -> None:
        newest = self.table.incarnation(agent)
        if self.table.observe(agent, incarnation, self.boot_ms()):
            if incarnation < newest:
                raise SimulationError(f"invariant 5: {agent}/{newest} lives by a beat of an older")
            self._reported_ms[agent] = self._listened_ms()

    def _listened_ms(self) -> int:
        return self.kernel.now_ms - self._stood_still_ms

    def freeze(self, ms: int) -> None:
        super().freeze(ms)
        if ms > OBSERVER.stall_ms:
            self._stood_still_ms += ms

    def leave_later(self, runtime: Runtime) -> None:
        """A last word, which may be lost."""
        ident, incarnation = runtime.machine.id, runtime.core.incarnation
        if not self.kernel.is_lost() and self._network.passes(runtime, self):
            self.later(self.kernel.delay_ms(), lambda: self._on_leave(ident, incarnation))

    def _on_leave(self, agent: AgentId, incarnation: int) -> None:
        self.table.leave(agent, incarnation)

    def _look(self) -> None:
        changes = self.table.verdicts(self.boot_ms())
        for verdict in changes:
            kind = "agent suspected" if verdict.suspected else "agent trusted again"
            self.kernel.tally[kind] += 1
            self.say("suspects" if verdict.suspected else "trusts", verdict.agent, verdict.why)
            silent_ms = self._listened_ms() - self._reported_ms.get(verdict.agent, 0)
            if verdict.suspected and silent_ms < MAY_SUSPECT_MS:
                raise SimulationError(f"{verdict.agent} is suspected after {silent_ms} ms")
            self._board.post(verdict, self.wall_ms())
        if changes:
            for leader, (link, position) in list(self._watchers.items()):
                self._send(leader, link, position)
        for agent, reported_ms in self._reported_ms.items():
            silent_ms = self._listened_ms() - reported_ms
            watched = agent in self.table.agents() and not self.table.is_suspected(agent)
            if silent_ms > MUST_SUSPECT_MS and watched:
                raise SimulationError(f"{agent} is not suspected after {silent_ms} ms of silence")
        self.later(OBSERVER.tick_ms, self._look)

    def watch(self, leader: SimLeader) -> None:
        """A leader watches anew: it is told of all that are suspected."""
        self._watchers = {w: kept for w, kept in self._watchers.items() if w.alive}
        leader.monitor_link = link = Link(self._network, self, leader)
        self._send(leader, link, -1)

    def _send(self, leader: SimLeader, link: Link, position: int) -> None:
        bulletin = self._board.since(position) if position >= 0 else self._board.snapshot()
        self._watchers[leader] = (link, bulletin.position)
        verdicts = [posted.verdict for posted in bulletin.posted]
        link.send(leader, lambda: leader.on_suspicions(verdicts, snapshot=bulletin.snapshot))
