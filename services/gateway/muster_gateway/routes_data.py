"""Routes: shared values with compare-and-set by ETag, and content-addressed blobs."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any

from starlette.responses import Response, StreamingResponse

from muster.api.v1 import storage_pb2, storage_pb2_grpc
from muster.domain.errors import InvalidInput, NotFound, PreconditionFailed
from muster_gateway import documents
from muster_gateway.blobs import MAX_BLOB_BYTES, open_blob, parse_sha256, put_blob
from muster_gateway.requests import (
    JSON,
    MAX_PAGE,
    bounded_stream,
    known_queries,
    limit_of,
    read_body,
)
from muster_gateway.table import Answer, Body, Call, Query, Route
from muster_gateway.views import encode

# Values are small shared facts; more belongs into a blob.
MAX_VALUE_BYTES = 1024 * 1024
MAX_KEY_CHARS = 512
_TIMEOUT_S = 5.0
_BYTES = "application/octet-stream"
_ETAG = re.compile(r'(?:W/)?"(?P<tag>[\x21\x23-\x7e]{1,128})"', re.ASCII)
_CONTENT_TYPE = re.compile(r"[\x21-\x7e]{1,64}/[\x20-\x7e]{1,120}", re.ASCII)
# What a client stored must never run as a page of this origin.
_AS_DATA = {"Content-Disposition": "attachment"}


def parse_key(text: str, field: str = "key") -> str:
    """A value's name. Raises InvalidInput."""
    if not 1 <= len(text) <= MAX_KEY_CHARS or not text.isprintable():
        raise InvalidInput(field, text, f"a key is 1 to {MAX_KEY_CHARS} printable characters")
    return text


def etag_of(call: Call, header: str) -> str:
    """The tag that a condition names: "" = no condition, "*" = any. Raises InvalidInput."""
    text = call.request.headers.get(header, "").strip()
    if text in ("", "*"):
        return text
    match = _ETAG.fullmatch(text)
    if match is None:
        raise InvalidInput(header, text, 'must be * or one entity tag such as "7"')
    return match["tag"]


async def _data(call: Call, method: str, request: object) -> Any:
    return await call.gateway.storage.call(
        storage_pb2_grpc.DataServiceStub, method, request, timeout_s=_TIMEOUT_S
    )


async def get_value(call: Call) -> Response:
    known_queries(call.request)
    key = parse_key(call.request.path_params["key"])
    found: storage_pb2.GetValueResponse = await _data(
        call, "GetValue", storage_pb2.GetValueRequest(tenant=call.tenant, key=key)
    )
    if not found.found:
        raise NotFound("value", key)
    headers = {"ETag": f'"{found.etag}"', **_AS_DATA}
    if etag_of(call, "If-None-Match") in ("*", found.etag):
        return Response(None, 304, headers)
    return Response(found.value, 200, headers, found.content_type or _BYTES)


async def put_value(call: Call) -> Response:
    request = call.request
    known_queries(request)
    key = parse_key(request.path_params["key"])
    content_type = request.headers.get("content-type", _BYTES)
    if not _CONTENT_TYPE.fullmatch(content_type):
        raise InvalidInput("Content-Type", content_type, "must be a media type")
    if_match, if_none_match = etag_of(call, "If-Match"), etag_of(call, "If-None-Match")
    if if_none_match not in ("", "*"):
        raise InvalidInput("If-None-Match", if_none_match, "a write takes * alone")
    put: storage_pb2.PutValueResponse = await _data(
        call,
        "PutValue",
        storage_pb2.PutValueRequest(
            tenant=call.tenant,
            key=key,
            value=await read_body(request, MAX_VALUE_BYTES),
            content_type=content_type,
            if_match=if_match,
            if_none_match=bool(if_none_match),
        ),
    )
    if not put.written:
        raise _changed(key, put.etag)
    return Response(None, 201 if put.created else 204, {"ETag": f'"{put.etag}"'})


async def delete_value(call: Call) -> Response:
    known_queries(call.request)
    key = parse_key(call.request.path_params["key"])
    deleted: storage_pb2.DeleteValueResponse = await _data(
        call,
        "DeleteValue",
        storage_pb2.DeleteValueRequest(
            tenant=call.tenant, key=key, if_match=etag_of(call, "If-Match")
        ),
    )
    if deleted.deleted:
        return Response(None, 204)
    if not deleted.found:
        raise NotFound("value", key)
    raise _changed(key, deleted.etag)


def _changed(key: str, etag: str) -> PreconditionFailed:
    now = f'its present ETag is "{etag}"' if etag else "it does not exist"
    return PreconditionFailed(f"value {key!r}: the precondition failed; {now}")


async def list_values(call: Call) -> Response:
    known_queries(call.request, "prefix", "limit", "cursor")
    query = call.request.query_params
    for name in ("prefix", "cursor"):
        if query.get(name):
            parse_key(query[name], name)
    page: storage_pb2.ListValuesResponse = await _data(
        call,
        "ListValues",
        storage_pb2.ListValuesRequest(
            tenant=call.tenant,
            prefix=query.get("prefix", ""),
            cursor=query.get("cursor", ""),
            limit=limit_of(call.request),
        ),
    )
    out = {"items": list(page.keys), "next": page.next or None}
    return Response(encode(out), media_type=JSON)


