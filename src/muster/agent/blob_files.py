"""Files to and from storage's blobs, in chunks, checked, repeated until storage has them."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from muster.agent.peers import Peers
from muster.api.v1 import storage_pb2 as pb
from muster.api.v1.storage_pb2_grpc import DataServiceStub
from muster.domain.errors import DeadlineExceeded, Overloaded, Unavailable
from muster.domain.ids import TenantId
from muster.rpc.channels import full_jitter

_CHUNK_BYTES: Final = 256 * 1024
# 64 MiB over a slow link; a stalled transfer is begun again.
_TRANSFER_S: Final = 60.0


class BlobFiles:
    """Moves whole files."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers

    async def put_file(self, tenant: TenantId, path: str) -> tuple[str, int]:
        """SHA-256 and size once stored; repeats for as long as storage is not to be had."""
        attempt = 0
        while True:
            try:
                return await self._put_once(tenant, path)
            except (Unavailable, DeadlineExceeded, Overloaded):
                await asyncio.sleep(full_jitter(attempt, 0.1, 5.0))
                attempt += 1

    async def _put_once(self, tenant: TenantId, path: str) -> tuple[str, int]:
        digest = hashlib.sha256()

        async def parts() -> AsyncIterator[pb.PutBlobRequest]:
            yield pb.PutBlobRequest(header=pb.BlobHeader(tenant=tenant))
            # From the page cache, mostly: it was written moments ago.
            with open(path, "rb") as source:  # noqa: ASYNC230
                while chunk := source.read(_CHUNK_BYTES):
                    digest.update(chunk)
                    yield pb.PutBlobRequest(chunk=chunk)

        channel = self._peers.storage()
        with channel.errors(_TRANSFER_S):
            answer: pb.PutBlobResponse = await channel.stream(
                DataServiceStub, "PutBlob", parts(), timeout_s=_TRANSFER_S
            )
        if answer.sha256 != digest.hexdigest():
            channel.rotate()
            raise Unavailable("storage", "a blob arrived damaged")
        return answer.sha256, answer.size_bytes

    async def get_file(self, tenant: TenantId, sha256: str, path: Path) -> None:
        """Writes the blob to `path`; raises NotFound."""
        channel = self._peers.storage()
        request = pb.GetBlobRequest(tenant=tenant, sha256=sha256)
        with open(path, "wb") as out, channel.errors(_TRANSFER_S):  # noqa: ASYNC230
            stream = channel.stream(DataServiceStub, "GetBlob", request, timeout_s=_TRANSFER_S)
            async for part in stream:
                out.write(part.chunk)
