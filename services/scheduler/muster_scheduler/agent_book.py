"""What the leader keeps of agents in storage, so that the next one goes on with it.

Under a tenant of its own, AGENTS_TENANT, which is no client's:

    value health          JSON: what agents are blamed for, quarantines, deadlines of drains
    value timeline/<id>   JSON: the newest MAX_EVIDENCE entries of the agent's timeline

The timeline is written some time after the events that it tells of, at most a second on a good
day; of what happened in the last moment before a leader died, only the events are left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec
import structlog

from muster.domain.errors import MusterError
from muster.domain.ids import AgentId, TenantId
from muster.rpc.channels import ServiceChannel, full_jitter
from muster.rpc.tenant_values import TenantValues
from muster_scheduler.core.health import PlainTrust
from muster_scheduler.core.records import MAX_EVIDENCE, AgentEntry, Evidence, Now
from muster_scheduler.core.state import ClusterState
from muster_scheduler.errors import passes

_LOG = structlog.get_logger("muster.scheduler")

AGENTS_TENANT = TenantId("muster-agents")
_HEALTH, _TIMELINE = "health", "timeline/"
SAVE_EVERY_S = 1.0
# Timelines of agents that nobody has heard of for so long are thrown away.
KEPT_MS = 7 * 24 * 3_600_000
SWEEP_EVERY_S = 3_600.0


class _Kept(msgspec.Struct):
    """The value `health`: cluster milliseconds throughout."""

    at_clock_ms: int
    agents: dict[str, PlainTrust]
    drains: dict[str, int] = {}


def joined(older: list[Evidence], newer: list[Evidence]) -> list[Evidence]:
    """The newest MAX_EVIDENCE of both, without what both hold."""
    known = set(newer)
    return [*(e for e in older if e not in known), *newer][-MAX_EVIDENCE:]


class AgentBook:
    """One leader's access. `noted` are agents whose timelines have grown since they were saved."""

    def __init__(
        self, storage: ServiceChannel, state: ClusterState, now: Callable[[], Now]
    ) -> None:
        self.noted: set[AgentId] = set()
        self._values = TenantValues(storage, AGENTS_TENANT)
        self._state = state
        self._now = now
        # Agents of which storage holds nothing that is not in memory, too.
        self._joined: dict[AgentId, AgentEntry] = {}
        self._saved: tuple[int, dict[AgentId, int]] = (0, {})

    async def load_health(self) -> None:
        """Reads what agents are blamed for; called before agents are met."""
        value = (await self._values.get(_HEALTH)).value
        if not value:
            return
        try:
            kept = msgspec.json.decode(value, type=_Kept)
        except (msgspec.DecodeError, RecursionError) as error:
            _LOG.error(
                "the health of agents cannot be read, all are taken for well", why=str(error)
            )
            return
        self._state.health.take_over(kept.agents, kept.at_clock_ms, self._now().clock_ms)
        self._state.drains.update({AgentId(i): until for i, until in kept.drains.items()})
        self._saved = (self._state.health.version, dict(self._state.drains))

    async def save_health(self) -> None:
        """Keeps it, if it has changed since it was saved."""
        book, drains = self._state.health, dict(self._state.drains)
        state = (book.version, drains)
        if state == self._saved:
            return
        clock_ms = self._now().clock_ms
        kept = _Kept(clock_ms, book.to_plain(clock_ms), {str(i): at for i, at in drains.items()})
        await self._values.put(_HEALTH, msgspec.json.encode(kept))
        self._saved = state

    async def run(self) -> None:
        """Saves what changes until cancelled."""
        failures, since_sweep_s = 0, 0.0
        while True:
            await asyncio.sleep(SAVE_EVERY_S + full_jitter(failures) * (failures > 0))
            since_sweep_s += SAVE_EVERY_S
            try:
                await self.save_health()
                await self._save_timelines()
                if since_sweep_s >= SWEEP_EVERY_S:
                    since_sweep_s = 0.0
                    await self._sweep()
                failures = 0
            except MusterError as error:
                if not passes(error):
                    raise
                failures += 1
                if failures == 1:
                    _LOG.warning("what is known of agents is not saved yet", reason=str(error))

    async def _save_timelines(self) -> None:
        state = self._state
        for ident in [i for i, a in self._joined.items() if state.agents.get(i) is not a]:
            # Forgotten meanwhile; if it comes back, its timeline goes on where it ended.
            del self._joined[ident]
        for ident, agent in list(state.agents.items()):
            if ident in self._joined:
                continue
            older = await self._timeline(ident)
            agent.evidence = joined(older, agent.evidence)
            self._joined[ident] = agent
        for ident in list(self.noted):
            self.noted.discard(ident)
            agent_found = self._joined.get(ident)
            if agent_found is None:
                continue
            try:
                await self._values.put(_TIMELINE + ident, msgspec.json.encode(agent_found.evidence))
            except MusterError:
                self.noted.add(ident)
                raise

    async def _timeline(self, ident: AgentId) -> list[Evidence]:
        value = (await self._values.get(_TIMELINE + ident)).value
        if not value:
            return []
        try:
            return msgspec.json.decode(value, type=list[Evidence])[-MAX_EVIDENCE:]
        except (msgspec.DecodeError, RecursionError) as error:
            _LOG.error("an agent's timeline cannot be read", agent=ident, why=str(error))
            return []

    async def _sweep(self) -> None:
        oldest_ms = self._now().wall_ms - KEPT_MS
        for key in await self._values.keys(_TIMELINE):
            ident = AgentId(key.removeprefix(_TIMELINE))
            if ident in self._state.agents:
                continue
            entries = await self._timeline(ident)
            if not entries or entries[-1].at_ms < oldest_ms:
                await self._values.delete(key)
