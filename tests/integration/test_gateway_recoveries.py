"""Recoveries over REST, in front of a leader's stand-in."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.gateway_fakes import Cluster, running_cluster

from muster.domain.errors import NotLeader
from muster_gateway.documents import Recovery, RecoveryPage

BEGAN_MS = 1_769_860_800_123
ACTION = {
    "agent": "a",
    "at_ms": BEGAN_MS + 333,
    "after_s": 0.333,
    "action": "migrate",
    "policy": "planned",
    "kind": "died",
    "silent_s": 0.4,
    "epoch": 0,
    "restarts_tried": 1,
    "tasks": 3,
    "given_away": 2,
    "expected_cost_task_s": 12.5,
    "alternatives": {"restart": 17.25},
    "excluded": {"wait": "nobody tries to bring it back"},
    "evidence": {"restart_chance": 0.2},
    "before": {"T": 1.0},
    "after": {"T": 2.0},
    "violated": {},
    "sentence": "a restart works out in 2 of 10 cases",
}


def record(number: int, agent: str = "a", tenant: str = "default", **more: Any) -> dict[str, Any]:
    """As the leader keeps it: one that is over."""
    return {
        "id": f"{BEGAN_MS + number}-{agent}",
        "agent": agent,
        "tenant": tenant,
        "incarnation": 4,
        "term": 2,
        "kind": "died",
        "evidence": "the supervisor says: signal 9",
        "policy": "planned",
        "began_at_ms": BEGAN_MS,
        "silent_s": 0.4,
        "tasks": 3,
        "moved": 2,
        "rerun": 1,
        "kept": 0,
        "waiting": 0,
        "action": "migrate",
        "actions": [ACTION],
        "restarts": 1,
        "restart_took_s": 2.5,
        "back_after_s": 3.25,
        "longest_wait_s": 6.75,
        "expected_cost_task_s": 12.5,
        "realised_cost_task_s": 20.25,
        "outcome": "moved",
        "ended_at_ms": BEGAN_MS + 9_000,
        "sentence": "a was down with 3 tasks: its runtime died; 2 tasks moved.",
        **more,
    }


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with running_cluster() as running:
        yield running


async def test_the_newest_comes_first_without_what_was_weighed(cluster: Cluster) -> None:
    still: dict[str, Any] = {"ended_at_ms": None, "realised_cost_task_s": None, "outcome": "open"}
    cluster.scheduler.recoveries = [record(1), record(2, **still)]
    answer = await cluster.client("viewer").get("/v1/recoveries")
    assert answer.status_code == 200
    page = answer.json()
    RecoveryPage.model_validate(page)
    newest, older = page["items"]
    assert [newest["id"], older["id"]] == [record(2)["id"], record(1)["id"]]
    assert page["next"] is None
    assert (newest["ended_at"], newest["realised_cost_task_s"]) == (None, None)
    assert older["began_at"] == "2026-01-31T12:00:00.123Z"
    assert older["ended_at"] == "2026-01-31T12:00:09.123Z"
    same = set(record(1)) - {"tenant", "actions", "began_at_ms", "ended_at_ms"}
    assert set(older) == same | {"began_at", "ended_at"}
    assert {name: older[name] for name in same} == {name: record(1)[name] for name in same}


async def test_they_are_paged_and_may_be_of_one_agent(cluster: Cluster) -> None:
    agents = ("a", "b", "a", "a", "b")
    cluster.scheduler.recoveries = [record(n, agent) for n, agent in enumerate(agents)]
    kept = [one["id"] for one in reversed(cluster.scheduler.recoveries)]
    client = cluster.client("viewer")
    seen, query = [], "limit=2"
    for left in (3, 1, 0):
        page = (await client.get(f"/v1/recoveries?{query}")).json()
        seen += [item["id"] for item in page["items"]]
        assert len(kept) - len(seen) == left
        query = f"limit=2&cursor={page['next']}"
    assert seen == kept
    assert page["next"] is None
    page = (await client.get("/v1/recoveries?agent=b&limit=1")).json()
    assert [item["id"] for item in page["items"]] == [kept[0]]
    page = (await client.get(f"/v1/recoveries?agent=b&cursor={page['next']}")).json()
    assert ([item["id"] for item in page["items"]], page["next"]) == ([kept[3]], None)


async def test_one_in_detail_has_each_choice(cluster: Cluster) -> None:
    cluster.scheduler.recoveries = [record(1), record(2)]
    wanted = record(1)
    answer = await cluster.client("viewer").get(f"/v1/recoveries/{wanted['id']}")
    assert answer.status_code == 200
    found = answer.json()
    Recovery.model_validate(found)
    assert (found["id"], found["sentence"]) == (wanted["id"], wanted["sentence"])
    (action,) = found["actions"]
    shown = {name: value for name, value in ACTION.items() if name not in ("agent", "at_ms")}
    assert action == shown | {"at": "2026-01-31T12:00:00.456Z"}
    assert "tenant" not in found


async def test_one_that_is_not_there_is_told_in_one_sentence(cluster: Cluster) -> None:
    cluster.scheduler.recoveries = [record(1)]
    client = cluster.client("viewer")
    for ident in ("1-nobody", "%00", "x" * 1000):
        answer = await client.get(f"/v1/recoveries/{ident}")
        assert answer.status_code == 404
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["detail"].startswith("there is no recovery ")
    answer = await client.get("/v1/recoveries/1-nobody")
    assert "1-nobody" in answer.json()["detail"]
    assert "\n" not in answer.json()["detail"]


async def test_a_tenant_sees_its_own_alone(cluster: Cluster) -> None:
    mine, foreign = record(1), record(2, tenant="other")
    cluster.scheduler.recoveries = [mine, foreign]
    for tenant, own, hidden in (("default", mine, foreign), ("other", foreign, mine)):
        # An administrator's role is within the tenant, too.
        client = cluster.client("admin", tenant)
        page = (await client.get("/v1/recoveries")).json()
        assert [item["id"] for item in page["items"]] == [own["id"]]
        assert (await client.get(f"/v1/recoveries/{own['id']}")).status_code == 200
        # As if it were not there: nothing tells that it exists.
        answer = await client.get(f"/v1/recoveries/{hidden['id']}")
        assert answer.status_code == 404
        assert answer.json()["detail"].startswith("there is no recovery ")
    assert (await cluster.client_with(None).get("/v1/recoveries")).status_code == 401


@pytest.mark.parametrize("query", ["limit=0", "limit=x", "agent=UPPER", "colour=red"])
async def test_a_query_that_means_nothing_is_refused(cluster: Cluster, query: str) -> None:
    answer = await cluster.client("viewer").get(f"/v1/recoveries?{query}")
    assert answer.status_code == 422
    assert query.partition("=")[0] in answer.json()["detail"]


async def test_without_a_leader_it_says_so(cluster: Cluster) -> None:
    cluster.scheduler.broken = NotLeader("")
    answer = await cluster.client("viewer").get("/v1/recoveries")
    assert answer.status_code == 503
    assert "leader" in answer.json()["detail"]