async def post_blob(call: Call) -> Response:
    known_queries(call.request, "sha256")
    text = call.request.query_params.get("sha256", "")
    sha256 = parse_sha256(text) if text else ""
    pieces = bounded_stream(call.request, MAX_BLOB_BYTES)
    stored = await put_blob(call.gateway.storage, call.tenant, sha256, pieces)
    out = {"sha256": stored.sha256, "size_bytes": stored.size_bytes}
    headers = {"Location": f"/v1/blobs/{stored.sha256}"}
    return Response(encode(out), 201, headers, JSON)


async def get_blob(call: Call) -> Response:
    known_queries(call.request)
    sha256 = _sha256_of(call)
    headers = {"ETag": f'"{sha256}"', **_AS_DATA}
    size_bytes, pieces = await open_blob(call.gateway.storage, call.tenant, sha256)
    if call.request.method == "HEAD" or etag_of(call, "If-None-Match") == sha256:
        await pieces.aclose()
        status = 200 if call.request.method == "HEAD" else 304
        if status == 200:
            headers["Content-Length"] = str(size_bytes)
        return Response(None, status, headers, _BYTES)

    async def content() -> AsyncIterator[bytes]:
        async for piece in pieces:
            yield piece

    headers["Content-Length"] = str(size_bytes)
    return StreamingResponse(content(), 200, headers, _BYTES)


async def delete_blob(call: Call) -> Response:
    known_queries(call.request)
    sha256 = _sha256_of(call)
    deleted: storage_pb2.DeleteBlobResponse = await _data(
        call, "DeleteBlob", storage_pb2.DeleteBlobRequest(tenant=call.tenant, sha256=sha256)
    )
    if not deleted.found:
        raise NotFound("blob", sha256)
    return Response(None, 204)


def _sha256_of(call: Call) -> str:
    text = call.request.path_params["sha256"]
    try:
        return parse_sha256(text)
    except InvalidInput:
        raise NotFound("blob", text) from None


_TAG = "data"
IF_MATCH = Query(
    "If-Match", "Only if this is the present ETag; * = only if it exists.", '"7"', "header"
)

ROUTES: tuple[Route, ...] = (
    Route(
        "GET",
        "/v1/kv/{key}",
        get_value,
        "A shared value",
        _TAG,
        (
            Answer(200, "The bytes with the type they were stored with.", media_type=_BYTES),
            Answer(304, "It is still the one that If-None-Match names."),
        ),
        queries=(Query("If-None-Match", "The ETag that the client has.", '"7"', "header"),),
        converters={"key": "path"},
        problems=(404, 422),
    ),
    Route(
        "PUT",
        "/v1/kv/{key}",
        put_value,
        "Store a shared value, on a condition if wanted",
        _TAG,
        (Answer(201, "It is new."), Answer(204, "It was replaced.")),
        about=f"At most {MAX_VALUE_BYTES} bytes. Keys may hold slashes.",
        queries=(IF_MATCH, Query("If-None-Match", "*: only if there is none yet.", "*", "header")),
        body=Body(media_types=(_BYTES, JSON)),
        converters={"key": "path"},
        problems=(412, 413, 422),
    ),
    Route(
        "DELETE",
        "/v1/kv/{key}",
        delete_value,
        "Delete a shared value",
        _TAG,
        (Answer(204, "It is gone."),),
        queries=(IF_MATCH,),
        converters={"key": "path"},
        problems=(404, 412, 422),
    ),
    Route(
        "GET",
        "/v1/kv",
        list_values,
        "Names of shared values",
        _TAG,
        (Answer(200, "A page of names.", documents.KeyNames),),
        queries=(
            Query("prefix", "Names that begin with this.", "models/"),
            Query("limit", f"1 to {MAX_PAGE}, default 100.", 100, kind="integer"),
            Query("cursor", "`next` of the page before."),
        ),
        problems=(422,),
    ),
    Route(
        "POST",
        "/v1/blobs",
        post_blob,
        "Store a blob under its SHA-256",
        _TAG,
        (Answer(201, "It is durable, and kept until deleted.", documents.Blob),),
        about=f"The body is streamed to storage; at most {MAX_BLOB_BYTES} bytes.",
        queries=(Query("sha256", "Refuse the body unless this is its SHA-256."),),
        body=Body(media_types=(_BYTES,)),
        problems=(413, 422),
    ),
    Route(
        "GET",
        "/v1/blobs/{sha256}",
        get_blob,
        "A blob",
        _TAG,
        (Answer(200, "The bytes.", media_type=_BYTES), Answer(304, "The client has it.")),
        problems=(404,),
    ),
    Route(
        "DELETE",
        "/v1/blobs/{sha256}",
        delete_blob,
        "Delete a blob",
        _TAG,
        (Answer(204, "It is no longer kept; results that refer to it keep it."),),
        problems=(404,),
    ),
)
