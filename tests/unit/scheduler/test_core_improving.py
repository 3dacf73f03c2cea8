"""Plans of improving strategies for what waits: what is asked, and what is followed."""

from __future__ import annotations

import asyncio
import random

import numpy as np
import pytest
from tests.polling import HANG_S, eventually

from muster.domain.agent_lifecycle import AgentState
from muster.domain.ids import AgentId, TaskId
from muster.domain.policy import STRATEGIES
from muster.domain.resources import ResourceVector
from muster.domain.task import TaskSpec, TaskStatus
from muster_scheduler.core.improving import SEEDS, in_loop, next_wave, propose
from muster_scheduler.core.placing import place
from muster_scheduler.core.records import Now, OpenTask
from muster_scheduler.core.state import ClusterState
from muster_scheduler.improving import Improver
from muster_scheduler.placement.plan import Policy

SLOTS = 2


def at(clock_ms: int) -> Now:
    return Now(clock_ms, clock_ms, clock_ms)


def cluster(strategy: str = "search", agents: int = 2) -> ClusterState:
    policy = Policy(strategy, budget_s=0.05)
    state = ClusterState(policy, np.random.default_rng(1), random.random)
    for number in range(agents):
        agent = state.entry(AgentId(f"a{number}"), at(0))
        agent.state, agent.session, agent.incarnation = AgentState.READY, True, 1
        capacity = ResourceVector.of({"cpu": 1000, "slots": SLOTS})
        state.table.upsert(agent.id, capacity, frozenset({"echo"}), {}, True)
    return state


def submit(state: ClusterState, number: int, priority: int = 0) -> OpenTask:
    resources = ResourceVector.of({"cpu": 100})
    ident = TaskId(f"{number:026d}")
    spec = TaskSpec(ident, "echo", resources=resources, priority=priority)
    task = OpenTask(spec, TaskStatus(), None, stored=True)
    state.tasks[ident] = task
    state.enqueue(task)
    return task


def full(state: ClusterState) -> list[OpenTask]:
    """All places are taken, and four tasks wait."""
    held = [submit(state, number) for number in range(1, 1 + SLOTS * len(state.agents))]
    assert place(state, at(1)) == len(held)
    for number in range(101, 105):
        submit(state, number)
    assert place(state, at(2)) == 0
    return held


def end(state: ClusterState, agent: str) -> None:
    task = next(iter(state.agents[AgentId(agent)].tasks.values()))
    state.forget(task)


def test_every_strategy_places_at_once_by_one_that_may_run_in_the_loop() -> None:
    for name in STRATEGIES:
        assert in_loop(Policy(name)) not in SEEDS
        state = cluster(name)
        task = submit(state, 1)
        assert place(state, at(1)) == 1
        assert task.status.agent in state.agents


def test_a_wave_is_what_waits_over_agents_without_what_ends() -> None:
    state = cluster()
    full(state)
    wave = next_wave(state, at(3))
    assert wave is not None
    assert [t.id for t in wave.tasks] == [f"{n:026d}" for n in range(101, 105)]
    assert len(state.queue) == 4, "they wait as before"
    rows = [wave.snapshot.rows[a] for a in ("a0", "a1")]
    slots = wave.snapshot.columns["slots"]
    assert wave.snapshot.free[rows, slots].tolist() == [SLOTS, SLOTS]
    assert state.table.view().free[rows, slots].tolist() == [0, 0]


@pytest.mark.parametrize("strategy", ["worst_fit", "learned", "auto"])
def test_nothing_is_improved_for_strategies_that_run_in_the_loop(strategy: str) -> None:
    state = cluster(strategy)
    full(state)
    assert next_wave(state, at(3)) is None


def proposal(state: ClusterState, agents: list[str | None], clock_ms: int = 3) -> list[OpenTask]:
    wave = next_wave(state, at(clock_ms))
    assert wave is not None
    rows = [-1 if a is None else wave.snapshot.rows[a] for a in agents]
    propose(state, wave, np.array(rows, np.int32), at(clock_ms))
    return list(wave.tasks)


def test_room_goes_to_the_task_that_the_plan_has_there() -> None:
    state = cluster()
    full(state)
    tasks = proposal(state, ["a1", "a1", "a0", "a0"])
    end(state, "a0")
    state.notes.allowed = 1
    assert place(state, at(4)) == 1
    assert tasks[2].status.agent == "a0"
    # What came of it is learned from, as of any other.
    assert tasks[2].begun is not None
    assert not tasks[0].status.agent
    assert (state.followed_proposals, state.stale_proposals) == (1, 0)


def test_room_is_never_left_free_for_a_plan() -> None:
    state = cluster()
    full(state)
    tasks = proposal(state, ["a1", "a1", "a1", "a1"])
    end(state, "a0")
    assert place(state, at(4)) == 1
    assert tasks[0].status.agent == "a0"
    assert state.followed_proposals == 0


def test_a_task_that_no_longer_waits_is_dropped_and_counted() -> None:
    state = cluster()
    full(state)
    tasks = proposal(state, ["a0", "a0", "a1", "a1"])
    state.forget(tasks[0])
    end(state, "a0")
    assert place(state, at(4)) == 1
    assert tasks[1].status.agent == "a0"
    assert (state.followed_proposals, state.stale_proposals) == (1, 1)


def test_a_cordoned_agent_gets_nothing_whatever_the_plan() -> None:
    state = cluster()
    full(state)
    proposal(state, ["a0", "a0", "a0", "a0"])
    end(state, "a0")
    state.table.set_placeable("a0", False)
    assert place(state, at(4)) == 0


def test_who_is_more_urgent_comes_first() -> None:
    state = cluster()
    full(state)
    tasks = proposal(state, ["a0", "a0", "a0", "a0"])
    late = submit(state, 200, priority=50)
    end(state, "a0")
    assert place(state, at(4)) == 1
    assert late.status.agent == "a0"
    assert not any(t.status.agent for t in tasks)


def test_an_old_plan_and_one_of_another_policy_are_not_followed() -> None:
    state = cluster()
    full(state)
    tasks = proposal(state, ["a1", "a1", "a0", "a0"])
    end(state, "a0")
    assert place(state, at(60_000)) == 1
    assert (state.proposal, state.stale_proposals) == (None, 4)
    assert tasks[0].status.agent == "a0"
    wave = next_wave(state, at(60_001))
    assert wave is not None
    state.policy = Policy("worst_fit")
    propose(state, wave, np.zeros(len(wave.tasks), np.int32), at(60_002))
    assert state.proposal is None


@pytest.mark.parametrize("strategy", ["quota", "search"])
async def test_the_other_process_plans_the_wave(strategy: str) -> None:
    state = cluster(strategy)
    full(state)
    woken = asyncio.Event()
    improver = Improver(state, lambda: at(3), woken.set, lambda: True)
    work = asyncio.create_task(improver.run())
    async with asyncio.timeout(HANG_S):
        await woken.wait()
    assert state.proposal is not None
    assert sorted(state.proposal.agents) == ["a0", "a0", "a1", "a1"]
    process = improver._process
    assert process is not None
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)
    assert process.returncode is not None


async def test_a_plan_under_way_ends_with_its_policy() -> None:
    state = cluster()
    state.policy = Policy("search", budget_s=3600.0)
    full(state)
    improver = Improver(state, lambda: at(3), lambda: None, lambda: True)
    work = asyncio.create_task(improver.run())
    await eventually(lambda: improver._process is not None)
    process = improver._process
    assert process is not None
    state.policy = Policy("worst_fit")
    async with asyncio.timeout(HANG_S):
        await process.wait()
    assert state.proposal is None
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)
