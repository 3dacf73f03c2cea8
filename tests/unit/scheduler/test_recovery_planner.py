"""Decisions: options, bounds, several failures at once, policies, what is said, bad input."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muster.domain.errors import InvalidInput
from muster_scheduler.recovery import (
    POLICIES,
    Action,
    Beliefs,
    Bounds,
    Cluster,
    Decision,
    Failure,
    FailureKind,
    HeldTask,
    Prior,
    RecoverySettings,
    SpareLedger,
    decide,
    decide_all,
    restart_emptied,
)
from muster_scheduler.recovery.bounds import before
from muster_scheduler.recovery.situation import grouped, stepped, stepped_count

DIED, HUNG, UNREACHABLE = FailureKind.DIED, FailureKind.HUNG, FailureKind.UNREACHABLE
ROOMY = Cluster(used=(1,) * 10, slots=(8,) * 10, open_response_s=1_000.0)


def failure(
    kind: FailureKind = DIED, *, ages: tuple[float, ...] = (5.0,) * 4, **more: Any
) -> Failure:
    named: dict[str, Any] = {"agent": "a7", "silent_s": 11.0, "slots": 8} | more
    tasks = tuple(HeldTask(f"t{i}", age, 20.0) for i, age in enumerate(ages))
    return Failure(kind=kind, tasks=tasks, **named)


def chosen(
    failed: Failure,
    cluster: Cluster = ROOMY,
    *,
    prior: Prior | None = None,
    ledger: SpareLedger | None = None,
    policy: str = "planned",
    **named: Any,
) -> Decision:
    made = RecoverySettings(**named)
    return decide(failed, cluster, Beliefs(prior), ledger or SpareLedger(), made, 0.0, policy)


kinds = st.sampled_from(list(FailureKind))


@st.composite
def failures(draw: st.DrawFn) -> Failure:
    kind, tried = draw(kinds), draw(st.integers(0, 4))
    tasks = draw(
        st.lists(st.tuples(st.floats(0, 1e4), st.floats(0, 1e3), st.booleans()), max_size=12)
    )
    return Failure(
        agent="a1",
        kind=kind,
        silent_s=draw(st.floats(0, 100)),
        tasks=tuple(HeldTask(f"t{i}", a, r, s) for i, (a, r, s) in enumerate(tasks)),
        slots=draw(st.integers(0, 20)),
        epoch=draw(st.integers(0, 12)),
        tried=tried,
        restarting_s=draw(st.none() | st.integers(0, 40)) if tried else None,
        reachable=draw(st.booleans()),
        restarts_left=draw(st.integers(0, 2)),
    )


@st.composite
def clusters(draw: st.DrawFn) -> Cluster:
    slots = draw(st.lists(st.integers(0, 16), max_size=6))
    used = [draw(st.integers(0, s)) for s in slots]
    return Cluster(tuple(used), tuple(slots), draw(st.floats(0, 1e6)))


bounds_of = st.builds(
    Bounds,
    delta_t_s=st.none() | st.floats(0, 1e4),
    delta_u=st.none() | st.floats(0, 1),
    delta_b=st.none() | st.floats(0, 1),
)


@settings(max_examples=80, deadline=None)
@given(failures(), clusters(), bounds_of, st.sampled_from(list(POLICIES)))
def test_every_decision_is_possible_and_can_be_shown(
    failed: Failure, cluster: Cluster, bounds: Bounds, policy: str
) -> None:
    ledger = SpareLedger()
    made = RecoverySettings(horizon_s=10, restart_deadline_s=6, bounds=bounds)
    decision = decide(failed, cluster, Beliefs(), ledger, made, 0.0, policy)
    seen = decision.assessment
    assert decision.action in seen.options
    assert not seen.options.keys() & seen.excluded.keys()
    assert seen.options.keys() | seen.excluded.keys() == set(Action)
    ids = {task.id for task in failed.tasks}
    assert set(decision.give_away) <= ids
    if decision.action is Action.MIGRATE:
        assert set(decision.give_away) == ids
    if not failed.can_restart or failed.epoch >= 10:
        assert decision.action is not Action.RESTART
    if failed.epoch >= 10:
        assert decision.action is Action.MIGRATE
    assert sum(ledger.promised().values()) <= cluster.free
    assert all(0 <= o.then.U <= max(seen.was.U, 0) + 1e-9 for o in seen.options.values())
    assert all(math.isfinite(o.cost) and o.cost >= 0 for o in seen.options.values())
    if policy == "planned":
        kept = [o for o in seen.options.values() if not o.broken]
        if kept:
            assert decision.option.cost == min(o.cost for o in kept)
        else:
            assert decision.option.violation == min(o.violation for o in seen.options.values())
    shown = json.loads(json.dumps(decision.to_plain(), allow_nan=False))
    assert shown["sentence"].startswith("a1 ")
    assert str(decision.action) in shown["sentence"]


def test_a_restart_that_works_is_worth_it_where_others_are_full() -> None:
    full = Cluster((8,) * 10, (8,) * 10)
    assert chosen(failure(), full, prior=Prior(restart=0.95)).action is Action.RESTART
    assert chosen(failure(), full, prior=Prior(restart=0.02)).action is Action.MIGRATE
    assert chosen(failure(), ROOMY, prior=Prior(restart=0.3)).action is Action.MIGRATE


def test_old_work_is_waited_for_and_young_is_given_away() -> None:
    hopeful = Prior(with_work=0.9)
    cut_off = failure(UNREACHABLE, ages=(1.0, 2.0, 3_000.0), silent_s=11.0)
    decision = chosen(cut_off, prior=hopeful)
    assert decision.action is Action.WAIT
    assert decision.give_away == ("t0", "t1")
    assert "2 tasks are given away at once" in decision.sentence()


def test_who_never_comes_back_is_not_waited_for() -> None:
    beliefs = Beliefs()
    for _ in range(5):
        beliefs.stayed_away("a7", UNREACHABLE, 11.0, 1_000.0, 0.0)
    cut_off = failure(UNREACHABLE, ages=(100.0,))
    assert chosen(cut_off).action is Action.WAIT
    decision = decide(cut_off, ROOMY, beliefs, SpareLedger(), RecoverySettings(), 0.0)
    assert decision.action is Action.MIGRATE


def test_without_a_supervisor_or_budget_there_is_no_restart() -> None:
    assert "its supervisor is not reachable" in chosen(failure(UNREACHABLE)).sentence()
    assert "its supervisor is not reachable" in chosen(failure(HUNG, reachable=False)).sentence()
    assert "no restarts left this hour" in chosen(failure(restarts_left=0)).sentence()
    assert "it was restarted 3 times in vain" in chosen(failure(tried=3)).sentence()
    going = chosen(failure(tried=1, restarting_s=2, restarts_left=0))
    assert going.assessment.excluded == {Action.WAIT: "a restart is under way"}


def test_a_failed_restart_makes_the_next_dearer() -> None:
    full = Cluster((8,) * 10, (8,) * 10)
    costs = [
        chosen(failure(tried=tried), full).assessment.options[Action.RESTART].cost
        for tried in (0, 1, 2)
    ]
    assert costs[0] < costs[1] < costs[2]


# ---------------------------------------------------------------------- bounds


def test_t_excludes_what_would_cost_too_much() -> None:
    cut_off = failure(UNREACHABLE, ages=(3_000.0,))
    free = chosen(cut_off)
    assert free.action is Action.WAIT
    costs = free.assessment.options
    assert costs[Action.MIGRATE].cost > costs[Action.WAIT].cost + 10
    tight = chosen(cut_off, bounds=Bounds(delta_t_s=costs[Action.MIGRATE].cost - 1))
    assert "T" in tight.assessment.options[Action.MIGRATE].broken
    assert not tight.option.broken


def test_u_excludes_letting_much_work_stand_still() -> None:
    busy = Cluster((6,) * 3, (8,) * 3)
    old = failure(UNREACHABLE, ages=(3_000.0,) * 6)
    assert chosen(old, busy).action is Action.WAIT
    decision = chosen(old, busy, bounds=Bounds(delta_u=0.01))
    assert decision.action is Action.MIGRATE
    assert "U" in decision.assessment.options[Action.WAIT].broken
    assert "under its bound" in decision.sentence()


def test_b_excludes_leaving_the_others_unevenly_loaded() -> None:
    uneven = Cluster((2, 8), (16, 8), 1_000.0)
    old = failure(UNREACHABLE, ages=(3_000.0,) * 6)
    was = before(old, uneven)
    assert 0.35 < was.B < 0.37
    assert chosen(old, uneven).action is Action.WAIT
    decision = chosen(old, uneven, bounds=Bounds(delta_b=0.0))
    assert decision.action is Action.MIGRATE
    assert not decision.option.broken
    assert "B" in decision.assessment.options[Action.WAIT].broken


def test_where_all_cannot_be_moved_within_a_bound_no_part_is_moved_either() -> None:
    """Moving everything would leave half without a slot, now and at any later time."""
    tasks = [HeldTask(f"s{i}", 0.0, 20.0, True) for i in range(3)]
    tasks += [HeldTask(f"k{i}", 3_000.0, 20.0) for i in range(5)]
    cut_off = Failure("a7", UNREACHABLE, 14.0, tuple(tasks), 8)
    tight = Cluster((7,) * 4, (8,) * 4, 1_000.0)
    named: dict[str, Any] = {"slowdown": 0.0, "prior": Prior(with_work=0.95)}
    assert chosen(cut_off, tight, **named).give_away == ("s0", "s1", "s2")
    bound = chosen(cut_off, tight, bounds=Bounds(delta_u=0.09), **named)
    assert bound.action is Action.WAIT
    assert bound.give_away == ()
    assert "U" in bound.assessment.options[Action.MIGRATE].broken


def test_when_every_action_breaks_a_bound_the_least_violation_is_taken_and_said() -> None:
    decision = chosen(failure(ages=(50.0,) * 4), bounds=Bounds(delta_t_s=0.0))
    assert decision.option.violation == min(
        option.violation for option in decision.assessment.options.values()
    )
    assert decision.to_plain()["violated"]
    assert "every action breaks a bound" in decision.sentence()


def test_bounds_that_are_met_change_nothing() -> None:
    wide = Bounds(delta_t_s=1e9, delta_u=1.0, delta_b=1.0)
    for kind in FailureKind:
        assert chosen(failure(kind), bounds=wide).action is chosen(failure(kind)).action


def test_measures_are_those_of_placement_for_equal_agents() -> None:
    was = before(failure(ages=(1.0,) * 4), Cluster((2, 6), (8, 8), 70.0))
    assert was.T == 70.0
    assert math.isclose(was.U, 12 / 24)
    assert math.isclose(was.B, math.sqrt((0.25**2 + 0.25**2 + 0) / 3))


# ------------------------------------------------------------------ what the others lose


def test_young_tasks_run_elsewhere_at_once_and_old_ones_are_held_for_a_reason_that_is_said() -> (
    None
):
    """Of an agent behind which nobody knows what is: nothing of it was ever seen."""
    for age in (0.0, 5.0, 20.0):
        assert chosen(failure(UNREACHABLE, ages=(age,) * 6)).action is Action.MIGRATE
    held = chosen(failure(UNREACHABLE, ages=(400.0,) * 6))
    assert held.action is Action.WAIT
    shown = held.to_plain()
    assert shown["expected_cost_task_s"] < shown["alternatives"]["migrate"]
    assert shown["evidence"]["returns_seen"] == 0.0
    assert "it comes back by itself within 30 s with" in held.sentence()


def test_work_is_not_thrown_away_while_others_wait_for_slots() -> None:
    full = (8,) * 10
    cut_off = failure(UNREACHABLE, ages=(40.0,) * 4)
    without, queued = (Cluster(full, full, 1_000.0, waiting=n) for n in (0, 500))
    assert chosen(cut_off, without, slowdown=0.0, move_s=0.0).action is Action.MIGRATE
    patient = chosen(cut_off, queued, slowdown=0.0, move_s=0.0)
    assert patient.action is Action.WAIT
    assert patient.to_plain()["evidence"]["slot_second_worth"] == pytest.approx(500 / 88, rel=0.1)
    # Beside free slots they wait for something else.
    beside = Cluster((7,) * 10, (8,) * 10, 1_000.0, waiting=500)
    shown = chosen(cut_off, beside, slowdown=0.0).to_plain()
    assert shown["evidence"]["slot_second_worth"] == 0.0


def test_what_others_lose_is_no_part_of_the_patience_of_the_ski_rental_rule() -> None:
    """The plan to which it is compared must not change with what `planned` counts."""
    alone, queued = (
        chosen(failure(UNREACHABLE), Cluster((8,) * 10, (8,) * 10, waiting=waiting)).assessment
        for waiting in (0, 500)
    )
    assert queued.slot_worth > alone.slot_worth
    assert (queued.moved_now, queued.untouched) == (alone.moved_now, alone.untouched)


# ---------------------------------------------------------------------- several at once


def test_two_failures_never_count_on_the_same_slots() -> None:
    cluster = Cluster((6, 6), (8, 8))
    failed = [failure(agent=f"a{i}", ages=(1.0,) * 3) for i in range(2)]
    ledger = SpareLedger()
    first, second = decide_all(
        failed, cluster, Beliefs(Prior(restart=0.01)), ledger, RecoverySettings(), 0.0
    )
    assert first.action is second.action is Action.MIGRATE
    assert ledger.promised() == {"a0": 3, "a1": 1}
    assert second.option.cost > first.option.cost


def test_who_gains_most_by_moving_chooses_first() -> None:
    cluster = Cluster((7, 7), (8, 8))
    restartable = failure(agent="a0", ages=(1.0,) * 2)
    lost = failure(agent="a1", ages=(1.0,) * 2, reachable=False)
    ledger, made = SpareLedger(), RecoverySettings(slowdown=0.0, move_s=0.9)
    quick = Beliefs()
    for _ in range(50):
        quick.restart_ended("other", DIED, True, 1.0, 0.0)
    alone = decide(restartable, cluster, quick, SpareLedger(), made, 0.0)
    assert alone.action is Action.MIGRATE
    first, second = decide_all([restartable, lost], cluster, quick, ledger, made, 0.0)
    assert (first.action, second.action) == (Action.RESTART, Action.MIGRATE)
    assert ledger.promised() == {"a1": 2}


@settings(max_examples=30, deadline=None)
@given(clusters(), st.lists(st.integers(0, 6), max_size=4), st.randoms(use_true_random=False))
def test_decisions_come_in_the_order_of_failures(
    cluster: Cluster, counts: list[int], rng: Any
) -> None:
    failed = [
        failure(agent=f"a{i}", kind=rng.choice(list(FailureKind)), ages=(1.0,) * count)
        for i, count in enumerate(counts)
    ]
    ledger = SpareLedger()
    made = RecoverySettings(horizon_s=8, restart_deadline_s=4)
    decisions = decide_all(failed, cluster, Beliefs(), ledger, made, 0.0)
    assert [d.assessment.failure for d in decisions] == failed
    assert sum(ledger.promised().values()) <= cluster.free


# ---------------------------------------------------------------------- other policies


@pytest.mark.parametrize(
    ("policy", "kind", "more", "wanted"),
    [
        ("fixed", DIED, {}, Action.RESTART),
        ("fixed", DIED, {"tried": 1, "restarting_s": 5}, Action.RESTART),
        ("fixed", DIED, {"tried": 1}, Action.MIGRATE),
        ("fixed", HUNG, {}, Action.RESTART),
        ("fixed", UNREACHABLE, {}, Action.MIGRATE),
        ("always_migrate", HUNG, {}, Action.MIGRATE),
        ("always_restart", DIED, {"tried": 2}, Action.RESTART),
        ("always_restart", DIED, {"tried": 3}, Action.MIGRATE),
        ("always_restart", UNREACHABLE, {"epoch": 119}, Action.WAIT),
        ("always_restart", UNREACHABLE, {"epoch": 120}, Action.MIGRATE),
        ("wait_until_cost", DIED, {}, Action.RESTART),
        ("wait_until_cost", HUNG, {}, Action.WAIT),
        ("wait_until_cost", UNREACHABLE, {"epoch": 1}, Action.WAIT),
        ("wait_until_cost", UNREACHABLE, {"epoch": 60}, Action.MIGRATE),
    ],
)
def test_policies_do_what_their_table_says(
    policy: str, kind: FailureKind, more: dict[str, Any], wanted: Action
) -> None:
    assert chosen(failure(kind, **more), policy=policy).action is wanted


# ---------------------------------------------------------------------- buckets


@given(st.floats(0, 1e6), st.floats(0, 1e6))
def test_buckets_are_near_and_keep_the_order(one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert stepped(low) <= stepped(high)
    assert stepped(one) == pytest.approx(one, rel=0.05, abs=1e-6)


def test_what_finds_no_slot_is_not_in_use() -> None:
    moved = chosen(failure(ages=(1.0,) * 4), Cluster((7, 8), (8, 8)), policy="always_migrate")
    assert math.isclose(moved.assessment.was.U, 19 / 24)
    assert math.isclose(moved.option.then.U, 16 / 24)


def test_a_restart_ends_what_still_ran() -> None:
    """So nobody waits for its work, and a `stop` task needs no fence."""
    task = HeldTask("t", 3_000.0, 20.0, True)
    before_it = Failure("a", HUNG, 10.0, (task,), 8)
    after_it = Failure("a", HUNG, 10.0, (task,), 8, tried=1)
    dearer, cheaper = (chosen(f).assessment.moved_now for f in (before_it, after_it))
    assert dearer - cheaper == pytest.approx(3.0)
    assert chosen(after_it).assessment.untouched == pytest.approx(3_010.0, rel=0.05)


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_counts_are_exact_while_small_and_never_rounded_up_when_down(one: int, other: int) -> None:
    low, high = sorted((one, other))
    for down in (False, True):
        assert stepped_count(low, down=down) <= stepped_count(high, down=down)
    assert stepped_count(one, down=True) <= one
    assert stepped_count(one) == pytest.approx(one, rel=0.08, abs=0)
    assert stepped_count(one, down=True) >= one * 0.88 - 1
    if one <= 20:
        assert stepped_count(one) == one


@given(st.lists(st.tuples(st.floats(0, 1e4), st.booleans()), max_size=40))
def test_groups_hold_every_task_once(drawn: list[tuple[float, bool]]) -> None:
    tasks = [HeldTask(str(i), age, 1.0, stop) for i, (age, stop) in enumerate(drawn)]
    groups = grouped(tasks)
    assert len(groups) <= 8
    assert sorted(i for group in groups for i in group.ids) == sorted(t.id for t in tasks)


# ---------------------------------------------------------------------- bad input

NUMBERS = [math.nan, math.inf, -1.0, "5"]


@pytest.mark.parametrize("bad", NUMBERS)
@pytest.mark.parametrize("name", ["delta_t_s", "delta_u", "delta_b"])
def test_a_bad_bound_is_named(name: str, bad: Any) -> None:
    with pytest.raises(InvalidInput) as error:
        Bounds(**{name: bad})
    assert str(error.value).startswith(f"recovery.bounds.{name}: {bad!r} is not accepted; a number")


@pytest.mark.parametrize("bad", NUMBERS)
@pytest.mark.parametrize("name", ["move_s", "knee", "slowdown", "fence_s", "pause_cap_s"])
def test_a_bad_setting_is_named(name: str, bad: Any) -> None:
    with pytest.raises(InvalidInput, match=rf"recovery\.{name}: "):
        RecoverySettings(**{name: bad})


@pytest.mark.parametrize("bad", [0, -1, 601, 2.5, math.nan, True])
def test_a_bad_horizon_is_named(bad: Any) -> None:
    with pytest.raises(InvalidInput, match=r"recovery\.horizon_s: .*whole number from 1 to 600"):
        RecoverySettings(horizon_s=bad)


@pytest.mark.parametrize("bad", NUMBERS)
def test_a_bad_failure_or_cluster_is_named(bad: Any) -> None:
    with pytest.raises(InvalidInput, match=r"failure\.silent_s: "):
        failure(silent_s=bad)
    with pytest.raises(InvalidInput, match=r"failure\.tasks\[1\]\.age_s: "):
        failure(ages=(1.0, bad))
    with pytest.raises(InvalidInput, match=r"cluster\.open_response_s: "):
        Cluster((1,), (2,), bad)
    with pytest.raises(InvalidInput, match=r"cluster\.used\[0\]: "):
        Cluster((bad,), (2,))
    with pytest.raises(InvalidInput, match=r"recovery\.policy: 'best' is not accepted; one of pla"):
        chosen(failure(), policy="best")


def test_numbers_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(InvalidInput, match=r"failure\.tried: 0 is not accepted; a restart under"):
        failure(restarting_s=3)
    with pytest.raises(InvalidInput, match=r"cluster\.used: 1 is not accepted; one number per"):
        Cluster((1,), (2, 3))


@settings(max_examples=30, deadline=None)
@given(failures())
def test_plans_do_not_depend_on_what_was_planned_before(failed: Failure) -> None:
    made = RecoverySettings(horizon_s=10, restart_deadline_s=5)
    first, again = (
        decide(failed, ROOMY, Beliefs(), SpareLedger(), made, 0.0).to_plain() for _ in range(2)
    )
    assert first == again


# ----------------------------------------------------------------------- emptied agents


def taught(kind: FailureKind, *, restarts: bool, returns: bool) -> Beliefs:
    """Restarts of "a7" that all worked or all failed; returns within 5 s of having been found."""
    beliefs = Beliefs()
    for _ in range(30):
        beliefs.restart_ended("a7", kind, restarts, 4.0, 0.0)
        if returns:
            beliefs.came_back("a7", kind, 11.0, 14.0, False, 0.0)
        else:
            beliefs.stayed_away("a7", kind, 11.0, 300.0, 0.0)
    return beliefs


@pytest.mark.parametrize(
    ("restarts", "returns", "wanted"),
    [(True, False, True), (False, True, False)],
)
def test_an_agent_without_tasks_is_restarted_where_that_brings_it_back_sooner(
    restarts: bool, returns: bool, wanted: bool
) -> None:
    beliefs = taught(HUNG, restarts=restarts, returns=returns)
    emptied = failure(HUNG, ages=())
    assert restart_emptied(emptied, beliefs, RecoverySettings(), 0.0) is wanted


def test_what_cannot_be_restarted_or_is_being_restarted_is_not() -> None:
    beliefs, made = taught(HUNG, restarts=True, returns=False), RecoverySettings()
    for more in ({"reachable": False}, {"restarts_left": 0}, {"tried": 1, "restarting_s": 3}):
        assert not restart_emptied(failure(HUNG, ages=(), **more), beliefs, made, 0.0)
    assert not restart_emptied(failure(UNREACHABLE, ages=()), beliefs, made, 0.0)
    # More often than tasks would be held for it, while the budget lasts.
    often = failure(HUNG, ages=(), tried=made.tries + 1)
    assert restart_emptied(often, beliefs, made, 0.0)
