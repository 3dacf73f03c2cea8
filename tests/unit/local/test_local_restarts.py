"""What follows a death."""

from __future__ import annotations

import pytest

from muster.local.restarts import (
    EXIT_CONFIGURATION,
    MAX_DEATHS_AT_START,
    GiveUp,
    LetGo,
    Restart,
    after_death,
)


def decide(
    code: int, deaths: int = 1, may_leave: bool = False, started: bool = True, jitter: float = 0.5
) -> Restart | GiveUp | LetGo:
    return after_death(code, deaths=deaths, may_leave=may_leave, started=started, jitter=jitter)


@pytest.mark.parametrize("code", [1, 0, -9, 139])
@pytest.mark.parametrize("started", [True, False])
def test_the_first_death_is_mended_at_once(code: int, started: bool) -> None:
    assert decide(code, started=started) == Restart(0.0)


def test_delays_grow_with_full_jitter_up_to_a_bound() -> None:
    delays = [decide(1, deaths=deaths, jitter=1.0) for deaths in range(2, 9)]
    assert delays == [Restart(s) for s in (0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0)]
    assert decide(1, deaths=8, jitter=0.0) == Restart(0.0)
    assert decide(1, deaths=10_000, jitter=1.0) == Restart(10.0)


def test_a_wrong_configuration_is_not_tried_again() -> None:
    assert decide(EXIT_CONFIGURATION, started=False) == GiveUp()
    assert decide(EXIT_CONFIGURATION, started=True) == LetGo()


def test_one_that_dies_again_and_again_ends_the_start_only() -> None:
    assert isinstance(decide(1, deaths=MAX_DEATHS_AT_START - 1, started=False), Restart)
    assert decide(1, deaths=MAX_DEATHS_AT_START, started=False) == GiveUp()
    assert isinstance(decide(1, deaths=MAX_DEATHS_AT_START, started=True), Restart)


def test_an_agent_may_leave_a_running_cluster() -> None:
    assert decide(0, may_leave=True) == LetGo()
    assert isinstance(decide(0, may_leave=False), Restart)
    assert isinstance(decide(0, may_leave=True, started=False), Restart)
    assert isinstance(decide(-9, may_leave=True), Restart)
