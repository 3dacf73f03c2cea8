"""Agents in the leader's eyes: joined, doubted, given up, restarted, drained, gone."""

from __future__ import annotations

import pytest
from tests.unit.scheduler.core_bench import SUCCESS, A, B, Bench, record

from muster.domain.agent import AgentRecord, AgentSpec
from muster.domain.agent_lifecycle import AgentState, AgentWish
from muster.domain.ids import AgentId
from muster.domain.resources import ResourceVector
from muster.domain.task import OnDisconnect
from muster.domain.task_lifecycle import TaskState
from muster_scheduler.core import agents, tasks
from muster_scheduler.core.agents import (
    FORGET_MS,
    RESTART_MS,
    SILENT_AND_LEASELESS_MS,
    SILENT_MS,
    SUSPECT_MS,
)
from muster_scheduler.core.deadlines import STOP_GIVEN_AWAY_MS
from muster_scheduler.core.records import MAX_EVIDENCE, OpenTask

JOINING, READY, SUSPECT = AgentState.JOINING, AgentState.READY, AgentState.SUSPECT
DOWN, RESTARTING, LEFT = AgentState.DOWN, AgentState.RESTARTING, AgentState.LEFT


@pytest.fixture
def bench() -> Bench:
    made = Bench()
    made.join(A)
    return made


def places(bench: Bench) -> bool:
    """Whether a new task finds a place, given that A is the only agent."""
    task = bench.admit()
    bench.settle()
    placed = task.status.state is TaskState.ASSIGNED
    tasks.cancel(bench.state, task, bench.now)
    if placed:
        bench.end(task)
    bench.settle()
    return placed


def lose_lease(bench: Bench, agent: AgentId = A) -> None:
    agents.unregistered(bench.state, agent, bench.now)


# ---------------------------------------------------------------------------- joining


@pytest.mark.parametrize("registered_first", [True, False])
def test_an_agent_is_ready_once_registered_and_connected(registered_first: bool) -> None:
    bench = Bench()
    agents.registry_snapshot(bench.state, [record(A)] if registered_first else [], bench.now)
    if not registered_first:
        bench.connect(A)
    assert not places(bench)
    if registered_first:
        bench.connect(A)
    else:
        agents.registered(bench.state, record(A), bench.now)
    assert bench.agent_state(A) is READY
    assert places(bench)


def test_an_agent_that_never_connects_gets_no_work_and_is_given_up() -> None:
    bench = Bench()
    agents.registry_snapshot(bench.state, [record(A)], bench.now)
    bench.silence(SILENT_MS - 1_000)
    assert bench.agent_state(A) is JOINING
    bench.silence(1_000)
    assert bench.agent_state(A) is DOWN


def test_an_agent_whose_resources_the_cluster_has_no_room_for_is_let_be(bench: Bench) -> None:
    for number in range(300):
        amounts = ResourceVector.of({f"r{number}": 1, "slots": 1})
        spec = AgentSpec(AgentId(f"y{number}"), amounts)
        agents.registered(bench.state, AgentRecord(spec, 1), bench.now)
    refused = bench.state.agents[AgentId("y299")]
    assert "at most 256 distinct resource names" in refused.evidence[-1].why
    assert places(bench)


# --------------------------------------------------------------------------- suspicion


def test_a_monitors_suspicion_stops_new_work_and_moves_nothing(bench: Bench) -> None:
    task = bench.run()
    agents.suspicion(bench.state, A, 1, True, 9.5, bench.now)
    assert bench.agent_state(A) is SUSPECT
    assert not places(bench)
    bench.silence(120_000, A)
    assert (task.status.agent, task.status.attempt) == (A, 1)
    agents.suspicion(bench.state, A, 1, False, 0.1, bench.now)
    assert bench.agent_state(A) is READY
    assert places(bench)


def test_a_suspicion_of_another_incarnation_says_nothing(bench: Bench) -> None:
    agents.suspicion(bench.state, A, 2, True, 9.5, bench.now)
    assert bench.agent_state(A) is READY
    agents.suspicion(bench.state, AgentId("nobody"), 1, True, 9.5, bench.now)


