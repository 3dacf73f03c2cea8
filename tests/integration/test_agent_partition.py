"""Agents that are cut off from the leader, and tasks that kill their agents; all of it real."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
from tests.integration.parted_agents import parted_cluster
from tests.integration.scheduler_cluster import Servers, soon, until

from muster.api.v1 import scheduler_pb2, task_pb2
from muster.domain.task import POISON_DEATHS
from muster.rpc.clock import boot_ms

SUCCEEDED, DEAD = task_pb2.TASK_STATE_SUCCEEDED, task_pb2.TASK_STATE_DEAD

SKILLS = """
    import os, pathlib, signal, time
    from muster.skill import Context, skill

    def now_ms():
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000

    @skill
    def run_until(path: str, release: str, ctx: Context):
        '''Notes all the while that this attempt runs.'''
        with open(path, "a", buffering=1) as notes:
            while not pathlib.Path(release).exists():
                notes.write(f"{ctx.attempt} {now_ms()}\\n")
                time.sleep(0.01)
        return ctx.attempt

    @skill
    def work(path: str, seconds: float, ctx: Context):
        with open(path, "a") as notes:
            notes.write(f"{ctx.task_id} {ctx.attempt}\\n")
        time.sleep(seconds)

    @skill
    def poison(path: str, ctx: Context):
        with open(path, "a") as notes:
            notes.write(f"{ctx.task_id} {ctx.attempt}\\n")
        zygote = pathlib.Path(f"/proc/{os.getppid()}/stat").read_text()
        runtime = int(zygote.rpartition(")")[2].split()[1])
        os.kill(runtime, signal.SIGKILL)
        time.sleep(60)
"""


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Servers]:
    """Of each test its own: the ended agents of another would be silent together with its own, and
    of many that fall silent at once none is given up."""
    made = Servers(tmp_path, schedulers=1)
    yield made
    made.stop()


def spans(path: Path) -> dict[int, tuple[int, int]]:
    """When each attempt ran: its first and last note, in milliseconds of boot time."""
    notes: defaultdict[int, list[int]] = defaultdict(list)
    # The last line may be half written.
    for line in path.read_text().split("\n")[:-1] if path.exists() else ():
        attempt, at_ms = line.split()
        notes[int(attempt)].append(int(at_ms))
    return {attempt: (min(at), max(at)) for attempt, at in notes.items()}


async def test_of_a_parted_agents_tasks_stop_never_overlaps_and_keep_runs_on(
    servers: Servers, tmp_path: Path
) -> None:
    async with parted_cluster(servers, tmp_path) as parted:
        await parted.start("one", SKILLS)
        files: dict[str, Path] = {}
        idents: dict[str, str] = {}
        release = tmp_path / "release"
        for name, mode in (
            ("stop", task_pb2.ON_DISCONNECT_STOP),
            ("keep", task_pb2.ON_DISCONNECT_KEEP),
        ):
            files[name] = tmp_path / name
            given = {"path": str(files[name]), "release": str(release)}
            (idents[name],) = await parted.cluster.submit(
                skill="run_until", input_json=orjson.dumps(given), on_disconnect=mode
            )
        await soon(lambda: all(1 in spans(path) for path in files.values()))
        await parted.start("two", SKILLS)

        parted.part("one")
        # Its last word, which this machine may have held up.
        word_ms = parted.proxies["one"][0].passed_on_boot_ms
        await soon(lambda: 2 in spans(files["stop"]))
        moved_ms = boot_ms()
        first, second = spans(files["stop"])[1], spans(files["stop"])[2]
        assert first[1] < second[0], "two attempts of a `stop` task overlap"
        assert first[1] > word_ms + 4_000, "a short silence already ended it"
        # Without a word from its agent for 13 s; the other one runs on, and is left alone.
        assert second[0] > word_ms + 10_000
        await soon(lambda: spans(files["keep"])[1][1] > moved_ms)
        assert 2 not in spans(files["keep"])

        # Its lease ends too: the agent is given up, and `keep` tasks with it.
        parted.registry.hide("one")
        await soon(lambda: 2 in spans(files["keep"]))
        release.touch()
        for ident in idents.values():
            task = await parted.cluster.stored(ident, SUCCEEDED)
            assert (task.status.attempt, task.outcome.output_json) == (2, b"2")
        # Back in the network, it has its own outcome of attempt 1 to tell: it counts no more.
        scheduler = servers.schedulers[0]
        before = _value(scheduler.metrics(), "muster_outcomes_fenced_total")
        parted.heal("one")

        async def fenced() -> bool:
            text = await asyncio.to_thread(scheduler.metrics)
            return _value(text, "muster_outcomes_fenced_total") > before

        await until(fenced)
        task = await parted.cluster.task(idents["keep"])
        assert (task.status.attempt, task.outcome.output_json) == (2, b"2")


def _value(text: str, name: str) -> float:
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))


async def test_poison_is_dead_after_three_agents_and_fifty_innocents_succeed(
    servers: Servers, tmp_path: Path
) -> None:
    async with parted_cluster(servers, tmp_path) as parted:
        for name in ("three", "four"):
            await parted.start(name, SKILLS, MUSTER_AGENT_SLOTS="4")
        notes = tmp_path / "notes"
        work = orjson.dumps({"path": str(notes), "seconds": 0.15})
        specs = parted.cluster.specs(51, skill="work", input_json=work)
        poison = specs[20]
        poison.skill, poison.input_json = "poison", orjson.dumps({"path": str(notes)})
        await parted.cluster.call("Submit", scheduler_pb2.SubmitRequest(tasks=specs))
        ended = {}
        for spec in specs:
            wanted = DEAD if spec is poison else SUCCEEDED
            ended[spec.id] = (await parted.cluster.stored(spec.id, wanted)).status
        assert ended[poison.id].agent_deaths == POISON_DEATHS
        assert "3 agents died while they ran it" in ended[poison.id].why
        attempts = [line.split() for line in notes.read_text().splitlines()]
        assert [int(a) for ident, a in attempts if ident == poison.id] == [1, 2, 3]
        assert {ident for ident, _ in attempts} == set(ended)
