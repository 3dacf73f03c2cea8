"""The halt before a store that was rolled back: nothing is scheduled until an operator accepts it
or the right store is back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from muster.api.v1 import storage_pb2, storage_pb2_grpc
from muster.domain.errors import MusterError
from muster.rpc.channels import ServiceChannel
from muster_scheduler.core.generation import Found
from muster_scheduler.errors import passes

_LOG = structlog.get_logger("muster.scheduler")

LOOK_EVERY_S = 1.0
LOOK_TIMEOUT_S = 2.0
# `muster up` looks for these words in what /readyz says.
HALTED = "halted: "


class Halt:
    """What the scheduler's RPCs say and do meanwhile. `accepted` is set once an operator has
    decided and etcd knows."""

    def __init__(
        self, address: str, term: int, why: str, found: Found, record: Callable[[], Awaitable[None]]
    ) -> None:
        self.address, self.term, self.found = address, term, found
        self.why = f"{why}; an operator must put the right Redis back or accept this one"
        self.accepted = asyncio.Event()
        self._record = record

    async def accept(self, who: str) -> None:
        """Raises Unavailable when etcd cannot be told."""
        await self._record()
        _LOG.warning("a store that was rolled back is accepted", who=who, why=self.why)
        self.accepted.set()


async def until_decided(halt: Halt, storage: ServiceChannel, elected: Callable[[], bool]) -> None:
    """Returns when the operator has accepted the store, when it is another one than it was found,
    or when the lead is lost: in each case the term is to be taken anew."""
    while elected():
        try:
            async with asyncio.timeout(LOOK_EVERY_S):
                await halt.accepted.wait()
        except TimeoutError:
            if await _differs(halt, storage):
                _LOG.warning("the store is not the one any more that was halted for")
                return
        else:
            return


async def _differs(halt: Halt, storage: ServiceChannel) -> bool:
    at = storage.address
    # It advances nothing; while this scheduler is halted nobody else does.
    request = storage_pb2.ConfirmTermRequest(term=halt.term)
    try:
        answer = await storage.call(
            storage_pb2_grpc.StorageServiceStub,
            "ConfirmTerm",
            request,
            timeout_s=LOOK_TIMEOUT_S,
        )
    except MusterError as error:
        if not passes(error):
            raise
        storage.turn_from(at, error)
        return False
    return not answer.current or answer.clock_ms != halt.found.clock_ms
