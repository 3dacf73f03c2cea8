"""Routes: API keys of the caller's tenant."""

from __future__ import annotations

import secrets

import msgspec
from starlette.responses import Response

from muster.api.v1 import storage_pb2, storage_pb2_grpc
from muster.domain.durations import parse_duration_ms
from muster.domain.errors import InvalidInput, NotFound
from muster.rpc.clock import wall_ms
from muster_gateway import documents
from muster_gateway.apikeys import ID_BYTES, SECRET_BYTES, is_key_id, make_key
from muster_gateway.requests import JSON, known_queries, read_body, require_json
from muster_gateway.roles import parse_role
from muster_gateway.table import Answer, Body, Call, Route
from muster_gateway.task_body import decode_bounded
from muster_gateway.views import encode, key_out

_TIMEOUT_S = 5.0
_MAX_NAME_CHARS = 100
_MAX_BODY_BYTES = 64 * 1024


class KeyIn(msgspec.Struct, forbid_unknown_fields=True):
    """The body."""

    role: str
    name: str = ""
    expires_in: str | None = None


async def make(call: Call) -> Response:
    known_queries(call.request)
    require_json(call.request)
    wanted: KeyIn = decode_bounded(await read_body(call.request, _MAX_BODY_BYTES), KeyIn)
    role = parse_role(wanted.role)
    if len(wanted.name) > _MAX_NAME_CHARS or not wanted.name.isprintable():
        limit = f"at most {_MAX_NAME_CHARS} printable characters"
        raise InvalidInput("name", wanted.name, limit)
    now_ms = wall_ms()
    expires_at_ms = 0
    if wanted.expires_in is not None:
        expires_at_ms = now_ms + parse_duration_ms(wanted.expires_in, field="expires_in")
    key = make_key(secrets.token_bytes(ID_BYTES + SECRET_BYTES))
    record = storage_pb2.ApiKey(
        id=key.id,
        tenant=call.tenant,
        role=role.text,
        name=wanted.name,
        secret_sha256=key.digest,
        created_at_ms=now_ms,
        expires_at_ms=expires_at_ms,
    )
    await call.gateway.storage.call(
        storage_pb2_grpc.StorageServiceStub,
        "CreateApiKey",
        storage_pb2.CreateApiKeyRequest(key=record),
        timeout_s=_TIMEOUT_S,
    )
    call.gateway.auth.forget(key.id)
    return Response(encode({**key_out(record), "key": key.text}), 201, media_type=JSON)


async def list_keys(call: Call) -> Response:
    known_queries(call.request)
    listed: storage_pb2.ListApiKeysResponse = await call.gateway.storage.call(
        storage_pb2_grpc.StorageServiceStub,
        "ListApiKeys",
        storage_pb2.ListApiKeysRequest(tenant=call.tenant),
        timeout_s=_TIMEOUT_S,
    )
    own = (key for key in listed.keys if key.tenant == call.tenant)
    items = [key_out(key) for key in sorted(own, key=lambda key: (key.created_at_ms, key.id))]
    return Response(encode({"items": items, "next": None}), media_type=JSON)


async def revoke(call: Call) -> Response:
    known_queries(call.request)
    ident = call.request.path_params["id"]
    if not is_key_id(ident):
        raise NotFound("key", ident)
    revoked: storage_pb2.RevokeApiKeyResponse = await call.gateway.storage.call(
        storage_pb2_grpc.StorageServiceStub,
        "RevokeApiKey",
        storage_pb2.RevokeApiKeyRequest(id=ident, tenant=call.tenant, now_ms=wall_ms()),
        timeout_s=_TIMEOUT_S,
    )
    call.gateway.auth.forget(ident)
    if not revoked.key.id:
        raise NotFound("key", ident)
    return Response(None, 204)


_TAG = "keys"

ROUTES: tuple[Route, ...] = (
    Route(
        "POST",
        "/v1/keys",
        make,
        "Make an API key",
        _TAG,
        (Answer(201, "The only answer that ever shows the key.", documents.MadeKey),),
        body=Body(
            documents.NewKey, {"ci": {"name": "ci", "role": "submitter", "expires_in": "90d"}}
        ),
        problems=(400, 413, 415, 422),
        audited=True,
    ),
    Route(
        "GET",
        "/v1/keys",
        list_keys,
        "The tenant's API keys, without secrets",
        _TAG,
        (Answer(200, "All keys, revoked ones too.", documents.KeyPage),),
    ),
    Route(
        "DELETE",
        "/v1/keys/{id}",
        revoke,
        "Revoke an API key",
        _TAG,
        (Answer(204, "Refused from now on here, within 2 s at every other gateway."),),
        problems=(404,),
        audited=True,
    ),
)
