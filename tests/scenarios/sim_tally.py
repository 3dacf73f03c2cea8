"""What many schedules covered: in how many of them each kind of event happened, and how often."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

# In 1,000 schedules each of these kinds happens in at least so many: a scenario that never happens
# is not tested. Far under what is seen, so that a change of the cores does not fail for chance.
LEAST_PER_1000: Mapping[str, int] = {
    # Services
    "scheduler killed": 80,
    "scheduler resigned": 36,
    "scheduler frozen": 80,
    "all asleep": 12,
    "leader left to agents": 36,
    "leader cut off": 32,
    "elected": 990,
    "lead's lease expired": 150,
    "lead lost": 100,
    "leader deposed by a newer term": 40,
    "two leaders at once": 40,
    "registry away": 40,
    "registry frozen": 40,
    "etcd away": 40,
    "etcd frozen": 40,
    "storage away": 40,
    "storage frozen": 40,
    "storage slow": 40,
    "monitor frozen": 40,
    "monitor killed": 40,
    # The network and clocks
    "any two cut off": 72,
    "one-way partition": 200,
    "two-way partition": 100,
    "session cut": 40,
    "link lost a message": 300,
    "reply lost after it was carried out": 300,
    "date turned": 40,
    "events missed": 40,
    "stray outcome": 36,
    "stray command": 16,
    # Agents
    "runtime killed": 72,
    "supervisor killed": 36,
    "agent killed": 36,
    "agent frozen": 72,
    "runtime frozen": 80,
    "agent cut off": 200,
    "many agents cut off": 40,
    "agent sick": 40,
    "mass failure of the cluster": 20,
    "mass failure over": 16,
    "mass failure of a zone": 2,
    "agent QUARANTINED": 6,
    "agent PAROLE": 2,
    "recovery of died": 150,
    "recovery of unreachable": 40,
    "recovery chose migrate": 120,
    "recovery chose restart": 80,
    "recovery ended: moved": 120,
    "recovery ended: rerun": 80,
    "seconds in which tasks were held": 80,
    "task stuck": 40,
    "operator's drain with a deadline": 12,
    "agent drained itself": 36,
    "agent hung": 16,
    "agent JOINING": 300,
    "agent READY": 990,
    "agent SUSPECT": 300,
    "agent DOWN": 300,
    "agent RESTARTING": 20,
    "agent DRAINING": 12,
    "agent LEFT": 3,
    "agent suspected": 200,
    "agent trusted again": 150,
    "agent lost its lease": 200,
    "supervisor told of a death": 300,
    "runtime ended by its supervisor": 20,
    # Operators and tasks
    "operator's cordon": 20,
    "operator's drain": 20,
    "operator's restart": 20,
    "task SUCCEEDED": 990,
    "task FAILED": 500,
    "task CANCELLED": 500,
    "task TIMED_OUT": 300,
    "task DEAD": 100,
    "cancellation acknowledged": 300,
    "outcome was stale": 150,
    "attempt pushed again": 30,
    "attempt dropped": 150,
    "`stop` task lost": 100,
    "`keep` task lost": 150,
    "task taken back unstarted": 8,
    "parent waited for a child": 500,
}


@dataclass
class Coverage:
    """Sums over schedules."""

    schedules: int = 0
    steps: int = 0
    failed: dict[int, str] = field(default_factory=dict)
    # Of each kind: in how many schedules it happened, and how often in all.
    within: Counter[str] = field(default_factory=Counter)
    total: Counter[str] = field(default_factory=Counter)

    def add(self, tally: Counter[str], steps: int) -> None:
        """One schedule more."""
        self.schedules += 1
        self.steps += steps
        self.total.update(tally)
        self.within.update(kind for kind, count in tally.items() if count)

    def merge(self, other: Coverage) -> None:
        """All of the other's schedules, too."""
        self.schedules += other.schedules
        self.steps += other.steps
        self.failed.update(other.failed)
        self.within.update(other.within)
        self.total.update(other.total)

    def missing(self) -> dict[str, tuple[int, int]]:
        """Kinds that happened in too few schedules: (in how many, in how many at least)."""
        return {
            kind: (self.within[kind], least)
            for kind, per_1000 in LEAST_PER_1000.items()
            if self.within[kind] < (least := per_1000 * self.schedules // 1_000)
        }

    def table(self) -> str:
        """For people."""
        kinds = sorted(self.total, key=lambda kind: -self.within[kind])
        width = max(map(len, kinds), default=4)
        lines = [f"{'in ' + str(self.schedules) + ' schedules':<{width}}  schedules     times"]
        lines += [f"{k:<{width}}  {self.within[k]:>9} {self.total[k]:>9}" for k in kinds]
        return "\n".join(lines)
