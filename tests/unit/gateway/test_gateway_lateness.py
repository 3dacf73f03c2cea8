"""How many submissions a late gateway turns away: properties of the controller."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muster_gateway.lateness import (
    CROWD,
    FEW,
    LATE_S,
    LEAST_LOOKS,
    LEAST_TAKEN,
    LONG_S,
    LONGEST_PAUSE_S,
    WINDOW_S,
    Lateness,
)

EVERY_S = 0.05
MANY = 1_000
# As many as the share alone decides about.
SOME = CROWD - 1

lateness_s = st.floats(0.0, 60.0)
waits_s = st.floats(0.0, 600.0)
looks = st.lists(st.tuples(lateness_s, waits_s), max_size=300)


def seen(lateness: Lateness, looks: list[tuple[float, float]], now_s: float = 100.0) -> float:
    """Looks one after another; gives the time after the last."""
    for late_s, wait_s in looks:
        now_s += EVERY_S + late_s
        lateness.look(now_s, late_s, wait_s)
    return now_s


@given(st.lists(st.tuples(st.floats(0.0, LATE_S), st.floats(0.0, LONG_S)), max_size=300))
def test_below_both_limits_nobody_is_turned_away(calm: list[tuple[float, float]]) -> None:
    lateness = Lateness()
    seen(lateness, calm)
    assert lateness.taken == 1.0
    assert not any(lateness.refuses(MANY) for _ in range(50))


@given(looks, st.integers(0, FEW - 1))
def test_few_are_never_turned_away(trouble: list[tuple[float, float]], under_way: int) -> None:
    lateness = Lateness()
    seen(lateness, trouble)
    assert not any(lateness.refuses(under_way) for _ in range(200))


@given(looks)
def test_some_are_always_taken(trouble: list[tuple[float, float]]) -> None:
    lateness = Lateness()
    seen(lateness, trouble)
    assert LEAST_TAKEN <= lateness.taken <= 1.0
    within = round(1 / LEAST_TAKEN) + 1
    assert not all(lateness.refuses(SOME) for _ in range(within))


@given(looks)
def test_the_share_is_what_is_taken(trouble: list[tuple[float, float]]) -> None:
    lateness = Lateness()
    seen(lateness, trouble)
    taken = sum(not lateness.refuses(SOME) for _ in range(MANY))
    assert taken == pytest.approx(lateness.taken * MANY, abs=1.01)


@given(looks)
def test_it_recovers_fully_when_nothing_is_late_any_more(
    trouble: list[tuple[float, float]],
) -> None:
    lateness = Lateness()
    now_s = seen(lateness, trouble)
    seen(lateness, [(0.0, 0.0)] * round(15.0 / EVERY_S), now_s)
    assert lateness.taken == 1.0
    assert not lateness.refuses(MANY)


@given(st.lists(st.tuples(lateness_s, waits_s, lateness_s, waits_s), max_size=300))
def test_whoever_is_later_takes_no_more(trouble: list[tuple[float, float, float, float]]) -> None:
    """Two that look at the same moments, one of them never less late."""
    one, other = Lateness(), Lateness()
    now_s = 100.0
    for late_s, wait_s, more_s, longer_s in trouble:
        now_s += 1.0
        one.look(now_s, late_s, wait_s)
        other.look(now_s, late_s + more_s, wait_s + longer_s)
        assert other.taken <= one.taken


@given(late_s=st.floats(0.0, 600.0), wait_s=waits_s, count=st.integers(0, LEAST_LOOKS - 1))
def test_one_stall_turns_only_a_crowd_away(late_s: float, wait_s: float, count: int) -> None:
    lateness = Lateness()
    now_s = seen(lateness, [(late_s, wait_s)] * count)
    assert lateness.taken == 1.0
    assert not any(lateness.refuses(SOME) for _ in range(50))
    seen(lateness, [(0.0, 0.0)], now_s)
    assert lateness.taken == 1.0
    assert not any(lateness.refuses(MANY) for _ in range(50))


@pytest.mark.parametrize("look", [(2 * LATE_S, 0.0), (0.0, 2 * LONG_S)])
def test_a_crowd_is_turned_away_from_the_first_late_look_to_the_next(
    look: tuple[float, float],
) -> None:
    lateness = Lateness()
    now_s = seen(lateness, [look])
    assert all(lateness.refuses(CROWD) for _ in range(50))
    assert not any(lateness.refuses(CROWD - 1) for _ in range(50))
    seen(lateness, [(0.0, 0.0)], now_s)
    assert not any(lateness.refuses(CROWD) for _ in range(50))


@pytest.mark.parametrize("look", [(2 * LATE_S, 0.0), (0.0, 2 * LONG_S)])
def test_either_queue_that_stands_takes_the_share_down_to_the_least(
    look: tuple[float, float],
) -> None:
    lateness = Lateness()
    now_s, shares = 100.0, []
    for _ in range(400):
        now_s = seen(lateness, [look], now_s)
        shares.append(lateness.taken)
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] == LEAST_TAKEN
    in_a_window = round(WINDOW_S / EVERY_S)
    assert shares[in_a_window + 1] < 1.0, "it took longer than a window"


@given(looks, st.floats(0.0, 1.0, exclude_max=True))
def test_pauses_are_bounded(trouble: list[tuple[float, float]], spread: float) -> None:
    lateness = Lateness()
    seen(lateness, trouble)
    assert 0.5 <= lateness.pause_s(spread) <= 1.25 * LONGEST_PAUSE_S


def test_the_more_are_turned_away_the_longer_they_stay_away() -> None:
    pauses = []
    for each in range(1, 13):
        lateness = Lateness()
        seen(lateness, [(2 * LATE_S, 0.0)])
        for _ in range(20):
            lateness.refuses(0)
            for _ in range(each):
                assert lateness.refuses(CROWD)
        pauses.append(lateness.pause_s(0.5))
    assert pauses == sorted(pauses)
    assert pauses[0] < 5.0 < pauses[8] < pauses[-1] == LONGEST_PAUSE_S


def test_what_was_turned_away_is_forgotten() -> None:
    lateness = Lateness()
    now_s = seen(lateness, [(2 * LATE_S, 0.0)])
    for _ in range(MANY):
        lateness.refuses(CROWD)
    assert lateness.pause_s(0.5) == LONGEST_PAUSE_S
    seen(lateness, [(0.0, 0.0)] * round(10.0 / EVERY_S), now_s)
    assert lateness.pause_s(0.5) < 1.1
