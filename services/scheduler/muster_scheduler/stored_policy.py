"""The policy that operators have stored: read when a term begins, and again when it was changed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import orjson
import structlog

from muster.api.v1 import storage_pb2, storage_pb2_grpc
from muster.domain.errors import InvalidInput, MusterError
from muster.domain.policy import Policy, parse_policy
from muster.rpc.channels import ServiceChannel, full_jitter
from muster_scheduler.errors import passes

_LOG = structlog.get_logger("muster.scheduler")
_Store = storage_pb2_grpc.StorageServiceStub

READ_TIMEOUT_S = 5.0


class StoredPolicy:
    """`policy` is what is in force: the stored one, or `default` while none was ever stored or the
    stored one is not understood. `etag` is of what was read last, "" before."""

    def __init__(self, storage: ServiceChannel, default: Policy) -> None:
        self.policy = default
        self.etag = ""
        self._storage = storage
        self._default = default
        self._changed = asyncio.Event()

    def note_change(self) -> None:
        """What is stored may be another one; `follow` reads it."""
        self._changed.set()

    async def read(self) -> None:
        """Reads once. Raises MusterError when storage does not answer."""
        answer: storage_pb2.GetPolicyResponse = await self._storage.call(
            _Store,
            "GetPolicy",
            storage_pb2.GetPolicyRequest(),
            timeout_s=READ_TIMEOUT_S,
            retry=True,
        )
        if answer.etag != self.etag:
            self.policy = understood(answer.policy_json, self._default)
            self.etag = answer.etag

    async def follow(self, use: Callable[[Policy], None]) -> None:
        """Until cancelled, reads after each `note_change` and hands over a policy that is new."""
        failures = 0
        while True:
            await self._changed.wait()
            # Cleared first: a change during the read is read, too.
            self._changed.clear()
            before, at = self.policy, self._storage.address
            try:
                await self.read()
            except MusterError as error:
                if not passes(error):
                    raise
                if not failures:
                    _LOG.warning("the stored policy cannot be read yet", reason=str(error))
                failures += 1
                self._changed.set()
                self._storage.turn_from(at, error)
                await asyncio.sleep(full_jitter(failures))
                continue
            failures = 0
            if self.policy != before:
                _LOG.info("the policy is changed", strategy=self.policy.strategy, etag=self.etag)
                use(self.policy)


def understood(stored: bytes, default: Policy) -> Policy:
    """The stored document as a policy; what cannot be one is told of and leaves the default."""
    if not stored:
        return default
    try:
        return parse_policy(orjson.loads(stored))
    except (orjson.JSONDecodeError, InvalidInput) as error:
        _LOG.error("the stored policy is not understood; the default is used", why=str(error))
        return default
