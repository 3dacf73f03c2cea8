"""Who may write to a Redis that was set back."""

from __future__ import annotations

import pytest

from muster.domain.errors import StaleTerm, StoreRolledBack
from muster_storage.continuity import Continuity


def _led() -> Continuity:
    made = Continuity()
    made.connected(0, "")
    made.led(3, 5_000)
    made.connected(5_000, "a")
    made.check(3)
    made.check(0)
    return made


@pytest.mark.parametrize(("clock_ms", "store"), [(4_999, "a"), (9_000, "b"), (0, "")])
def test_nobody_writes_to_a_store_that_went_back_until_a_leader_goes_by_it(
    clock_ms: int, store: str
) -> None:
    found = _led()
    found.connected(clock_ms, store)
    with pytest.raises(StoreRolledBack):
        found.check(0)
    with pytest.raises(StaleTerm):
        found.check(3)
    # The old leader learns from this answer; it does not go by the store.
    found.led(3, clock_ms)
    with pytest.raises(StoreRolledBack):
        found.check(0)
    # The next one has judged it.
    found.check(5)
    found.led(5, clock_ms + 400)
    found.check(0)
    found.check(5)
    found.connected(clock_ms + 400, store)
    found.check(0)
    found.connected(clock_ms + 399, store)
    with pytest.raises(StoreRolledBack):
        found.check(0)


def test_the_right_store_that_is_put_back_is_written_to_at_once() -> None:
    found = _led()
    found.connected(100, "a")
    found.heard(10_000_000)
    found.connected(5_000, "a")
    found.check(0)
    found.check(3)


def test_what_answers_told_counts_as_seen() -> None:
    found = _led()
    found.heard(7_000)
    found.connected(6_999, "a")
    with pytest.raises(StoreRolledBack):
        found.check(0)
