"""Agents that are down while their tasks wait for them: held, run again, given away, recorded."""

from __future__ import annotations

import pytest
from tests.unit.scheduler.core_bench import SUCCESS, A, B, Bench, record

from muster.domain.agent_lifecycle import AgentState, AgentWish
from muster.domain.errors import InvalidInput
from muster.domain.ids import AgentId
from muster.domain.policy import RECOVERIES, Policy
from muster.domain.task import OnDisconnect
from muster.domain.task_lifecycle import TaskState
from muster_scheduler.core import agents, recovering, tasks
from muster_scheduler.core.deadlines import STOP_GIVEN_AWAY_MS
from muster_scheduler.core.health import HealthBook
from muster_scheduler.core.records import OpenTask
from muster_scheduler.core.recoveries import Recoveries, Recovery
from muster_scheduler.core.recovering import MAX_PLANS_PER_S, REJOIN_MS
from muster_scheduler.core.recovery_record import outcome_of, plain_record
from muster_scheduler.recovery import POLICIES, FailureKind

DOWN, READY, RESTARTING = AgentState.DOWN, AgentState.READY, AgentState.RESTARTING
SILENT_MS = 10_000


class Forgiving(HealthBook):
    """Deaths cost nothing, so that an agent that comes back is as good a place as before."""

    def points(self, ident: AgentId, now_ms: int) -> float:
        return 0.0


def bench_of(policy: str, *others: AgentId) -> Bench:
    """A cluster of A and the others."""
    bench = Bench(recovery=policy)
    bench.state.health = Forgiving()
    for agent in (A, *others):
        bench.join(agent)
    return bench


def on_a(bench: Bench, **fields: object) -> OpenTask:
    """A task that runs on A."""
    for _ in range(4):
        task = bench.run(**fields)
        if task.status.agent == A:
            return task
    raise AssertionError("nothing is placed on A")


def dies(bench: Bench, *killers: OpenTask, incarnation: int = 1) -> None:
    """Its supervisor says so."""
    refs = [task.ref() for task in killers]
    agents.runtime_died(bench.state, A, incarnation, refs, True, "signal 9", bench.now)


