"""Alerts and silences over REST, in front of a monitor's stand-in."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.gateway_fakes import Cluster, running_cluster

from muster.api.v1 import monitor_pb2


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with running_cluster() as running:
        yield running


def alert(fingerprint: str, **more: Any) -> monitor_pb2.Alert:
    labels = {"agent": "a"}
    return monitor_pb2.Alert(
        fingerprint=fingerprint, rule="cpu_high", labels=labels, state="firing", **more
    )


async def test_alerts_are_paged_and_filters_are_passed_on(cluster: Cluster) -> None:
    cluster.monitor.alerts = [alert("c"), alert("a", value=0.5), alert("b", fired_at_ms=1)]
    client = cluster.client("viewer")
    page = (await client.get("/v1/alerts?limit=2&state=firing&agent=a")).json()
    assert [item["fingerprint"] for item in page["items"]] == ["a", "b"]
    assert [item["value"] for item in page["items"]] == [0.5, None]
    assert page["items"][1]["fired_at"] == "1970-01-01T00:00:00.001Z"
    asked = cluster.monitor.alert_requests[0]
    assert (asked.tenant, asked.state, asked.agent) == ("default", "firing", "a")
    rest = (await client.get(f"/v1/alerts?cursor={page['next']}")).json()
    assert ([item["fingerprint"] for item in rest["items"]], rest["next"]) == (["c"], None)
    assert (await client.get("/v1/alerts?colour=red")).status_code == 422


async def test_a_silence_is_made_listed_and_ended_within_its_tenant(cluster: Cluster) -> None:
    operator, admin = cluster.client("operator"), cluster.client("admin")
    body = {"matchers": ["agent=a"], "duration": "2h", "comment": "new disk"}
    made = await operator.post("/v1/silences", json=body)
    assert made.status_code == 201
    assert made.json()["state"] == "active"
    ident = made.json()["id"]
    kept = cluster.monitor.silences[ident]
    assert (kept.cluster, kept.tenant) == (False, "default")
    assert kept.ends_at_ms - kept.starts_at_ms == 7_200_000
    assert kept.author
    await admin.post("/v1/silences", json=body)
    assert cluster.monitor.silences["2"].cluster
    assert len((await operator.get("/v1/silences")).json()["items"]) == 2
    assert (await cluster.client("viewer").delete(f"/v1/silences/{ident}")).status_code == 403
    kept.tenant = "other"
    assert (await operator.delete(f"/v1/silences/{ident}")).status_code == 404
    kept.tenant = "default"
    ended = await operator.delete(f"/v1/silences/{ident}")
    assert (ended.status_code, ended.json()["state"]) == (200, "expired")


@pytest.mark.parametrize(
    "body",
    [
        {"matchers": ["agent=a"]},
        {"matchers": ["agent=a"], "duration": "2h", "ends_at": "2026-01-31T12:00:00Z"},
        {"matchers": ["agent=a"], "ends_at": "tomorrow"},
        {"matchers": ["agent=a"], "ends_at": "2026-01-31T12:00:00"},
        {"matchers": ["agent=a"], "ends_at": "0001-01-01T00:00:00+14:00"},
        {"matchers": "agent=a", "duration": "2h"},
        {"matchers": ["agent=a"], "duration": "-1h"},
        {"matchers": ["agent=a"], "duration": "2h", "author": "me"},
    ],
)
async def test_a_silence_that_says_nothing_clear_is_refused(
    cluster: Cluster, body: dict[str, Any]
) -> None:
    answer = await cluster.client("operator").post("/v1/silences", json=body)
    assert answer.status_code == 422
    assert cluster.monitor.silences == {}