def test_a_short_silence_makes_a_suspect_and_a_word_clears_it(bench: Bench) -> None:
    task = bench.run()
    bench.wait(SUSPECT_MS - 1)
    agents.judge(bench.state, bench.now)
    assert bench.agent_state(A) is READY
    bench.silence(1_000)
    assert bench.agent_state(A) is SUSPECT
    bench.heard(A)
    assert bench.agent_state(A) is READY
    assert task.status.agent == A


def test_a_lease_that_is_gone_makes_a_suspect_and_no_more_while_the_agent_speaks(
    bench: Bench,
) -> None:
    task = bench.run()
    lose_lease(bench)
    assert bench.agent_state(A) is SUSPECT
    bench.silence(300_000, A)
    assert (bench.agent_state(A), task.status.agent) == (SUSPECT, A)
    agents.registered(bench.state, record(A), bench.now)
    assert bench.agent_state(A) is READY


# ------------------------------------------------------------------------------- death


def test_silence_and_a_lease_that_is_gone_give_an_agent_up_after_10_s(bench: Bench) -> None:
    task = bench.run()
    lose_lease(bench)
    bench.silence(SILENT_AND_LEASELESS_MS - 1_000)
    assert (bench.agent_state(A), task.status.agent) == (SUSPECT, A)
    bench.silence(1_000)
    assert bench.agent_state(A) is DOWN
    assert task.status.state is TaskState.PENDING
    assert task.status.why == "agent a is down: it was silent for 10 s and its lease is gone"
    assert bench.used(A) == 0


def test_an_agent_that_connects_again_has_been_heard(bench: Bench) -> None:
    lose_lease(bench)
    bench.silence(SILENT_AND_LEASELESS_MS - 1_000)
    bench.connect(A)
    bench.silence(SILENT_AND_LEASELESS_MS - 1_000)
    assert bench.agent_state(A) is SUSPECT
    bench.silence(1_000)
    assert bench.agent_state(A) is DOWN


def test_silence_alone_gives_an_agent_up_after_60_s(bench: Bench) -> None:
    task = bench.run()
    bench.silence(SILENT_MS - 1_000)
    assert (bench.agent_state(A), task.status.agent) == (SUSPECT, A)
    bench.silence(1_000)
    assert (bench.agent_state(A), task.status.state) == (DOWN, TaskState.PENDING)


def test_only_what_had_started_is_blamed_for_a_death(bench: Bench) -> None:
    started, waiting = bench.run(), bench.admit()
    bench.settle()
    bench.silence(SILENT_MS)
    assert (started.status.agent_deaths, waiting.status.agent_deaths) == (1, 0)


def test_its_tasks_go_to_another_agent_and_its_late_words_are_stale(bench: Bench) -> None:
    bench.join(B)
    task = next(t for t in (bench.run(), bench.run()) if t.status.agent == A)
    ref = task.ref()
    bench.words(A)
    bench.silence(SILENT_MS, B)
    assert (task.status.agent, task.status.attempt) == (B, 2)
    assert bench.words(A) == ["drop"]
    assert not tasks.outcome(bench.state, A, 1, ref, SUCCESS, bench.now)
    assert task.status.state is TaskState.ASSIGNED


def test_an_agent_that_was_given_up_and_speaks_again_is_used_again(bench: Bench) -> None:
    bench.run()
    bench.silence(SILENT_MS)
    assert bench.agent_state(A) is DOWN
    bench.heard(A)
    assert [state for _, state in bench.changes[-1:]] == [DOWN]
    bench.settle()
    assert bench.agent_state(A) is READY
    assert bench.changes[-2:] == [(A, JOINING), (A, READY)]


def test_its_supervisors_word_gives_an_agent_up_at_once_and_names_the_suspects(
    bench: Bench,
) -> None:
    killer, other, waiting = bench.run(), bench.run(), bench.admit()
    bench.settle()
    agents.runtime_died(bench.state, A, 1, [killer.ref()], True, "signal 9", bench.now)
    assert bench.agent_state(A) is DOWN
    deaths = [t.status.agent_deaths for t in (killer, other, waiting)]
    assert deaths == [1, 0, 0]
    assert killer.status.why.endswith("the runtime died: signal 9")


