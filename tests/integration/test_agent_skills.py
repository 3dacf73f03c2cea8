"""Skills on a real agent: every kind of function, what they print, and how they go wrong."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import orjson
import pytest
import pytest_asyncio
from tests.agent_cluster import Agent, Cluster, S, T, alive, until

from muster.agent import error_kinds

pytestmark = pytest.mark.asyncio(loop_scope="module")

SKILLS = """
    import asyncio, ctypes, dataclasses, logging, os, pathlib, resource, signal, subprocess, sys
    import time
    import pydantic
    from muster.skill import AsyncContext, Context, InputRejected, TaskCancelled, skill

    class Order(pydantic.BaseModel):
        items: list[str]
        paid: bool = False

    @dataclasses.dataclass
    class Total:
        count: int

    @skill
    def add(a: int, b: int = 1) -> int:
        return a + b

    @skill
    async def greet(name: str) -> str:
        await asyncio.sleep(0)
        return f"hello {name}"

    @skill
    def order(input: Order) -> Total:
        return Total(len(input.items))

    @skill
    async def pay(input: Order) -> Order:
        return input.model_copy(update={"paid": True})

    @skill
    def count(n: int):
        for i in range(n):
            yield {"i": i}

    @skill
    def count_and_sum(n: int):
        total = 0
        for i in range(n):
            total += i
            yield i
        return total

    @skill
    async def tokens(text: str):
        for word in text.split():
            yield word
            await asyncio.sleep(0)

    @skill
    def speak(ctx: Context):
        print("from print")
        print("to stderr", file=sys.stderr)
        os.write(1, b"from a descriptor\\n")
        subprocess.run(["sh", "-c", "echo from a child"], check=True)
        ctx.log("from ctx", "warning")
        ctx.progress(0.5, "half")
        sys.stdout.write("no newline")

    @skill
    async def aspeak(input: str, ctx):
        print("async", input)
        await asyncio.sleep(0.02)
        await asyncio.to_thread(print, "thread", input)
        ctx.log("ctx " + input)
        print("rest", input, end="")

    @skill
    def facts():
        return {
            "cwd": os.getcwd(), "tmp": os.environ.get("TMPDIR"), "pid": os.getpid(),
            "sid": os.getsid(0), "core": resource.getrlimit(resource.RLIMIT_CORE)[0],
            "env": sorted(os.environ), "nnp": pathlib.Path("/proc/self/status").read_text(),
        }

    @skill
    def fail(text: str):
        raise ValueError(text)

    @skill
    async def afail(text: str):
        raise LookupError(text)

    @skill
    def reject(input):
        raise InputRejected("input", input, "never this")

    @skill
    def not_json():
        return object()

    @skill
    async def anan():
        return {"x": float("nan")}

    @skill
    def huge(mib: int) -> str:
        return "x" * (mib * 1024 * 1024)

    @skill
    def segfault():
        ctypes.string_at(0)

    @skill
    def leave(code: int):
        os._exit(code)

    @skill
    def sys_exit():
        sys.exit(4)

    @skill
    async def asegfault():
        await asyncio.sleep(0.05)
        ctypes.string_at(0)

    @skill(name="asegfault.neighbour")
    async def _unused():
        return None

    @skill
    def nap(seconds: float):
        time.sleep(seconds)
        return "awake"

    @skill
    async def anap(seconds: float):
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            print("cleaning up")
            raise
        return "awake"

    @skill
    def tidy(path: str, begun: str, ctx: Context):
        try:
            pathlib.Path(begun).touch()
            time.sleep(600)
        finally:
            pathlib.Path(path).write_text(f"tidied {ctx.cancelled}")

    @skill
    def stubborn(path: str):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        pathlib.Path(path).write_text(str(os.getpid()))
        while True:
            time.sleep(1)

    @skill
    async def astubborn(seconds: float):
        while True:
            try:
                await asyncio.sleep(seconds)
                return "slept"
            except asyncio.CancelledError:
                pass

    @skill
    async def both(crash: bool, seconds: float = 600):
        if crash:
            await asyncio.sleep(0.1)
            os._exit(9)
        await asyncio.sleep(seconds)

    @skill
    def family(path: str, wait: float):
        pids = []
        for n in range(3):
            pid = os.fork()
            if pid == 0:
                if n == 2:
                    os.setsid()
                time.sleep(600)
                os._exit(0)
            pids.append(pid)
        pathlib.Path(path).write_text(" ".join(map(str, pids)))
        time.sleep(wait)
        return pids

    @skill
    def come_back():
        if os.fork() == 0:
            return "a child that returns"
        return "parent"

    @skill
    def chatter(lines: int):
        for i in range(lines):
            print("x" * 100)
        return "said"
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    made = Cluster(tmp_path_factory.mktemp("skills"))
    await made.start()
    try:
        await made.agent(SKILLS, MUSTER_AGENT_MAX_RESULT="8Mi")
        yield made
    finally:
        await made.stop()


