"""Keys, roles and tenants over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.gateway_fakes import Cluster, running_cluster, until

from muster.api.v1 import agent_pb2
from muster.domain.errors import Unavailable
from muster.rpc.clock import wall_ms
from muster_gateway.auth import CACHE_S
from muster_gateway.roles import ACCESS, Role


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with running_cluster() as running:
        yield running


def concrete(path: str) -> str:
    """A path of the route; its objects do not exist."""
    for name, value in (("{id}", "0" * 26), ("{key}", "a/b"), ("{sha256}", "0" * 64)):
        path = path.replace(name, value)
    return path


@pytest.mark.parametrize("role", [None, *Role], ids=lambda r: r.text if r else "nobody")
async def test_every_cell_of_role_and_route(cluster: Cluster, role: Role | None) -> None:
    client = cluster.client(role.text) if role is not None else cluster.client_with(None)
    for (method, path), least in ACCESS.items():
        if path == "/v1/events":
            method = "HEAD"  # noqa: PLW2901  a stream without end
        response = await client.request(method, concrete(path))
        cell = f"{method} {path} as {role}"
        if least is None:
            assert response.status_code == 200, cell
        elif role is None:
            assert response.status_code == 401, cell
            assert response.headers["www-authenticate"].startswith("Bearer"), cell
        elif role < least:
            assert response.status_code == 403, cell
            assert least.text in response.json()["detail"], cell
        else:
            assert response.status_code not in (401, 403, 405, 500), cell


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer mst_a_b",
        "Basic dXNlcjpwdw==",
        "mst_000000000001_" + "01" * 32,
        "Bearer mst_ffffffffffff_" + "00" * 32,
        "Bearer mst_000000000001_" + "00" * 32,
        "Bearer mst_000000000001_" + "01" * 31 + "0",
        "Bearer mst_000000000001_" + "01" * 33,
        "Bearer mst_000000000001_" + "0" * 100_000,
    ],
)
async def test_a_wrong_key_is_refused(cluster: Cluster, header: str) -> None:
    good = cluster.new_key("admin")
    assert good.text == "mst_000000000001_" + "01" * 32
    client = cluster.client_with(None)
    response = await client.get("/v1/tasks", headers={"Authorization": header})
    assert response.status_code in (401, 431)
    ok = await client.get("/v1/tasks", headers={"Authorization": f"bearer  {good.text}"})
    assert ok.status_code == 200


async def test_an_unknown_id_and_a_wrong_secret_cannot_be_told_apart(cluster: Cluster) -> None:
    known = cluster.new_key("admin")
    client = cluster.client_with(None)
    wrong = f"Bearer mst_{known.id}_{'00' * 32}"
    unknown = f"Bearer mst_abcdef_{'00' * 32}"
    answers = [
        (await client.get("/v1/tasks", headers={"Authorization": h})).json()
        for h in (wrong, unknown)
    ]
    for answer in answers:
        del answer["request_id"]
    assert answers[0] == answers[1]


async def test_an_expired_key_is_refused(cluster: Cluster) -> None:
    past = cluster.client_with(cluster.new_key("admin", expires_at_ms=wall_ms() - 1).text)
    response = await past.get("/v1/tasks")
    assert response.status_code == 401
    assert "expired" in response.json()["detail"]
    future = cluster.client_with(cluster.new_key("admin", expires_at_ms=wall_ms() + 60_000).text)
    assert (await future.get("/v1/tasks")).status_code == 200


async def test_a_key_with_an_unknown_role_may_do_nothing(cluster: Cluster) -> None:
    assert (await cluster.client("emperor").get("/v1/tasks")).status_code == 401


async def test_a_key_is_made_used_listed_and_revoked_at_once(cluster: Cluster) -> None:
    admin = cluster.client()
    made = await admin.post(
        "/v1/keys", json={"name": "ci", "role": "submitter", "expires_in": "1h"}
    )
    assert made.status_code == 201
    key = made.json()
    assert key["key"].startswith(f"mst_{key['id']}_")
    assert (key["role"], key["tenant"], key["name"]) == ("submitter", "default", "ci")
    assert key["expires_at"] is not None
    user = cluster.client_with(key["key"])
    assert (await user.post("/v1/tasks", json={"skill": "echo"})).status_code == 202
    assert (await user.get("/v1/keys")).status_code == 403
    listed = (await admin.get("/v1/keys")).json()["items"]
    assert key["id"] in {item["id"] for item in listed}
    assert key["key"] not in str(listed)
    assert "secret" not in str(listed)
    assert (await admin.delete(f"/v1/keys/{key['id']}")).status_code == 204
    refused = await user.get("/v1/tasks")
    assert refused.status_code == 401
    assert "revoked" in refused.json()["detail"]
    assert (await admin.delete("/v1/keys/nobody")).status_code == 404


async def test_a_revocation_elsewhere_is_seen_within_the_caches_time(cluster: Cluster) -> None:
    now_s = 1_000.0
    cluster.gateway.gateway.auth._clock_s = lambda: now_s
    key = cluster.new_key("viewer")
    client = cluster.client_with(key.text)
    assert (await client.get("/v1/tasks")).status_code == 200
    cluster.storage.keys[key.id].revoked_at_ms = 1
    now_s += CACHE_S - 0.001
    assert (await client.get("/v1/tasks")).status_code == 200
    now_s += 0.001
    assert (await client.get("/v1/tasks")).status_code == 401


async def test_a_key_is_not_looked_up_for_every_request(cluster: Cluster) -> None:
    # However long twenty requests take here.
    cluster.gateway.gateway.auth._clock_s = lambda: 1_000.0
    key = cluster.new_key("viewer")
    client = cluster.client_with(key.text)
    for _ in range(20):
        await client.get("/v1/tasks")
    # The readiness probe reads a key, too: another one.
    assert cluster.storage.looked_up.count(key.id) == 1


@pytest.mark.parametrize(
    "body",
    [
        {"role": "root"},
        {"role": "Admin"},
        {},
        {"role": "viewer", "tenant": "other"},
        {"role": "viewer", "name": "x" * 101},
        {"role": "viewer", "name": "a\nb"},
        {"role": "viewer", "expires_in": "0s"},
        {"role": "viewer", "expires_in": "never"},
    ],
)
async def test_a_bad_key_is_not_made(cluster: Cluster, body: dict[str, Any]) -> None:
    client = cluster.client()
    before = len(cluster.storage.keys)
    response = await client.post("/v1/keys", json=body)
    assert response.status_code == 422
    assert response.json()["field"]
    assert len(cluster.storage.keys) == before


async def test_tenants_do_not_see_each_other(cluster: Cluster) -> None:
    ours, theirs = cluster.client(), cluster.client(tenant="other")
    ident = (await ours.post("/v1/tasks", json={"skill": "echo"})).json()["id"]
    await ours.put("/v1/kv/shared", content=b"ours")
    sha256 = (await ours.post("/v1/blobs", content=b"ours")).json()["sha256"]
    view = agent_pb2.AgentView(
        record=agent_pb2.AgentRecord(spec=agent_pb2.AgentSpec(id="a", tenant="default")),
        state=agent_pb2.AGENT_STATE_READY,
        wish=agent_pb2.AGENT_WISH_NONE,
    )
    cluster.scheduler.agents["a"] = view
    for method, path in (
        ("GET", f"/v1/tasks/{ident}"),
        ("GET", f"/v1/tasks/{ident}?wait=10s"),
        ("GET", f"/v1/tasks/{ident}/result"),
        ("GET", f"/v1/tasks/{ident}/logs"),
        ("GET", f"/v1/tasks/{ident}/explain"),
        ("GET", f"/v1/tasks/{ident}/events"),
        ("POST", f"/v1/tasks/{ident}/cancel"),
        ("GET", "/v1/kv/shared"),
        ("DELETE", "/v1/kv/shared"),
        ("GET", f"/v1/blobs/{sha256}"),
        ("DELETE", f"/v1/blobs/{sha256}"),
        ("GET", "/v1/agents/a"),
        ("POST", "/v1/agents/a/drain"),
        ("DELETE", "/v1/keys/000000000001"),
    ):
        response = await theirs.request(method, path)
        assert response.status_code == 404, f"{method} {path}"
    for path in ("/v1/tasks", "/v1/agents", "/v1/kv"):
        assert (await theirs.get(path)).json()["items"] == [], path
    assert (await theirs.get("/v1/cluster")).json()["tasks"] == {}
    assert [k["tenant"] for k in (await theirs.get("/v1/keys")).json()["items"]] == ["other"]
    gathered = await theirs.post("/v1/results", json={"ids": [ident], "wait": "10s"})
    assert '"not_found"' in gathered.text
    assert not cluster.scheduler.acts
    assert (await ours.get("/v1/agents/a")).status_code == 200


async def test_the_bootstrap_key_works_and_only_its_hash_is_stored(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    secret = "ab" * 32
    file = tmp_path / "admin.key"
    file.write_text(f"mst_0123456789ab_{secret}\n")
    async with running_cluster(bootstrap_key_file=file) as cluster:
        admin = cluster.client_with(file.read_text().strip())
        assert (await admin.get("/v1/keys")).status_code == 200
        stored = cluster.storage.keys["0123456789ab"]
        assert (stored.role, stored.tenant) == ("admin", "default")
        assert secret not in str(stored)
        assert (await admin.delete("/v1/keys/0123456789ab")).status_code == 204
        assert (await admin.get("/v1/keys")).status_code == 401
    assert secret not in "".join(capfd.readouterr())


async def test_storage_away_is_no_wrong_key(cluster: Cluster) -> None:
    client = cluster.client()
    cluster.storage.broken = Unavailable("redis", "it does not answer", 1.0)
    response = await client.get("/v1/tasks")
    assert response.status_code == 503
    assert "retry-after" in response.headers


async def test_last_uses_are_written_down(cluster: Cluster) -> None:
    key = cluster.new_key("viewer")
    await cluster.client_with(key.text).get("/v1/tasks")
    await cluster.gateway.gateway.auth.touch()
    await until(lambda: cluster.storage.keys[key.id].last_used_at_ms > 0)