def test_when_the_supervisor_cannot_tell_what_had_started_is_suspect(bench: Bench) -> None:
    started, waiting = bench.run(), bench.admit()
    bench.settle()
    agents.runtime_died(bench.state, A, 1, [], False, "oom", bench.now)
    assert (started.status.agent_deaths, waiting.status.agent_deaths) == (1, 0)


def test_the_death_of_an_older_incarnation_is_no_news(bench: Bench) -> None:
    bench.join(A, 2)
    agents.runtime_died(bench.state, A, 1, [], True, "signal 9", bench.now)
    assert bench.agent_state(A) is READY


def test_a_task_with_which_three_agents_died_is_dead_and_others_are_not(bench: Bench) -> None:
    poison = bench.run()
    for incarnation in (1, 2, 3):
        bystander = bench.admit()
        bench.settle()
        agents.runtime_died(
            bench.state, A, incarnation, [poison.ref()], True, "signal 11", bench.now
        )
        bench.join(A, incarnation + 1)
        bench.settle()
        if incarnation < 3:
            bench.start(poison)
        # Before the third time the agent is kept for the suspect alone.
        placed = TaskState.PENDING if incarnation == 2 else TaskState.ASSIGNED
        assert bystander.status.state is placed
        assert bystander.status.agent_deaths == 0
    assert bench.stored[poison.id].state is TaskState.DEAD
    assert poison.id not in bench.state.tasks


# ---------------------------------------------------------------------- stop, not keep


def stop_task(bench: Bench) -> OpenTask:
    return bench.run(on_disconnect=OnDisconnect.STOP)


def due(bench: Bench, task: OpenTask) -> int:
    """Milliseconds until the task may be placed again."""
    return max(0, task.status.not_before_clock_ms - bench.now.clock_ms)


def test_a_stop_task_is_given_away_13_s_after_its_agent_was_heard(bench: Bench) -> None:
    stop, keep = stop_task(bench), bench.run()
    bench.silence(STOP_GIVEN_AWAY_MS - 1_000)
    assert (stop.status.agent, keep.status.agent) == (A, A)
    bench.silence(1_000)
    assert (stop.status.state, keep.status.agent) == (TaskState.PENDING, A)
    assert (due(bench, stop), stop.status.agent_deaths) == (0, 0)


def test_a_stop_task_of_an_agent_that_is_down_after_10_s_waits_for_its_13(bench: Bench) -> None:
    bench.join(B)
    stop = next(t for t in (stop_task(bench), stop_task(bench)) if t.status.agent == A)
    lose_lease(bench)
    bench.silence(SILENT_AND_LEASELESS_MS, B)
    assert bench.agent_state(A) is DOWN
    assert (stop.status.state, due(bench, stop)) == (TaskState.PENDING, 3_000)
    bench.silence(2_000, B)
    assert stop.status.state is TaskState.PENDING
    bench.silence(1_000, B)
    assert (stop.status.state, stop.status.agent) == (TaskState.ASSIGNED, B)


def test_a_stop_task_waits_too_when_a_newer_incarnation_shows_up(bench: Bench) -> None:
    stop, keep = stop_task(bench), bench.run()
    bench.wait(4_000)
    agents.registered(bench.state, record(A, 2), bench.now)
    assert (due(bench, stop), due(bench, keep)) == (9_000, 0)


def test_a_stop_task_need_not_wait_when_the_supervisor_knows_that_it_is_dead(
    bench: Bench,
) -> None:
    stop = stop_task(bench)
    agents.runtime_died(bench.state, A, 1, [stop.ref()], True, "signal 9", bench.now)
    assert due(bench, stop) == 0


# ------------------------------------------------------------------- a new incarnation


def test_a_newer_incarnation_takes_the_place_of_the_older_at_once(bench: Bench) -> None:
    task = bench.run()
    bench.join(A, 2)
    assert bench.agent_state(A) is READY
    bench.settle()
    assert (task.status.attempt, task.status.incarnation) == (2, 2)
    assert task.status.agent_deaths == 1
    assert bench.used(A) == 1


