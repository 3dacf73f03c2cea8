"""DataService: values under keys, blobs, and the logs of tasks."""

# The contract names the methods and gives each a context.

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from muster.api.v1 import storage_pb2 as pb
from muster.api.v1 import storage_pb2_grpc
from muster.domain.errors import InvalidInput, TooLarge
from muster.domain.ids import parse_task_id, parse_tenant_id
from muster_storage.blobs import BlobFiles
from muster_storage.intake import check_sha256
from muster_storage.records import LogRef, Value
from muster_storage.task_store import Store

# Larger things are blobs.
MAX_VALUE_BYTES = 1024 * 1024
MAX_KEY_CHARS = 512
MAX_CONTENT_TYPE_CHARS = 255
DEFAULT_KEYS, MAX_KEYS = 100, 1_000
MAX_LOG_REFS = 1_000
# An agent ends a log at 1 MiB.
_MAX_LOG_LINES = 2**31


class DataService(storage_pb2_grpc.DataServiceServicer):
    """Every method may raise any MusterError, which the server turns into a status."""

    def __init__(self, store: Store, files: BlobFiles) -> None:
        self._store = store
        self._files = files

    async def GetValue(self, request: pb.GetValueRequest, context: Any) -> pb.GetValueResponse:
        _check_key(request.tenant, request.key)
        value = await self._store.values.value(request.tenant, request.key)
        if value is None:
            return pb.GetValueResponse(found=False)
        return pb.GetValueResponse(
            found=True, value=value.value, etag=value.etag, content_type=value.content_type
        )

    async def PutValue(self, request: pb.PutValueRequest, context: Any) -> pb.PutValueResponse:
        """`if_none_match`: only when there is none; else `if_match` "*": only when there is one."""
        _check_key(request.tenant, request.key)
        if len(request.value) > MAX_VALUE_BYTES:
            raise TooLarge("value", len(request.value), f"at most {MAX_VALUE_BYTES} bytes")
        kind = request.content_type
        if len(kind) > MAX_CONTENT_TYPE_CHARS or not (kind.isascii() and kind.isprintable()):
            raise InvalidInput(
                "content_type", kind, f"at most {MAX_CONTENT_TYPE_CHARS} printable ASCII characters"
            )
        verdict = await self._store.values.put_value(
            request.tenant,
            request.key,
            Value(request.value, kind, ""),
            if_match=request.if_match,
            if_none_match=request.if_none_match,
        )
        return pb.PutValueResponse(
            written=verdict.written, etag=verdict.etag, created=verdict.created
        )

    async def DeleteValue(
        self, request: pb.DeleteValueRequest, context: Any
    ) -> pb.DeleteValueResponse:
        _check_key(request.tenant, request.key)
        verdict = await self._store.values.delete_value(
            request.tenant, request.key, request.if_match
        )
        return pb.DeleteValueResponse(
            deleted=verdict.deleted, found=bool(verdict.etag), etag=verdict.etag
        )

    async def ListValues(
        self, request: pb.ListValuesRequest, context: Any
    ) -> pb.ListValuesResponse:
        parse_tenant_id(request.tenant)
        for field, text in (("prefix", request.prefix), ("cursor", request.cursor)):
            if len(text) > MAX_KEY_CHARS:
                raise TooLarge(field, len(text), f"at most {MAX_KEY_CHARS} characters")
        limit = request.limit or DEFAULT_KEYS
        if not 1 <= limit <= MAX_KEYS:
            raise InvalidInput("limit", request.limit, f"1 to {MAX_KEYS}, 0 = {DEFAULT_KEYS}")
        keys, cursor = await self._store.values.value_keys(
            request.tenant, request.prefix, request.cursor, limit
        )
        return pb.ListValuesResponse(keys=keys, next=cursor)

    async def PutBlob(
        self, request_iterator: AsyncIterator[pb.PutBlobRequest], context: Any
    ) -> pb.PutBlobResponse:
        header: pb.BlobHeader | None = None
        async for message in request_iterator:
            if message.WhichOneof("part") == "header":
                header = message.header
            break
        if header is None:
            raise InvalidInput("part", "chunk", "the first message of a blob is its header")
        sha256, size = await self._files.put(
            header.tenant, header.sha256, _chunks(request_iterator), pinned=header.pinned
        )
        return pb.PutBlobResponse(sha256=sha256, size_bytes=size)

    async def GetBlob(
        self, request: pb.GetBlobRequest, context: Any
    ) -> AsyncIterator[pb.GetBlobResponse]:
        async with aclosing(self._files.get(request.tenant, request.sha256)) as chunks:
            first = True
            async for size, chunk in chunks:
                yield pb.GetBlobResponse(chunk=chunk, size_bytes=size if first else 0)
                first = False

    async def DeleteBlob(
        self, request: pb.DeleteBlobRequest, context: Any
    ) -> pb.DeleteBlobResponse:
        """What a task refers to stays until that task goes; it is only unpinned."""
        return pb.DeleteBlobResponse(found=await self._files.delete(request.tenant, request.sha256))

    async def SetTaskLogs(
        self, request: pb.SetTaskLogsRequest, context: Any
    ) -> pb.SetTaskLogsResponse:
        if len(request.logs) > MAX_LOG_REFS:
            raise TooLarge("logs", len(request.logs), f"at most {MAX_LOG_REFS} in one call")
        refs = []
        for log in request.logs:
            parse_tenant_id(log.tenant)
            parse_task_id(log.task_id)
            check_sha256("logs.sha256", log.sha256)
            if log.attempt < 0:
                raise InvalidInput("logs.attempt", log.attempt, "0 or more")
            if not 0 <= log.next_index <= _MAX_LOG_LINES:
                raise InvalidInput("logs.next_index", log.next_index, f"0 to {_MAX_LOG_LINES}")
            record = log.SerializeToString()
            # The same lines again, and the knowledge that they are all, is more.
            rank = 2 * log.next_index + log.complete
            refs.append(LogRef(log.tenant, log.task_id, log.attempt, log.sha256, record, rank))
        await self._store.blobs.set_logs(refs)
        return pb.SetTaskLogsResponse()

    async def GetTaskLogs(
        self, request: pb.GetTaskLogsRequest, context: Any
    ) -> pb.GetTaskLogsResponse:
        parse_tenant_id(request.tenant)
        parse_task_id(request.task_id)
        records = await self._store.blobs.logs(request.tenant, request.task_id)
        return pb.GetTaskLogsResponse(logs=[pb.TaskLogRef.FromString(r) for r in records])


async def _chunks(messages: AsyncIterator[pb.PutBlobRequest]) -> AsyncIterator[bytes]:
    async for message in messages:
        if message.WhichOneof("part") != "chunk":
            raise InvalidInput("part", "header", "a blob has one header, then chunks")
        yield message.chunk


def _check_key(tenant: str, key: str) -> None:
    parse_tenant_id(tenant)
    if not 0 < len(key) <= MAX_KEY_CHARS or not key.isprintable():
        raise InvalidInput("key", key, f"1 to {MAX_KEY_CHARS} printable characters")
