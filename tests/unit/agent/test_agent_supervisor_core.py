"""When a supervisor ends its runtime, starts it again, and what the leader hears of a death."""

from __future__ import annotations

import signal

import pytest

from muster.agent.events import AttemptKey
from muster.agent.slot_table import StartedAttempt, TableView
from muster.agent.supervisor_core import (
    EXIT_CONFIGURATION,
    MAX_DEATHS,
    SOUND_AFTER_MS,
    Death,
    Deaths,
    Next,
    SupervisorCore,
)
from muster.domain.ids import DEFAULT_TENANT, TaskId

ATTEMPT = StartedAttempt(AttemptKey(TaskId("a"), 1), DEFAULT_TENANT)


def view(stop_deadline_ms: int = 0) -> TableView:
    return TableView(7, 3, 5, stop_deadline_ms, "", (ATTEMPT,))


def death(incarnation: int) -> Death:
    return Death(incarnation, (), True, "why")


def test_a_runtime_is_killed_once_its_stop_tasks_should_be_dead() -> None:
    core = SupervisorCore()
    assert core.look(view(), 99) == ""
    assert core.look(view(100), 100) == ""
    assert "stop" in core.look(view(100), 101)


def test_only_the_incarnation_that_was_named_is_restarted() -> None:
    core = SupervisorCore()
    core.look(view(), 0)
    assert core.restart_asked(2, "old") == ""
    assert core.restart_asked(3, "asked")
    assert core.restart_asked(0, "asked")


@pytest.mark.parametrize(
    ("code", "stopping", "expected"),
    [
        (0, False, Next.LEAVE),
        (EXIT_CONFIGURATION, False, Next.LEAVE),
        (-signal.SIGTERM, True, Next.LEAVE),
        (-signal.SIGTERM, False, Next.START),
        (-signal.SIGKILL, True, Next.LAST_WORDS),
        (1, False, Next.START),
    ],
)
def test_what_follows_a_runtimes_end(code: int, stopping: bool, expected: Next) -> None:
    core = SupervisorCore()
    core.stopping = stopping
    assert core.ended(code) is expected


def test_a_death_names_what_had_started_unless_it_was_ordered() -> None:
    core = SupervisorCore()
    core.began(0)
    assert core.death(-9, view()) == Death(3, (ATTEMPT,), True, "the runtime ended with signal 9")
    assert core.death(1, None) == Death(0, (), False, "the runtime ended with exit code 1")
    core.killed("asked", blameless=True)
    assert core.death(-9, view()) == Death(3, (), True, "asked")
    core.began(1)
    assert core.death(-9, view()).started == (ATTEMPT,)


def test_pauses_grow_until_a_runtime_has_lived_long() -> None:
    core = SupervisorCore()
    core.began(0)
    assert [core.pause_ms(1, 0.5) for _ in range(4)] == [0, 250, 500, 1_000]
    assert [core.pause_ms(1, 0.999) for _ in range(6)][-1] < 30_000
    assert core.pause_ms(SOUND_AFTER_MS, 0.5) == 0


def test_a_death_is_said_once_on_each_stream_until_it_is_confirmed() -> None:
    deaths = Deaths()
    deaths.add(death(1))
    deaths.add(death(2))
    assert deaths.say_next(5) == death(1)
    assert deaths.unsaid
    assert deaths.say_next(6) == death(2)
    assert deaths.say_next(7) is None
    deaths.confirm(5)
    assert len(deaths) == 1
    deaths.unsay()
    deaths.confirm(9)
    assert len(deaths) == 1, "said on a stream that is gone"
    assert deaths.say_next(10) == death(2)
    deaths.confirm(10)
    assert not len(deaths)


def test_deaths_are_bounded() -> None:
    deaths = Deaths()
    for number in range(MAX_DEATHS + 3):
        deaths.add(death(number))
    assert len(deaths) == MAX_DEATHS
    assert deaths.say_next(1) == death(3)