def test_the_older_incarnation_is_not_listened_to_any_more(bench: Bench) -> None:
    bench.join(A, 2)
    assert not bench.connect(A, 1)
    agents.disconnected(bench.state, A, 1, bench.now)
    agents.draining(bench.state, A, 1)
    agents.registered(bench.state, record(A, 1, slots=1), bench.now)
    agents.suspicion(bench.state, A, 1, True, 9.0, bench.now)
    assert bench.agent_state(A) is READY
    entry = bench.state.agents[A]
    assert (entry.session, entry.draining, entry.incarnation) == (True, False, 2)
    bench.silence(SUSPECT_MS)
    bench.heard(A, 1)
    assert bench.agent_state(A) is SUSPECT


def test_registering_again_with_more_room_makes_the_same_agent_larger() -> None:
    bench = Bench()
    bench.join(A, slots=1)
    first, second = bench.admit(), bench.admit()
    bench.settle()
    assert second.queued
    agents.registered(bench.state, record(A, slots=2), bench.now)
    bench.settle()
    assert (first.status.attempt, second.status.agent) == (1, A)
    assert bench.used(A) == 2


# ------------------------------------------------------------- cordon, drain, goodbye


def test_a_cordoned_agent_keeps_its_work_and_gets_none(bench: Bench) -> None:
    task = bench.run()
    agents.set_wish(bench.state, A, AgentWish.CORDON, bench.now)
    assert not places(bench)
    assert (bench.agent_state(A), task.status.agent) == (READY, A)
    agents.set_wish(bench.state, A, AgentWish.NONE, bench.now)
    assert places(bench)


def test_a_drained_agent_is_told_and_may_be_used_again(bench: Bench) -> None:
    agents.set_wish(bench.state, A, AgentWish.DRAIN, bench.now)
    assert not places(bench)
    assert bench.agent_state(A) is AgentState.DRAINING
    assert bench.drains == [A]
    agents.set_wish(bench.state, A, AgentWish.NONE, bench.now)
    assert bench.agent_state(A) is READY
    assert places(bench)


def test_a_wish_outlives_the_incarnation_and_is_told_to_the_next(bench: Bench) -> None:
    agents.set_wish(bench.state, A, AgentWish.DRAIN, bench.now)
    bench.silence(SILENT_MS)
    assert bench.agent_state(A) is DOWN
    bench.settle()
    bench.drains.clear()
    bench.join(A, 2)
    assert bench.agent_state(A) is AgentState.DRAINING
    assert not places(bench)
    assert bench.drains == [A]


def test_a_wish_is_known_before_its_agent_is() -> None:
    bench = Bench()
    agents.set_wish(bench.state, A, AgentWish.CORDON, bench.now)
    bench.join(A)
    assert not places(bench)


def test_an_agent_that_drains_of_its_own_accord_leaves_and_charges_nobody(bench: Bench) -> None:
    task = bench.run()
    agents.draining(bench.state, A, 1)
    assert not places(bench)
    lose_lease(bench)
    assert bench.agent_state(A) is SUSPECT
    agents.disconnected(bench.state, A, 1, bench.now)
    assert bench.agent_state(A) is LEFT
    assert (task.status.state, task.status.agent_deaths) == (TaskState.PENDING, 0)


def test_it_leaves_also_when_its_session_ends_first(bench: Bench) -> None:
    agents.draining(bench.state, A, 1)
    agents.disconnected(bench.state, A, 1, bench.now)
    assert bench.agent_state(A) is READY
    lose_lease(bench)
    assert bench.agent_state(A) is LEFT


@pytest.mark.parametrize("ending", ["silence", "supervisor", "newer"])
def test_an_agent_that_ends_while_it_drains_charges_nobody(bench: Bench, ending: str) -> None:
    task = bench.run()
    agents.draining(bench.state, A, 1)
    if ending == "silence":
        bench.silence(SILENT_MS)
    elif ending == "supervisor":
        agents.runtime_died(bench.state, A, 1, [], False, "exit 0", bench.now)
    else:
        bench.join(A, 2)
    assert (task.status.failures, task.status.agent_deaths) == (0, 0)


def test_an_agent_that_reconnects_without_draining_is_used_again(bench: Bench) -> None:
    agents.draining(bench.state, A, 1)
    bench.connect(A)
    assert places(bench)


# ----------------------------------------------------------------------------- restart


