"""Routes: the policy by which the leader places tasks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from starlette.responses import Response

from muster.api.v1 import scheduler_pb2, storage_pb2, storage_pb2_grpc
from muster.domain.errors import InvalidInput, MusterError
from muster.domain.policy import Policy, parse_policy, policy_document
from muster_gateway import documents
from muster_gateway.requests import JSON, known_queries, read_body, require_json
from muster_gateway.routes_data import IF_MATCH, etag_of
from muster_gateway.table import Answer, Body, Call, Query, Route
from muster_gateway.task_body import decode_bounded
from muster_gateway.views import encode

_TIMEOUT_S = 5.0
_LEADER_TIMEOUT_S = 2.0
_LEADER_SEARCH_S = 0.5
MAX_POLICY_BYTES = 16 * 1024


async def get_policy(call: Call) -> Response:
    known_queries(call.request)
    stored: storage_pb2.GetPolicyResponse = await _storage(
        call, "GetPolicy", storage_pb2.GetPolicyRequest()
    )
    headers = {"ETag": f'"{stored.etag}"'}
    if etag_of(call, "If-None-Match") in ("*", stored.etag):
        return Response(None, 304, headers)
    try:
        policy = parse_policy(decode_bounded(stored.policy_json, object))
    except InvalidInput:
        # None was ever stored, or of another version: the leader places by its own.
        policy = await _of_leader(call)
    return Response(encode(policy_document(policy)), 200, headers, JSON)


async def _of_leader(call: Call) -> Policy:
    """What is in force while there is no stored policy to go by."""
    try:
        status: scheduler_pb2.GetClusterStatusResponse = await call.gateway.leader.call(
            "GetClusterStatus",
            scheduler_pb2.GetClusterStatusRequest(),
            timeout_s=_LEADER_TIMEOUT_S,
            search_s=_LEADER_SEARCH_S,
        )
        return parse_policy({"strategy": status.strategy})
    except (InvalidInput, MusterError):
        # Nobody leads now, or by a strategy of another version.
        return Policy()


async def put_policy(call: Call) -> Response:
    known_queries(call.request)
    require_json(call.request)
    body = await read_body(call.request, MAX_POLICY_BYTES)
    # Whole, so that what a later version has for a default changes nothing.
    document = policy_document(parse_policy(decode_bounded(body, object)))
    if_match = etag_of(call, "If-Match")
    put: storage_pb2.PutPolicyResponse = await _storage(
        call,
        "PutPolicy",
        storage_pb2.PutPolicyRequest(
            policy_json=encode(document),
            # There is always a policy, so * asks for nothing.
            if_match="" if if_match == "*" else if_match,
        ),
    )
    return Response(encode(document), 200, {"ETag": f'"{put.etag}"'}, JSON)


async def _storage(call: Call, method: str, request: object) -> Any:
    return await call.gateway.storage.call(
        storage_pb2_grpc.StorageServiceStub, method, request, timeout_s=_TIMEOUT_S
    )


_EXAMPLES = {
    "strategy": {"strategy": "best_fit"},
    "whole": policy_document(replace(Policy("search"), bounds={"B": 0.2}, budget_s=0.5)),
}
_TAG = "policy"

ROUTES: tuple[Route, ...] = (
    Route(
        "GET",
        "/v1/policy",
        get_policy,
        "How tasks are placed",
        _TAG,
        (
            Answer(200, "The whole policy, with its ETag.", documents.PolicyDocument),
            Answer(304, "It is still the one that If-None-Match names."),
        ),
        queries=(Query("If-None-Match", "The ETag that the client has.", '"7"', "header"),),
        problems=(422,),
    ),
    Route(
        "PUT",
        "/v1/policy",
        put_policy,
        "Place by another policy from now on",
        _TAG,
        (
            Answer(
                200, "Stored; the leader places by it within a second.", documents.PolicyDocument
            ),
        ),
        about="Replaces the whole policy: what is left out gets its default.",
        queries=(IF_MATCH,),
        body=Body(documents.PolicyDocument, _EXAMPLES),
        problems=(400, 412, 413, 415, 422),
        audited=True,
    ),
)
