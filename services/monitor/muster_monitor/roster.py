"""Who should be there: what the registry says of its agents."""

from __future__ import annotations

from muster.api.v1 import registry_pb2 as pb
from muster.domain.ids import AgentId
from muster_monitor.state import MonitorState


def apply(state: MonitorState, message: pb.WatchAgentsResponse) -> None:
    """One message of the watch: a snapshot or changes."""
    before = set(state.registered)
    if message.snapshot:
        state.registered.clear()
    for record in message.agents:
        state.registered[AgentId(record.spec.id)] = record.incarnation
        state.remember_tenant(AgentId(record.spec.id), record.spec.tenant)
    for ident in message.removed:
        state.registered.pop(AgentId(ident), None)
    state.registry_seen = True
    for agent in before ^ set(state.registered):
        state.table.set_registered(agent, agent in state.registered)
