"""The runtime and its leader: what is kept, said again, refused and fenced."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest_asyncio
from tests.agent_cluster import Agent, Cluster, S, T, alive, until
from tests.polling import HANG_S

from muster.agent import error_kinds
from muster.rpc.clock import boot_ms

SKILLS = """
    import os, pathlib, time
    from muster.skill import skill

    @skill
    def hold(path: str):
        while not pathlib.Path(path).exists():
            time.sleep(0.01)
        return "released"

    @skill
    def stay(path: str):
        pathlib.Path(path).write_text(str(os.getpid()))
        time.sleep(600)
"""


@pytest_asyncio.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    made = Cluster(tmp_path)
    await made.start()
    try:
        yield made
    finally:
        await made.stop()


async def written(path: Path) -> str:
    return str(await until(lambda: path.exists() and path.read_text(), f"{path}"))


async def test_a_new_leader_is_followed_at_once_and_nothing_is_forgotten(
    cluster: Cluster, tmp_path: Path
) -> None:
    await cluster.agent(SKILLS)
    old = cluster.leader
    gate = tmp_path / "gate"
    # One that a silence of 9 s would end.
    running = old.give("hold", {"path": str(gate)}, on_disconnect=T.ON_DISCONNECT_STOP)
    await until(lambda: running in old.started, "its start")
    old.acknowledges = False
    unheard = old.give("echo", "kept")
    await old.outcome(unheard)

    new = await cluster.change_leader()
    await until(lambda: new.hellos, "a hello to the new leader")
    held = {(h.ref.task_id, h.ref.attempt): h.state for h in new.hellos[0].hello.held}
    assert held == {running: S.HELD_STATE_RUNNING, unheard: S.HELD_STATE_ENDED}
    assert (await new.outcome(unheard)).output_json == b'"kept"'
    gate.touch()
    assert (await new.outcome(running)).output_json == b'"released"'
    await until(lambda: new.supervisor_hellos, "the supervisor's hello to the new leader")

    # Acknowledged outcomes are forgotten; a stale leader's words are not obeyed.
    new.cut()
    await until(lambda: len(new.hellos) == 2, "another session")
    assert not new.hellos[1].hello.held
    assert new.hellos[1].term == new.term
    new.term -= 1
    stale = new.give("echo", "from the past")
    new.term += 1
    assert await new.result("echo", "now") == "now"
    assert stale not in new.outcomes


async def test_an_outcome_is_sent_again_until_it_is_acknowledged(cluster: Cluster) -> None:
    await cluster.agent()
    leader = cluster.leader
    leader.acknowledges = False
    key = leader.give("echo", 1)

    def said(times: int) -> bool:
        return leader.outcome_count[key] == times

    for times in (1, 2, 3):
        await until(partial(said, times), f"word number {times}")
        leader.acknowledges = times == 2
        if times < 3:
            leader.cut()
    leader.cut()
    await until(lambda: len(leader.hellos) == 4, "the fourth session")
    assert not leader.hellos[3].hello.held
    assert leader.outcome_count[key] == 3


async def test_more_than_the_slots_is_returned_and_a_drop_is_silent(
    cluster: Cluster, tmp_path: Path
) -> None:
    agent = await cluster.agent(SKILLS, MUSTER_AGENT_SLOTS="1")
    leader = cluster.leader
    pid_file = tmp_path / "pid"
    key = leader.give("stay", {"path": str(pid_file)})
    pid = int(await written(pid_file))
    refused = await leader.outcome(leader.give("echo"))
    assert (refused.kind, refused.error_kind) == (T.OUTCOME_KIND_RETURNED, error_kinds.NO_SLOT)
    again = leader.assign(cluster.task("echo"), attempt=0)
    assert (await leader.outcome(again[0])).kind == T.OUTCOME_KIND_RETURNED
    leader.push(drop=[S.AttemptRef(task_id=key[0], attempt=key[1], tenant="default")])
    await until(lambda: not alive(pid), "its end")
    # The slot is free once the agent has noticed that.
    async with asyncio.timeout(HANG_S):
        while (done := await leader.outcome(leader.give("echo", 1))).output_json != b"1":
            assert (done.kind, done.error_kind) == (T.OUTCOME_KIND_RETURNED, error_kinds.NO_SLOT)
    assert key not in leader.outcomes

    # Told to register again, it keeps its incarnation; and the figures of it all arrive.
    cluster.registry.registered = False
    await until(lambda: len(cluster.registry.registrations) == 2, "another registration")
    assert cluster.registry.registrations[1].incarnation == 1
    assert await leader.result("echo", 2) == 2
    metrics = await until(lambda: len(cluster.monitor.metrics) > 10 and cluster.monitor.metrics)
    assert metrics["agent_slots"] == 1
    assert metrics["agent_memory_bytes"] > 1e6
    assert 0 <= metrics["host_memory_ratio"] <= 1

    # Another process has taken its place: it ends, and its supervisor with it.
    cluster.registry.superseded = True
    assert await agent.exit() == 78
    assert b"another process runs this agent now" in agent.stderr


async def test_the_operators_drain_gives_back_what_has_not_started(
    cluster: Cluster, tmp_path: Path
) -> None:
    await cluster.agent(SKILLS)
    leader = cluster.leader
    cores = len(os.sched_getaffinity(0))
    gate = tmp_path / "gate"
    keys = leader.assign(*(cluster.task("hold", {"path": str(gate)}) for _ in range(cores + 20)))
    leader.push(drain=True)
    returned = await until(lambda: [k for k in keys if k in leader.outcomes], "the return of some")
    gate.touch()
    kinds = [(await leader.outcome(k)).kind for k in keys]
    assert set(kinds) <= {T.OUTCOME_KIND_RETURNED, T.OUTCOME_KIND_SUCCEEDED}
    assert kinds.count(T.OUTCOME_KIND_RETURNED) >= len(returned) > 0
    # It stays, and takes work again when the operator lets it.
    assert await leader.result("echo", 1) == 1


async def test_stop_tasks_never_outlive_the_agents_contact_with_the_leader(
    cluster: Cluster, tmp_path: Path
) -> None:
    """The runtime kills them 9 s after the last answered beat was sent; a hung one is killed."""
    other = Cluster(tmp_path / "other")
    await other.start()
    try:
        agents: list[tuple[Cluster, Agent]] = [
            (cluster, await cluster.agent(SKILLS)),
            (other, await other.agent(SKILLS)),
        ]
        pids: dict[str, int] = {}
        for where, _ in agents:
            for mode in (T.ON_DISCONNECT_STOP, T.ON_DISCONNECT_KEEP):
                path = where.folder / f"pid-{mode}"
                where.leader.give("stay", {"path": str(path)}, on_disconnect=mode)
                pids[f"{where is other} {mode}"] = int(await written(path))
        cluster.leader.answers_beats = False
        os.kill(agents[1][1].pid_of("runtime_process"), signal.SIGSTOP)
        ended: dict[str, int] = {}

        def two_groups_have_ended() -> bool:
            for name, pid in pids.items():
                if name not in ended and not alive(pid):
                    ended[name] = boot_ms()
            return len(ended) == 3

        # That they have ended before the leader moves them is tested with a leader that does.
        await until(two_groups_have_ended, "the end of what must not run on")
        stop, keep = T.ON_DISCONNECT_STOP, T.ON_DISCONNECT_KEEP
        # The hung runtime was killed whole, the `keep` task with it.
        assert ended.keys() == {f"False {stop}", f"True {stop}", f"True {keep}"}
        # A shorter silence ends nothing. (Answers may have come late, so these are not the 9 s.)
        for where, _ in agents:
            at_ms = ended[f"{where is other} {stop}"]
            assert at_ms - where.leader.answered_boot_ms > 5_000
        death = await until(lambda: other.leader.deaths, "the news of its death")
        assert "stop" in death[0].why
        cluster.leader.answers_beats = True
        outcome = await until(lambda: list(cluster.leader.outcomes.values()), "its return")
        assert outcome[0].error_kind == error_kinds.DISCONNECTED
    finally:
        await other.stop()
