"""Blobs to and from storage, piece by piece: a gateway never holds a whole one."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from typing import Final

from muster.api.v1 import storage_pb2, storage_pb2_grpc
from muster.domain.errors import InvalidInput, NotFound
from muster.rpc.channels import ServiceChannel

# Pieces are about this long: small against a message's 16 MiB, long enough to pay for a call.
PIECE_BYTES: Final = 256 * 1024
# An upload or download that takes longer has a dead peer.
_TRANSFER_TIMEOUT_S: Final = 3_600.0
# Larger data belongs into an object store, with its address in the blob.
MAX_BLOB_BYTES: Final = 1024**3
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)


def parse_sha256(text: str, field: str = "sha256") -> str:
    """Raises InvalidInput."""
    if not _SHA256.fullmatch(text):
        raise InvalidInput(field, text, "must be 64 hexadecimal digits in lower case")
    return text


async def open_blob(
    storage: ServiceChannel, tenant: str, sha256: str
) -> tuple[int, AsyncGenerator[bytes, None]]:
    """Size and pieces; what can fail at once fails here. Raises NotFound, Unavailable."""
    pieces = _pieces(storage, tenant, sha256)
    with_size = await anext(pieces, None)
    if with_size is None:
        raise NotFound("blob", sha256)
    size_bytes, first = with_size

    async def content() -> AsyncGenerator[bytes, None]:
        try:
            if first:
                yield first
            async for _, piece in pieces:
                yield piece
        finally:
            await pieces.aclose()

    return size_bytes, content()


async def _pieces(
    storage: ServiceChannel, tenant: str, sha256: str
) -> AsyncGenerator[tuple[int, bytes], None]:
    with storage.errors(_TRANSFER_TIMEOUT_S):
        call = storage.stream(
            storage_pb2_grpc.DataServiceStub,
            "GetBlob",
            storage_pb2.GetBlobRequest(tenant=tenant, sha256=sha256),
            timeout_s=_TRANSFER_TIMEOUT_S,
        )
        try:
            async for response in call:
                yield response.size_bytes, response.chunk
        finally:
            call.cancel()


async def put_blob(
    storage: ServiceChannel, tenant: str, sha256: str, pieces: AsyncIterable[bytes]
) -> storage_pb2.PutBlobResponse:
    """Durable when it returns; `sha256` is checked unless empty.

    An error of `pieces` (the client broke off, or sent too much) is raised as it was, and
    nothing is stored.
    """
    failure: list[Exception] = []

    async def messages() -> AsyncIterator[storage_pb2.PutBlobRequest]:
        yield storage_pb2.PutBlobRequest(
            header=storage_pb2.BlobHeader(tenant=tenant, sha256=sha256, pinned=True)
        )
        try:
            async for piece in _rechunked(pieces):
                yield storage_pb2.PutBlobRequest(chunk=piece)
        except Exception as error:
            # gRPC would swallow it and end the stream as if it were whole.
            failure.append(error)
            call.cancel()
            raise

    with storage.errors(_TRANSFER_TIMEOUT_S):
        call = storage.stream(
            storage_pb2_grpc.DataServiceStub,
            "PutBlob",
            messages(),
            timeout_s=_TRANSFER_TIMEOUT_S,
        )
        try:
            response: storage_pb2.PutBlobResponse = await call
        except BaseException:
            call.cancel()
            if failure:
                raise failure[0] from None
            raise
    return response


async def _rechunked(pieces: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """The same bytes in messages of a sensible size."""
    held: list[bytes] = []
    size = 0
    async for piece in pieces:
        for start in range(0, len(piece), PIECE_BYTES):
            part = piece[start : start + PIECE_BYTES]
            held.append(part)
            size += len(part)
            if size >= PIECE_BYTES:
                yield b"".join(held)
                held, size = [], 0
    if held:
        yield b"".join(held)
