"""Who should be there: the registry's agents, followed for as long as the monitor runs."""

from __future__ import annotations

import asyncio

import structlog

from muster.api.v1 import registry_pb2 as pb
from muster.api.v1 import registry_pb2_grpc
from muster.domain.errors import MusterError
from muster.domain.ids import AgentId
from muster.rpc.channels import ServiceChannel, full_jitter
from muster.rpc.status import rpc_errors
from muster_monitor.state import MonitorState

_LOG = structlog.get_logger("muster.monitor")


async def follow_registry(state: MonitorState, registry: ServiceChannel) -> None:
    """While the registry is away, what it showed last stands: its silence says nothing."""
    failures = 0
    while True:
        call = registry.stream(
            registry_pb2_grpc.RegistryServiceStub, "WatchAgents", pb.WatchAgentsRequest()
        )
        try:
            with rpc_errors("registry"):
                async for message in call:
                    failures = 0
                    apply(state, message)
        except MusterError as error:
            if failures == 0:
                _LOG.warning("the registry does not answer", reason=str(error))
        finally:
            call.cancel()
        failures += 1
        registry.rotate()
        await asyncio.sleep(full_jitter(failures))


def apply(state: MonitorState, message: pb.WatchAgentsResponse) -> None:
    """One message of the watch: a snapshot or changes."""
    before = set(state.registered)
    if message.snapshot:
        state.registered.clear()
    for record in message.agents:
        state.registered[AgentId(record.spec.id)] = record.incarnation
    for ident in message.removed:
        state.registered.pop(AgentId(ident), None)
    state.registry_seen = True
    for agent in before ^ set(state.registered):
        state.table.set_registered(agent, agent in state.registered)
