"""Heartbeat intervals, leases and the order of monitors."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muster_registry.assignment import by_preference
from muster_registry.heartbeat_policy import HeartbeatPolicy

POLICY = HeartbeatPolicy()


def test_small_clusters_beat_every_three_seconds_on_leases_of_ten() -> None:
    assert POLICY.interval_ms(0) == POLICY.interval_ms(1500) == 3000
    assert POLICY.lease_ttl_s(1) == 10


def test_large_clusters_beat_less_often() -> None:
    assert POLICY.interval_ms(15_000) == 30_000
    assert POLICY.lease_ttl_s(15_000) == 91


@given(st.integers(0, 1_000_000), st.floats(1, 10_000))
def test_renewals_stay_under_the_rate_and_leases_outlive_three_beats(
    agents: int, rate: float
) -> None:
    policy = HeartbeatPolicy(max_renewals_per_s=rate)
    interval_ms = policy.interval_ms(agents)
    # Intervals are whole milliseconds, rounded down.
    assert agents * 1000 / (interval_ms + 1) <= rate
    assert policy.lease_ttl_s(agents) * 1000 >= 3 * interval_ms + 1000


@given(st.integers(0, 100_000), st.integers(0, 100_000))
def test_an_early_joiner_beats_often_enough_for_its_lease(then: int, now: int) -> None:
    ttl_s = POLICY.lease_ttl_s(then)
    assert POLICY.beat_within_ms(now, ttl_s) * 3 + 1000 <= ttl_s * 1000
    assert POLICY.beat_within_ms(now, ttl_s) <= POLICY.interval_ms(now)


def test_even_a_dying_lease_gives_an_interval() -> None:
    assert POLICY.beat_within_ms(1, 1) == 1


@given(st.integers(0, 100_000), st.floats(0, 1, exclude_max=True))
def test_the_first_beat_comes_before_the_lease_ends(agents: int, chance: float) -> None:
    first = POLICY.first_interval_ms(agents, chance)
    assert POLICY.interval_ms(agents) <= first < POLICY.lease_ttl_s(agents) * 1000


MONITORS = [f"10.0.0.{n}:7105" for n in range(1, 6)]


def test_every_monitor_gets_its_share() -> None:
    first = Counter(by_preference(f"agent-{n}", MONITORS)[0] for n in range(5000))
    assert set(first) == set(MONITORS)
    assert max(first.values()) < 1.15 * min(first.values()) + 50


@pytest.mark.parametrize("gone", MONITORS)
def test_only_the_agents_of_a_lost_monitor_move(gone: str) -> None:
    left = [address for address in MONITORS if address != gone]
    for number in range(300):
        agent = f"agent-{number}"
        before, after = by_preference(agent, MONITORS), by_preference(agent, left)
        assert after == tuple(address for address in before if address != gone)


def test_the_order_does_not_depend_on_the_configuration() -> None:
    assert by_preference("a", MONITORS) == by_preference("a", MONITORS[::-1])
    assert by_preference("a", ()) == ()