def agent_of(cluster: Cluster) -> Agent:
    return cluster.agents[0]


async def failure(cluster: Cluster, skill: str, value: object = None) -> T.Outcome:
    outcome = await cluster.leader.outcome(cluster.leader.give(skill, value))
    assert outcome.kind == T.OUTCOME_KIND_FAILED, outcome
    return outcome


async def written(path: Path) -> str:
    return str(await until(lambda: path.exists() and path.read_text(), f"{path}"))


async def test_functions_of_every_kind_give_their_results(cluster: Cluster) -> None:
    run = cluster.leader.result
    assert await run("echo", {"any": [1, None]}) == {"any": [1, None]}
    assert await run("sleep", {"seconds": 0.01}) is None
    assert await run("add", {"a": 1}) == 2
    assert await run("greet", {"name": "x"}) == "hello x"
    assert await run("order", {"items": ["a", "b"]}) == {"count": 2}
    assert await run("pay", {"items": []}) == {"items": [], "paid": True}


async def test_generators_show_partial_outputs_and_give_a_whole_result(cluster: Cluster) -> None:
    leader = cluster.leader
    key = leader.give("count", {"n": 3})
    assert orjson.loads((await leader.outcome(key)).output_json) == [{"i": 0}, {"i": 1}, {"i": 2}]
    shown = await until(lambda: len(p := leader.progress[key]) == 3 and p, "partial outputs")
    assert [(p.partial_index, p.partial_json) for p in shown] == [
        (0, b'{"i":0}'),
        (1, b'{"i":1}'),
        (2, b'{"i":2}'),
    ]
    assert await leader.result("count_and_sum", {"n": 4}) == 6
    key = leader.give("tokens", {"text": "a b c"})
    assert orjson.loads((await leader.outcome(key)).output_json) == ["a", "b", "c"]
    await until(lambda: len(leader.progress[key]) == 3, "partial outputs")


async def test_everything_that_a_sync_skill_prints_is_in_its_log(cluster: Cluster) -> None:
    leader, monitor = cluster.leader, cluster.monitor
    key = leader.give("speak")
    await leader.outcome(key)
    await until(lambda: key[0] in monitor.ends, "the log's end")
    lines = [line for (task, _), line in monitor.lines.items() if task == key[0]]
    # Each once.
    assert sorted((line.text, line.stream, line.level) for line in lines) == [
        ("from a child", 1, ""),
        ("from a descriptor", 1, ""),
        ("from ctx", 3, "warning"),
        ("from print", 1, ""),
        ("no newline", 1, ""),
        ("to stderr", 2, ""),
    ], (leader.outcomes[key], lines)


async def test_async_skills_that_share_a_process_have_logs_of_their_own(cluster: Cluster) -> None:
    leader, monitor = cluster.leader, cluster.monitor
    keys = {name: leader.give("aspeak", name) for name in ("one", "two", "three")}
    for key in keys.values():
        await leader.outcome(key)
    await until(lambda: {k[0] for k in keys.values()} <= set(monitor.ends), "the logs' ends")
    for name, key in keys.items():
        assert sorted(monitor.text(key[0])) == sorted(
            [f"async {name}", f"thread {name}", f"ctx {name}", f"rest {name}"]
        )


