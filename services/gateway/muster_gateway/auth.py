"""Who calls: API keys checked against storage's records, cached for a moment."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog

from muster.api.v1 import storage_pb2, storage_pb2_grpc
from muster.domain.errors import (
    InvalidInput,
    MusterError,
    NotFound,
    PermissionDenied,
    Unauthenticated,
)
from muster.domain.ids import DEFAULT_TENANT, TenantId
from muster.rpc.channels import ServiceChannel
from muster.rpc.clock import boot_s, wall_ms
from muster_gateway.apikeys import KeyText, parse_key
from muster_gateway.roles import Role, parse_role

_LOG = structlog.get_logger("muster.gateway.auth")

# A key that another gateway revoked is refused here at most this much later.
CACHE_S: Final = 2.0
# Unknown ids are remembered too, so that guessing costs storage nothing; hence the bound.
_MAX_CACHED: Final = 10_000
_LOOKUP_TIMEOUT_S: Final = 3.0
_TOUCH_EVERY_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Caller:
    """Who a request comes from, as its key says."""

    key_id: str
    tenant: TenantId
    role: Role


@dataclass(frozen=True, slots=True)
class _Known:
    """A key's record as storage had it at `read_at_s`; None = there is none."""

    read_at_s: float
    record: storage_pb2.ApiKey | None
    caller: Caller | None


class Authenticator:
    """Turns the Authorization header into a caller."""

    def __init__(
        self,
        storage: ServiceChannel,
        *,
        clock_s: Callable[[], float] = boot_s,
        wall_clock_ms: Callable[[], int] = wall_ms,
    ) -> None:
        self._storage = storage
        self._clock_s = clock_s
        self._wall_ms = wall_clock_ms
        self._known: dict[str, _Known] = {}
        self._lookups: dict[str, asyncio.Task[_Known]] = {}
        self._used_at_ms: dict[str, int] = {}

    async def caller(self, authorization: str | None) -> Caller:
        """Raises Unauthenticated; Unavailable when storage cannot be asked."""
        if not authorization:
            raise Unauthenticated("an API key is needed: Authorization: Bearer mst_…")
        scheme, _, text = authorization.partition(" ")
        if scheme.lower() != "bearer":
            raise Unauthenticated("the scheme must be Bearer: Authorization: Bearer mst_…")
        key = parse_key(text.strip())
        known = self._known.get(key.id)
        if known is None or self._clock_s() - known.read_at_s >= CACHE_S:
            known = await self._look_up(key.id)
        return self._judge(key, known)

    def forget(self, key_id: str) -> None:
        """This gateway has just changed the key: look it up anew."""
        self._known.pop(key_id, None)

    async def touch_forever(self) -> None:
        """Writes last uses down, every few seconds."""
        while True:
            await asyncio.sleep(_TOUCH_EVERY_S)
            await self.touch()

    async def touch(self) -> None:
        """Writes the last uses down; lost ones are lost, they are for showing only."""
        if not self._used_at_ms:
            return
        used, self._used_at_ms = self._used_at_ms, {}
        try:
            await self._storage.call(
                storage_pb2_grpc.StorageServiceStub,
                "TouchApiKeys",
                storage_pb2.TouchApiKeysRequest(last_used_at_ms=used),
                timeout_s=_LOOKUP_TIMEOUT_S,
            )
        except MusterError as error:
            _LOG.warning("last uses of API keys were not written", why=str(error))

    def _judge(self, key: KeyText, known: _Known) -> Caller:
        record, caller = known.record, known.caller
        # One sentence for an unknown id and a wrong secret: it must not tell which ids exist.
        if record is None or caller is None or not key.opens(record.secret_sha256):
            raise Unauthenticated("the API key is not known here")
        if record.revoked_at_ms:
            raise Unauthenticated("the API key has been revoked")
        now_ms = self._wall_ms()
        if record.expires_at_ms and record.expires_at_ms <= now_ms:
            raise Unauthenticated("the API key has expired")
        self._used_at_ms[key.id] = now_ms
        return caller

    async def _look_up(self, key_id: str) -> _Known:
        """Concurrent requests with one key share one look-up."""
        lookup = self._lookups.get(key_id)
        if lookup is None:
            lookup = asyncio.create_task(self._read(key_id), name="look up an API key")
            self._lookups[key_id] = lookup
            lookup.add_done_callback(lambda done: self._looked_up(key_id, done))
        # A caller that goes away must not take the others' look-up with it.
        return await asyncio.shield(lookup)

    def _looked_up(self, key_id: str, done: asyncio.Task[_Known]) -> None:
        self._lookups.pop(key_id, None)
        if not done.cancelled():
            # Every caller may have gone away; the error is then nobody's to read.
            done.exception()

    async def _read(self, key_id: str) -> _Known:
        read_at_s = self._clock_s()
        record: storage_pb2.ApiKey | None = await read_key(self._storage, key_id)
        caller = None
        if record is not None:
            try:
                role = parse_role(record.role)
            except InvalidInput as error:
                # Written by a newer version: what it may do here is not known, so nothing.
                _LOG.warning("an API key has an unknown role", key_id=key_id, why=str(error))
            else:
                caller = Caller(key_id, TenantId(record.tenant or DEFAULT_TENANT), role)
        known = _Known(read_at_s, record, caller)
        if len(self._known) >= _MAX_CACHED:
            self._known.clear()
        self._known[key_id] = known
        return known


async def read_key(
    storage: ServiceChannel,
    key_id: str,
    *,
    timeout_s: float = _LOOKUP_TIMEOUT_S,
    retry: bool = True,
) -> storage_pb2.ApiKey | None:
    """The record of a key, None when there is none. Raises Unavailable."""
    try:
        response: storage_pb2.GetApiKeyResponse = await storage.call(
            storage_pb2_grpc.StorageServiceStub,
            "GetApiKey",
            storage_pb2.GetApiKeyRequest(id=key_id),
            timeout_s=timeout_s,
            retry=retry,
        )
    except NotFound:
        return None
    return response.key if response.key.id else None


def require(caller: Caller, least: Role, method: str, path: str) -> None:
    """Raises PermissionDenied."""
    if caller.role < least:
        raise PermissionDenied(
            f"{method} {path} needs the role {least.text}; this key is a {caller.role.text}"
        )
