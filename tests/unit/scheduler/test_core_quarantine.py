"""Quarantine, parole, probes; drains with a deadline; how placement and words show them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.scheduler.core_bench import FAILURE, SUCCESS, Bench

from muster.agent.error_kinds import NO_SLOT, NON_RETRYABLE_ERROR_KINDS
from muster.domain.agent_lifecycle import AgentState, AgentWish
from muster.domain.ids import AgentId
from muster.domain.task import OnDisconnect, Outcome, OutcomeKind
from muster.domain.task_lifecycle import TaskState
from muster_scheduler.core import agents, tasks
from muster_scheduler.core.deadlines import STOP_GIVEN_AWAY_MS
from muster_scheduler.core.explain import explain
from muster_scheduler.core.health import FLOOR, QuarantineSettings
from muster_scheduler.core.quarantine import LONG_PROBE_MS, most_quarantined
from muster_scheduler.core.records import OpenTask

READY, QUARANTINED, PAROLE = AgentState.READY, AgentState.QUARANTINED, AgentState.PAROLE
FIVE = [AgentId(f"a{number}") for number in range(5)]
SICK = FIVE[0]
FIRST_WAIT_MS = QuarantineSettings().first_wait_ms


def pass_by(bench: Bench, ms: int) -> None:
    heard = {ident: a.incarnation for ident, a in bench.state.agents.items() if a.session}
    while ms > 0:
        for ident, incarnation in heard.items():
            agents.heard(bench.state, ident, incarnation, bench.now)
        bench.silence(min(1_000, ms))
        ms -= 1_000


def die(bench: Bench, agent: AgentId) -> None:
    """Its runtime dies and a new one is there at once."""
    number = bench.state.agents[agent].incarnation
    agents.runtime_died(bench.state, agent, number, [], True, "exit code 9", bench.now)
    bench.wait(500)
    bench.join(agent, number + 1)
    pass_by(bench, 1_000)


@pytest.fixture
def bench() -> Bench:
    made = Bench()
    for agent in FIVE:
        made.join(agent)
    return made


@pytest.fixture
def sick(bench: Bench) -> Bench:
    """The first agent has flapped until it was quarantined."""
    for _ in range(10):
        die(bench, SICK)
    assert bench.agent_state(SICK) is QUARANTINED
    return bench


def probe(bench: Bench) -> OpenTask:
    """The one task that the agent on parole is given; as many as fill the others are tried."""
    placed = [bench.admit(max_attempts=1) for _ in range(6)]
    bench.settle()
    (one,) = [task for task in placed if task.status.agent == SICK]
    for task in placed:
        bench.start(task)
        if task is not one:
            bench.end(task)
    return one


def test_a_flapping_agent_is_quarantined_and_its_words_say_why(sick: Bench) -> None:
    evidence = sick.state.agents[SICK].evidence
    (entered,) = [e for e in evidence if e.what == "QUARANTINE" and "health" in e.why]
    assert "deaths" in entered.why
    assert "parole in 60 s" in entered.why
    assert sick.state.agents[SICK].health < FLOOR
    tasks_ = [sick.admit() for _ in range(40)]
    sick.settle()
    assert not [task for task in tasks_ if task.status.agent == SICK]


def test_explain_names_it(sick: Bench) -> None:
    for agent in FIVE[1:]:
        agents.set_wish(sick.state, agent, AgentWish.CORDON, sick.now)
    task = sick.admit()
    sick.settle()
    found = explain(sick.state, task, sick.now)
    assert found.excluded == {"cordoned": 4, "quarantined": 1}


def test_exactly_one_probe_and_success_absolves(sick: Bench) -> None:
    pass_by(sick, FIRST_WAIT_MS)
    assert sick.agent_state(SICK) is PAROLE
    one = probe(sick)
    more = [sick.admit() for _ in range(50)]
    sick.settle()
    assert [t for t in more if t.status.agent == SICK] == []
    assert all(t.status.state is TaskState.ASSIGNED for t in more)
    sick.end(one, SUCCESS)
    assert sick.agent_state(SICK) is READY
    assert FLOOR < sick.state.agents[SICK].health < 1.0


def test_failure_relapses_with_twice_the_wait(sick: Bench) -> None:
    wait_ms = FIRST_WAIT_MS
    for _ in range(3):
        pass_by(sick, wait_ms)
        assert sick.agent_state(SICK) is PAROLE
        sick.end(probe(sick), FAILURE)
        assert sick.agent_state(SICK) is QUARANTINED
        pass_by(sick, wait_ms)
        assert sick.agent_state(SICK) is QUARANTINED
        wait_ms *= 2


@pytest.mark.parametrize("kind", [OutcomeKind.CANCELLED, OutcomeKind.RETURNED])
def test_only_what_tells_of_the_agent_is_a_verdict(sick: Bench, kind: OutcomeKind) -> None:
    pass_by(sick, FIRST_WAIT_MS)
    one = probe(sick)
    if kind is OutcomeKind.CANCELLED:
        tasks.cancel(sick.state, one, sick.now)
    sick.end(one, Outcome(kind, error_kind=NO_SLOT))
    expected = PAROLE if kind is OutcomeKind.CANCELLED else QUARANTINED
    assert sick.agent_state(SICK) is expected
    if expected is PAROLE:
        sick.settle()
        probe(sick)


def test_a_probe_that_was_lost_makes_room_for_another(sick: Bench) -> None:
    pass_by(sick, FIRST_WAIT_MS)
    one = probe(sick)
    tasks.take_back(sick.state, one, "it was taken back", sick.now)
    pass_by(sick, 1_000)
    assert sick.agent_state(SICK) is PAROLE
    assert sick.state.agents[SICK].usable


def test_a_probe_that_runs_on_and_on_absolves(sick: Bench) -> None:
    pass_by(sick, FIRST_WAIT_MS)
    probe(sick)
    pass_by(sick, LONG_PROBE_MS)
    assert sick.agent_state(SICK) is READY


def test_doubt_does_not_end_a_quarantine(sick: Bench) -> None:
    pass_by(sick, FIRST_WAIT_MS)
    number = sick.state.agents[SICK].incarnation
    for suspected in (True, False):
        agents.suspicion(sick.state, SICK, number, suspected, 9.0, sick.now)
    assert sick.agent_state(SICK) is QUARANTINED
    pass_by(sick, 1_000)
    assert sick.agent_state(SICK) is PAROLE


def test_a_new_incarnation_goes_on_with_it(sick: Bench) -> None:
    agents.set_wish(sick.state, SICK, AgentWish.CORDON, sick.now)
    die(sick, SICK)
    assert sick.agent_state(SICK) is QUARANTINED


def test_an_operator_who_uncordons_it_lets_its_parole_begin(sick: Bench) -> None:
    agents.set_wish(sick.state, SICK, AgentWish.NONE, sick.now, who="key-1")
    pass_by(sick, 1_000)
    assert sick.agent_state(SICK) is PAROLE
    (said,) = [e for e in sick.state.agents[SICK].evidence if e.what == "WISH"]
    assert said.who == "key-1"


def test_the_next_leader_goes_on_with_it_too(sick: Bench) -> None:
    kept = sick.state.health.to_plain(sick.now.clock_ms)
    heir = Bench()
    heir.boot_ms = sick.boot_ms
    heir.state.health.take_over(kept, sick.now.clock_ms, heir.now.clock_ms)
    for agent in FIVE:
        heir.join(agent)
    assert heir.agent_state(SICK) is QUARANTINED
    assert heir.agent_state(FIVE[1]) is READY


# ---------------------------------------------------------------------------- the cap


@pytest.mark.parametrize(
    ("agents_", "share", "most"),
    [(0, 0.2, 0), (1, 0.2, 0), (2, 0.2, 1), (4, 0.2, 1), (10, 0.2, 2), (14, 0.2, 2), (9, 0.0, 0)],
)
def test_how_many_may_be_quarantined(agents_: int, share: float, most: int) -> None:
    assert most_quarantined(agents_, share) == most


@given(st.integers(0, 10_000), st.floats(0, 0.5))
def test_never_more_than_half(agents_: int, share: float) -> None:
    assert most_quarantined(agents_, share) <= agents_ / 2


@pytest.mark.parametrize("count", [1, 2, 3, 5, 11])
def test_when_all_of_them_are_sick_most_work_on(count: int) -> None:
    bench = Bench()
    names = [AgentId(f"s{number}") for number in range(count)]
    for agent in names:
        bench.join(agent)
    for _ in range(8):
        for agent in names:
            die(bench, agent)
    states = [bench.agent_state(agent) for agent in names]
    assert states.count(QUARANTINED) + states.count(PAROLE) == most_quarantined(count, 0.2)
    task = bench.admit()
    bench.settle()
    assert task.status.state is TaskState.ASSIGNED


def test_the_last_one_that_offers_a_skill_is_spared(bench: Bench) -> None:
    only = AgentId("only")
    bench.join(only, skills=("echo", "rare"))
    for _ in range(10):
        number = bench.state.agents[only].incarnation
        agents.runtime_died(bench.state, only, number, [], True, "exit code 9", bench.now)
        bench.join(only, number + 1, skills=("echo", "rare"))
    pass_by(bench, 2_000)
    assert bench.agent_state(only) is READY
    assert bench.state.agents[only].health < FLOOR


# ----------------------------------------------------------------- failures of tasks


def run_on(bench: Bench, agent: AgentId, outcome: Outcome, **fields: object) -> None:
    task = bench.admit(constraints=(), **fields)
    for other in FIVE:
        bench.state.table.set_placeable(other, other == agent, why_not="kept aside")
    bench.state.place_again = True
    bench.settle()
    assert task.status.agent == agent
    bench.start(task)
    bench.end(task, outcome)
    bench.settle()


def test_failures_that_others_do_not_have_lead_to_quarantine(bench: Bench) -> None:
    for _ in range(30):
        run_on(bench, FIVE[1], SUCCESS)
    for _ in range(20):
        run_on(bench, SICK, FAILURE)
    for agent in FIVE:
        bench.state.refresh(bench.state.agents[agent])
    pass_by(bench, 1_000)
    assert bench.agent_state(SICK) is QUARANTINED
    assert bench.agent_state(FIVE[1]) is READY


def test_a_broken_skill_quarantines_nobody(bench: Bench) -> None:
    for _ in range(10):
        for agent in FIVE:
            run_on(bench, agent, FAILURE)
    for agent in FIVE:
        bench.state.refresh(bench.state.agents[agent])
    pass_by(bench, 1_000)
    assert [bench.agent_state(agent) for agent in FIVE] == [READY] * 5
    assert [bench.state.agents[agent].health for agent in FIVE] == [1.0] * 5


@pytest.mark.parametrize("kind", sorted(NON_RETRYABLE_ERROR_KINDS))
def test_bad_input_blames_nobody(bench: Bench, kind: str) -> None:
    for _ in range(30):
        run_on(bench, FIVE[1], SUCCESS)
    refused = Outcome(OutcomeKind.FAILED, error="no", error_kind=kind)
    for _ in range(20):
        run_on(bench, SICK, refused)
    assert bench.state.health.health(SICK, bench.now.clock_ms) == 1.0


# ------------------------------------------------------------------------- placement


def test_the_sick_get_less_and_a_retry_avoids_who_failed_it(bench: Bench) -> None:
    for _ in range(3):
        die(bench, SICK)
    assert bench.agent_state(SICK) is READY
    placed = [bench.admit() for _ in range(20)]
    bench.settle()
    on_sick = sum(1 for task in placed if task.status.agent == SICK)
    assert on_sick < 20 // len(FIVE)
    one = next(task for task in placed if task.status.agent == FIVE[1])
    bench.start(one)
    bench.end(one, FAILURE)
    pass_by(bench, 1_000)
    assert one.status.agent not in ("", FIVE[1])


def test_a_retry_goes_to_who_failed_it_rather_than_nowhere() -> None:
    bench = Bench()
    bench.join(SICK)
    task = bench.run(max_attempts=3)
    bench.end(task, FAILURE)
    pass_by(bench, 1_000)
    assert (task.status.agent, task.status.avoid) == (SICK, (SICK,))


# ---------------------------------------------------------------------------- drains


def test_what_still_runs_at_a_drains_deadline_goes_back_uncharged() -> None:
    bench = Bench()
    bench.join(SICK)
    keep, stop = bench.run(), bench.run(on_disconnect=OnDisconnect.STOP)
    bench.join(FIVE[1])
    agents.set_wish(bench.state, SICK, AgentWish.DRAIN, bench.now, who="k", deadline_ms=30_000)
    pass_by(bench, 29_000)
    assert keep.status.agent == stop.status.agent == SICK
    bench.words(SICK)
    pass_by(bench, 1_000)
    assert bench.words(SICK) == ["drop", "drop"]
    assert (keep.status.state, stop.status.state) == (TaskState.PENDING, TaskState.PENDING)
    # Not before the agent must have ended them.
    pass_by(bench, 4_000)
    assert keep.status.state is TaskState.PENDING
    pass_by(bench, 2_000)
    assert (keep.status.agent, stop.status.state) == (FIVE[1], TaskState.PENDING)
    pass_by(bench, STOP_GIVEN_AWAY_MS)
    assert stop.status.agent == FIVE[1]
    assert (keep.status.failures, keep.status.agent_deaths, stop.status.failures) == (0, 0, 0)
    assert bench.state.agents[SICK].evidence[-1].why == (
        "its drain's deadline: 2 tasks went back to the queue"
    )


@pytest.mark.parametrize("then", [AgentWish.NONE, AgentWish.DRAIN])
def test_a_later_wish_takes_the_deadline_back(then: AgentWish) -> None:
    bench = Bench()
    bench.join(SICK)
    task = bench.run()
    agents.set_wish(bench.state, SICK, AgentWish.DRAIN, bench.now, deadline_ms=10_000)
    agents.set_wish(bench.state, SICK, then, bench.now)
    pass_by(bench, 60_000)
    assert task.status.agent == SICK
