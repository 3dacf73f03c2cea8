"""`status`, `agents`, `agent`, the actions on agents, `keys`."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest
from tests.unit.cli.conftest import Muster, answer, problem


def an_agent(ident: str = "agent-1", state: str = "READY", **more: Any) -> dict[str, Any]:
    return {
        "id": ident,
        "state": state,
        "wish": "NONE",
        "incarnation": 3,
        "health": 1.0,
        "phi": 0.0,
        "capacity": {"cpu": "2", "memory": "512Mi", "slots": "64"},
        "used": {"cpu": "500m", "memory": "64Mi", "slots": "1"},
        "assigned_tasks": 0,
        "running_tasks": 1,
        "skills": ["command", "echo", "sleep"],
        "labels": {"zone": "a"},
        "host": "box",
        "pid": 7,
        "version": "0.1.0",
        "registered_at": "2026-01-31T12:00:00.000Z",
        **more,
    }


CLUSTER = {
    "leader": "127.0.0.1:12000",
    "term": 4,
    "tasks": {"SUCCEEDED": 12, "RUNNING": 1, "FAILED": 0},
    "agents": {"READY": 4},
    "capacity": {"cpu": "8"},
    "used": {"cpu": "500m"},
    "tasks_per_s": 3.14159,
    "strategy": "worst_fit",
    "version": "0.1.0",
}


def test_status_in_words(muster: Muster) -> None:
    muster.on("GET /v1/cluster", answer(CLUSTER))
    ran = muster("status")
    assert ran.code == 0
    for text in ("127.0.0.1:12000", "4 READY", "12 SUCCEEDED, 1 RUNNING", "500m of 8", "3.1"):
        assert text in ran.out
    assert "FAILED" not in ran.out


def test_status_without_a_leader_says_so(muster: Muster) -> None:
    muster.on("GET /v1/cluster", answer({"leader": None, "tasks": None}))
    ran = muster("status")
    assert "none: tasks are accepted and wait" in ran.out
    assert "unknown" in ran.out


def test_status_json(muster: Muster) -> None:
    muster.on("GET /v1/cluster", answer(CLUSTER))
    assert muster("status", "--json").json == CLUSTER


def test_agents_fit_80_columns(muster: Muster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("muster.cli.show._FILE_WIDTH", 80)
    many = an_agent("agent-2", "SUSPECT", skills=[f"skill-{n}" for n in range(20)], health=0.5)
    muster.on("GET /v1/agents", answer({"items": [an_agent(), many], "next": None}))
    lines = muster("agents").out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[1].split() == [
        *("agent-1", "READY", "1", "of", "64", "500m/2", "64Mi/512Mi", "1.00"),
        *("command", "echo", "sleep"),
    ]
    assert lines[2].split()[:2] == ["agent-2", "SUSPECT"]


def test_agents_are_all_pages(muster: Muster) -> None:
    muster.on(
        "GET /v1/agents",
        answer({"items": [an_agent("a")], "next": "a"}),
        answer({"items": [an_agent("b")], "next": None}),
    )
    items = muster("agents", "--json").json["items"]
    assert [item["id"] for item in items] == ["a", "b"]


def test_no_agents(muster: Muster) -> None:
    muster.on("GET /v1/agents", answer({"items": [], "next": None}))
    assert muster("agents").out == "no agents\n"


def test_agent_with_evidence(muster: Muster) -> None:
    evidence = [
        {"at": "2026-01-31T12:00:00.000Z", "state": "SUSPECT", "why": "phi is 9.1"},
        {
            "at": "2026-01-31T12:00:01.000Z",
            "state": "SUSPECT",
            "what": "WISH",
            "why": "its operators want: DRAIN",
            "who": "key-7",
            "phi": 9.1,
            "silent_ms": 4_200,
        },
    ]
    metrics = {
        "last_seen_at": None,
        "values": {"cpu_ratio": 0.23800000001, "memory_bytes": 98226176.0},
    }
    muster.on(
        "GET /v1/agents/agent-1", answer(an_agent(evidence=evidence, metrics=metrics, wish="DRAIN"))
    )
    ran = muster("agent", "agent-1")
    for text in (
        "0.238\n",
        "98226176\n",
        "500m of 2",
        "zone=a",
        "phi is 9.1",
        "WISH",
        "key-7",
        "4.2s",
        "cpu_ratio",
        "DRAIN",
        "box (pid 7)",
    ):
        assert text in ran.out


def test_an_unknown_agent(muster: Muster) -> None:
    muster.on("GET /v1/agents/nobody", problem(404, "there is no agent 'nobody'"))
    ran = muster("agent", "nobody", "--json")
    assert (ran.code, ran.out, ran.err) == (1, "", "muster: there is no agent 'nobody'\n")


@pytest.mark.parametrize("action", ["cordon", "uncordon", "drain", "restart"])
def test_actions_tell_the_state_that_follows(muster: Muster, action: str) -> None:
    muster.on(f"POST /v1/agents/agent-1/{action}", answer(an_agent(state="CORDONED")))
    ran = muster(action, "agent-1")
    assert (ran.code, ran.out) == (0, "agent-1 CORDONED\n")
    assert muster(action, "agent-1", "--json").json["state"] == "CORDONED"


def test_a_drain_with_a_deadline(muster: Muster) -> None:
    muster.on("POST /v1/agents/agent-1/drain", answer(an_agent(state="DRAINING")))
    assert muster("drain", "agent-1", "--deadline", "60s").out == "agent-1 DRAINING\n"
    assert muster.sent() == {"deadline": "60s"}
    muster("drain", "agent-1")
    assert muster.requests[-1].content == b""


def test_a_restart_that_may_have_begun_is_not_repeated(muster: Muster) -> None:
    muster.on("POST /v1/agents/agent-1/restart", httpx.ReadError("reset"))
    ran = muster("restart", "agent-1")
    assert ran.code == 3
    assert len(muster.requests) == 1
    muster.on("POST /v1/agents/agent-1/restart", httpx.ConnectError("refused"), answer(an_agent()))
    assert muster("restart", "agent-1").code == 0


def test_a_role_that_may_not_is_told(muster: Muster) -> None:
    muster.on("POST /v1/agents/agent-1/drain", problem(403, "the role viewer may not do this"))
    ran = muster("drain", "agent-1")
    assert (ran.code, ran.err) == (1, "muster: the role viewer may not do this\n")


KEY = {"id": "ab12", "role": "viewer", "name": "ci", "created_at": None, "revoked_at": None}


def test_a_new_key_is_printed_alone(muster: Muster) -> None:
    muster.on("POST /v1/keys", answer({**KEY, "key": "mst_ab12_secret"}, 201))
    ran = muster("keys", "create", "--role", "viewer", "--name", "ci", "--expires-in", "30d")
    assert (ran.code, ran.out) == (0, "mst_ab12_secret\n")
    assert muster.sent() == {"role": "viewer", "name": "ci", "expires_in": "30d"}


def test_a_key_is_not_made_twice(muster: Muster) -> None:
    muster.on("POST /v1/keys", httpx.ReadTimeout("slow"))
    assert muster("keys", "create").code == 3
    assert len(muster.requests) == 1


def test_keys_are_listed_and_revoked(muster: Muster) -> None:
    revoked = {**KEY, "id": "cd34", "revoked_at": "2026-01-31T12:00:00.000Z"}
    muster.on("GET /v1/keys", answer({"items": [KEY, revoked], "next": None}))
    lines = muster("keys", "list").out.splitlines()
    assert lines[1].split() == ["ab12", "viewer", "ci"]
    assert lines[2].split() == ["cd34", "viewer", "ci", "revoked"]
    assert len(muster("keys", "list", "--json").json["items"]) == 2
    muster.on("DELETE /v1/keys/ab12", httpx.Response(204))
    assert muster("keys", "revoke", "ab12").out == "ab12 revoked\n"
    assert muster("keys", "revoke", "ab12", "--json").json is None
    muster.on("DELETE /v1/keys/zz", problem(404, "there is no key 'zz'"))
    assert muster("keys", "revoke", "zz").code == 1


def test_keys_are_generated_without_a_cluster(muster: Muster) -> None:
    first, second = muster("keys", "generate"), muster("keys", "generate")
    assert first.out != second.out
    assert re.fullmatch(r"mst_[0-9a-f]{12}_[0-9a-f]{64}\n", first.out)
    assert muster.requests == []
