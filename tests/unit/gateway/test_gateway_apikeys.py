"""API keys as text, and roles."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muster.domain.errors import InvalidInput, PermissionDenied, Unauthenticated
from muster.domain.ids import TenantId
from muster_gateway.apikeys import ID_BYTES, SECRET_BYTES, is_key_id, make_key, parse_key
from muster_gateway.auth import Caller, require
from muster_gateway.roles import ACCESS, Role, parse_role
from muster_gateway.routes import ROUTES
from muster_gateway.table import access_of


@given(st.binary(min_size=ID_BYTES + SECRET_BYTES, max_size=ID_BYTES + SECRET_BYTES))
def test_a_made_key_is_read_back_and_opens_its_digest_alone(randomness: bytes) -> None:
    key = make_key(randomness)
    again = parse_key(key.text)
    assert again == key
    assert is_key_id(key.id)
    assert again.opens(hashlib.sha256(key.secret.encode()).digest())
    assert not again.opens(hashlib.sha256(b"x" + key.secret.encode()).digest())
    assert not again.opens(b"")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "mst_",
        "mst_a_",
        "mst__" + "a" * 64,
        "xxx_a_" + "a" * 64,
        "mst_A_" + "a" * 64,
        "mst_a_" + "a" * 31,
        "mst_a_" + "a" * 129,
        "mst_a_" + "é" * 40,
        "mst_a_" + "a" * 63 + "\n",
    ],
)
def test_what_is_no_key_is_refused_without_being_quoted(text: str) -> None:
    with pytest.raises(Unauthenticated) as caught:
        parse_key(text)
    if len(text) > 10:
        assert text not in str(caught.value)


def test_each_role_may_do_what_those_below_it_may() -> None:
    for role in Role:
        for least in Role:
            caller = Caller("k", TenantId("default"), role)
            if role >= least:
                require(caller, least, "GET", "/x")
            else:
                with pytest.raises(PermissionDenied, match=least.text):
                    require(caller, least, "GET", "/x")


def test_an_unknown_role_is_refused() -> None:
    assert parse_role("operator") is Role.OPERATOR
    with pytest.raises(InvalidInput):
        parse_role("root")


def test_the_table_of_roles_and_the_routes_agree() -> None:
    assert {(r.method, r.path) for r in ROUTES} == set(ACCESS)


def test_a_route_without_an_entry_is_an_error() -> None:
    with pytest.raises(LookupError, match="no entry"):
        access_of(ROUTES[0], {})


def test_only_probes_are_open() -> None:
    assert {path for (_, path), role in ACCESS.items() if role is None} == {"/healthz", "/readyz"}


def test_what_changes_something_needs_more_than_a_viewer() -> None:
    for (method, path), role in ACCESS.items():
        if method != "GET" and path != "/v1/results":
            assert role is not None
            assert role > Role.VIEWER, (method, path)
