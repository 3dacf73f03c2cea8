"""The `command` skill on a real agent."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import pytest_asyncio
from tests.agent_cluster import Cluster, T, alive, until

from muster.agent import error_kinds

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    made = Cluster(tmp_path_factory.mktemp("commands"))
    await made.start()
    try:
        await made.agent()
        yield made
    finally:
        await made.stop()


async def run(cluster: Cluster, *argv: str, **more: Any) -> T.Outcome:
    key = cluster.leader.give("command", {"argv": list(argv), **more})
    return await cluster.leader.outcome(key)


def output(outcome: T.Outcome) -> Any:
    return orjson.loads(outcome.output_json)


async def test_a_program_gets_words_environment_and_input(cluster: Cluster) -> None:
    done = await run(
        cluster,
        "sh",
        "-c",
        'read line; echo "$1 $X $line"; echo oops >&2',
        "sh",
        "a b",
        env={"X": "x"},
        stdin="hello\n",
    )
    assert done.kind == T.OUTCOME_KIND_SUCCEEDED, done
    assert output(done) == {"exit_code": 0, "stdout": "a b x hello\n", "stderr": "oops\n"}
    assert done.exit_code == 0


async def test_a_large_input_arrives_whole_and_an_unread_one_is_fine(cluster: Cluster) -> None:
    counted = await run(cluster, "wc", "-c", stdin="x" * 500_000)
    assert output(counted)["stdout"].strip() == "500000"
    assert (await run(cluster, "true", stdin="x" * 500_000)).kind == T.OUTCOME_KIND_SUCCEEDED


async def test_a_program_runs_confined_in_a_folder_of_its_own(cluster: Cluster) -> None:
    done = await run(
        cluster, "sh", "-c", "pwd; env; ulimit -c; grep NoNewPrivs /proc/self/status; ls -A"
    )
    text = output(done)["stdout"]
    assert text.splitlines()[0].startswith(str(cluster.folder))
    assert "JOIN_SECRET" not in text
    assert "MUSTER_TASK_ID=" in text
    assert "\n0\n" in text
    assert "NoNewPrivs:\t1" in text
    folder = Path(text.splitlines()[0])
    await until(lambda: not folder.exists(), "the folder's removal")


async def test_a_non_zero_exit_is_a_failure_that_keeps_its_output(cluster: Cluster) -> None:
    done = await run(cluster, "sh", "-c", "echo out; echo why it failed >&2; exit 3")
    assert (done.kind, done.error_kind, done.exit_code) == (
        T.OUTCOME_KIND_FAILED,
        error_kinds.EXIT,
        3,
    )
    assert done.error == "the program ended with exit code 3: why it failed"
    assert output(done) == {"exit_code": 3, "stdout": "out\n", "stderr": "why it failed\n"}


async def test_a_program_that_is_killed_or_missing_or_not_executable_says_so(
    cluster: Cluster, tmp_path: Path
) -> None:
    killed = await run(cluster, "sh", "-c", "kill -SEGV $$")
    assert killed.error_kind == error_kinds.SIGNAL
    assert "SIGSEGV" in killed.error
    missing = await run(cluster, "no-such-program")
    assert missing.error_kind == error_kinds.NO_PROGRAM
    assert missing.error == "this agent has no program 'no-such-program' on its PATH"
    broken = tmp_path / "broken"
    broken.write_text("#!/no/such/interpreter\n")
    broken.chmod(0o755)
    refused = await run(cluster, str(broken))
    assert refused.error_kind == error_kinds.NO_PROGRAM
    assert "cannot be executed: No such file or directory" in refused.error


async def test_bad_input_is_not_retried(cluster: Cluster) -> None:
    bad: tuple[Any, ...] = (
        {},
        {"argv": []},
        {"argv": "ls"},
        {"argv": ["ls"], "more": 1},
        {"argv": ["a\0b"]},
        {"argv": ["ls"], "env": {"A=B": "c"}},
        None,
    )
    for value in bad:
        outcome = await cluster.leader.outcome(cluster.leader.give("command", value))
        assert outcome.error_kind == error_kinds.INPUT_SCHEMA, value


async def test_output_of_any_size_and_kind_is_kept_up_to_a_cap(cluster: Cluster) -> None:
    binary = await run(cluster, "printf", "\\377\\376ok\\n")
    assert output(binary)["stdout"] == "\ufffd\ufffdok\n"
    huge = await run(cluster, "sh", "-c", "head -c 5000000 /dev/zero | tr '\\0' x")
    assert huge.kind == T.OUTCOME_KIND_SUCCEEDED
    kept = orjson.loads(cluster.storage.blobs[huge.output_blob])["stdout"]
    assert len(kept) < 1_100_000
    assert kept.endswith(f"[cut: {5_000_000 - 1024 * 1024} bytes more]")


async def test_output_is_followed_while_the_program_runs(cluster: Cluster) -> None:
    key = cluster.leader.give("command", {"argv": ["sh", "-c", "echo begun; sleep 60"]})
    await until(lambda: cluster.monitor.text(key[0]) == ["begun"], "the first line")
    assert key not in cluster.leader.outcomes
    cluster.leader.cancel(key)
    assert (await cluster.leader.outcome(key)).kind == T.OUTCOME_KIND_CANCELLED


@pytest.mark.parametrize("how", ["timeout", "stubborn", "background"])
async def test_nothing_of_a_program_outlives_its_attempt(
    cluster: Cluster, tmp_path: Path, how: str
) -> None:
    pids = tmp_path / "pids"
    script = "trap '' TERM; " if how == "stubborn" else ""
    # The job is in a process group of its own, and its parent is gone.
    job = "import os,sys,time; os.setpgid(0, 0); print(os.getpid(), flush=True); time.sleep(600)"
    script += f'({sys.executable} -c "{job}" >> {pids} &); echo $$ >> {pids}; '
    script += f"until [ $(wc -w < {pids}) = 2 ]; do :; done; "
    script += "true" if how == "background" else "sleep 601"
    leader = cluster.leader

    def both() -> list[str]:
        return n if pids.exists() and len(n := pids.read_text().split()) == 2 else []

    # On a slow machine its time may be up before the program has started what is to be ended.
    for timeout_ms in (300, 3_000, 30_000) if how == "timeout" else (0,):
        pids.unlink(missing_ok=True)
        key = leader.give("command", {"argv": ["sh", "-c", script]}, timeout_ms=timeout_ms)
        found = await until(lambda: both() or key in leader.outcomes, "both pids")  # noqa: B023
        if found is not True:
            break
    assert len(both()) == 2
    if how == "stubborn":
        leader.cancel(key)
    expected = {
        "timeout": T.OUTCOME_KIND_TIMED_OUT,
        "stubborn": T.OUTCOME_KIND_CANCELLED,
        "background": T.OUTCOME_KIND_SUCCEEDED,
    }[how]
    assert (await leader.outcome(key)).kind == expected
    await until(lambda: not any(alive(int(p)) for p in both()), "the end of its processes")


async def test_an_allow_list_is_kept(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    await cluster.start()
    try:
        await cluster.agent(MUSTER_AGENT_COMMANDS="echo,true")
        assert output(await run(cluster, "echo", "hi"))["stdout"] == "hi\n"
        for argv, env in (
            (["sh", "-c", "echo"], {}),
            (["/bin/echo"], {}),
            (["./echo"], {}),
            (["echo"], {"LD_PRELOAD": "/tmp/x.so"}),
            (["echo"], {"PATH": "/tmp"}),
        ):
            refused = await run(cluster, *argv, env=env)
            assert refused.error_kind == error_kinds.NOT_ALLOWED, (argv, env)
    finally:
        await cluster.stop()
