"""What skills do through their context: shared keys, blobs, and other tasks."""

from __future__ import annotations

from collections.abc import AsyncIterator

import orjson
import pytest
import pytest_asyncio
from tests.agent_cluster import Cluster, T, until

from muster.domain.ids import DEFAULT_TENANT, TaskId, child_key, request_prefix, task_time_ms
from muster.domain.ids import task_id as make_id

pytestmark = pytest.mark.asyncio(loop_scope="module")

SKILLS = """
    import asyncio, pathlib
    from muster.domain.errors import InvalidInput, NotFound, PreconditionFailed
    from muster.skill import AsyncContext, ChildFailed, Context, skill

    @skill
    def sync_kv(ctx: Context):
        assert ctx.kv.get("s") is None
        first = ctx.kv.put("s", {"n": 1}, if_absent=True)
        try:
            ctx.kv.put("s", 2, if_match="other")
            raise AssertionError("a lost compare-and-set went unnoticed")
        except PreconditionFailed:
            pass
        entry = ctx.kv.get("s")
        assert (entry.value, entry.etag) == ({"n": 1}, first)
        second = ctx.kv.put("s", b"raw", if_match=first)
        assert ctx.kv.get("s").value == b"raw"
        assert second != first
        assert ctx.kv.delete("s") and not ctx.kv.delete("s")
        return [ctx.task_id, ctx.attempt]

    @skill
    async def async_kv(ctx: AsyncContext):
        await asyncio.gather(*(ctx.kv.put(f"a{n}", n) for n in range(20)))
        entries = await asyncio.gather(*(ctx.kv.get(f"a{n}") for n in range(20)))
        try:
            await ctx.kv.put("a0", 1, if_absent=True)
            return "overwritten"
        except PreconditionFailed:
            return [e.value for e in entries]

    @skill
    def sync_blobs(ctx: Context):
        name = ctx.blobs.put(b"x" * 3_000_000)
        path = ctx.folder / "mine"
        path.write_bytes(b"from a file")
        other = ctx.blobs.put(path)
        assert path.exists()
        try:
            ctx.blobs.get("0" * 64)
            return "found"
        except NotFound:
            return [len(ctx.blobs.get(name)), ctx.blobs.get(other).decode(),
                    sorted(p.name for p in ctx.folder.iterdir())]

    @skill
    async def async_blobs(ctx: AsyncContext):
        return (await ctx.blobs.get(await ctx.blobs.put(b"abc"))).decode()

    @skill
    def double(n: int) -> int:
        if n < 0:
            raise ValueError("negative")
        return 2 * n

    @skill
    def parent(ns: list[int], ctx: Context):
        children = [ctx.submit("double", {"n": n}) for n in ns]
        return [[c.id for c in children], [c.result() for c in children]]

    @skill
    async def aparent(ns: list[int], ctx: AsyncContext):
        children = [await ctx.submit("double", {"n": n}, timeout_s=500, priority=7) for n in ns]
        return await asyncio.gather(*(c.result() for c in children))

    @skill
    def orphaned(ctx: Context):
        try:
            ctx.submit("double", {"n": -1}).result()
        except ChildFailed as error:
            return [error.state, error.error.splitlines()[0]]

    @skill
    def wrong(ctx: Context):
        found = []
        for call in (
            lambda: ctx.submit("double", 1, colour="red"),
            lambda: ctx.submit("Bad Name"),
            lambda: ctx.submit("double", 1, resources={"cpu": "-1"}),
            lambda: ctx.log("x", "loud"),
            lambda: ctx.progress(2),
        ):
            try:
                call()
            except InvalidInput as error:
                found.append(str(error))
        return found

    @skill
    def waits_for_ever(ctx: Context):
        ctx.submit("sleep", {"seconds": 600}).result()
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    made = Cluster(tmp_path_factory.mktemp("context"))
    await made.start()
    try:
        await made.agent(SKILLS, MUSTER_AGENT_SLOTS="2")
        yield made
    finally:
        await made.stop()


async def test_keys_with_compare_and_set(cluster: Cluster) -> None:
    key = cluster.leader.give("sync_kv", attempt=4)
    outcome = await cluster.leader.outcome(key)
    assert orjson.loads(outcome.output_json or b"0") == list(key), outcome
    assert await cluster.leader.result("async_kv") == list(range(20))


async def test_blobs_of_any_size(cluster: Cluster) -> None:
    assert await cluster.leader.result("sync_blobs") == [3_000_000, "from a file", ["mine"]]
    assert await cluster.leader.result("async_blobs") == "abc"


async def test_a_parent_gets_the_results_of_its_children(cluster: Cluster) -> None:
    leader = cluster.leader
    spec = cluster.task("parent", {"ns": [1, 2, 3]})
    (key,) = leader.assign(spec)
    ids, results = orjson.loads((await leader.outcome(key)).output_json)
    assert results == [2, 4, 6]
    # A retried parent finds its children: their ids follow from its own.
    parent = TaskId(spec.id)
    for index, ident in enumerate(ids):
        prefix = request_prefix(DEFAULT_TENANT, child_key(parent, index), task_time_ms(parent))
        assert ident == make_id(prefix, 0)
    mine = [s for s in leader.submitted if s.parent == parent]
    assert [s.depth for s in mine] == [1, 1, 1]
    (again,) = leader.assign(spec, attempt=2)
    assert orjson.loads((await leader.outcome(again)).output_json) == [ids, results]


async def test_a_waiting_parent_gives_its_slot_to_its_children(cluster: Cluster) -> None:
    leader = cluster.leader
    # Two parents fill both slots: without giving them back, no child could ever run.
    keys = leader.assign(
        cluster.task("parent", {"ns": [5]}), cluster.task("aparent", {"ns": [6, 7]})
    )
    outputs = [orjson.loads((await leader.outcome(k)).output_json) for k in keys]
    assert outputs[0][1] == [10]
    assert outputs[1] == [12, 14]
    for key in keys:
        words = [waiting for k, waiting in leader.waiting if k == key]
        assert words[0] is True
    child = next(s for s in leader.submitted if s.parent == keys[1][0])
    assert (child.timeout_ms, child.priority) == (500_000, 7)
    # Parents that got one child's result and await another's give their slots back again.
    keys = leader.assign(*(cluster.task("aparent", {"ns": [1, 2, 3]}) for _ in range(2)))
    for key in keys:
        assert orjson.loads((await leader.outcome(key)).output_json) == [2, 4, 6]


async def test_a_failed_child_is_an_exception_of_its_parent(cluster: Cluster) -> None:
    assert await cluster.leader.result("orphaned") == ["FAILED", "ValueError: negative"]


async def test_bad_arguments_are_one_sentence(cluster: Cluster) -> None:
    said = await cluster.leader.result("wrong")
    assert len(said) == 5
    assert "'colour' is not accepted" in said[0]
    assert "resources.cpu" in said[2]


async def test_children_of_a_cancelled_parent_are_cancelled(cluster: Cluster) -> None:
    leader = cluster.leader
    key = leader.give("waits_for_ever")
    child = await until(
        lambda: next((s for s in leader.submitted if s.parent == key[0]), None), "the child"
    )
    leader.cancel(key)
    assert (await leader.outcome(key)).kind == T.OUTCOME_KIND_CANCELLED
    await until(lambda: child.id in leader.cancelled, "the child's cancellation")
    leader.cancel((child.id, 1))
    assert (await leader.outcome((child.id, 1))).kind == T.OUTCOME_KIND_CANCELLED


async def test_a_submission_without_a_leader_goes_to_storage(cluster: Cluster) -> None:
    leader, storage = cluster.leader, cluster.storage
    leader.takes_submissions = False
    try:
        key = leader.give("parent", {"ns": [8]})
        child = await until(
            lambda: next((t for t in storage.tasks.values() if t.spec.parent == key[0]), None),
            "the child in storage",
        )
        assert child.status.state == T.TASK_STATE_PENDING
        # A leader finds it there.
        leader.assign(child.spec)
        assert orjson.loads((await leader.outcome(key)).output_json)[1] == [16]
    finally:
        leader.takes_submissions = True
