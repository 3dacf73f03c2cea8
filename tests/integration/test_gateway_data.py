"""Shared values and blobs over HTTP."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator

import pytest
from tests.gateway_fakes import Cluster, running_cluster

from muster_gateway import routes_data


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with running_cluster() as running:
        yield running


async def test_a_value_is_stored_with_its_type_and_replaced(cluster: Cluster) -> None:
    client = cluster.client()
    url = "/v1/kv/models/current%20one"
    made = await client.put(url, content=b'{"a":1}', headers={"Content-Type": "application/json"})
    assert made.status_code == 201
    found = await client.get(url)
    assert (found.status_code, found.content) == (200, b'{"a":1}')
    assert found.headers["content-type"] == "application/json"
    assert found.headers["etag"] == made.headers["etag"]
    assert found.headers["content-disposition"] == "attachment"
    assert found.headers["x-content-type-options"] == "nosniff"
    replaced = await client.put(url, content=b"\x00\xff")
    assert replaced.status_code == 204
    assert replaced.headers["etag"] != made.headers["etag"]
    assert (await client.get(url)).content == b"\x00\xff"
    assert cluster.storage.values["default", "models/current one"][0] == b"\x00\xff"


async def test_compare_and_set(cluster: Cluster) -> None:
    client = cluster.client()
    url = "/v1/kv/counter"
    assert (await client.put(url, content=b"1", headers={"If-Match": '"9"'})).status_code == 412
    assert (await client.put(url, content=b"1", headers={"If-Match": "*"})).status_code == 412
    first = await client.put(url, content=b"1", headers={"If-None-Match": "*"})
    assert first.status_code == 201
    lost = await client.put(url, content=b"2", headers={"If-None-Match": "*"})
    assert lost.status_code == 412
    assert first.headers["etag"] in lost.json()["detail"]
    won = await client.put(url, content=b"2", headers={"If-Match": first.headers["etag"]})
    assert won.status_code == 204
    assert (await client.get(url)).content == b"2"
    fresh = await client.get(url, headers={"If-None-Match": won.headers["etag"]})
    assert (fresh.status_code, fresh.content) == (304, b"")
    stale = {"If-Match": first.headers["etag"]}
    assert (await client.delete(url, headers=stale)).status_code == 412
    assert (await client.delete(url, headers={"If-Match": "*"})).status_code == 204
    assert (await client.delete(url)).status_code == 404
    assert (await client.get(url)).status_code == 404


@pytest.mark.parametrize(
    "headers",
    [
        {"If-Match": "7"},
        {"If-Match": '"7", "8"'},
        {"If-None-Match": '"7"'},
        {"If-Match": '"' + "x" * 200 + '"'},
        {"Content-Type": "nonsense"},
        {"Content-Type": "text/" + "x" * 200},
    ],
)
async def test_bad_conditions_and_types_write_nothing(
    cluster: Cluster, headers: dict[str, str]
) -> None:
    response = await cluster.client().put("/v1/kv/a", content=b"x", headers=headers)
    assert response.status_code == 422
    assert response.json()["field"] == next(iter(headers))
    assert not cluster.storage.values


async def test_bounds_of_values_and_keys(cluster: Cluster) -> None:
    client = cluster.client()
    large = b"x" * (routes_data.MAX_VALUE_BYTES + 1)
    assert (await client.put("/v1/kv/a", content=large)).status_code == 413
    assert (await client.put("/v1/kv/a", content=large[:-1])).status_code == 201
    for key in ("k" * 513, "%00", "a%7fb", "a%c2%85b"):
        response = await client.put(f"/v1/kv/{key}", content=b"x")
        assert response.status_code == 422, key
        assert response.json()["field"] == "key"
    for key in ("%ff", "a%0ab"):
        assert (await client.get(f"/v1/kv/{key}")).status_code in (404, 422)


async def test_keys_are_listed_by_prefix_in_pages(cluster: Cluster) -> None:
    client = cluster.client()
    for key in ("a/1", "a/2", "a/3", "b/1"):
        await client.put(f"/v1/kv/{key}", content=b"x")
    page = (await client.get("/v1/kv", params={"prefix": "a/", "limit": 2})).json()
    assert page == {"items": ["a/1", "a/2"], "next": "a/2"}
    page = (await client.get("/v1/kv", params={"prefix": "a/", "cursor": page["next"]})).json()
    assert page == {"items": ["a/3"], "next": None}


async def test_a_blob_is_streamed_both_ways(cluster: Cluster) -> None:
    client = cluster.client()
    content = bytes(range(256)) * 20_000
    sha256 = hashlib.sha256(content).hexdigest()

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(content), 70_000):
            yield content[start : start + 70_000]

    stored = await client.post("/v1/blobs", content=pieces())
    assert stored.status_code == 201
    assert stored.json() == {"sha256": sha256, "size_bytes": len(content)}
    assert stored.headers["location"] == f"/v1/blobs/{sha256}"
    found = await client.get(f"/v1/blobs/{sha256}")
    assert found.content == content
    assert found.headers["content-length"] == str(len(content))
    head = await client.head(f"/v1/blobs/{sha256}")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(content))
    have = await client.get(f"/v1/blobs/{sha256}", headers={"If-None-Match": f'"{sha256}"'})
    assert have.status_code == 304
    assert (await client.delete(f"/v1/blobs/{sha256}")).status_code == 204
    assert (await client.get(f"/v1/blobs/{sha256}")).status_code == 404
    assert (await client.delete(f"/v1/blobs/{sha256}")).status_code == 404


async def test_an_empty_blob_is_one(cluster: Cluster) -> None:
    client = cluster.client()
    sha256 = (await client.post("/v1/blobs", content=b"")).json()["sha256"]
    assert (await client.get(f"/v1/blobs/{sha256}")).content == b""


async def test_a_blob_that_is_not_what_was_promised_is_refused(cluster: Cluster) -> None:
    client = cluster.client()
    response = await client.post(f"/v1/blobs?sha256={'0' * 64}", content=b"x")
    assert (response.status_code, response.json()["field"]) == (422, "sha256")
    response = await client.post("/v1/blobs?sha256=short", content=b"x")
    assert (response.status_code, response.json()["field"]) == (422, "sha256")
    good = hashlib.sha256(b"x").hexdigest()
    assert (await client.post(f"/v1/blobs?sha256={good}", content=b"x")).status_code == 201


async def test_a_blob_over_the_bound_stores_nothing(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes_data, "MAX_BLOB_BYTES", 1_000_000)
    client = cluster.client()

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield b"x" * 50_000

    response = await client.post("/v1/blobs", content=pieces())
    assert response.status_code == 413
    assert not cluster.storage.blobs


async def test_names_of_blobs_are_digests_alone(cluster: Cluster) -> None:
    client = cluster.client()
    for name in ("x", "0" * 63, "F" * 64, "..%2f..%2fetc%2fpasswd", "%00" * 64):
        assert (await client.get(f"/v1/blobs/{name}")).status_code == 404
    assert "GetBlob" not in cluster.storage.calls
