"""What is made of a store by how far it had come."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from muster_scheduler.core.generation import (
    WEAK_LOSS_MS,
    Found,
    Lost,
    Marker,
    RolledBack,
    Sound,
    judge,
)

CLOCKS = st.integers(0, 10**12)


@given(CLOCKS, st.booleans())
def test_what_was_never_written_down_was_never_lost(clock_ms: int, weak: bool) -> None:
    """A new etcd, with a new or an old Redis."""
    assert judge(None, Found(clock_ms, "a", weak)) == Sound()


@given(CLOCKS, CLOCKS)
def test_a_store_that_keeps_what_it_answers_is_never_behind(marked: int, found: int) -> None:
    verdict = judge(Marker(marked, 1, "a"), Found(found, "a"))
    assert isinstance(verdict, RolledBack if found < marked else Sound)


@given(CLOCKS, CLOCKS, st.booleans())
def test_another_store_is_never_taken_for_the_old_one(marked: int, found: int, weak: bool) -> None:
    """However far on it is."""
    assert isinstance(judge(Marker(marked, 1, "a"), Found(found, "b", weak)), RolledBack)


@given(CLOCKS, CLOCKS)
def test_a_store_without_a_name_is_judged_by_its_clock(marked: int, found: int) -> None:
    """One that a storage service of an older version speaks for."""
    verdict = judge(Marker(marked, 1, "a"), Found(found))
    assert isinstance(verdict, RolledBack if found < marked else Sound)


def test_a_weak_store_may_lose_its_last_seconds_and_says_so() -> None:
    marker = Marker(100_000, 1, "a", "run1")
    small = judge(marker, Found(100_000 - WEAK_LOSS_MS, "a", True, "run2"))
    assert isinstance(small, Lost)
    assert small.ms == WEAK_LOSS_MS
    more = judge(marker, Found(100_000 - WEAK_LOSS_MS - 1, "a", True, "run2"))
    assert isinstance(more, RolledBack)
    # Nothing to be seen, and something may be missing all the same.
    unseen = judge(marker, Found(100_000, "a", True, "run2"))
    assert isinstance(unseen, Lost)
    assert unseen.ms == 0
    assert judge(marker, Found(100_500, "a", True, "run1")) == Sound()


def test_the_later_of_two_markers_counts_and_stores_do_not_compare() -> None:
    one, two = Marker(10, 1, "a"), Marker(20, 1, "a")
    assert one.or_later(two) == two.or_later(one) == two
    assert one.or_later(Marker(99, 1, "b")) == one
    assert one.or_later(None) == one
