"""What the leader follows of others: agents at the registry, suspicions at the monitors."""

from __future__ import annotations

import asyncio
from functools import partial

import structlog

from muster.api.v1 import monitor_pb2, monitor_pb2_grpc, registry_pb2
from muster.domain.errors import InvalidInput, MusterError
from muster.domain.ids import AgentId
from muster.rpc import conversion
from muster.rpc.agent_watch import follow_agents
from muster.rpc.channels import ServiceChannel, full_jitter
from muster.rpc.status import rpc_errors
from muster_scheduler.core import agents
from muster_scheduler.core.witnesses import Opinion, Witnesses, Word
from muster_scheduler.leader import Leader

_LOG = structlog.get_logger("muster.scheduler")


async def follow_registry(leader: Leader, registry: ServiceChannel) -> None:
    """Lists and watches agents until cancelled."""
    await follow_agents(registry, partial(_take, leader))


def _take(leader: Leader, message: registry_pb2.WatchAgentsResponse) -> None:
    now = leader.now()
    records = []
    for shown in message.agents:
        try:
            records.append(conversion.agent_record_from_proto(shown))
        except InvalidInput as error:
            _LOG.error("a registered agent is not understood", agent=shown.spec.id, why=str(error))
    if message.snapshot:
        agents.registry_snapshot(leader.state, records, now)
    else:
        for record in records:
            agents.registered(leader.state, record, now)
        for ident in message.removed:
            agents.unregistered(leader.state, AgentId(ident), now)
    leader.wake()


async def follow_monitor(leader: Leader, monitor: ServiceChannel, witnesses: Witnesses) -> None:
    """Follows one monitor's suspicions until cancelled; they end when the monitor is gone."""
    failures = 0
    while True:
        call = monitor.stream(
            monitor_pb2_grpc.MonitorServiceStub,
            "WatchFailures",
            monitor_pb2.WatchFailuresRequest(),
        )
        try:
            with rpc_errors("monitor"):
                async for message in call:
                    failures = 0
                    words = [_word(item) for item in message.suspicions]
                    if message.snapshot:
                        _believe(leader, witnesses.all_of(monitor.address, words))
                    else:
                        taken = (witnesses.takes(monitor.address, word) for word in words)
                        _believe(leader, [opinion for opinion in taken if opinion is not None])
        except MusterError as error:
            if failures == 0:
                _LOG.warning("a monitor does not answer", reason=str(error))
        finally:
            call.cancel()
        _believe(leader, witnesses.silent(monitor.address))
        failures += 1
        await asyncio.sleep(full_jitter(failures))


def _word(item: monitor_pb2.Suspicion) -> Word:
    return Word(AgentId(item.agent), item.incarnation, item.suspected, not item.unheard, item.phi)


def _believe(leader: Leader, opinions: list[Opinion]) -> None:
    now = leader.now()
    for opinion in opinions:
        agents.suspicion(
            leader.state, opinion.agent, opinion.incarnation, opinion.suspected, opinion.phi, now
        )
    if opinions:
        leader.wake()
