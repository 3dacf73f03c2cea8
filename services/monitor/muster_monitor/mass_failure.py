"""One word instead of many when a large part of the cluster is silent together. Pure.

When most agents, or all of a zone, turn suspect at once, the fault is far more likely a network,
a switch or this monitor than each of them. So suspicions wait a moment before they are told; when
there are too many, one finding stands for all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final

from muster.domain.mass_failure import is_mass_failure
from muster_monitor.findings import Finding, Severity

AGENT_SUSPECTED = "agent_suspected"
MASS_FAILURE = "mass_failure"
# A pause that ends by itself is nobody's business; a death is told by the leader's events.
SUSPECTED_FOR_S = 10.0
# Suspicions of one cause come in one after the other.
GATHER_MS: Final = 2_000
_NAMED_AGENTS = 5


class MassGuard:
    """Call `look` regularly with all suspects; it gives what is to be told."""

    def __init__(self) -> None:
        # When each present suspicion was first seen, monotonic.
        self._since_ms: dict[str, int] = {}
        self._told: dict[str, Finding] = {}
        self._masses: dict[str, Finding] = {}

    @property
    def masses(self) -> frozenset[str]:
        """Zones in a mass failure; "" stands for the whole cluster."""
        return frozenset(self._masses)

    @property
    def is_calm(self) -> bool:
        """Nobody is suspected and nothing has been told that might end."""
        return not (self._since_ms or self._told or self._masses)

    def look(
        self, suspects: Mapping[str, str], zones: Mapping[str, str], now_ms: int, at_ms: int
    ) -> list[Finding]:
        """`suspects`: agent to why. `zones`: every agent that is heard, to its zone or "".

        Suspects are among the agents of `zones`.
        """
        self._since_ms = {a: self._since_ms.get(a, now_ms) for a in suspects}
        findings = self._judge_masses(suspects, zones, at_ms)
        covered = self._covered(suspects, zones)
        for agent, told in list(self._told.items()):
            if agent not in suspects or agent in covered:
                del self._told[agent]
                findings.append(_over(told, at_ms, "it is heard again, has left or is forgotten"))
        for agent, why in suspects.items():
            due = now_ms - self._since_ms[agent] >= GATHER_MS
            if due and agent not in covered and agent not in self._told:
                made = _suspected(agent, zones.get(agent, ""), why, at_ms)
                self._told[agent] = made
                findings.append(made)
        return findings

    def _covered(self, suspects: Iterable[str], zones: Mapping[str, str]) -> set[str]:
        if "" in self._masses:
            return set(suspects)
        return {agent for agent in suspects if zones.get(agent, "") in self._masses}

    def _judge_masses(
        self, suspects: Mapping[str, str], zones: Mapping[str, str], at_ms: int
    ) -> list[Finding]:
        findings = []
        silent = Counter(zones.get(agent, "") for agent in suspects)
        all_of = Counter(zones.values())
        everybody = len(zones)
        whole = is_mass_failure(
            len(suspects), everybody, of_zone=False, standing="" in self._masses
        )
        wanted = {"": len(suspects)} if whole else {}
        # One zone that has no neighbour is the cluster itself.
        if len(all_of) > 1 and "" not in wanted:
            wanted = {
                zone: count
                for zone, count in silent.items()
                if zone
                and is_mass_failure(
                    count, all_of[zone], of_zone=True, standing=zone in self._masses
                )
            }
        for zone in [zone for zone in self._masses if zone not in wanted]:
            over = self._masses.pop(zone)
            findings.append(_over(over, at_ms, "most of them are heard again"))
        for zone, count in wanted.items():
            if zone not in self._masses:
                total = all_of[zone] if zone else everybody
                mine = [a for a in suspects if not zone or zones.get(a) == zone]
                made = _mass(zone, count, total, sorted(mine), at_ms)
                self._masses[zone] = made
                findings.append(made)
        return findings


def _suspected(agent: str, zone: str, why: str, at_ms: int) -> Finding:
    labels = {"agent": agent, "zone": zone} if zone else {"agent": agent}
    text = f"agent {agent} is suspected to have failed: {why}"
    return Finding(
        AGENT_SUSPECTED, labels, Severity.WARNING, True, text[:500], at_ms, for_s=SUSPECTED_FOR_S
    )


def _mass(zone: str, count: int, total: int, agents: list[str], at_ms: int) -> Finding:
    labels = {"scope": "zone", "zone": zone} if zone else {"scope": "cluster"}
    place = f"zone {zone}" if zone else "the cluster"
    named = ", ".join(agents[:_NAMED_AGENTS])
    more = f" and {len(agents) - _NAMED_AGENTS} more" if len(agents) > _NAMED_AGENTS else ""
    text = (
        f"{count} of {total} agents of {place} are silent together ({named}{more}): "
        "look at the network and at this monitor first"
    )
    return Finding(
        MASS_FAILURE, labels, Severity.CRITICAL, True, text[:500], at_ms, value=count / total
    )


def _over(finding: Finding, at_ms: int, why: str) -> Finding:
    return Finding(finding.rule, finding.labels, finding.severity, False, why, at_ms)
