"""Reads the leader's events from storage's log and hands the desk what they mean."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

import structlog

from muster.api.v1 import storage_pb2 as pb
from muster.api.v1 import storage_pb2_grpc
from muster.domain.agent_lifecycle import AgentState
from muster.domain.alarms import ALARMS
from muster.domain.errors import MusterError
from muster.rpc.channels import ServiceChannel, full_jitter
from muster.rpc.conversion import AGENT_STATE_TO_PROTO
from muster.rpc.status import rpc_errors
from muster_monitor.alerting import happenings
from muster_monitor.alerting.desk import AlertDesk
from muster_monitor.alerting.happenings import Happening

_LOG = structlog.get_logger("muster.monitor")

_KINDS: Final = (
    pb.EVENT_KIND_AGENT_CHANGED,
    pb.EVENT_KIND_AGENT_RECOVERY,
    pb.EVENT_KIND_CLUSTER_ALARM,
    pb.EVENT_KIND_TASK_STUCK,
    pb.EVENT_KIND_LEADER_CHANGED,
)
_STATES: Final = {value: state for state, value in AGENT_STATE_TO_PROTO.items()}
_OLDEST: Final = "0"


def happenings_of(event: pb.Event) -> Sequence[Happening]:
    """What an event means; nothing when it is of a newer version's kind or state."""
    if event.kind == pb.EVENT_KIND_AGENT_CHANGED:
        state: AgentState | None = _STATES.get(event.agent_state)
        if state is None or not event.agent:
            return ()
        return happenings.of_agent(event.agent, state, event.why, event.at_ms)
    if event.kind == pb.EVENT_KIND_CLUSTER_ALARM:
        return (happenings.of_alarm(event.note, event.why, event.at_ms),)
    if event.kind == pb.EVENT_KIND_LEADER_CHANGED:
        # An alarm is its leader's; what stands of them the next one tells after this.
        return [happenings.of_alarm(name, "", event.at_ms) for name in ALARMS]
    if event.kind == pb.EVENT_KIND_TASK_STUCK:
        return (
            happenings.of_stuck_task(
                event.tenant, event.task_id, event.agent, event.skill, event.why, event.at_ms
            ),
        )
    if event.kind == pb.EVENT_KIND_AGENT_RECOVERY and event.agent:
        return (happenings.of_recovery(event.agent, event.note, event.why, event.at_ms),)
    return ()


async def follow_events(storage: ServiceChannel, desk: AlertDesk) -> None:
    """While the desk speaks, from where its book left off; until cancelled."""
    failures = 0
    while True:
        await desk.speaks.wait()
        at = storage.address
        request = pb.TailRequest(from_id=desk.position or _OLDEST, kinds=_KINDS)
        call = storage.stream(storage_pb2_grpc.StorageServiceStub, "Tail", request)
        try:
            with rpc_errors("storage"):
                async for message in call:
                    failures = 0
                    if not desk.speaks.is_set():
                        break
                    take(message, desk)
        except MusterError as error:
            if failures == 0:
                _LOG.warning("the leader's events cannot be read", reason=str(error))
            storage.turn_from(at, error)
        finally:
            call.cancel()
        failures += 1
        await asyncio.sleep(full_jitter(failures))


def take(message: pb.TailResponse, desk: AlertDesk) -> None:
    """One message: its events, then its position, so that both are written together."""
    if message.gap:
        _LOG.warning("events were trimmed before they were read; alerts may be missing")
    for event in message.events:
        desk.take_happenings(happenings_of(event))
    desk.position = message.last_id
