"""An agent's life and deaths: restart, drain, nothing left behind, and how it refuses to start."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from tests.agent_cluster import Agent, Cluster, S, T, alive, until

SKILLS = """
    import os, pathlib, subprocess, time
    from muster.skill import skill

    @skill
    def stay(path: str, release: str = "/no/such/file"):
        child = subprocess.Popen(["sleep", "601"])
        if os.fork() == 0:
            os.setsid()
            time.sleep(602)
            os._exit(0)
        pathlib.Path(path).write_text(str(child.pid))
        while not os.path.exists(release):
            time.sleep(0.01)
        child.kill()
        return "stayed"
"""


@pytest_asyncio.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    made = Cluster(tmp_path)
    await made.start()
    try:
        yield made
    finally:
        await made.stop()


async def begun(path: Path) -> None:
    await until(lambda: path.exists() and path.read_text(), f"{path}")


async def test_a_killed_runtime_is_replaced_and_its_death_reported(
    cluster: Cluster, tmp_path: Path
) -> None:
    agent = await cluster.agent(SKILLS)
    leader = cluster.leader
    key = leader.give("stay", {"path": str(tmp_path / "a")})
    command = leader.give("command", {"argv": ["sleep", "603"]})
    await begun(tmp_path / "a")
    await until(lambda: {key, command} <= set(leader.started), "both started")
    assert await leader.result("echo", "ended before") == "ended before"
    await until(lambda: leader.supervisor_hellos, "the supervisor's hello")
    before = agent.processes()
    os.kill(agent.pid_of("runtime_process"), signal.SIGKILL)

    death = (await until(lambda: leader.deaths, "the report"))[0]
    assert death.incarnation == 1
    assert death.started_known
    assert {(r.task_id, r.attempt) for r in death.started} == {key, command}
    assert "signal 9" in death.why
    assert agent.process is not None
    old = [pid for pid in before if pid != agent.process.pid]
    assert not [pid for pid in old if alive(pid)], "something outlived the runtime"

    await until(lambda: len(leader.hellos) == 2, "the new runtime's hello")
    assert leader.hellos[1].incarnation == 2
    assert not leader.hellos[1].hello.held
    assert await leader.result("echo", "again") == "again"
    # Delivered once: answered beats confirm it.
    heard = leader.supervisor_beats
    await until(lambda: leader.supervisor_beats >= heard + 2, "beats that were answered long ago")
    leader.cut()
    await until(lambda: len(leader.supervisor_hellos) == 2, "another session of the supervisor")
    await until(lambda: len(leader.hellos) == 3, "another session of the runtime")
    assert len(leader.deaths) == 1

    # At the leader's word: a new runtime, and nobody to blame for it.
    leader.push_supervisor(restart=S.RestartRuntime(incarnation=1, why="of the past"))
    leader.push_supervisor(restart=S.RestartRuntime(incarnation=2, why="wanted"))
    await until(lambda: len(leader.deaths) == 2, "the second report")
    assert leader.deaths[1].incarnation == 2
    assert "wanted" in leader.deaths[1].why
    assert not leader.deaths[1].started
    await until(lambda: cluster.registry.incarnation == 3, "the third incarnation")


async def test_a_hung_runtime_is_ended_whole_at_the_leaders_word_and_replaced(
    cluster: Cluster, tmp_path: Path
) -> None:
    agent = await cluster.agent(SKILLS)
    leader = cluster.leader
    leader.give("stay", {"path": str(tmp_path / "a")})
    leader.give("command", {"argv": ["sleep", "607"]})
    await begun(tmp_path / "a")
    await until(lambda: len(leader.started) == 2, "both started")
    await until(lambda: leader.supervisor_hellos, "the supervisor's hello")
    before = agent.processes()
    # It cannot hear a signal that it would have to handle, nor end what is below it.
    os.kill(agent.pid_of("runtime_process"), signal.SIGSTOP)
    leader.push_supervisor(restart=S.RestartRuntime(incarnation=1, why="it hangs"))
    death = (await until(lambda: leader.deaths, "the report"))[0]
    assert (death.incarnation, death.started_known, len(death.started)) == (1, True, 0)
    assert agent.process is not None
    old = [pid for pid in before if pid != agent.process.pid]
    assert not [pid for pid in old if alive(pid)], "something outlived the runtime"
    await until(lambda: len(leader.hellos) == 2, "the new runtime's hello")
    assert leader.hellos[1].incarnation == 2
    assert await leader.result("echo", "again") == "again"


async def test_when_the_supervisor_is_killed_nothing_is_left(
    cluster: Cluster, tmp_path: Path
) -> None:
    agent = await cluster.agent(SKILLS)
    leader = cluster.leader
    leader.give("stay", {"path": str(tmp_path / "a")})
    leader.give("command", {"argv": ["sh", "-c", "sleep 604 & sleep 605"]})
    leader.give("sleep", {"seconds": 606})
    await begun(tmp_path / "a")
    await until(lambda: len(leader.started) == 3, "their start")
    await until(lambda: len(agent.processes()) >= 9, "all of its processes")
    agent.signal(signal.SIGKILL)
    await until(lambda: not agent.processes(), "the end of all")


async def test_sigterm_drains(cluster: Cluster, tmp_path: Path) -> None:
    agent = await cluster.agent(SKILLS, MUSTER_AGENT_DRAIN_S="600")
    leader = cluster.leader
    release = tmp_path / "release"
    short = leader.give("stay", {"path": str(tmp_path / "a"), "release": str(release)})
    await begun(tmp_path / "a")
    agent.signal(signal.SIGTERM)
    await until(lambda: leader.draining, "the word to the leader")
    late = leader.give("echo", "too late")
    assert (await leader.outcome(late)).kind == T.OUTCOME_KIND_RETURNED
    release.touch()
    assert (await leader.outcome(short)).output_json == b'"stayed"'
    assert await agent.exit() == 0
    assert cluster.registry.deregistered == [1]
    assert cluster.monitor.leaving
    assert not leader.deaths
    assert not agent.processes()


async def test_what_runs_past_the_drains_deadline_is_returned(
    cluster: Cluster, tmp_path: Path
) -> None:
    agent = await cluster.agent(SKILLS, MUSTER_AGENT_DRAIN_S="0.3")
    key = cluster.leader.give("stay", {"path": str(tmp_path / "a")})
    await begun(tmp_path / "a")
    agent.signal(signal.SIGTERM)
    assert (await cluster.leader.outcome(key)).kind == T.OUTCOME_KIND_RETURNED
    assert await agent.exit() == 0
    assert not agent.processes()


async def test_a_second_sigterm_ends_at_once(cluster: Cluster, tmp_path: Path) -> None:
    agent = await cluster.agent(SKILLS, MUSTER_AGENT_DRAIN_S="600")
    cluster.leader.give("stay", {"path": str(tmp_path / "a")})
    await begun(tmp_path / "a")
    agent.signal(signal.SIGTERM)
    await until(lambda: cluster.leader.draining, "the drain")
    agent.signal(signal.SIGTERM)
    assert await agent.exit() == 1
    assert not agent.processes()


async def refused(cluster: Cluster, skills: str = "", **env: str) -> str:
    agent = await cluster.agent(skills, ready=False, **env)
    assert await agent.exit() == 78, agent.stderr
    lines = [line for line in agent.stderr.decode().splitlines() if not line.startswith("{")]
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize(
    ("skills", "env", "words"),
    [
        ("1/0", {}, "does not import: ZeroDivisionError"),
        ("import os; os._exit(5)", {}, "the process that imports the skills ended"),
        ("", {"MUSTER_SKILLS": "no_such_module_here"}, "No module named"),
        ("", {"MUSTER_AGENT_BUILTIN": "0"}, "at least one skill"),
        ("", {"MUSTER_AGENT_CPU": "0"}, "MUSTER_AGENT_CPU='0' is not accepted"),
        ("", {"MUSTER_JOIN_SECRET": "another-secret-than-the-cluster's"}, "refuses this secret"),
        ("", {"MUSTER_STATE_DIR": "/proc/nowhere"}, "a folder that can be written is needed"),
    ],
)
async def test_what_cannot_work_is_one_sentence_and_exit_code_78(
    cluster: Cluster, skills: str, env: dict[str, str], words: str
) -> None:
    assert words in await refused(cluster, skills, **env)


async def test_an_id_belongs_to_its_key_and_a_folder_to_one_agent(cluster: Cluster) -> None:
    first = await cluster.agent()
    state = first.folder / "state"
    key_file = state / "instance.key"
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    said = await refused(cluster, MUSTER_AGENT_ID=first.folder.name)
    assert "has another key" in said
    assert "another agent runs in this folder" in await refused(
        cluster, MUSTER_STATE_DIR=str(state)
    )
    # The same folder after an end without goodbye: the same key, and so the same agent.
    first.signal(signal.SIGKILL)
    await until(lambda: not first.processes(), "its end")
    again = Agent(cluster, first.folder)
    cluster.agents.append(again)
    await again.start("", {})
    await until(lambda: len(cluster.registry.registrations) == 2, "its registration")
    keys = {r.instance_key for r in cluster.registry.registrations}
    assert len(keys) == 1


async def test_an_agent_waits_for_a_registry_that_is_not_there_yet(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    await cluster.start()
    address = cluster.address
    await cluster.servers[0].stop(0)
    try:
        agent = await cluster.agent(ready=False)
        await until(lambda: b"the registry does not answer" in agent.stderr, "a warning")
        await cluster.serve_again(address)
        await until(lambda: cluster.leader.beats, "a session")
        assert await cluster.leader.result("echo", 1) == 1
    finally:
        await cluster.stop()
