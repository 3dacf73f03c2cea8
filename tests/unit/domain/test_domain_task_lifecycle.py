"""Every (state, event) pair of a task's life, against an expectation written out here."""

import itertools

import pytest

from muster.domain.errors import IllegalTransition
from muster.domain.task_lifecycle import (
    ENDED_STATES,
    EVENT_MEANINGS,
    FIRST_STATE,
    HELD_STATES,
    OPEN_STATES,
    TRANSITIONS,
    TaskEvent,
    TaskState,
    advance,
    is_ended,
)

# event: (states it is allowed in, state it leads to)
EXPECTED = {
    "ASSIGN": ("PENDING", "ASSIGNED"),
    "START": ("ASSIGNED", "RUNNING"),
    "SUCCEED": ("ASSIGNED RUNNING", "SUCCEEDED"),
    "FAIL": ("ASSIGNED RUNNING", "FAILED"),
    "RETRY": ("ASSIGNED RUNNING", "PENDING"),
    "REQUEUE": ("ASSIGNED RUNNING", "PENDING"),
    "CANCEL": ("PENDING ASSIGNED RUNNING", "CANCELLED"),
    "TIME_OUT": ("PENDING ASSIGNED RUNNING", "TIMED_OUT"),
    "BURY": ("ASSIGNED RUNNING", "DEAD"),
}
STATES = ["PENDING", "ASSIGNED", "RUNNING"]
STATES += ["SUCCEEDED", "FAILED", "CANCELLED", "TIMED_OUT", "DEAD"]


def test_states_and_events_are_those_of_the_design() -> None:
    assert [state.value for state in TaskState] == STATES
    assert [event.value for event in TaskEvent] == list(EXPECTED)
    assert set(EVENT_MEANINGS) == set(TaskEvent)


@pytest.mark.parametrize(("state", "event"), list(itertools.product(TaskState, TaskEvent)))
def test_every_pair(state: TaskState, event: TaskEvent) -> None:
    befores, after = EXPECTED[event.value]
    if state.value in befores.split():
        assert advance(state, event) is TaskState(after)
        return
    with pytest.raises(IllegalTransition) as caught:
        advance(state, event, ident="t-17", history=("PENDING", "ASSIGNED"))
    error = caught.value
    assert (error.kind, error.ident) == ("task", "t-17")
    assert (error.state, error.event) == (state.value, event.value)
    assert error.history == ("PENDING", "ASSIGNED")


def test_the_table_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        TRANSITIONS[(TaskState.DEAD, TaskEvent.ASSIGN)] = TaskState.ASSIGNED  # type: ignore[index]


def test_groups_of_states() -> None:
    assert {"PENDING", "ASSIGNED", "RUNNING"} == OPEN_STATES
    assert {"ASSIGNED", "RUNNING"} == HELD_STATES
    assert {"SUCCEEDED", "FAILED", "CANCELLED", "TIMED_OUT", "DEAD"} == ENDED_STATES
    assert [is_ended(TaskState(s)) for s in STATES] == [False] * 3 + [True] * 5


def reachable_from(start: TaskState) -> set[TaskState]:
    seen, waiting = {start}, [start]
    while waiting:
        state = waiting.pop()
        after = {to for (before, _), to in TRANSITIONS.items() if before is state} - seen
        seen |= after
        waiting += after
    return seen


def test_every_state_is_reachable_from_the_first() -> None:
    assert FIRST_STATE is TaskState.PENDING
    assert reachable_from(FIRST_STATE) == set(TaskState)


@pytest.mark.parametrize("state", sorted(OPEN_STATES))
def test_every_open_state_can_end_in_every_way(state: TaskState) -> None:
    assert reachable_from(state) >= ENDED_STATES


@pytest.mark.parametrize("state", sorted(ENDED_STATES))
def test_an_ended_state_is_final(state: TaskState) -> None:
    assert reachable_from(state) == {state}