def falls_silent(bench: Bench, *heard: AgentId, supervised: bool = False) -> None:
    """A is not heard for so long that it is DOWN; its supervisor is, where it is `supervised`."""
    entry = bench.state.agents[A]
    entry.supervised = supervised
    agents.unregistered(bench.state, A, bench.now)
    for _ in range(SILENT_MS // 1_000):
        passes(bench, 1_000, *heard, supervised=supervised)


def passes(bench: Bench, ms: int, *heard: AgentId, supervised: bool = False) -> None:
    for _ in range(ms // 1_000):
        if supervised:
            agents.supervisor_heard(bench.state, A, bench.now)
        bench.silence(1_000, *heard)


def recovery_of(bench: Bench) -> Recovery:
    return bench.state.recoveries.open[A]


def knows_that_it_comes_back(bench: Bench) -> None:
    """Agents that are cut off come back soon, and with their work."""
    for _ in range(60):
        bench.state.recoveries.beliefs.came_back(
            A, FailureKind.UNREACHABLE, 10.0, 13.0, True, bench.now.clock_ms / 1000
        )


def test_the_policies_that_may_be_named_are_rules_that_there_are() -> None:
    assert set(RECOVERIES) <= set(POLICIES)


# ------------------------------------------------------------------------------ held


@pytest.mark.parametrize("policy", ["planned", "fixed"])
def test_what_is_held_is_on_its_agent_and_nowhere_else(policy: str) -> None:
    bench = bench_of(policy)
    task = on_a(bench)
    dies(bench, task)
    bench.settle()
    assert bench.agent_state(A) is DOWN
    assert (task.status.state, task.status.agent, task.status.attempt) == (
        TaskState.ASSIGNED,
        A,
        1,
    )
    assert (task.queued, bench.used(A)) == (False, 1)
    assert recovering.holds(bench.state, bench.state.agents[A])
    # Others find no place on an agent that is down.
    other = bench.admit()
    bench.settle()
    assert other.status.state is TaskState.PENDING


def test_it_is_run_again_by_the_next_incarnation_of_its_agent() -> None:
    bench = bench_of("fixed", B)
    task = on_a(bench)
    dies(bench, task)
    bench.settle()
    assert task.status.agent == A
    recovery = recovery_of(bench)
    bench.wait(800)
    agents.registered(bench.state, record(A, 2), bench.now)
    bench.settle()
    # Room is elsewhere, and yet it waits for its own agent, which has not connected yet.
    assert task.status.state is TaskState.PENDING
    bench.wait(50)
    bench.connect(A, 2)
    bench.settle()
    assert (task.status.agent, task.status.incarnation, task.status.attempt) == (A, 2, 2)
    assert task.status.agent_deaths == 1
    bench.start(task)
    bench.silence(1_000, B)
    said = plain_record(recovery, "default", 3)
    assert (said["outcome"], said["action"], said["rerun"]) == ("rerun", "restart", 1)
    assert said["restart_took_s"] == 0.85
    assert said["back_after_s"] == 0.85
    assert not bench.state.recoveries.open
    assert "1 task began again when it was back" in said["sentence"]


def test_a_new_incarnation_that_does_not_connect_is_not_waited_for_long() -> None:
    bench = bench_of("fixed", B)
    task = on_a(bench)
    dies(bench)
    agents.registered(bench.state, record(A, 2), bench.now)
    bench.silence(REJOIN_MS, B)
    assert (task.status.agent, task.status.attempt) == (B, 2)


def test_a_second_death_gives_it_away_where_one_restart_is_the_rule() -> None:
    bench = bench_of("fixed", B)
    task = on_a(bench)
    dies(bench)
    bench.settle()
    assert task.status.agent == A
    bench.wait(500)
    dies(bench, incarnation=2)
    bench.settle()
    # The supervisor's word on a runtime that never registered shows a newer incarnation.
    agents.registered(bench.state, record(A, 2), bench.now)
    bench.silence(REJOIN_MS, B)
    assert task.status.agent == B


def test_the_same_incarnation_goes_on_with_its_work() -> None:
    bench = bench_of("planned", B)
    knows_that_it_comes_back(bench)
    task = on_a(bench)
    bench.silence(600_000, A, B)
    falls_silent(bench, B)
    assert (bench.agent_state(A), task.status.attempt) == (DOWN, 1)
    recovery = recovery_of(bench)
    assert (recovery.kind, recovery.action) == (FailureKind.UNREACHABLE, "wait")
    passes(bench, 4_000, B)
    agents.registered(bench.state, record(A), bench.now)
    bench.connect(A, 1, [(task.ref(), False)])
    bench.settle()
    assert (bench.agent_state(A), task.status.attempt) == (READY, 1)
    assert "assign" not in bench.words(A)[1:]
    assert bench.end(task)
    bench.settle()
    said = plain_record(recovery, "default", 1)
    assert (said["outcome"], said["kept"], said["realised_cost_task_s"]) == ("kept", 1, 0.0)


def test_its_late_outcome_counts_while_it_is_held_and_not_after() -> None:
    bench = bench_of("planned", B)
    knows_that_it_comes_back(bench)
    first, second = on_a(bench), on_a(bench)
    bench.silence(600_000, A, B)
    falls_silent(bench, B)
    assert bench.end(first)
    bench.settle()
    assert first.id not in bench.state.tasks
    stale = second.ref()
    passes(bench, 121_000, B)
    assert second.status.agent == B
    assert not tasks.outcome(bench.state, A, 1, stale, SUCCESS, bench.now)


def test_nothing_is_held_beyond_the_horizon() -> None:
    bench = bench_of("planned", B)
    knows_that_it_comes_back(bench)
    task = on_a(bench)
    bench.silence(600_000, A, B)
    falls_silent(bench, B)
    passes(bench, 60_000, B)
    passes(bench, 61_000, B)
    assert task.status.agent == B
    said = plain_record(recovery_of(bench), "default", 1)
    assert said["moved"] == 1
    assert said["actions"][-1]["excluded"]["wait"] == "what is held for 120 s is given away"


# ------------------------------------------------------------------ what is not held


def test_an_unreachable_agents_tasks_are_moved_at_once_where_that_is_the_rule() -> None:
    bench = bench_of("fixed", B)
    task = on_a(bench)
    falls_silent(bench, B)
    assert (task.status.agent, task.status.agent_deaths) == (B, 1)


@pytest.mark.parametrize("wish", [AgentWish.CORDON, AgentWish.DRAIN])
def test_nobody_waits_for_an_agent_that_is_to_get_no_work(wish: AgentWish) -> None:
    bench = bench_of("fixed", B)
    first, second = on_a(bench), on_a(bench)
    agents.set_wish(bench.state, A, wish, bench.now)
    dies(bench, first)
    bench.settle()
    assert (first.status.agent, second.status.agent) == (B, B)


def test_a_cordon_in_the_midst_of_it_lets_go() -> None:
    bench = bench_of("fixed", B)
    task = on_a(bench)
    dies(bench)
    bench.settle()
    assert task.status.agent == A
    agents.set_wish(bench.state, A, AgentWish.CORDON, bench.now)
    bench.silence(1_000, B)
    assert task.status.agent == B


def test_who_cancels_a_held_task_does_not_wait_for_its_agent() -> None:
    bench = bench_of("fixed")
    task = on_a(bench)
    dies(bench)
    bench.settle()
    assert tasks.cancel(bench.state, task, bench.now) is TaskState.ASSIGNED
    bench.silence(1_000)
    assert bench.stored[task.id].state is TaskState.CANCELLED


def test_a_stop_task_is_held_for_13_s_at_most_unless_its_agent_is_dead() -> None:
    bench = bench_of("planned", B)
    knows_that_it_comes_back(bench)
    stop, keep = on_a(bench, on_disconnect=OnDisconnect.STOP), on_a(bench)
    bench.silence(600_000, A, B)
    falls_silent(bench, B)
    passes(bench, STOP_GIVEN_AWAY_MS - SILENT_MS, B)
    assert (stop.status.agent, keep.status.agent) == (B, A)


def test_an_agent_that_left_is_not_waited_for() -> None:
    bench = bench_of("fixed", B)
    task = on_a(bench)
    dies(bench)
    bench.settle()
    recovering.left(bench.state, bench.state.agents[A], bench.now)
    assert not recovering.holds(bench.state, bench.state.agents[A])
    assert A not in bench.state.recoveries.open
    assert task.status.agent == A, "whoever says that it left takes the tasks"


# --------------------------------------------------------------------------- restarts


def test_a_hung_runtime_is_restarted_by_its_supervisor_and_its_task_waits_for_it() -> None:
    bench = bench_of("fixed", B)
    task = on_a(bench)
    falls_silent(bench, B, supervised=True)
    assert bench.restarts == [(A, 1)]
    assert (bench.agent_state(A), task.status.agent) == (RESTARTING, A)
    recovery = recovery_of(bench)
    assert (recovery.kind, recovery.tried) == (FailureKind.HUNG, 1)
    agents.runtime_died(bench.state, A, 1, [], True, "restarted", bench.now)
    bench.settle()
    assert (bench.agent_state(A), recovery.dead, task.status.agent) == (DOWN, True, A)
    bench.wait(1_000)
    bench.join(A, 2)
    bench.settle()
    assert (task.status.agent, task.status.incarnation) == (A, 2)
    # It may have been what hung it.
    assert task.status.agent_deaths == 1
    assert bench.restarts == [(A, 1)]
    assert outcome_of(recovery) == "open"
    bench.start(task)
    bench.silence(1_000, B)
    assert outcome_of(recovery) == "rerun"


def test_the_end_of_a_hung_runtime_is_no_second_death() -> None:
    bench = bench_of("fixed", B)
    bench.state.health = HealthBook()
    on_a(bench)
    falls_silent(bench, B, supervised=True)
    once = bench.state.health.points(A, bench.now.clock_ms)
    assert once > 0
    agents.runtime_died(bench.state, A, 1, [], True, "restarted", bench.now)
    bench.settle()
    assert bench.agent_state(A) == DOWN
    assert bench.state.health.points(A, bench.now.clock_ms) == once


def test_a_restart_that_does_nothing_is_given_up_after_30_s() -> None:
    bench = bench_of("fixed", B)
    task = on_a(bench)
    falls_silent(bench, B, supervised=True)
    assert bench.agent_state(A) is RESTARTING
    passes(bench, 29_000, B, supervised=True)
    assert task.status.agent == A
    passes(bench, 2_000, B, supervised=True)
    assert task.status.agent == B
    failed = bench.state.recoveries.beliefs.restart(A, FailureKind.HUNG, bench.now.clock_ms / 1000)
    assert failed.seen > 0.9


def test_a_hung_agent_without_tasks_is_restarted_too_but_not_without_end() -> None:
    bench = bench_of("always_migrate", B)
    task = on_a(bench)
    falls_silent(bench, B, supervised=True)
    assert task.status.agent == B
    passes(bench, 1_000, B, supervised=True)
    assert bench.restarts == [(A, 1)]
    passes(bench, 400_000, B, supervised=True)
    # The hourly budget of restarts is spent.
    assert bench.restarts == [(A, 1)] * bench.state.recoveries.settings.restarts_per_hour


def test_a_hung_agent_without_tasks_is_let_mend_where_restarts_do_not_work() -> None:
    bench = bench_of("planned", B)
    now_s = bench.now.clock_ms / 1000
    beliefs = bench.state.recoveries.beliefs
    for _ in range(40):
        beliefs.restart_ended(A, FailureKind.HUNG, False, 5.0, now_s)
        beliefs.came_back(A, FailureKind.HUNG, 10.0, 14.0, False, now_s)
    falls_silent(bench, B, supervised=True)
    passes(bench, 5_000, B, supervised=True)
    assert (bench.agent_state(A), bench.restarts) == (DOWN, [])


def test_a_supervisor_that_is_not_heard_is_asked_for_nothing() -> None:
    bench = bench_of("fixed", B)
    task = on_a(bench)
    bench.state.agents[A].supervised = True
    agents.unregistered(bench.state, A, bench.now)
    bench.silence(SILENT_MS, B)
    assert recovery_of(bench).kind is FailureKind.UNREACHABLE
    assert (bench.restarts, task.status.agent) == ([], B)


def test_what_dies_too_often_in_an_hour_is_not_waited_for_any_more() -> None:
    bench = bench_of("fixed", B)
    task = on_a(bench)
    most = bench.state.recoveries.settings.restarts_per_hour
    for incarnation in range(1, most + 2):
        agents.runtime_died(bench.state, A, incarnation, [], True, "signal 9", bench.now)
        bench.settle()
        assert (task.status.agent == A) is (incarnation <= most)
        bench.wait(500)
        bench.join(A, incarnation + 1)
        bench.settle()
        bench.start(task)
        bench.silence(3_000, B)


def test_a_task_that_kills_its_agent_is_dead_after_three_although_it_is_held() -> None:
    bench = bench_of("fixed")
    poison = on_a(bench)
    for incarnation in (1, 2, 3):
        dies(bench, poison, incarnation=incarnation)
        bench.wait(500)
        bench.join(A, incarnation + 1)
        bench.settle()
        bench.silence(REJOIN_MS)
        agents.heard(bench.state, A, incarnation + 1, bench.now)
        bench.settle()
        if incarnation < 3:
            assert poison.status.agent == A
            bench.start(poison)
    assert bench.stored[poison.id].state is TaskState.DEAD


def test_who_was_heard_and_is_cut_off_again_keeps_its_tasks_for_ten_seconds() -> None:
    bench = bench_of("planned")
    task = on_a(bench)
    falls_silent(bench)
    assert bench.agent_state(A) is DOWN
    assert recovering.holds(bench.state, bench.state.agents[A])
    passes(bench, 1_000)
    agents.heard(bench.state, A, 1, bench.now)
    agents.disconnected(bench.state, A, 1, bench.now)
    bench.join(B)
    # From now on nothing is held that may be given away.
    bench.state.policy = Policy(recovery="always_migrate")
    passes(bench, recovering.HEARD_SINCE_MS - 1_000, B)
    assert (task.status.agent, task.status.attempt) == (A, 1)
    passes(bench, 1_000, B)
    bench.settle()
    assert (task.status.agent, task.status.attempt) == (B, 2)


# ------------------------------------------------------------------------ many, and kept


def test_no_more_plans_are_made_in_a_second_than_a_leader_has_time_for() -> None:
    bench = Bench(recovery="fixed")
    names = [AgentId(f"a{number}") for number in range(2 * MAX_PLANS_PER_S)]
    for name in names:
        bench.join(name)
    for _ in names:
        bench.run()
    for name in names:
        agents.runtime_died(bench.state, name, 1, [], True, "power", bench.now)
    decided = [r for r in bench.state.recoveries.open.values() if r.actions]
    assert len(decided) == MAX_PLANS_PER_S
    bench.silence(1_000)
    assert all(r.actions for r in bench.state.recoveries.open.values())


def test_what_was_learned_is_kept_and_taken_over() -> None:
    bench = bench_of("fixed", B)
    on_a(bench)
    dies(bench)
    bench.wait(900)
    bench.join(A, 2)
    bench.silence(1_000, B)
    book = bench.state.recoveries
    assert book.changed_beliefs
    after = Recoveries()
    after.take_over(book.to_plain())
    now_s = bench.now.clock_ms / 1000
    assert after.to_plain() == book.to_plain()
    assert after.budget(A).left(now_s) == book.budget(A).left(now_s) == 5
    assert after.beliefs.restart(A, FailureKind.DIED, now_s).mean > 0.8


@pytest.mark.parametrize(
    "wrong",
    [
        {"beliefs": {"a": {"died restart": [1, 2]}}},
        {"beliefs": {"a": {"died restart": [1, float("nan"), 0]}}},
        {"budgets": {"a": [-1.0]}},
        {"move_s": float("inf")},
        {"move_s": "1"},
    ],
)
def test_what_nobody_can_have_learned_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidInput):
        Recoveries().take_over(wrong)


def test_the_bounds_of_the_policy_reach_the_planner() -> None:
    bench = bench_of("planned", B)
    object.__setattr__(bench.state.policy, "recovery_bounds", {"T": 5.0, "U": 0.1})
    bounds = recovering.settings_of(bench.state).bounds
    assert (bounds.delta_t_s, bounds.delta_u, bounds.delta_b) == (5.0, 0.1, None)
