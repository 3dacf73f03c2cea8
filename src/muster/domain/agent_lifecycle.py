"""The life of an agent as one table, and the operator's wish beside it.

Observed health (`AgentState`) and what the operator wants (`AgentWish`) are kept apart, so that
a cordon survives a crash and a recovery does not lift it.
"""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType

from muster.domain.errors import IllegalTransition


class AgentState(StrEnum):
    JOINING = "JOINING"
    READY = "READY"
    SUSPECT = "SUSPECT"
    DOWN = "DOWN"
    RESTARTING = "RESTARTING"
    DRAINING = "DRAINING"
    LEFT = "LEFT"
    QUARANTINED = "QUARANTINED"
    PAROLE = "PAROLE"


class AgentEvent(StrEnum):
    JOINED = "JOINED"
    SUSPECTED = "SUSPECTED"
    CLEARED = "CLEARED"
    DIED = "DIED"
    RESTART = "RESTART"
    REJOINED = "REJOINED"
    DRAIN = "DRAIN"
    UNDRAIN = "UNDRAIN"
    LEAVE = "LEAVE"
    QUARANTINE = "QUARANTINE"
    PAROLE = "PAROLE"
    ABSOLVE = "ABSOLVE"
    RELAPSE = "RELAPSE"


class AgentWish(StrEnum):
    """What the operator wants; it outlives the agent's incarnations."""

    NONE = "NONE"
    CORDON = "CORDON"
    DRAIN = "DRAIN"


FIRST_STATE = AgentState.JOINING

EVENT_MEANINGS: Mapping[AgentEvent, str] = MappingProxyType(
    {
        AgentEvent.JOINED: "The agent is registered and holds a session with the leader.",
        AgentEvent.SUSPECTED: "A lease or heartbeats are missing: no new work, nothing moved.",
        AgentEvent.CLEARED: "The agent was heard again.",
        AgentEvent.DIED: "The agent is given up; its tasks wait for it or go back to the queue.",
        AgentEvent.RESTART: "Its supervisor was told to start the runtime again.",
        AgentEvent.REJOINED: "A new incarnation of the agent registered.",
        AgentEvent.DRAIN: "It takes no new work and ends what it has.",
        AgentEvent.UNDRAIN: "The drain was taken back.",
        AgentEvent.LEAVE: "The agent said goodbye.",
        AgentEvent.QUARANTINE: "Its health score fell under the floor: no new work.",
        AgentEvent.PAROLE: "One probe task may run on it.",
        AgentEvent.ABSOLVE: "The probe task succeeded.",
        AgentEvent.RELAPSE: "The probe task failed.",
    }
)

_JOINING, _READY, _SUSPECT = AgentState.JOINING, AgentState.READY, AgentState.SUSPECT
_DOWN, _RESTARTING, _DRAINING = AgentState.DOWN, AgentState.RESTARTING, AgentState.DRAINING
_LEFT, _QUARANTINED, _PAROLE = AgentState.LEFT, AgentState.QUARANTINED, AgentState.PAROLE

TRANSITIONS: Mapping[tuple[AgentState, AgentEvent], AgentState] = MappingProxyType(
    {
        (_JOINING, AgentEvent.JOINED): _READY,
        (_READY, AgentEvent.SUSPECTED): _SUSPECT,
        (_PAROLE, AgentEvent.SUSPECTED): _SUSPECT,
        (_SUSPECT, AgentEvent.CLEARED): _READY,
        (_JOINING, AgentEvent.DIED): _DOWN,
        (_READY, AgentEvent.DIED): _DOWN,
        (_SUSPECT, AgentEvent.DIED): _DOWN,
        (_RESTARTING, AgentEvent.DIED): _DOWN,
        (_DRAINING, AgentEvent.DIED): _DOWN,
        (_QUARANTINED, AgentEvent.DIED): _DOWN,
        (_PAROLE, AgentEvent.DIED): _DOWN,
        (_READY, AgentEvent.RESTART): _RESTARTING,
        (_SUSPECT, AgentEvent.RESTART): _RESTARTING,
        (_DOWN, AgentEvent.RESTART): _RESTARTING,
        (_QUARANTINED, AgentEvent.RESTART): _RESTARTING,
        (_PAROLE, AgentEvent.RESTART): _RESTARTING,
        (_READY, AgentEvent.REJOINED): _JOINING,
        (_SUSPECT, AgentEvent.REJOINED): _JOINING,
        (_DOWN, AgentEvent.REJOINED): _JOINING,
        (_RESTARTING, AgentEvent.REJOINED): _JOINING,
        (_DRAINING, AgentEvent.REJOINED): _JOINING,
        (_LEFT, AgentEvent.REJOINED): _JOINING,
        (_QUARANTINED, AgentEvent.REJOINED): _JOINING,
        (_PAROLE, AgentEvent.REJOINED): _JOINING,
        (_JOINING, AgentEvent.DRAIN): _DRAINING,
        (_READY, AgentEvent.DRAIN): _DRAINING,
        (_SUSPECT, AgentEvent.DRAIN): _DRAINING,
        (_QUARANTINED, AgentEvent.DRAIN): _DRAINING,
        (_PAROLE, AgentEvent.DRAIN): _DRAINING,
        (_DRAINING, AgentEvent.UNDRAIN): _READY,
        (_JOINING, AgentEvent.LEAVE): _LEFT,
        (_READY, AgentEvent.LEAVE): _LEFT,
        (_SUSPECT, AgentEvent.LEAVE): _LEFT,
        (_DRAINING, AgentEvent.LEAVE): _LEFT,
        (_QUARANTINED, AgentEvent.LEAVE): _LEFT,
        (_PAROLE, AgentEvent.LEAVE): _LEFT,
        (_READY, AgentEvent.QUARANTINE): _QUARANTINED,
        (_SUSPECT, AgentEvent.QUARANTINE): _QUARANTINED,
        (_QUARANTINED, AgentEvent.PAROLE): _PAROLE,
        (_PAROLE, AgentEvent.ABSOLVE): _READY,
        (_PAROLE, AgentEvent.RELAPSE): _QUARANTINED,
    }
)

# Healthy enough for new work; whether the operator allows it is the wish.
PLACEABLE: frozenset[AgentState] = frozenset({AgentState.READY, AgentState.PAROLE})

# A cordon is shown over these; in the others the state itself is the more urgent news.
_SHOWN_AS_CORDONED = frozenset({_JOINING, _READY, _SUSPECT, _PAROLE})

# No runtime is there that could drain.
_WITHOUT_RUNTIME = frozenset({_DOWN, _RESTARTING, _LEFT})


def advance(
    state: AgentState, event: AgentEvent, *, ident: str = "", history: tuple[str, ...] = ()
) -> AgentState:
    """Raises IllegalTransition naming agent, state, event and `history` (oldest first)."""
    after = TRANSITIONS.get((state, event))
    if after is None:
        raise IllegalTransition("agent", ident, state.value, event.value, history)
    return after


def may_receive_work(state: AgentState, wish: AgentWish) -> bool:
    """Whether a new task may be placed; on PAROLE the scheduler limits it to one probe."""
    return state in PLACEABLE and wish is AgentWish.NONE


def shown_state(state: AgentState, wish: AgentWish) -> str:
    """One word for people: the state, or CORDONED or DRAINING where the wish says more."""
    if wish is AgentWish.CORDON and state in _SHOWN_AS_CORDONED:
        return "CORDONED"
    if wish is AgentWish.DRAIN and state not in _WITHOUT_RUNTIME:
        return AgentState.DRAINING.value
    return state.value
