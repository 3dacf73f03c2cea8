"""The last 15 minutes of every agent's metrics, one sample per second, in bounded memory. Pure."""

from __future__ import annotations

import math
import re
from array import array
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from muster.domain.ids import AgentId

KEPT_S = 900
# An agent sends about twenty; 32 × 900 × 8 bytes bound one agent to 230 KiB.
MAX_METRICS = 32
MAX_RING_AGENTS = 10_000
# Clocks of agents and monitor differ by less than this where time is kept at all.
_MAX_SKEW_MS = 5_000

_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
_NOTHING = math.nan
_MAX_NAMES = 1_000
# All figures of agents and their machines are amounts, shares or rates.
_NEVER_NEGATIVE = ("agent_", "host_")


@dataclass(frozen=True, slots=True)
class Sample:
    """One second of one agent; `at_ms` is unix time."""

    at_ms: int
    values: dict[str, float]


class _Ring:
    """Columns of equal length that grow to KEPT_S and are then written round and round."""

    __slots__ = ("at_ms", "columns", "newest")

    def __init__(self) -> None:
        self.at_ms = array("q")
        self.columns: dict[str, array[float]] = {}
        self.newest = -1

    def advance(self, at_ms: int) -> None:
        """Opens the row of `at_ms`, over the oldest one when full."""
        if len(self.at_ms) < KEPT_S:
            self.at_ms.append(at_ms)
            self.newest = len(self.at_ms) - 1
            for column in self.columns.values():
                column.append(_NOTHING)
            return
        self.newest = (self.newest + 1) % KEPT_S
        self.at_ms[self.newest] = at_ms
        for column in self.columns.values():
            column[self.newest] = _NOTHING

    def row(self, index: int) -> Sample:
        values = {
            name: column[index]
            for name, column in self.columns.items()
            if not math.isnan(column[index])
        }
        return Sample(self.at_ms[index], values)

    def rows(self) -> list[int]:
        """Indexes, oldest first."""
        count = len(self.at_ms)
        return [(self.newest + 1 + step) % count for step in range(count)]


class MetricRings:
    """What is not taken is counted by reason in `dropped`."""

    def __init__(self, max_agents: int = MAX_RING_AGENTS) -> None:
        self._rings: dict[AgentId, _Ring] = {}
        self._max_agents = max_agents
        self._names: set[str] = set()
        self.dropped: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._rings)

    def add(
        self, agent: AgentId, at_ms: int, metrics: Mapping[str, float], now_ms: int
    ) -> dict[str, float]:
        """Takes what is sound of one report, and gives it back; late figures are not given back.

        `at_ms` is the agent's wall time (0 = not given), `now_ms` the monitor's. A time that the
        ring could not hold is replaced by the monitor's, so that a wrong clock hides nothing.
        """
        if at_ms < 0:
            self.dropped["negative_time"] += 1
            return {}
        values = self._sound(metrics)
        if not values:
            return {}
        ring = self._ring(agent)
        if ring is None:
            return {}
        if not now_ms - KEPT_S * 1000 <= at_ms <= now_ms + _MAX_SKEW_MS:
            at_ms = now_ms
        if ring.newest >= 0:
            newest_ms = ring.at_ms[ring.newest]
            if newest_ms > now_ms + _MAX_SKEW_MS:
                # The monitor's own clock was set back: what was kept lies in its future.
                ring = self._rings[agent] = _Ring()
            elif at_ms // 1000 < newest_ms // 1000:
                self.dropped["late"] += 1
                return {}
        if ring.newest < 0 or at_ms // 1000 > ring.at_ms[ring.newest] // 1000:
            ring.advance(at_ms)
        ring.at_ms[ring.newest] = at_ms
        self._write(ring, values)
        return values

    def newest(self, agent: AgentId) -> Sample | None:
        ring = self._rings.get(agent)
        return ring.row(ring.newest) if ring is not None else None

    def since(self, agent: AgentId, since_ms: int) -> list[Sample]:
        """Samples at or after `since_ms`, oldest first; empty for an unknown agent."""
        ring = self._rings.get(agent)
        if ring is None:
            return []
        return [ring.row(index) for index in ring.rows() if ring.at_ms[index] >= since_ms]

    def agents(self) -> list[AgentId]:
        return list(self._rings)

    def forget(self, agent: AgentId) -> None:
        self._rings.pop(agent, None)

    def expire(self, now_ms: int) -> list[AgentId]:
        """Forgets agents whose newest sample is past the ring's reach, and names them."""
        gone = [
            agent
            for agent, ring in self._rings.items()
            if ring.at_ms[ring.newest] < now_ms - KEPT_S * 1000
        ]
        for agent in gone:
            del self._rings[agent]
        return gone

    def _sound(self, metrics: Mapping[str, float]) -> dict[str, float]:
        sound = {}
        for name, value in metrics.items():
            if not math.isfinite(value):
                self.dropped["not_finite"] += 1
            elif name not in self._names and not self._is_name(name):
                self.dropped["bad_name"] += 1
            elif value < 0.0 and name.startswith(_NEVER_NEGATIVE):
                self.dropped["negative"] += 1
            else:
                sound[name] = value
        return sound

    def _is_name(self, name: str) -> bool:
        """Names are the same each second: what matched once is remembered."""
        if _NAME.fullmatch(name) is None:
            return False
        if len(self._names) < _MAX_NAMES:
            self._names.add(name)
        return True

    def _ring(self, agent: AgentId) -> _Ring | None:
        ring = self._rings.get(agent)
        if ring is None:
            if len(self._rings) >= self._max_agents:
                self.dropped["too_many_agents"] += 1
                return None
            ring = self._rings[agent] = _Ring()
        return ring

    def _write(self, ring: _Ring, values: dict[str, float]) -> None:
        for name, value in values.items():
            column = ring.columns.get(name)
            if column is None:
                if len(ring.columns) >= MAX_METRICS:
                    self.dropped["too_many_metrics"] += 1
                    continue
                column = array("d", [_NOTHING]) * len(ring.at_ms)
                ring.columns[name] = column
            column[ring.newest] = value