async def test_progress_reaches_the_leader(cluster: Cluster) -> None:
    leader = cluster.leader
    key = leader.give("nap", {"seconds": 0})
    await leader.outcome(key)
    key = leader.give("speak")
    await leader.outcome(key)
    # Progress of a task that has ended is dropped, so a quick one may show none.
    assert all((p.fraction, p.note) == (0.5, "half") for p in leader.progress[key])


async def test_a_skill_runs_confined(cluster: Cluster) -> None:
    facts = await cluster.leader.result("facts")
    assert facts["core"] == 0
    assert "NoNewPrivs:\t1" in facts["nnp"]
    assert facts["sid"] == facts["pid"]
    assert facts["cwd"] == facts["tmp"]
    assert facts["cwd"].startswith(str(agent_of(cluster).folder))
    assert not [name for name in facts["env"] if name.startswith("MUSTER_JOIN")]


async def test_failures_have_kind_message_and_traceback(cluster: Cluster) -> None:
    sync = await failure(cluster, "fail", {"text": "bad thing"})
    assert sync.error_kind == error_kinds.EXCEPTION
    assert sync.error.startswith("ValueError: bad thing\n")
    assert "in fail" in sync.error
    assert "runner.py" not in sync.error
    concurrent = await failure(cluster, "afail", {"text": "y" * 10_000})
    assert len(concurrent.error) <= 4096
    assert "SystemExit: 4" in (await failure(cluster, "sys_exit")).error


async def test_bad_input_fails_in_a_way_that_is_not_retried(cluster: Cluster) -> None:
    for skill, value in (
        ("add", {"a": "x"}),
        ("add", {"a": 1, "z": 1}),
        ("pay", {"items": 3}),
        ("reject", 1),
        ("sleep", {"seconds": -1}),
        ("sleep", {"seconds": True}),
        ("sleep", 3),
    ):
        outcome = await failure(cluster, skill, value)
        assert outcome.error_kind == error_kinds.INPUT_SCHEMA, (skill, outcome)
        assert outcome.error_kind in error_kinds.NON_RETRYABLE_ERROR_KINDS
        assert "input" in outcome.error


async def test_a_result_that_is_not_json_fails(cluster: Cluster) -> None:
    assert (await failure(cluster, "not_json")).error_kind == error_kinds.NOT_JSON
    assert "NaN" in (await failure(cluster, "anan")).error


async def test_a_large_result_goes_to_the_blob_store_and_one_too_large_fails(
    cluster: Cluster,
) -> None:
    leader = cluster.leader
    outcome = await leader.outcome(leader.give("huge", {"mib": 2}))
    assert outcome.kind == T.OUTCOME_KIND_SUCCEEDED
    assert outcome.output_bytes == 2 * 1024 * 1024 + 2
    assert not outcome.output_json
    assert len(cluster.storage.blobs[outcome.output_blob]) == outcome.output_bytes
    refused = await failure(cluster, "huge", {"mib": 100})
    assert refused.error_kind == error_kinds.OUTPUT_TOO_LARGE
    assert str(100 * 1024 * 1024 + 2) in refused.error
    assert str(8 * 1024 * 1024) in refused.error
    results = agent_of(cluster).folder / "state" / "run" / "results"
    await until(lambda: not list(results.iterdir()), "the removal of stored results")


async def test_a_result_waits_for_storage_and_its_attempt_can_be_cancelled_meanwhile(
    cluster: Cluster,
) -> None:
    leader, storage = cluster.leader, cluster.storage
    storage.available = False
    try:
        kept, dropped = leader.give("huge", {"mib": 1}), leader.give("huge", {"mib": 1})
        await until(lambda: {kept, dropped} <= set(leader.started), "the start of both")
        await asyncio.sleep(0.2)
        assert kept not in leader.outcomes
        leader.cancel(dropped)
        assert (await leader.outcome(dropped)).kind == T.OUTCOME_KIND_CANCELLED
    finally:
        storage.available = True
    assert (await leader.outcome(kept)).kind == T.OUTCOME_KIND_SUCCEEDED


