"""Both clients against a real gateway, by way of a proxy that loses what it should not."""

from __future__ import annotations

import asyncio
import inspect
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.gateway_fakes import Cluster, running_cluster, skill_agent
from tests.tcp_proxy import TcpProxy

from muster import AsyncClient, Client
from muster.api.v1 import agent_pb2, storage_pb2, task_pb2
from muster.client.errors import (
    Conflict,
    DeadlinePassed,
    InvalidRequest,
    NotFound,
    PreconditionFailed,
    TaskCancelled,
    TaskFailed,
    Unauthenticated,
    Unreachable,
)
from muster.domain.errors import InvalidInput


class InThread:
    """A `Client` that is used as if it were an `AsyncClient`: each call in a thread."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)
        if "Iterator" in str(inspect.signature(method).return_annotation):
            return lambda *args, **named: self._items(method(*args, **named))

        async def call(*args: Any, **named: Any) -> Any:
            return await asyncio.to_thread(method, *args, **named)

        return call

    async def _items(self, items: Iterator[Any]) -> AsyncIterator[Any]:
        done = object()
        while (item := await asyncio.to_thread(next, items, done)) is not done:
            yield item


@dataclass
class Bench:
    """A cluster of fakes, a client under test before it, and what the client has sent."""

    cluster: Cluster
    proxy: TcpProxy
    client: Any
    requests: list[httpx.Request] = field(default_factory=list)

    def sent(self, path: str) -> list[httpx.Request]:
        return [r for r in self.requests if r.url.path == path]

    async def once(self, when: Callable[[], None]) -> None:
        """Calls `when` after the next tasks have been written, before anybody is told."""
        create = self.cluster.storage.create

        async def created(tasks: list[task_pb2.Task]) -> list[storage_pb2.CreateResult]:
            results = await create(tasks)
            self.cluster.storage.create = create  # type: ignore[method-assign]
            when()
            return results

        self.cluster.storage.create = created  # type: ignore[method-assign]


@pytest.fixture(params=["sync", "async"])
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    async with _bench(request.param) as bench:
        yield bench


@asynccontextmanager
async def _bench(kind: str) -> AsyncIterator[Bench]:
    async with (
        running_cluster() as cluster,
        TcpProxy(cluster.url.removeprefix("http://")) as proxy,
    ):
        key = cluster.new_key("submitter").text
        url = f"http://{proxy.endpoint}"
        if kind == "async":
            client = AsyncClient(url, key)
            bench = Bench(cluster, proxy, client)

            async def note(request: httpx.Request) -> None:
                bench.requests.append(request)

            client._http.event_hooks = {"request": [note], "response": []}
            async with client:
                yield bench
        else:
            with Client(url, key) as blocking:
                bench = Bench(cluster, proxy, InThread(blocking))
                hooks = {"request": [bench.requests.append], "response": []}
                blocking._http.event_hooks = hooks
                yield bench


async def test_a_lost_answer_gives_one_task(bench: Bench) -> None:
    bench.cluster.scheduler.echo = True
    await bench.once(bench.proxy.cut)
    ident = await bench.client.submit("echo", {"a": 1})
    assert len(bench.sent("/v1/tasks")) == 2
    assert [name for _, name in bench.cluster.storage.tasks] == [ident]
    assert await bench.client.result(ident) == {"a": 1}


async def test_a_lost_answer_to_a_batch_gives_each_task_once(bench: Bench) -> None:
    await bench.once(bench.proxy.cut)
    ids = await bench.client.submit_many("echo", range(2_500), priority=60)
    assert len(bench.sent("/v1/tasks")) == 4
    assert [name for _, name in bench.cluster.storage.tasks] == ids
    spec = bench.cluster.storage.tasks["default", ids[2_400]].spec
    assert (json.loads(spec.input_json), spec.priority) == (2_400, 60)


async def test_a_map_of_5000_takes_few_requests_and_survives_a_cut(bench: Bench) -> None:
    bench.cluster.scheduler.echo = True
    got = []
    async for value in bench.client.map("echo", range(5_000)):
        got.append(value)
        if len(got) == 2_000:
            bench.proxy.cut()
    assert got == list(range(5_000))
    assert len(bench.requests) < 60
    assert len(bench.cluster.storage.tasks) == 5_000


async def test_results_come_as_tasks_end_and_tell_how(bench: Bench) -> None:
    storage = bench.cluster.storage
    ids = await bench.client.submit_many("echo", range(3))
    results = aiter(bench.client.results(ids))
    found = {}
    for ident, state in zip(
        reversed(ids),
        (
            task_pb2.TASK_STATE_SUCCEEDED,
            task_pb2.TASK_STATE_CANCELLED,
            task_pb2.TASK_STATE_SUCCEEDED,
        ),
        strict=True,
    ):
        await storage.end(ident, b"7", state=state)
        result = await anext(results)
        found[result.id] = result
    assert list(found) == ids[::-1]
    assert [r.succeeded for r in found.values()] == [True, False, True]
    with pytest.raises(StopAsyncIteration):
        await anext(results)


async def test_a_task_that_does_not_succeed_is_an_error(bench: Bench) -> None:
    storage = bench.cluster.storage
    ident = await bench.client.submit("echo")
    with pytest.raises(DeadlinePassed):
        await bench.client.result(ident, timeout=0.2)
    assert await bench.client.cancel(ident) == "CANCELLED"
    assert await bench.client.cancel(ident) == "CANCELLED"
    with pytest.raises(TaskCancelled) as cancelled:
        await bench.client.result(ident)
    assert cancelled.value.task.id == ident
    ident = await bench.client.submit("echo")
    await storage.end(ident, b"", state=task_pb2.TASK_STATE_FAILED)
    with pytest.raises(TaskFailed):
        await bench.client.result(ident)
    assert (await bench.client.task(ident, wait=5)).state == "FAILED"
    with pytest.raises(Conflict):
        await bench.client.cancel(ident)
    with pytest.raises(NotFound):
        await bench.client.result(ident[:-1] + "z")


async def test_partial_outputs_are_streamed_through_a_cut(bench: Bench) -> None:
    storage = bench.cluster.storage
    ident = await bench.client.submit("count")

    async def say(index: int) -> None:
        await storage.emit(
            storage_pb2.Event(
                kind=storage_pb2.EVENT_KIND_TASK_PROGRESS,
                tenant="default",
                task_id=ident,
                attempt=1,
                fraction=-1,
                partial_json=json.dumps(f"part {index}").encode(),
                partial_index=index,
            )
        )

    # Before anybody listens: it is read from the events since the submission.
    await say(0)
    parts = aiter(bench.client.stream(ident))
    for index in range(4):
        part = await anext(parts)
        assert (part.index, part.value) == (index, f"part {index}")
        if index == 1:
            bench.proxy.cut()
        await say(index + 1)
    await storage.end(ident, b'"all"')
    assert [part.index async for part in parts] == [4]


async def test_lists_come_in_pages(bench: Bench) -> None:
    bench.cluster.scheduler.echo = True
    ids = await bench.client.submit_many("echo", range(2_100), labels={"team": "a"})
    found = [task async for task in bench.client.tasks(skill="echo", state="SUCCEEDED")]
    assert {task.id for task in found} == set(ids)
    assert found[0].labels == {"team": "a"}
    assert [t async for t in bench.client.tasks(labels={"team": "b"})] == []


async def test_agents_and_the_cluster_are_typed(bench: Bench) -> None:
    record = skill_agent("agent-7", "echo")
    record.spec.capacity["cpu"] = 4_000
    bench.cluster.scheduler.agents["agent-7"] = agent_pb2.AgentView(
        record=record, state=agent_pb2.AGENT_STATE_READY
    )
    (agent,) = [agent async for agent in bench.client.agents()]
    assert (agent.id, agent.skills, agent.capacity["cpu"]) == ("agent-7", ["echo"], "4")
    assert (await bench.client.agent("agent-7")).offers[0]["name"] == "echo"
    with pytest.raises(NotFound):
        await bench.client.agent("../tasks")
    assert (await bench.client.cluster()).leader is not None
    ident = await bench.client.submit("echo")
    assert (await bench.client.explain(ident)).id == ident
    assert (await bench.client.task(ident, with_input=True)).input is None


async def test_a_plan_is_typed_and_asked_for_as_in_rest(bench: Bench) -> None:
    tasks = [{"skill": "echo", "input": 1, "estimate": 2.5}, {"skill": "vision"}]
    plan = await bench.client.plan(
        tasks, strategy="search", weights={"t": 1}, budget=2, seed=7, front=True
    )
    (sent,) = bench.cluster.scheduler.plans
    assert [(one.skill, one.estimate_ms) for one in sent.shapes] == [("echo", 2_500), ("vision", 0)]
    assert json.loads(sent.policy_json) == {
        "strategy": "search",
        "weights": {"t": 1},
        "budget": "2000ms",
    }
    assert (sent.seed, sent.front) == (7, True)
    first, second = plan.placements
    assert (first.agent, first.devices, second.agent) == ("a", {"gpu": [1]}, None)
    assert second.reason is not None
    assert plan.reasons[second.reason].text == "full"
    assert plan.front is not None
    assert plan.front[0].agents == ["a", None]
    assert (plan.J, plan.unplaced, plan.queued) == (0.125, 1, 3)
    for bad, options in (([{}], {}), ([{"skill": "echo"}], {"stratergy": "search"})):
        with pytest.raises(InvalidInput):
            await bench.client.plan(bad, **options)


@pytest.mark.parametrize("key", ["plain", "with/slash", "a b?c#d%2F", "ü.", "..", "."])
async def test_shared_values_compare_and_set(bench: Bench, key: str) -> None:
    client = bench.client
    assert await client.kv_get(key) is None
    first = await client.kv_put(key, {"n": 1}, if_absent=True)
    with pytest.raises(PreconditionFailed):
        await client.kv_put(key, {"n": 2}, if_absent=True)
    second = await client.kv_put(key, b"\0raw", if_match=first)
    with pytest.raises(PreconditionFailed):
        await client.kv_put(key, 3, if_match=first)
    entry = await client.kv_get(key)
    assert (entry.value, entry.etag) == (b"\0raw", second)
    assert [name async for name in client.kv_keys()] == [key]
    with pytest.raises(PreconditionFailed):
        await client.kv_delete(key, if_match=first)
    assert await client.kv_delete(key, if_match=second)
    assert not await client.kv_delete(key)


async def test_blobs_by_bytes_and_by_file(bench: Bench, tmp_path: Path) -> None:
    content = bytes(range(256)) * 5_000
    name = await bench.client.blob_put(content)
    path = tmp_path / "blob"
    path.write_bytes(content)
    assert await bench.client.blob_put(path) == name
    assert await bench.client.blob_get(name) == content
    assert await bench.client.blob_delete(name)
    assert not await bench.client.blob_delete(name)
    with pytest.raises(NotFound):
        await bench.client.blob_get(name)


async def test_a_wrong_submission_is_refused_whole_and_told(bench: Bench) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await bench.client.submit("echo", 1, priority=101)
    assert (caught.value.field, caught.value.value) == ("priority", 101)
    assert "100" in caught.value.limit
    with pytest.raises(InvalidRequest):
        await bench.client.submit("echo", "x" * 1_100_000)
    assert bench.cluster.storage.tasks == {}


async def test_the_wrong_key_and_nobody_there_are_told(bench: Bench) -> None:
    url = f"http://{bench.proxy.endpoint}"
    wrong = AsyncClient(url, "mst_000000000000_" + "0" * 64)
    async with wrong:
        with pytest.raises(Unauthenticated):
            await wrong.cluster()
    bench.proxy.refuse(True)
    async with AsyncClient(url, "key", retry_for=0.5) as nobody:
        with pytest.raises(Unreachable):
            await nobody.submit("echo")


async def test_a_client_may_be_used_by_several_threads() -> None:
    async with _bench("sync") as bench:
        bench.cluster.scheduler.echo = True
        blocking = bench.client._client
        done: list[int] = []

        def work(number: int) -> None:
            done.append(blocking.run("echo", number))

        threads = [threading.Thread(target=work, args=(n,)) for n in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            await asyncio.to_thread(thread.join)
        assert sorted(done) == list(range(20))


def test_both_clients_have_the_same_surface() -> None:
    def surface(kind: type) -> dict[str, Any]:
        return {
            name: {
                p.name: (p.kind, p.default, p.annotation)
                for p in inspect.signature(member).parameters.values()
            }
            for name, member in vars(kind).items()
            if not name.startswith("_") and callable(member)
        }

    assert surface(Client) == surface(AsyncClient)
    assert len(surface(Client)) > 20
