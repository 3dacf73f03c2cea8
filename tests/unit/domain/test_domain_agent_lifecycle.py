"""Every (state, event) pair of an agent's life, and every (state, wish) pair."""

import itertools

import pytest

from muster.domain.agent_lifecycle import (
    EVENT_MEANINGS,
    FIRST_STATE,
    PLACEABLE,
    TRANSITIONS,
    AgentEvent,
    AgentState,
    AgentWish,
    advance,
    may_receive_work,
    shown_state,
)
from muster.domain.errors import IllegalTransition

# event: (states it is allowed in, state it leads to)
EXPECTED = {
    "JOINED": ("JOINING", "READY"),
    "SUSPECTED": ("READY PAROLE", "SUSPECT"),
    "CLEARED": ("SUSPECT", "READY"),
    "DIED": ("JOINING READY SUSPECT RESTARTING DRAINING QUARANTINED PAROLE", "DOWN"),
    "RESTART": ("READY SUSPECT DOWN QUARANTINED PAROLE", "RESTARTING"),
    "REJOINED": ("READY SUSPECT DOWN RESTARTING DRAINING LEFT QUARANTINED PAROLE", "JOINING"),
    "DRAIN": ("JOINING READY SUSPECT QUARANTINED PAROLE", "DRAINING"),
    "UNDRAIN": ("DRAINING", "READY"),
    "LEAVE": ("JOINING READY SUSPECT DRAINING QUARANTINED PAROLE", "LEFT"),
    "QUARANTINE": ("READY SUSPECT", "QUARANTINED"),
    "PAROLE": ("QUARANTINED", "PAROLE"),
    "ABSOLVE": ("PAROLE", "READY"),
    "RELAPSE": ("PAROLE", "QUARANTINED"),
}
STATES = ["JOINING", "READY", "SUSPECT", "DOWN", "RESTARTING", "DRAINING", "LEFT"]
STATES += ["QUARANTINED", "PAROLE"]

# state: (shown with CORDON, shown with DRAIN); without a wish the state itself is shown
SHOWN = {
    "JOINING": ("CORDONED", "DRAINING"),
    "READY": ("CORDONED", "DRAINING"),
    "SUSPECT": ("CORDONED", "DRAINING"),
    "DOWN": ("DOWN", "DOWN"),
    "RESTARTING": ("RESTARTING", "RESTARTING"),
    "DRAINING": ("DRAINING", "DRAINING"),
    "LEFT": ("LEFT", "LEFT"),
    "QUARANTINED": ("QUARANTINED", "DRAINING"),
    "PAROLE": ("CORDONED", "DRAINING"),
}


def test_states_and_events_are_those_of_the_design() -> None:
    assert [state.value for state in AgentState] == STATES
    assert [event.value for event in AgentEvent] == list(EXPECTED)
    assert [wish.value for wish in AgentWish] == ["NONE", "CORDON", "DRAIN"]
    assert set(EVENT_MEANINGS) == set(AgentEvent)


@pytest.mark.parametrize(("state", "event"), list(itertools.product(AgentState, AgentEvent)))
def test_every_pair(state: AgentState, event: AgentEvent) -> None:
    befores, after = EXPECTED[event.value]
    if state.value in befores.split():
        assert advance(state, event) is AgentState(after)
        return
    with pytest.raises(IllegalTransition) as caught:
        advance(state, event, ident="agent-3", history=("JOINING", "READY"))
    error = caught.value
    assert (error.kind, error.ident) == ("agent", "agent-3")
    assert (error.state, error.event) == (state.value, event.value)
    assert error.history == ("JOINING", "READY")


def test_the_table_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        TRANSITIONS[(AgentState.LEFT, AgentEvent.JOINED)] = AgentState.READY  # type: ignore[index]


def reachable_from(start: AgentState) -> set[AgentState]:
    seen, waiting = {start}, [start]
    while waiting:
        state = waiting.pop()
        after = {to for (before, _), to in TRANSITIONS.items() if before is state} - seen
        seen |= after
        waiting += after
    return seen


@pytest.mark.parametrize("state", list(AgentState))
def test_every_state_leads_to_every_other(state: AgentState) -> None:
    assert FIRST_STATE is AgentState.JOINING
    assert reachable_from(state) == set(AgentState)


@pytest.mark.parametrize(("state", "wish"), list(itertools.product(AgentState, AgentWish)))
def test_work_goes_only_to_healthy_agents_without_a_wish(
    state: AgentState, wish: AgentWish
) -> None:
    expected = state.value in ("READY", "PAROLE") and wish.value == "NONE"
    assert may_receive_work(state, wish) is expected
    assert {"READY", "PAROLE"} == PLACEABLE


@pytest.mark.parametrize("state", list(AgentState))
def test_shown_state(state: AgentState) -> None:
    with_cordon, with_drain = SHOWN[state.value]
    assert shown_state(state, AgentWish.NONE) == state.value
    assert shown_state(state, AgentWish.CORDON) == with_cordon
    assert shown_state(state, AgentWish.DRAIN) == with_drain