async def test_a_runner_that_dies_costs_one_attempt_and_the_agent_lives(cluster: Cluster) -> None:
    crashed = await failure(cluster, "segfault")
    assert crashed.error_kind == error_kinds.SIGNAL
    assert "the runner died of signal SIGSEGV" in crashed.error
    left = await failure(cluster, "leave", {"code": 3})
    assert (left.error_kind, left.exit_code) == (error_kinds.EXIT, 3)
    assert "exit code 3" in left.error
    assert (await failure(cluster, "asegfault")).error_kind == error_kinds.SIGNAL
    assert await cluster.leader.result("add", {"a": 1}) == 2
    assert cluster.registry.incarnation == 1


async def test_of_async_attempts_in_one_process_only_the_one_that_broke_it_is_charged(
    cluster: Cluster,
) -> None:
    leader = cluster.leader
    innocent = [leader.give("both", {"crash": False}) for _ in range(3)]
    await until(lambda: set(innocent) <= set(leader.started), "their start")
    culprit = leader.give("both", {"crash": True})
    charged = await leader.outcome(culprit)
    assert (charged.kind, charged.exit_code) == (T.OUTCOME_KIND_FAILED, 9)
    for key in innocent:
        assert (await leader.outcome(key)).kind == T.OUTCOME_KIND_RETURNED


@pytest.mark.parametrize("skill", ["nap", "anap"])
async def test_cancel_ends_an_attempt_long_before_its_end(cluster: Cluster, skill: str) -> None:
    leader = cluster.leader
    key = leader.give(skill, {"seconds": 600})
    await until(lambda: key in leader.started, "its start")
    leader.cancel(key)
    outcome = await leader.outcome(key)
    assert outcome.kind == T.OUTCOME_KIND_CANCELLED
    if skill == "anap":
        await until(lambda: cluster.monitor.text(key[0]) == ["cleaning up"], "its last words")


@pytest.mark.parametrize("skill", ["nap", "anap", "sleep", "command"])
async def test_a_cancel_may_come_with_the_assignment(cluster: Cluster, skill: str) -> None:
    leader = cluster.leader
    value = {"argv": ["sleep", "600"]} if skill == "command" else {"seconds": 600}
    spec = cluster.task(skill, value)
    neighbour = leader.give(skill, value) if skill == "anap" else None
    ref = S.AttemptRef(task_id=spec.id, attempt=1, tenant="default")
    leader.push(
        assign=[S.Assignment(spec=spec, attempt=1, incarnation=1)],
        cancel=[S.CancelAttempt(ref=ref, wish=T.TASK_WISH_CANCEL)],
    )
    outcome = await leader.outcome((spec.id, 1))
    assert outcome.kind == T.OUTCOME_KIND_CANCELLED
    if neighbour is not None:
        # Ended by itself: force would have taken those that share its process with it.
        assert neighbour not in leader.outcomes
        leader.cancel(neighbour)
        assert (await leader.outcome(neighbour)).kind == T.OUTCOME_KIND_CANCELLED


@pytest.mark.parametrize("skill", ["nap", "anap", "sleep"])
async def test_a_timeout_ends_an_attempt(cluster: Cluster, skill: str) -> None:
    leader = cluster.leader
    outcome = await leader.outcome(leader.give(skill, {"seconds": 600}, timeout_ms=150))
    assert outcome.kind == T.OUTCOME_KIND_TIMED_OUT
    assert "0.15 s" in outcome.error


async def test_finally_blocks_of_a_cancelled_sync_skill_run(
    cluster: Cluster, tmp_path: Path
) -> None:
    leader = cluster.leader
    begun = tmp_path / "begun"
    key = leader.give("tidy", {"path": str(tmp_path / "tidied"), "begun": str(begun)})
    await until(begun.exists, "its start")
    leader.cancel(key)
    assert (await leader.outcome(key)).kind == T.OUTCOME_KIND_CANCELLED
    assert await written(tmp_path / "tidied") == "tidied True"


