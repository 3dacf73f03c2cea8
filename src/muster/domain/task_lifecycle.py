"""The life of a task as one table; only `advance` yields a task's next state."""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType

from muster.domain.errors import IllegalTransition


class TaskState(StrEnum):
    PENDING = "PENDING"
    ASSIGNED = "ASSIGNED"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    TIMED_OUT = "TIMED_OUT"
    DEAD = "DEAD"


class TaskEvent(StrEnum):
    ASSIGN = "ASSIGN"
    START = "START"
    SUCCEED = "SUCCEED"
    FAIL = "FAIL"
    RETRY = "RETRY"
    REQUEUE = "REQUEUE"
    CANCEL = "CANCEL"
    TIME_OUT = "TIME_OUT"
    BURY = "BURY"


FIRST_STATE = TaskState.PENDING

EVENT_MEANINGS: Mapping[TaskEvent, str] = MappingProxyType(
    {
        TaskEvent.ASSIGN: "The scheduler placed the task on an agent; `attempt` grows by one.",
        TaskEvent.START: "The agent runs the task. A fast task may end without it.",
        TaskEvent.SUCCEED: "The skill returned a result.",
        TaskEvent.FAIL: "The skill failed and no tries are left.",
        TaskEvent.RETRY: "The skill failed and tries are left; `failures` grows by one.",
        TaskEvent.REQUEUE: "The agent was lost, refused or drained; no failure is charged.",
        TaskEvent.CANCEL: "Someone asked for it, and no agent works on it any more.",
        TaskEvent.TIME_OUT: "A deadline passed, and no agent works on it any more.",
        TaskEvent.BURY: "Too many agents died with the task: it is poison.",
    }
)

_P, _A, _R = TaskState.PENDING, TaskState.ASSIGNED, TaskState.RUNNING

# An outcome may follow ASSIGNED directly: START is reported in batches, and a fast task's
# outcome overtakes it.
TRANSITIONS: Mapping[tuple[TaskState, TaskEvent], TaskState] = MappingProxyType(
    {
        (_P, TaskEvent.ASSIGN): _A,
        (_A, TaskEvent.START): _R,
        (_A, TaskEvent.SUCCEED): TaskState.SUCCEEDED,
        (_R, TaskEvent.SUCCEED): TaskState.SUCCEEDED,
        (_A, TaskEvent.FAIL): TaskState.FAILED,
        (_R, TaskEvent.FAIL): TaskState.FAILED,
        (_A, TaskEvent.RETRY): _P,
        (_R, TaskEvent.RETRY): _P,
        (_A, TaskEvent.REQUEUE): _P,
        (_R, TaskEvent.REQUEUE): _P,
        (_P, TaskEvent.CANCEL): TaskState.CANCELLED,
        (_A, TaskEvent.CANCEL): TaskState.CANCELLED,
        (_R, TaskEvent.CANCEL): TaskState.CANCELLED,
        (_P, TaskEvent.TIME_OUT): TaskState.TIMED_OUT,
        (_A, TaskEvent.TIME_OUT): TaskState.TIMED_OUT,
        (_R, TaskEvent.TIME_OUT): TaskState.TIMED_OUT,
        (_A, TaskEvent.BURY): TaskState.DEAD,
        (_R, TaskEvent.BURY): TaskState.DEAD,
    }
)

# An agent holds the task and its resources.
HELD_STATES: frozenset[TaskState] = frozenset({TaskState.ASSIGNED, TaskState.RUNNING})
OPEN_STATES: frozenset[TaskState] = HELD_STATES | {TaskState.PENDING}
ENDED_STATES: frozenset[TaskState] = frozenset(TaskState) - OPEN_STATES


def advance(
    state: TaskState, event: TaskEvent, *, ident: str = "", history: tuple[str, ...] = ()
) -> TaskState:
    """Raises IllegalTransition naming task, state, event and `history` (oldest first)."""
    after = TRANSITIONS.get((state, event))
    if after is None:
        raise IllegalTransition("task", ident, state.value, event.value, history)
    return after


def is_ended(state: TaskState) -> bool:
    return state in ENDED_STATES
