"""Posteriors: what they learn, borrow and forget; keeping them; back-off, budget, ledger."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muster.domain.errors import InvalidInput
from muster_scheduler.recovery import (
    Beliefs,
    FailureKind,
    Prior,
    RecoverySettings,
    RestartBudget,
    SpareLedger,
    longest_pause_s,
    pause_s,
)
from muster_scheduler.recovery import posterior as posterior_module
from muster_scheduler.recovery.backoff import HOUR_S
from muster_scheduler.recovery.posterior import HALF_LIFE_S, RANGES_S, range_of_second

DIED, UNREACHABLE = FailureKind.DIED, FailureKind.UNREACHABLE


def test_nothing_seen_is_the_prior() -> None:
    beliefs = Beliefs(Prior(restart=0.3))
    assert beliefs.restart("a", DIED, 0.0).mean == pytest.approx(0.3)
    assert beliefs.restart("a", DIED, 0.0).seen == 0
    assert [b.mean for b in beliefs.back("a", UNREACHABLE, 0.0)] == pytest.approx([0.02] * 10)


@settings(deadline=None)
@given(st.lists(st.booleans(), max_size=60))
def test_a_mean_lies_within_and_moves_with_each_outcome(outcomes: list[bool]) -> None:
    beliefs = Beliefs()
    for worked in outcomes:
        before = beliefs.restart("a", DIED, 0.0).mean
        beliefs.restart_ended("a", DIED, worked, 3.0, 0.0)
        after = beliefs.restart("a", DIED, 0.0)
        assert 0 < after.mean < 1
        assert after.mean > before if worked else after.mean < before
    assert beliefs.restart("a", DIED, 0.0).seen == pytest.approx(len(outcomes))


def test_many_outcomes_outweigh_any_prior() -> None:
    beliefs = Beliefs(Prior(restart=0.99))
    for index in range(200):
        beliefs.restart_ended("a", DIED, index % 5 == 0, 3.0, 0.0)
    assert beliefs.restart("a", DIED, 0.0).mean == pytest.approx(0.2, abs=0.02)


def test_a_new_agent_borrows_and_an_old_one_keeps_its_own() -> None:
    beliefs = Beliefs()
    for _ in range(40):
        beliefs.restart_ended("good", DIED, True, 3.0, 0.0)
        beliefs.restart_ended("bad", DIED, False, 3.0, 0.0)
    good, bad, new = (beliefs.restart(name, DIED, 0.0).mean for name in ("good", "bad", "new"))
    assert bad < 0.1
    assert 0.45 < new < 0.55
    assert good > 0.9
    # What is known of one kind is half known of another.
    hung = beliefs.restart("bad", FailureKind.HUNG, 0.0)
    assert bad < hung.mean < 0.2
    assert (hung.seen, beliefs.restart("bad", DIED, 0.0).seen) == (20.0, 40.0)


def test_old_news_fades_to_the_prior() -> None:
    beliefs = Beliefs()
    for _ in range(30):
        beliefs.restart_ended("a", DIED, False, 3.0, 0.0)
    means = [beliefs.restart("a", DIED, hours * 3600.0).mean for hours in (0, 6, 24, 1000)]
    assert means == sorted(means)
    assert means[-1] == pytest.approx(0.8, abs=1e-6)
    assert beliefs.restart("a", DIED, HALF_LIFE_S).seen == pytest.approx(15)


def test_a_return_is_one_in_the_seconds_waited() -> None:
    beliefs = Beliefs()
    for _ in range(2_000):
        beliefs.came_back("a", UNREACHABLE, 10.0, 18.0, True, 0.0)
    back = beliefs.back("a", UNREACHABLE, 0.0)
    # 5 s in vain in 10–15, then back in the third second of 15–20.
    assert back[range_of_second(12)].mean == pytest.approx(0.0, abs=0.001)
    assert back[range_of_second(17)].mean == pytest.approx(1 / 4, abs=0.01)
    assert back[range_of_second(40)].mean == pytest.approx(0.02)
    assert beliefs.with_work("a", UNREACHABLE, 0.0)[range_of_second(17)].mean > 0.99


@given(st.floats(0, 400), st.floats(0, 400))
def test_seconds_of_waiting_are_counted_once_each(one: float, other: float) -> None:
    found, until = sorted((one, other))
    beliefs = Beliefs()
    beliefs.stayed_away("a", UNREACHABLE, found, until, 0.0)
    counted = sum(beta.seen for beta in beliefs.back("a", UNREACHABLE, 0.0))
    assert counted == pytest.approx(until - found, abs=1e-6)


def test_restart_seconds_are_chances_and_follow_what_was_seen() -> None:
    beliefs = Beliefs()
    for deadline in (1, 3, 30, 120):
        assert sum(beliefs.restart_seconds(DIED, deadline, 0.0)) == pytest.approx(1.0)
    for _ in range(100):
        beliefs.restart_ended("a", DIED, True, 6.5, 0.0)
    shares = beliefs.restart_seconds(DIED, 30, 0.0)
    # Seconds seven and eight.
    assert shares[6] + shares[7] > 0.9


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans(), st.floats(0, 1e5)), max_size=20))
def test_what_is_kept_is_what_was_known(outcomes: list[tuple[str, bool, float]]) -> None:
    beliefs = Beliefs()
    for agent, worked, at_s in outcomes:
        beliefs.restart_ended(agent, DIED, worked, 2.0, at_s)
        beliefs.came_back(agent, UNREACHABLE, 10.0, 10.0 + at_s / 100, worked, at_s)
    again = Beliefs.from_plain(json.loads(json.dumps(beliefs.to_plain())))
    for agent in "abcd":
        assert again.restart(agent, DIED, 2e5) == beliefs.restart(agent, DIED, 2e5)
        assert again.back(agent, UNREACHABLE, 2e5) == beliefs.back(agent, UNREACHABLE, 2e5)
    assert again.restart_seconds(DIED, 30, 2e5) == beliefs.restart_seconds(DIED, 30, 2e5)


def test_the_agent_not_heard_of_for_longest_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posterior_module, "MAX_AGENTS", 2)
    beliefs = Beliefs()
    for agent in ("a", "b", "a", "c"):
        beliefs.restart_ended(agent, DIED, False, 1.0, 0.0)
    assert [beliefs.restart(name, DIED, 0.0).seen for name in "abc"] == [2, 0, 1]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0, "3", None, True])
def test_no_bad_number_is_learnt(bad: object) -> None:
    beliefs = Beliefs()
    with pytest.raises(InvalidInput, match=r"took_s: .* a number from 0 to 86400 is needed"):
        beliefs.restart_ended("a", DIED, True, bad, 0.0)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="until_s"):
        beliefs.stayed_away("a", DIED, 5.0, bad, 0.0)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match=r"beliefs\.a\.died restart"):
        Beliefs.from_plain({"a": {"died restart": [1.0, bad, 0.0]}})
    with pytest.raises(InvalidInput, match=r"prior\.restart"):
        Prior(restart=bad if bad is not True else 2.0)  # type: ignore[arg-type]
    assert beliefs.to_plain() == {"": {}}


def test_back_in_time_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"until_s: 4\.0 is not accepted"):
        Beliefs().stayed_away("a", DIED, 5.0, 4.0, 0.0)


def test_ranges_hold_every_second() -> None:
    assert [range_of_second(s) for s in (0, 4.9, 5, 119, 120, 1e6)] == [0, 0, 1, 8, 9, 9]
    assert sorted(RANGES_S) == list(RANGES_S)


# ---------------------------------------------------------------------- back-off, budget, ledger


@given(st.integers(0, 10_000), st.floats(0, 1, exclude_max=True))
def test_a_pause_lies_between_nothing_and_its_longest(tried: int, chance: float) -> None:
    defaults = RecoverySettings()
    longest = longest_pause_s(tried, defaults)
    assert 0 <= pause_s(tried, chance, defaults) <= longest <= defaults.pause_cap_s
    assert longest <= longest_pause_s(tried + 1, defaults)


def test_pauses_double_to_their_cap() -> None:
    defaults = RecoverySettings()
    longest = [longest_pause_s(tried, defaults) for tried in range(8)]
    assert longest == [0, 1, 2, 4, 8, 16, 30, 30]


def test_a_budget_is_spent_and_comes_back_after_an_hour() -> None:
    budget = RestartBudget(2)
    assert [budget.spend(now) for now in (0.0, 10.0, 20.0)] == [True, True, False]
    assert budget.left(HOUR_S - 1) == 0
    assert budget.left(HOUR_S) == 1
    again = RestartBudget.from_plain(budget.to_plain(), 2)
    assert again.left(20.0) == 0
    assert again.left(HOUR_S + 10.0) == 2
    assert not RestartBudget(0).spend(0.0)


slots_of = st.dictionaries(st.sampled_from("abcde"), st.integers(0, 20))


@given(slots_of, st.integers(0, 60))
def test_no_slot_is_promised_twice(wanted: dict[str, int], free: int) -> None:
    ledger = SpareLedger()
    for agent, slots in wanted.items():
        ledger.promise(agent, min(slots, ledger.left(free, agent)))
    assert sum(ledger.promised().values()) <= free
    for agent in wanted:
        others = sum(s for name, s in ledger.promised().items() if name != agent)
        assert ledger.left(free, agent) == free - others
        ledger.settle(agent)
    assert ledger.left(free, "z") == free


def test_a_promise_replaces_the_one_before() -> None:
    ledger = SpareLedger()
    ledger.promise("a", 5)
    ledger.promise("a", 2)
    assert ledger.left(10, "b") == 8
    with pytest.raises(InvalidInput, match="slots: -1"):
        ledger.promise("a", -1)