async def test_a_skill_that_ignores_sigterm_is_killed(cluster: Cluster, tmp_path: Path) -> None:
    leader = cluster.leader
    key = leader.give("stubborn", {"path": str(tmp_path / "pid")})
    other = leader.give("astubborn", {"seconds": 600})
    pid = int(await written(tmp_path / "pid"))
    await until(lambda: other in leader.started, "its start")
    leader.cancel(key)
    leader.cancel(other, T.TASK_WISH_TIME_OUT)
    assert (await leader.outcome(key)).kind == T.OUTCOME_KIND_CANCELLED
    assert (await leader.outcome(other)).kind == T.OUTCOME_KIND_TIMED_OUT
    assert not alive(pid)


@pytest.mark.parametrize("way", ["ends", "cancelled"])
async def test_what_a_skill_forks_ends_with_its_attempt(
    cluster: Cluster, tmp_path: Path, way: str
) -> None:
    leader = cluster.leader
    wait = 0.0 if way == "ends" else 600.0
    key = leader.give("family", {"path": str(tmp_path / "pids"), "wait": wait})
    pids = [int(pid) for pid in (await written(tmp_path / "pids")).split()]
    assert len(pids) == 3
    if way == "cancelled":
        leader.cancel(key)
    outcome = await leader.outcome(key)
    if way == "ends":
        assert outcome.kind == T.OUTCOME_KIND_SUCCEEDED
    # The third one has left the group for a session of its own.
    await until(lambda: not any(alive(pid) for pid in pids), "the end of the children")


async def test_a_forked_child_that_returns_does_not_answer_for_its_parent(
    cluster: Cluster,
) -> None:
    key = cluster.leader.give("come_back")
    outcome = await cluster.leader.outcome(key)
    assert orjson.loads(outcome.output_json) == "parent"
    assert cluster.leader.outcome_count[key] == 1


async def test_a_chatty_task_is_cut_and_does_not_stop(cluster: Cluster) -> None:
    leader, monitor = cluster.leader, cluster.monitor
    key = leader.give("chatter", {"lines": 30_000})
    assert orjson.loads((await leader.outcome(key)).output_json) == "said"
    await until(lambda: key[0] in monitor.ends, "the log's end")
    lines = monitor.text(key[0])
    assert 1000 < len(lines) < 30_000
    assert any("left out" in line for line in lines)


async def test_an_unknown_skill_is_given_back(cluster: Cluster) -> None:
    outcome = await cluster.leader.outcome(cluster.leader.give("no.such.skill"))
    assert outcome.kind == T.OUTCOME_KIND_RETURNED
    assert "no.such.skill" in outcome.error


async def test_many_at_once_all_end_once(cluster: Cluster) -> None:
    leader = cluster.leader
    keys = leader.assign(
        *(cluster.task("echo", n) for n in range(40)),
        *(cluster.task("add", {"a": n}) for n in range(20)),
    )
    outputs = [orjson.loads((await leader.outcome(k)).output_json) for k in keys]
    assert outputs == [*range(40), *range(1, 21)]
    assert all(leader.outcome_count[k] == 1 for k in keys)


async def test_the_offer_names_skills_and_schemas(cluster: Cluster) -> None:
    offers = {s.name: s for s in cluster.registry.registrations[0].spec.skills}
    assert {"echo", "sleep", "command", "add", "order"} <= offers.keys()
    assert orjson.loads(offers["add"].input_schema_json)["required"] == ["a"]
    assert len(offers["add"].schema_hash) == 16
    assert orjson.loads(offers["command"].input_schema_json)["required"] == ["argv"]
    spec = cluster.registry.registrations[0].spec
    assert spec.capacity["slots"] == 64
    assert os.sched_getaffinity(0)
    assert spec.capacity["cpu"] == 1000 * len(os.sched_getaffinity(0))
