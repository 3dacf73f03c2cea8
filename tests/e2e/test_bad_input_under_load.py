"""Every kind of bad input while a cluster works: refused in words, and not felt by others."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.e2e.test_up_cli import Cli

# All of this at once keeps two busy cores for a while.
HANG_S = 120.0

SKILLS = """
import ctypes, os, signal, subprocess, time
from muster.skill import Context, skill


@skill
def work(seconds: float, ctx: Context) -> str:
    time.sleep(seconds)
    return ctx.task_id


@skill
def bad(how: str, ctx: Context):
    if how == "not_json":
        return object()
    if how == "huge":
        return "x" * (100 * 1024 * 1024)
    if how == "exit":
        os._exit(3)
    if how == "segfault":
        ctypes.string_at(0)
    if how == "fork":
        subprocess.Popen(["sleep", "600"], start_new_session=True)
        return "left something behind"
    if how == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)
    if how == "deeper":
        return ctx.submit("bad", {"how": "deeper"}, max_attempts=1).result()
"""
LOAD = 400
BATCHES = 8


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[Cli, dict[str, Any]]]:
    (tmp_path / "bots.py").write_text(SKILLS)
    cli = Cli(tmp_path)
    try:
        yield cli, cli.up("--agents", "2", "--skills", str(tmp_path / "bots.py"))
    finally:
        cli.run("down", "--state-dir", str(cli.state))


async def ask(client: httpx.AsyncClient, method: str, path: str, **rest: Any) -> httpx.Response:
    """As clients do: not now is no answer, and a submission has a key."""
    if (method, path) == ("POST", "/v1/tasks"):
        rest["headers"] = {"Idempotency-Key": uuid.uuid4().hex, **rest.get("headers", {})}
    async with asyncio.timeout(HANG_S):
        while True:
            answer = await client.request(method, path, **rest)
            if answer.status_code not in (429, 503):
                return answer
            await asyncio.sleep(0.1)


async def ended(client: httpx.AsyncClient, ident: str) -> dict[str, Any]:
    """The result of a task, once it has one."""
    async with asyncio.timeout(HANG_S):
        while True:
            answer = await ask(client, "GET", f"/v1/tasks/{ident}/result", params={"wait": "30s"})
            if answer.status_code != 202:
                assert answer.status_code == 200, answer.text
                result: dict[str, Any] = answer.json()
                return result


async def load(client: httpx.AsyncClient) -> dict[str, dict[str, Any]]:
    """Tasks in batches over some seconds; their results by id."""
    ids: list[str] = []
    for _ in range(BATCHES):
        batch = {"tasks": [{"skill": "work", "input": {"seconds": 0.02}}] * (LOAD // BATCHES)}
        answer = await ask(client, "POST", "/v1/tasks", json=batch)
        assert answer.status_code == 202, answer.text
        ids += answer.json()["ids"]
        await asyncio.sleep(0.3)
    return {ident: await ended(client, ident) for ident in ids}


def requests(done: str) -> list[tuple[int, str, str, dict[str, Any]]]:
    """Expected status, method, path, and the rest of each request."""
    deep = b'{"skill":"echo","input":' + b"[" * 1_000 + b"]" * 1_000 + b"}"
    json_type = {"Content-Type": "application/json"}

    def task(status: int, **fields: Any) -> tuple[int, str, str, dict[str, Any]]:
        return (status, "POST", "/v1/tasks", {"json": {"skill": "echo", **fields}})

    def raw(status: int, content: bytes) -> tuple[int, str, str, dict[str, Any]]:
        return (status, "POST", "/v1/tasks", {"content": content, "headers": json_type})

    return [
        task(422, resources={"cpu": "-1"}),
        task(422, resources={"cpu": "NaN"}),
        task(422, resources={"memory": "99999999999Ei"}),
        task(422, resources={"memory": "lots"}),
        task(422, colour="red"),
        (422, "POST", "/v1/tasks", {"json": {"skill": "work", "input": {"seconds": "soon"}}}),
        (422, "POST", "/v1/tasks", {"json": {"tasks": [{"skill": "echo"}] * 10_001}}),
        raw(413, b'{"skill":"echo","input":"' + b"x" * (11 * 1024 * 1024) + b'"}'),
        raw(400, deep),
        raw(400, b'{"skill":"\xff\xfe"}'),
        (401, "GET", "/v1/tasks", {"headers": {"Authorization": "Bearer mst_wrong"}}),
        (401, "GET", "/v1/tasks", {"headers": {"Authorization": ""}}),
        (409, "POST", f"/v1/tasks/{done}/cancel", {}),
        (404, "GET", "/v1/tasks/" + "0" * 26, {}),
        (404, "GET", "/v1/tasks/not-an-id", {}),
    ]


async def refused(client: httpx.AsyncClient) -> None:
    echo = {"skill": "echo", "input": 1}
    done = (await ask(client, "POST", "/v1/tasks", json=echo)).json()["id"]
    await ended(client, done)
    for status, method, path, rest in requests(done):
        answer = await ask(client, method, path, **rest)
        said = (method, path, str(rest)[:80], answer.status_code, answer.text[:300])
        assert answer.status_code == status, said
        assert answer.headers["content-type"] == "application/problem+json", said
    key = {"Idempotency-Key": "the-same"}
    for value, status in ((1, 202), (2, 409)):
        body = {"skill": "echo", "input": value}
        answer = await ask(client, "POST", "/v1/tasks", json=body, headers=key)
        assert answer.status_code == status


async def bad_skills(client: httpx.AsyncClient) -> dict[str, dict[str, Any]]:
    ids = {}
    for how in ("not_json", "huge", "exit", "segfault", "fork", "stubborn", "deeper"):
        # The time of one must be up; the others must have enough of it.
        timeout = "3s" if how == "stubborn" else "10m"
        body = {"skill": "bad", "input": {"how": how}, "max_attempts": 1, "timeout": timeout}
        ids[how] = (await ask(client, "POST", "/v1/tasks", json=body)).json()["id"]
    return {how: await ended(client, ident) for how, ident in ids.items()}


async def join(cli: Cli, registry: str, secret: str, name: str) -> tuple[int | None, str]:
    """An agent by hand, which must not get in."""
    environ = {
        **cli.environ,
        "MUSTER_REGISTRY": registry,
        "MUSTER_JOIN_SECRET": secret,
        "MUSTER_AGENT_ID": name,
        "MUSTER_STATE_DIR": str(cli.folder / f"rival-{len(secret)}"),
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "muster.agent", env=environ, stderr=subprocess.PIPE
    )
    _, text = await asyncio.wait_for(process.communicate(), HANG_S)
    return process.returncode, text.decode()


async def test_bad_input_of_every_kind_harms_no_task_of_a_load(
    cluster: tuple[Cli, dict[str, Any]],
) -> None:
    cli, ready = cluster
    headers = {"Authorization": f"Bearer {ready['api_key']}"}
    agents = {agent["id"] for agent in cli.json("agents")["items"]}
    registry = json.loads((cli.state / "cluster.json").read_text())["ports"]["registry"]
    async with httpx.AsyncClient(base_url=ready["url"], headers=headers, timeout=90) as client:
        results, _, ends, intruder = await asyncio.gather(
            load(client),
            refused(client),
            bad_skills(client),
            join(cli, f"127.0.0.1:{registry}", "a-secret-that-is-not-the-clusters", min(agents)),
        )
        assert intruder[0] == 78
        assert "refuses this secret" in intruder[1]
        # The load: everything succeeded, each as itself.
        assert len(results) == LOAD
        for ident, result in results.items():
            assert (result["state"], result["result"]) == ("SUCCEEDED", ident), result
        assert ends.pop("fork")["state"] == "SUCCEEDED"
        assert ends.pop("stubborn")["state"] == "TIMED_OUT"
        assert {end["state"] for end in ends.values()} == {"FAILED"}
        assert {agent["id"] for agent in cli.json("agents")["items"]} == agents
