"""Which event a moment is looked up to."""

from __future__ import annotations

from muster_gateway.positions import MAX_MARKS, Positions


def test_a_moment_is_found_before_it_never_after() -> None:
    positions = Positions()
    assert positions.before(10_000) == ""
    for second in range(1, 11):
        positions.note(second * 1_000, str(second * 10))
        positions.note(second * 1_000 + 1, "too soon after the last mark")
    assert positions.before(8_000) == "70"
    assert positions.before(8_999) == "70"
    assert positions.before(1_000_000) == "100"


def test_the_oldest_mark_stands_for_all_that_is_older() -> None:
    positions = Positions()
    for second in range(MAX_MARKS + 5):
        positions.note(second * 1_000, str(second))
    assert positions.before(0) == "5"


def test_a_clock_that_went_back_does_not_hide_marks() -> None:
    positions = Positions()
    positions.note(100_000, "1")
    positions.note(50_000, "2")
    assert positions.before(60_000) == "2"
