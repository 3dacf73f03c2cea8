"""When so many agents fall silent together that it is rather the network's fault than theirs.

Then nobody is given up for its silence: the leader would move half the cluster's work onto the
rest because of a switch that is being restarted. A whole zone that falls silent is spared alone.
It ends by itself, once most of those that fell silent are heard again or known to be gone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

import msgspec

from muster.domain.ids import AgentId
from muster.domain.mass_failure import is_mass_failure

# They fail together when they fall silent within so long.
TOGETHER_MS: Final = 60_000
# The label by which agents are of a zone.
ZONE_LABEL: Final = "zone"
# What the alarm is called where no zone is.
WHOLE_CLUSTER: Final = ""


class Seen(msgspec.Struct, frozen=True):
    """An agent that counts: not one that left, or of which is known that it died.

    `silent_since_ms` is the boot time when it was last heard, None while it is heard.
    """

    ident: AgentId
    zone: str
    silent_since_ms: int | None


class Alarm(msgspec.Struct, frozen=True):
    """The guard was raised (`active`) or lifted, for a zone or the WHOLE_CLUSTER."""

    zone: str
    active: bool
    why: str


@dataclass(slots=True)
class MassFailure:
    """The guard of one leader. `zones` are those whose agents are spared now."""

    zones: dict[str, str] = field(default_factory=dict)

    def spares(self, zone: str) -> bool:
        """Whether silence gives up no agent of this zone."""
        return WHOLE_CLUSTER in self.zones or (bool(zone) and zone in self.zones)

    def look(self, seen: Iterable[Seen], now_ms: int) -> list[Alarm]:
        """Judges anew; about once a second, before any agent is given up. Returns what changed."""
        groups: dict[str, list[Seen]] = {WHOLE_CLUSTER: []}
        for one in seen:
            groups[WHOLE_CLUSTER].append(one)
            if one.zone:
                groups.setdefault(one.zone, []).append(one)
        alarms = []
        for zone in sorted({*groups, *self.zones}):
            members = groups.get(zone, [])
            why = self._why(zone, members, now_ms)
            if why and zone not in self.zones:
                self.zones[zone] = why
                alarms.append(Alarm(zone, True, why))
            elif not why and zone in self.zones:
                del self.zones[zone]
                silent = sum(1 for one in members if one.silent_since_ms is not None)
                why = f"{silent} of {len(members)} agents {_of(zone)}are silent now"
                alarms.append(Alarm(zone, False, f"agents are given up again: {why}"))
        return alarms

    def _why(self, zone: str, members: list[Seen], now_ms: int) -> str:
        """Why these are spared; empty when they are not."""
        silent = [one.silent_since_ms for one in members if one.silent_since_ms is not None]
        if zone in self.zones:
            goes_on = is_mass_failure(len(silent), len(members), of_zone=bool(zone), standing=True)
            return self.zones[zone] if goes_on else ""
        lately = [since for since in silent if now_ms - since <= TOGETHER_MS]
        # Those that had been silent before are not part of it.
        members_count = len(members) - (len(silent) - len(lately))
        if not is_mass_failure(len(lately), members_count, of_zone=bool(zone), standing=False):
            return ""
        seconds = (now_ms - min(lately)) // 1000
        return (
            f"{len(lately)} of {members_count} agents {_of(zone)}fell silent within {seconds} s:"
            " none of them is given up for its silence"
        )


def _of(zone: str) -> str:
    return f"of zone {zone} " if zone else ""
