"""The first API key: a file that `muster up` made, whose hash is registered in storage."""

from __future__ import annotations

import asyncio
from pathlib import Path

import structlog

from muster.api.v1 import storage_pb2, storage_pb2_grpc
from muster.domain.errors import ConfigurationError, Conflict, MusterError, Unauthenticated
from muster.domain.ids import DEFAULT_TENANT
from muster.rpc.channels import ServiceChannel, full_jitter
from muster.rpc.clock import wall_ms
from muster_gateway.apikeys import KeyText, parse_key
from muster_gateway.auth import read_key
from muster_gateway.roles import Role

_LOG = structlog.get_logger("muster.gateway.bootstrap")
_KEY = "MUSTER_BOOTSTRAP_KEY_FILE"
# A key has about 80 characters; a longer file is another one.
_MAX_FILE_BYTES = 4_096


def read_bootstrap_key(path: Path) -> KeyText:
    """Raises ConfigurationError, which does not quote the file."""
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_FILE_BYTES).decode("ascii", "replace").strip()
    except OSError as error:
        raise ConfigurationError(
            _KEY, str(path), f"it cannot be read ({error.strerror})"
        ) from error
    try:
        return parse_key(text)
    except Unauthenticated:
        raise ConfigurationError(
            _KEY, str(path), "the file must hold one API key, mst_<id>_<secret>"
        ) from None


async def register_bootstrap_key(storage: ServiceChannel, key: KeyText) -> None:
    """Keeps trying until storage holds the key. A key that was revoked stays revoked."""
    tries = 0
    while True:
        try:
            if await read_key(storage, key.id, timeout_s=1.0, retry=False) is None:
                await _create(storage, key)
                _LOG.info("the bootstrap key is registered", key_id=key.id)
        except MusterError as error:
            if tries % 20 == 10:
                _LOG.warning("the bootstrap key cannot be registered yet", why=str(error))
            await asyncio.sleep(0.05 + full_jitter(tries, last_s=0.25))
            tries += 1
        else:
            return


async def _create(storage: ServiceChannel, key: KeyText) -> None:
    record = storage_pb2.ApiKey(
        id=key.id,
        tenant=DEFAULT_TENANT,
        role=Role.ADMIN.text,
        name="bootstrap",
        secret_sha256=key.digest,
        created_at_ms=wall_ms(),
    )
    try:
        await storage.call(
            storage_pb2_grpc.StorageServiceStub,
            "CreateApiKey",
            storage_pb2.CreateApiKeyRequest(key=record),
            timeout_s=3.0,
        )
    except Conflict:
        # Another gateway was first.
        return
