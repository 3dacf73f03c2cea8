"""Skills without a cluster: inputs, results, contexts, children and cancellation."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from muster.agent.config import AgentConfig
from muster.domain.errors import InvalidInput, NotFound, PreconditionFailed
from muster.domain.task import MAX_DEPTH
from muster.skill import (
    AsyncContext,
    ChildFailed,
    Context,
    InputRejected,
    Result,
    TaskCancelled,
    skill,
)
from muster.testing import ResultRejected, Sandbox, run_skill, run_skill_async


@dataclass
class Summary:
    text: str
    words: int


@skill
def shout(text: str, times: int = 1) -> list[str]:
    return [text.upper()] * times


@skill
async def whisper(text: str) -> Summary:
    await asyncio.sleep(0)
    return Summary(text.lower(), len(text.split()))


@skill
def count(n: int, ctx: Context) -> Iterator[int]:
    for i in range(n):
        ctx.progress(i / n, f"at {i}")
        yield i


@skill
def tell(n: int) -> Any:
    for i in range(n):
        yield f"part {i}"
    return {"parts": n}


@skill
async def count_async(n: int) -> AsyncIterator[int]:
    for i in range(n):
        yield i


@skill
async def tell_async(n: int) -> AsyncIterator[str | Result]:
    for i in range(n):
        yield f"part {i}"
    yield Result({"parts": n})


@skill(input_schema={"type": "object", "required": ["url"]})
def fetch(input: Any) -> Any:  # noqa: A002  it takes the whole input
    return input["url"]


def test_input_and_result_pass_through_json_and_hints() -> None:
    assert run_skill(shout, {"text": "a", "times": 2}) == ["A", "A"]
    assert run_skill(whisper, {"text": "Hello World"}) == {"text": "hello world", "words": 2}
    assert run_skill("echo", {"a": (1, 2)}) == {"a": [1, 2]}
    assert run_skill(fetch, {"url": "x"}) == "x"


async def test_both_ways_run_both_kinds_of_skills() -> None:
    assert await run_skill_async(shout, {"text": "a"}) == ["A"]
    assert await run_skill_async(whisper, {"text": "A"}) == {"text": "a", "words": 1}
    # Even where a loop runs already.
    assert run_skill(whisper, {"text": "A"}) == {"text": "a", "words": 1}
    assert run_skill(shout, {"text": "a"}) == ["A"]


@pytest.mark.parametrize(
    ("function", "value"),
    [
        (shout, {"text": 1}),
        (shout, {"text": "a", "more": 1}),
        (shout, {}),
        (shout, "a"),
        (whisper, {"text": None}),
        (fetch, {}),
    ],
)
def test_an_input_that_a_cluster_refuses_is_refused(function: Any, value: Any) -> None:
    with pytest.raises(InputRejected, match="input"):
        run_skill(function, value)


def test_an_input_or_a_skill_that_is_none_is_told() -> None:
    with pytest.raises(InvalidInput, match="JSON"):
        run_skill(shout, {"text": object()})
    with pytest.raises(InvalidInput, match="marked with @skill"):
        run_skill(len, "abc")
    with pytest.raises(InvalidInput, match="built-in skills are"):
        run_skill("nonsense", 1)
    with pytest.raises(InvalidInput, match="not run in a sandbox"):
        run_skill("command", {"argv": ["true"]})


def test_a_result_that_an_agent_refuses_is_refused() -> None:
    @skill
    def bad(kind: str) -> Any:
        return float("nan") if kind == "nan" else object() if kind == "object" else "x" * 100

    for kind in ("nan", "object"):
        with pytest.raises(ResultRejected, match="not JSON") as caught:
            run_skill(bad, {"kind": kind})
        assert caught.value.kind == "not_json"
    with pytest.raises(ResultRejected) as caught:
        run_skill(bad, {"kind": "long"}, sandbox=Sandbox(max_result_bytes=50))
    assert caught.value.kind == "output_too_large"


def test_the_limit_of_results_is_that_of_agents() -> None:
    fields = AgentConfig.__dataclass_fields__
    assert Sandbox().max_result_bytes == fields["max_result_bytes"].default


def test_large_results_come_whole() -> None:
    @skill
    def large() -> str:
        return "x" * 1_000_000

    assert len(run_skill(large)) == 1_000_000


def test_what_a_skill_raises_comes_out() -> None:
    @skill
    def broken() -> None:
        raise ZeroDivisionError("by zero")

    with pytest.raises(ZeroDivisionError):
        run_skill(broken)


def test_partial_outputs_progress_and_logs_are_kept() -> None:
    box = Sandbox()
    assert run_skill(count, {"n": 3}, sandbox=box) == [0, 1, 2]
    assert box.partials == [0, 1, 2]
    assert [note for _, note in box.progress] == ["at 0", "at 1", "at 2"]
    for function in (tell, tell_async):
        box = Sandbox()
        assert run_skill(function, {"n": 2}, sandbox=box) == {"parts": 2}
        assert box.partials == ["part 0", "part 1"]
    box = Sandbox()
    assert run_skill(count_async, {"n": 2}, sandbox=box) == [0, 1] == box.partials

    @skill
    def logs(ctx: Context) -> list[Any]:
        ctx.log("careful", "warning")
        (ctx.folder / "scratch").write_text("x")
        return [ctx.task_id, ctx.attempt]

    box = Sandbox(attempt=3)
    ident, attempt = run_skill(logs, sandbox=box)
    assert (len(ident), attempt) == (26, 3)
    assert [(entry.level, entry.text) for entry in box.logs] == [("warning", "careful")]


def test_shared_values_compare_and_set() -> None:
    @skill
    def both(ctx: Context) -> list[Any]:
        seen = ctx.kv.get("model")
        assert seen is not None
        with pytest.raises(PreconditionFailed):
            ctx.kv.put("model", 1, if_match="other")
        with pytest.raises(PreconditionFailed):
            ctx.kv.put("model", 1, if_absent=True)
        with pytest.raises(PreconditionFailed):
            ctx.kv.delete("model", if_match="other")
        etag = ctx.kv.put("model", b"raw", if_match=seen.etag)
        assert ctx.kv.get("none") is None
        assert not ctx.kv.delete("none")
        assert ctx.kv.delete("gone", if_match=ctx.kv.put("gone", 1, if_absent=True))
        return [seen.value, etag != seen.etag]

    box = Sandbox(kv={"model": {"size": 3}})
    assert run_skill(both, sandbox=box) == [{"size": 3}, True]
    assert box.kv == {"model": b"raw"}


async def test_blobs_by_bytes_and_by_file() -> None:
    @skill
    async def blobs(known: str, ctx: AsyncContext) -> str:
        path = ctx.folder / "file"
        path.write_bytes(await ctx.blobs.get(known) + b"!")
        with pytest.raises(NotFound):
            await ctx.blobs.get("0" * 64)
        return await ctx.blobs.put(path)

    box = Sandbox(blobs=[b"hello"])
    (known,) = box.blobs
    made = await run_skill_async(blobs, {"known": known}, sandbox=box)
    assert box.blobs[made] == b"hello!"


@skill
def parent(texts: list[Any], ctx: Context) -> list[Any]:
    children = [ctx.submit("whisper", {"text": text}, priority=70) for text in texts]
    return [child.result() for child in children]


@skill
async def parent_async(texts: list[Any], ctx: AsyncContext) -> list[Any]:
    children = [await ctx.submit("whisper", {"text": text}) for text in texts]
    return [await child.result() for child in children]


@pytest.mark.parametrize("function", [parent, parent_async])
async def test_children_are_answered_and_noted(function: Any) -> None:
    async def slow(value: Any) -> str:
        await asyncio.sleep(0)
        return f"slow {value['text']}"

    for answer, expected in (
        (whisper, {"text": "a", "words": 1}),
        (lambda value: value["text"] * 2, "AA"),
        (slow, "slow A"),
        ({"fixed": True}, {"fixed": True}),
    ):
        box = Sandbox(skills={"whisper": answer})
        assert await run_skill_async(function, {"texts": ["A"]}, sandbox=box) == [expected]
        assert run_skill(function, {"texts": ["A"]}, sandbox=Sandbox(skills=box.skills)) == [
            expected
        ]
        (child,) = box.children
        assert (child.skill, child.input, child.state) == ("whisper", {"text": "A"}, "SUCCEEDED")
        assert child.options == ({"priority": 70} if function is parent else {})


@pytest.mark.parametrize("function", [parent, parent_async])
@pytest.mark.parametrize(
    ("answer", "value", "why"),
    [
        (RuntimeError("no network"), "a", "no network"),
        (whisper, 5, "input.text"),
        (lambda _: object(), "a", "not JSON"),
    ],
    ids=["error", "input", "result"],
)
def test_a_child_that_fails_is_told_to_its_parent(
    function: Any, answer: Any, value: Any, why: str
) -> None:
    box = Sandbox(skills={"whisper": answer})
    with pytest.raises(ChildFailed, match=why):
        run_skill(function, {"texts": [value]}, sandbox=box)
    assert box.children[0].state == "FAILED"


def test_a_retry_finds_its_children_again() -> None:
    calls: list[Any] = []

    def answer(value: Any) -> Any:
        calls.append(value)
        return len(calls)

    box = Sandbox(skills={"whisper": answer})
    first = run_skill(parent, {"texts": ["a", "b"]}, sandbox=box)
    box.attempt = 2
    assert run_skill(parent, {"texts": ["a", "b"]}, sandbox=box) == first == [1, 2]
    assert len(box.children) == len(calls) == 2


def test_children_have_the_limits_of_a_cluster() -> None:
    @skill
    def deep(ctx: Context) -> Any:
        return ctx.submit("deep").result()

    box = Sandbox(skills={"deep": deep})
    with pytest.raises(ChildFailed):
        run_skill(deep, sandbox=box)
    assert f"at most {MAX_DEPTH} deep" in box.children[-1].error
    assert [child.depth for child in box.children] == list(range(1, MAX_DEPTH + 1))

    @skill
    def options(ctx: Context) -> Any:
        return ctx.submit("deep", timeout_s=-1)

    with pytest.raises(InvalidInput, match="timeout_s"):
        run_skill(options, sandbox=box)
    with pytest.raises(InvalidInput, match="the sandbox's skills are: deep"):
        run_skill(parent, {"texts": ["a"]}, sandbox=Sandbox(skills={"deep": deep}))


def test_a_cancelled_sync_skill_cleans_up() -> None:
    cleaned = []

    @skill
    def long(ctx: Context) -> Any:
        try:
            for i in range(100):
                ctx.progress(i / 100)
                yield i
        finally:
            cleaned.append(ctx.cancelled)

    box = Sandbox(cancel_after=5)
    with pytest.raises(TaskCancelled):
        run_skill(long, sandbox=box)
    assert (cleaned, len(box.progress)) == ([True], 3)


async def test_a_cancelled_async_skill_cleans_up() -> None:
    cleaned = []
    here = asyncio.Event()

    @skill
    async def waits(ctx: AsyncContext) -> None:
        here.set()
        try:
            await asyncio.sleep(3600)
        finally:
            cleaned.append(ctx.cancelled)

    box = Sandbox()
    running = asyncio.create_task(run_skill_async(waits, sandbox=box))
    await here.wait()
    threading.Thread(target=box.cancel).start()
    with pytest.raises(TaskCancelled):
        await running
    assert cleaned == [True]
    with pytest.raises(TaskCancelled):
        await run_skill_async(count_async, {"n": 5}, sandbox=Sandbox(cancel_after=2))


async def test_who_runs_a_skill_may_be_cancelled_too() -> None:
    running = asyncio.create_task(run_skill_async("sleep", {"seconds": 3600}))
    await asyncio.sleep(0.01)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    run_skill(shout, {"text": "a"})
    assert list(tmp_path.iterdir()) == []
