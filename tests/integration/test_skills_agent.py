"""`http` and `chat` as a real agent runs them: results, pieces on the way, failures, the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import pytest_asyncio
from tests.agent_cluster import Cluster, T, until
from tests.scripted_http import (
    DONE,
    USAGE,
    Received,
    ScriptedServer,
    chunk,
    head,
    said,
    scripted,
    send,
    stream,
)

from muster.agent import error_kinds

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEY = "sk-of-the-agent-0123456789"
# Skills of the tests' own: an async generator with a result, and one that gives up for good.
SKILLS = """
    from muster.skill import PermanentFailure, Result, skill

    @skill
    async def counts(n: int):
        for i in range(n):
            yield i
        yield Result({"counted": n})
        yield "never"

    @skill
    def gives_up():
        raise PermanentFailure("it is over")
"""


async def play(request: Received, writer: asyncio.StreamWriter) -> None:
    """A web site at /page, a provider at /v1."""
    if request.path == "/page":
        await send(writer, body=b"z" * 40_000, content_type="text/plain")
        return
    wanted = orjson.loads(request.body)["messages"][0]["content"]
    if wanted == "forbidden":
        await send(writer, 401, f"bad key {KEY}".encode())
    elif wanted == "busy":
        await send(writer, 500, b"oops")
    elif wanted == "for ever":
        await head(writer, content_type="text/event-stream")
        writer.write(said("once"))
        await writer.drain()
        await asyncio.sleep(600)
    else:
        counted = chunk(choices=[], usage=USAGE)
        await stream(writer, said("Hel"), said("lo", "stop"), counted, DONE)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site() -> AsyncIterator[ScriptedServer]:
    async with scripted(play) as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(
    tmp_path_factory: pytest.TempPathFactory, site: ScriptedServer
) -> AsyncIterator[Cluster]:
    folder: Path = tmp_path_factory.mktemp("skills")
    (folder / "key").write_text(KEY)
    made = Cluster(folder)
    await made.start()
    try:
        await made.agent(
            SKILLS,
            MUSTER_OUTBOUND_ALLOW="127.0.0.1",
            MUSTER_CHAT_BASE_URL=f"{site.url}/v1",
            MUSTER_CHAT_API_KEY_FILE=str(folder / "key"),
            MUSTER_CHAT_MODEL="tiny",
        )
        yield made
    finally:
        await made.stop()


def asking(content: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}]}


def pieces(cluster: Cluster, key: tuple[str, int]) -> list[Any]:
    return [orjson.loads(p.partial_json) for p in cluster.leader.progress[key] if p.partial_json]


async def test_both_are_offered_with_their_schemas(cluster: Cluster) -> None:
    offers = {s.name: s for s in cluster.registry.registrations[0].spec.skills}
    assert orjson.loads(offers["http"].input_schema_json)["required"] == ["url"]
    assert orjson.loads(offers["chat"].input_schema_json)["required"] == ["messages"]


async def test_commands_are_told_nothing_of_the_provider(cluster: Cluster) -> None:
    seen = await cluster.leader.result("command", {"argv": ["env"]})
    assert "MUSTER_CHAT" not in seen["stdout"]
    assert "MUSTER_OUTBOUND" not in seen["stdout"]


async def test_a_chat_streams_and_counts(cluster: Cluster) -> None:
    key = cluster.leader.give("chat", asking("hello"))
    outcome = await cluster.leader.outcome(key)
    assert outcome.kind == T.OUTCOME_KIND_SUCCEEDED, outcome
    assert orjson.loads(outcome.output_json) == {
        "content": "Hello",
        "finish_reason": "stop",
        "model": "tiny-1",
        "usage": USAGE,
    }
    await until(lambda: "".join(pieces(cluster, key)) == "Hello", "the pieces")


async def test_a_no_of_the_provider_is_final_and_a_busy_one_is_not(cluster: Cluster) -> None:
    final = await cluster.leader.outcome(cluster.leader.give("chat", asking("forbidden")))
    assert (final.kind, final.error_kind) == (T.OUTCOME_KIND_FAILED, error_kinds.PERMANENT)
    assert final.error_kind in error_kinds.NON_RETRYABLE_ERROR_KINDS
    assert "401 bad key …" in final.error
    busy = await cluster.leader.outcome(cluster.leader.give("chat", asking("busy")))
    assert (busy.kind, busy.error_kind) == (T.OUTCOME_KIND_FAILED, error_kinds.EXCEPTION)
    assert "500 oops" in busy.error
    wrong = await cluster.leader.outcome(cluster.leader.give("chat", {"messages": []}))
    assert wrong.error_kind == error_kinds.INPUT_SCHEMA
    told = [line.text for line in cluster.monitor.lines.values()]
    assert not any(KEY in text for text in [final.error, busy.error, *told])


async def test_a_cancelled_chat_hangs_up(cluster: Cluster, site: ScriptedServer) -> None:
    before = site.hung_up
    key = cluster.leader.give("chat", asking("for ever"))
    await until(lambda: pieces(cluster, key) == ["once"], "the first piece")
    cluster.leader.cancel(key)
    assert (await cluster.leader.outcome(key)).kind == T.OUTCOME_KIND_CANCELLED
    await until(lambda: site.hung_up > before, "the end of the connection")


async def test_a_page_is_fetched_and_kept_as_a_blob(cluster: Cluster, site: ScriptedServer) -> None:
    result = await cluster.leader.result("http", {"url": f"{site.url}/page"})
    assert (result["status"], result["size"]) == (200, 40_000)
    assert cluster.storage.blobs[result["blob"]] == b"z" * 40_000
    refused = await cluster.leader.outcome(
        cluster.leader.give("http", {"url": "http://169.254.169.254/latest/meta-data"})
    )
    assert refused.error_kind == error_kinds.PERMANENT
    assert "a metadata address" in refused.error


async def test_a_generator_may_have_a_result_of_its_own(cluster: Cluster) -> None:
    key = cluster.leader.give("counts", {"n": 3})
    outcome = await cluster.leader.outcome(key)
    assert orjson.loads(outcome.output_json) == {"counted": 3}
    await until(lambda: pieces(cluster, key) == [0, 1, 2], "the pieces")


async def test_a_skill_may_give_up_for_good(cluster: Cluster) -> None:
    outcome = await cluster.leader.outcome(cluster.leader.give("gives_up", {}))
    assert (outcome.error_kind, outcome.error) == (error_kinds.PERMANENT, "it is over")