def test_a_restart_needs_a_supervisor(bench: Bench) -> None:
    assert not agents.restart(bench.state, A, "asked", bench.now)
    assert (bench.agent_state(A), bench.restarts) == (READY, [])


def test_a_restart_on_request_charges_nobody(bench: Bench) -> None:
    task = bench.run()
    bench.state.agents[A].supervised = True
    assert agents.restart(bench.state, A, "asked", bench.now)
    bench.settle()
    assert (bench.agent_state(A), bench.restarts) == (RESTARTING, [(A, 1)])
    assert not places(bench)
    assert task.status.agent == A
    agents.runtime_died(bench.state, A, 1, [task.ref()], True, "restart", bench.now)
    assert (task.status.state, task.status.agent_deaths) == (TaskState.PENDING, 0)
    bench.join(A, 2)
    assert bench.agent_state(A) is READY


def test_a_restart_that_shows_by_its_new_incarnation_alone_charges_nobody(bench: Bench) -> None:
    task = bench.run()
    bench.state.agents[A].supervised = True
    agents.restart(bench.state, A, "asked", bench.now)
    bench.join(A, 2)
    assert (bench.agent_state(A), task.status.agent_deaths) == (READY, 0)


def test_an_agent_that_was_never_restarted_is_used_again(bench: Bench) -> None:
    bench.state.agents[A].supervised = True
    agents.restart(bench.state, A, "asked", bench.now)
    bench.silence(RESTART_MS - 1_000, A)
    assert bench.agent_state(A) is RESTARTING
    bench.silence(1_000, A)
    assert bench.agent_state(A) is READY


# ------------------------------------------------------------------ what is remembered


def test_an_agent_that_is_gone_is_forgotten_after_ten_minutes(bench: Bench) -> None:
    bench.join(B)
    lose_lease(bench)
    bench.silence(SILENT_AND_LEASELESS_MS + FORGET_MS - 5_000, B)
    assert bench.agent_state(A) is DOWN
    agents.disconnected(bench.state, A, 1, bench.now)
    bench.silence(10_000, B)
    assert A not in bench.state.agents
    assert A not in bench.state.table
    assert bench.agent_state(B) is READY


@pytest.mark.parametrize("still", ["leased", "session", "supervised"])
def test_it_is_not_forgotten_while_something_of_it_is_there(bench: Bench, still: str) -> None:
    if still != "leased":
        lose_lease(bench)
    if still != "session":
        agents.disconnected(bench.state, A, 1, bench.now)
    bench.state.agents[A].supervised = still == "supervised"
    bench.silence(SILENT_MS + FORGET_MS + 5_000)
    assert bench.agent_state(A) is DOWN


def test_evidence_is_kept_and_bounded(bench: Bench) -> None:
    for _ in range(40):
        agents.suspicion(bench.state, A, 1, True, 9.0, bench.now)
        agents.suspicion(bench.state, A, 1, False, 0.0, bench.now)
    evidence = bench.state.agents[A].evidence
    assert len(evidence) == MAX_EVIDENCE
    assert evidence[-2].why == "the monitor suspects it (phi 9.0)"


# ------------------------------------------------------------ a leader that knows little


def test_while_the_registry_is_away_nothing_is_lost(bench: Bench) -> None:
    task = bench.run()
    bench.silence(600_000, A)
    assert (bench.agent_state(A), task.status.attempt) == (READY, 1)


def test_a_registry_that_came_back_empty_makes_suspects_of_those_that_speak(
    bench: Bench,
) -> None:
    task = bench.run()
    agents.registry_snapshot(bench.state, [], bench.now)
    bench.silence(30_000, A)
    assert (bench.agent_state(A), task.status.agent) == (SUSPECT, A)
    agents.registry_snapshot(bench.state, [record(A)], bench.now)
    assert bench.agent_state(A) is READY


def test_a_leader_that_slept_does_not_hold_it_against_its_agents(bench: Bench) -> None:
    task = bench.run()
    lose_lease(bench)
    bench.silence(2_000)
    bench.wait(3_600_000)
    agents.judge(bench.state, bench.now)
    assert (bench.agent_state(A), task.status.agent) == (SUSPECT, A)
    bench.silence(7_000)
    assert task.status.agent == A
    bench.silence(1_000)
    assert bench.agent_state(A) is DOWN
