"""Who should be there: what the registry says of its agents."""

from __future__ import annotations

from collections.abc import Callable

from muster.api.v1 import registry_pb2 as pb
from muster.domain.ids import AgentId
from muster_monitor.state import MonitorState


def apply(state: MonitorState, wall_ms: Callable[[], int], message: pb.WatchAgentsResponse) -> None:
    """One message of the watch: a snapshot or changes."""
    at_ms = wall_ms()
    before = set(state.registered)
    senses = state.senses
    if message.snapshot:
        state.registered.clear()
    for record in message.agents:
        agent = AgentId(record.spec.id)
        state.registered[agent] = record.incarnation
        senses.registered(agent, record.spec.labels, (s.name for s in record.spec.skills))
        state.remember_tenant(agent, record.spec.tenant)
    for ident in message.removed:
        state.registered.pop(AgentId(ident), None)
    state.registry_seen = True
    for agent in before ^ set(state.registered):
        state.table.set_registered(agent, agent in state.registered)
        if agent not in state.registered and not state.table.incarnation(agent):
            # It reports to another monitor, so nothing else of it is known here.
            senses.forget(agent, at_ms, registered=False)
