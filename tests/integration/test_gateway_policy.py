"""`GET` and `PUT /v1/policy` at a gateway between fakes."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest
from tests.gateway_fakes import Cluster, running_cluster

from muster.domain.policy import STRATEGIES, Policy, policy_document

DEFAULT = policy_document(Policy())


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with running_cluster() as running:
        yield running


async def test_a_policy_is_stored_whole_and_shown_with_its_etag(cluster: Cluster) -> None:
    client = cluster.client()
    found = await client.get("/v1/policy")
    assert (found.status_code, found.json(), found.headers["etag"]) == (200, DEFAULT, '"0"')
    for number, strategy in enumerate(STRATEGIES, 1):
        put = await client.put("/v1/policy", json={"strategy": strategy, "budget": "1500ms"})
        whole = {**DEFAULT, "strategy": strategy, "budget": "1s500ms"}
        assert (put.status_code, put.json()) == (200, whole)
        assert put.headers["etag"] == f'"{number}"'
        assert json.loads(cluster.storage.policy) == whole
        assert (await client.get("/v1/policy")).json() == whole
    known = await client.get("/v1/policy", headers={"If-None-Match": put.headers["etag"]})
    assert known.status_code == 304


async def test_a_write_on_an_old_etag_is_refused(cluster: Cluster) -> None:
    client = cluster.client()
    first = await client.put("/v1/policy", json={}, headers={"If-Match": '"0"'})
    assert first.status_code == 200
    late = await client.put("/v1/policy", json={"strategy": "greedy"}, headers={"If-Match": '"0"'})
    assert late.status_code == 412
    assert "etag is 1" in late.json()["detail"]
    assert (await client.get("/v1/policy")).json() == DEFAULT
    any_ = await client.put("/v1/policy", json={"strategy": "greedy"}, headers={"If-Match": "*"})
    assert any_.status_code == 200


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"{", 400, "must be JSON"),
        (b'{"weights": {"t": NaN}}', 400, "must be JSON"),
        (b"[]", 422, "policy: [] is not accepted; must be an object"),
        (b'{"strategy": "fastest"}', 422, "strategy: 'fastest' is not accepted; must be one of"),
        (b'{"wieghts": {}}', 422, "wieghts: {} is not accepted; policy knows strategy"),
        (b'{"weights": {"t": -1}}', 422, "weights.t: -1 is not accepted; must be a number"),
        (b'{"weights": {"b": 0}}', 422, "weights: {'b': 0} is not accepted; at least one"),
        (b'{"weights": {"t": 1e999}}', 422, "number out of range"),
        (b'{"bounds": {"J": 0.1}}', 422, "bounds.J: 0.1 is not accepted; contradicts weights.t"),
        (b'{"budget": "0s"}', 422, "budget: '0s' is not accepted; must be from 1ms to 1h"),
        (b'{"budget": "365d"}', 422, "budget: '365d' is not accepted; must be from 1ms to 1h"),
        (b'{"strategy": "' + b"x" * 20_000 + b'"}', 413, "at most"),
    ],
)
async def test_what_means_nothing_is_refused_and_nothing_stored(
    cluster: Cluster, body: bytes, status: int, said: str
) -> None:
    client = cluster.client()
    headers = {"Content-Type": "application/json"}
    response = await client.put("/v1/policy", content=body, headers=headers)
    assert response.status_code == status, response.text
    assert said in response.json()["detail"]
    assert not cluster.storage.policy


async def test_who_may_read_and_who_may_write(cluster: Cluster) -> None:
    for role, written in (("viewer", 403), ("submitter", 403), ("operator", 403), ("admin", 200)):
        client = cluster.client(role)
        assert (await client.get("/v1/policy")).status_code == 200
        assert (await client.put("/v1/policy", json={})).status_code == written


async def test_a_stored_policy_that_is_not_understood_does_not_break_the_route(
    cluster: Cluster,
) -> None:
    cluster.storage.policy = b'{"strategy": "of a later version"}'
    found = await cluster.client().get("/v1/policy")
    assert (found.status_code, found.json()) == (200, DEFAULT)
