"""The task that kills its agents is DEAD after three, those that stood beside it are not."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.scheduler.core_bench import A, B, Bench, C, record

from muster.domain.agent_lifecycle import AgentWish
from muster.domain.ids import AgentId
from muster.domain.task import POISON_DEATHS, TaskStatus
from muster.domain.task_lifecycle import TaskState
from muster_scheduler.core import agents, tasks
from muster_scheduler.core.explain import explain
from muster_scheduler.core.records import NOBODY, OpenTask
from muster_scheduler.core.suspects import KEPT_MS


def die(bench: Bench, agent: AgentId, begun: list[OpenTask]) -> None:
    """The runtime dies with what had begun on it, and is replaced."""
    entry = bench.state.agents[agent]
    capacity = entry.record.spec.capacity if entry.record is not None else None
    refs = [t.ref() for t in begun]
    agents.runtime_died(bench.state, agent, entry.incarnation, refs, True, "signal 9", bench.now)
    slots = dict(capacity.items())["slots"] if capacity is not None else 64
    fresh = record(agent, entry.incarnation + 1, slots=slots)
    agents.registered(bench.state, fresh, bench.now)
    bench.connect(agent, entry.incarnation)
    bench.settle()


def suspect(bench: Bench) -> OpenTask:
    """A task that two agents have died with, waiting."""
    task = bench.load(TaskStatus(agent_deaths=POISON_DEATHS - 1, attempt=2))
    bench.settle()
    return task


def on(bench: Bench, agent: AgentId) -> list[OpenTask]:
    return list(bench.state.agents[agent].tasks.values())


@given(
    slots=st.lists(st.integers(1, 8), min_size=1, max_size=3),
    innocent=st.integers(0, 30),
    poisonous=st.integers(1, 4),
    chance=st.randoms(use_true_random=False),
)
@settings(max_examples=150)
def test_every_poison_is_dead_after_three_deaths_and_everybody_else_succeeds(
    slots: list[int], innocent: int, poisonous: int, chance: random.Random
) -> None:
    bench = Bench()
    names = [A, B, C][: len(slots)]
    for name, number in zip(names, slots, strict=True):
        bench.join(name, slots=number)
    everybody = [bench.admit() for _ in range(innocent + poisonous)]
    poisons = chance.sample(everybody, poisonous)
    bench.settle()
    deaths = 0
    for _ in range(2_000):
        busy = [name for name in names if on(bench, name)]
        if not busy:
            break
        agent = chance.choice(busy)
        # They begin in any order, and poison kills the agent as it begins.
        here = on(bench, agent)
        chance.shuffle(here)
        for task in here:
            bench.start(task)
            if task in poisons:
                die(bench, agent, [t for t in here if t.started])
                deaths += 1
                break
        else:
            bench.end(here[0])
        bench.settle()
    for task in everybody:
        if task in poisons:
            assert (task.status.state, task.status.agent_deaths) == (TaskState.DEAD, POISON_DEATHS)
        else:
            assert task.status.state is TaskState.SUCCEEDED, task.status
    assert deaths <= POISON_DEATHS * poisonous
    assert not bench.state.kept
    assert not bench.state.suspects


@pytest.fixture
def bench() -> Bench:
    made = Bench()
    made.join(A, slots=4)
    return made


def test_what_had_not_begun_is_not_charged(bench: Bench) -> None:
    begun, waiting = bench.run(), bench.admit()
    bench.settle()
    assert waiting.status.agent == A
    die(bench, A, [begun])
    assert (begun.status.agent_deaths, waiting.status.agent_deaths) == (1, 0)


def test_a_task_that_two_agents_died_with_runs_alone(bench: Bench) -> None:
    busy = bench.run()
    task = suspect(bench)
    later = bench.admit()
    bench.settle()
    # The agent is kept for it: it waits for what runs there, and nothing new joins.
    assert (task.status.state, later.status.state) == (TaskState.PENDING, TaskState.PENDING)
    bench.end(busy)
    bench.settle()
    assert on(bench, A) == [task]
    bench.start(task)
    bench.end(task)
    bench.settle()
    assert on(bench, A) == [later]


def test_an_empty_agent_is_taken_at_once(bench: Bench) -> None:
    bench.join(B)
    busy = bench.run()
    task = suspect(bench)
    assert task.status.state is TaskState.ASSIGNED
    assert task.status.agent != busy.status.agent


def test_few_agents_are_kept_at_once() -> None:
    bench = Bench()
    names = [AgentId(f"n{n}") for n in range(8)]
    for name in names:
        bench.join(name)
    for _ in range(10):
        suspect(bench)
    assert len(bench.state.kept) == 2
    assert bench.run().status.state is TaskState.ASSIGNED


def test_tasks_without_an_end_do_not_keep_an_agent_for_ever(bench: Bench) -> None:
    endless = bench.run()
    task = suspect(bench)
    later = bench.admit()
    bench.silence(KEPT_MS - 1_000, A)
    assert (task.status.state, later.status.state) == (TaskState.PENDING, TaskState.PENDING)
    bench.silence(2_000, A)
    assert {t.id for t in on(bench, A)} == {endless.id, task.id, later.id}
    assert not bench.state.kept


def test_a_suspect_that_runs_for_long_keeps_its_agent_for_a_minute(bench: Bench) -> None:
    task = suspect(bench)
    bench.start(task)
    later = bench.admit()
    bench.silence(KEPT_MS - 1_000, A)
    assert on(bench, A) == [task]
    bench.silence(2_000, A)
    assert on(bench, A) == [task, later]
    bench.end(task)
    bench.settle()
    assert on(bench, A) == [later]


def test_suspects_that_found_no_agent_in_time_are_placed_and_do_not_bury_each_other(
    bench: Bench,
) -> None:
    endless = bench.run()
    two = [suspect(bench), suspect(bench)]
    bench.silence(2 * KEPT_MS + 3_000, A)
    assert {t.id for t in on(bench, A)} == {endless.id, *(t.id for t in two)}
    for task in two:
        bench.start(task)
    die(bench, A, [endless, *two])
    assert [t.status.agent_deaths for t in (endless, *two)] == [1, 2, 2]
    assert not [t for t in two if t.status.state is TaskState.DEAD]


def test_the_third_death_of_one_that_ran_alone_is_its_own(bench: Bench) -> None:
    task = suspect(bench)
    bench.start(task)
    die(bench, A, [task])
    assert task.status.state is TaskState.DEAD
    assert bench.run().status.state is TaskState.ASSIGNED, "the agent is kept no more"


@pytest.mark.parametrize("way", ["cancelled", "cordoned", "dead", "too small"])
def test_an_agent_is_not_kept_for_nothing(bench: Bench, way: str) -> None:
    busy = bench.run()
    task = suspect(bench)
    entry = bench.state.agents[A]
    assert entry.kept_for == task.id
    if way == "cancelled":
        tasks.cancel(bench.state, task, bench.now)
        bench.settle()
    elif way == "cordoned":
        bench.join(B)
        agents.set_wish(bench.state, A, AgentWish.CORDON, bench.now)
        bench.state.place_again = True
        bench.settle()
        assert task.status.agent == B
    elif way == "dead":
        die(bench, A, [busy])
        assert (entry.kept_for, on(bench, A)) == (task.id, [task])
        return
    else:
        bench.join(B, slots=0)
        bench.settle()
        assert task.status.state is TaskState.PENDING
        return
    assert entry.kept_for == NOBODY


def test_a_suspect_says_what_it_waits_for(bench: Bench) -> None:
    bench.run()
    task = suspect(bench)
    found = explain(bench.state, task, bench.now)
    assert "an agent of its own, for 2 agents died" in found.summary
    other = bench.admit()
    bench.settle()
    assert explain(bench.state, other, bench.now).excluded == {
        "kept for a task that agents died with": 1
    }
    assert bench.state.counts()["queued"] == 2
