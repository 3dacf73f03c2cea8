"""The registry's agents, followed by whoever must know them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from muster.api.v1 import registry_pb2, registry_pb2_grpc
from muster.domain.errors import MusterError
from muster.rpc.channels import ServiceChannel, full_jitter
from muster.rpc.status import rpc_errors

_LOG = structlog.get_logger("muster.rpc")


async def follow_agents(
    registry: ServiceChannel, take: Callable[[registry_pb2.WatchAgentsResponse], None]
) -> None:
    """Gives `take` each message of the watch, a snapshot or changes, until cancelled.

    While the registry is away, what it showed last stands: its silence says nothing of agents.
    """
    failures = 0
    while True:
        at = registry.address
        failure: MusterError | None = None
        call = registry.stream(
            registry_pb2_grpc.RegistryServiceStub,
            "WatchAgents",
            registry_pb2.WatchAgentsRequest(),
        )
        try:
            with rpc_errors("registry"):
                async for message in call:
                    failures = 0
                    take(message)
        except MusterError as error:
            failure = error
            if failures == 0:
                _LOG.warning("the registry does not answer", reason=str(error))
        finally:
            call.cancel()
        failures += 1
        registry.turn_from(at, failure)
        await asyncio.sleep(full_jitter(failures))
