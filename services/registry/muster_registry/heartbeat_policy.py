"""How often agents beat and how long their leases last, by the size of the cluster. Pure.

Source of the rule: HashiCorp Nomad's `rate_scaled_interval`: an interval grows so that all beats
together stay under a rate, and never falls below its minimum.
"""

from __future__ import annotations

from dataclasses import dataclass

# A lease outlives three beats and a second for the way: two may be lost without harm.
_BEATS_PER_LEASE = 3
_SPARE_MS = 1000


@dataclass(frozen=True, slots=True)
class HeartbeatPolicy:
    """With the defaults: a beat every 3 s on leases of 10 s, up to 1,500 agents."""

    min_interval_ms: int = 3000
    max_renewals_per_s: float = 500.0

    def interval_ms(self, agents: int) -> int:
        """For a cluster of this many agents."""
        return max(self.min_interval_ms, int(agents * 1000 / self.max_renewals_per_s))

    def lease_ttl_s(self, agents: int) -> int:
        """For an agent that joins a cluster of this many; whole seconds, as etcd keeps them."""
        return -(-(_BEATS_PER_LEASE * self.interval_ms(agents) + _SPARE_MS) // 1000)

    def beat_within_ms(self, agents: int, lease_ttl_s: int) -> int:
        """For an agent whose lease was granted with `lease_ttl_s` when the cluster was smaller."""
        bearable = (lease_ttl_s * 1000 - _SPARE_MS) // _BEATS_PER_LEASE
        return max(1, min(self.interval_ms(agents), bearable))

    def first_interval_ms(self, agents: int, chance: float) -> int:
        """Until the first beat: up to twice the interval, so that agents that were started
        together do not beat together. `chance` is from [0, 1)."""
        return int(self.interval_ms(agents) * (1.0 + chance))
