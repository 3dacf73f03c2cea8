"""What is true of a leader's books: looked at after each step where something has changed, and
as a whole now and then."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from numpy.random import Generator
from tests.scenarios.sim_books import label
from tests.scenarios.sim_kernel import SimulationError

from muster.domain.agent_lifecycle import TRANSITIONS, AgentState, AgentWish, may_receive_work
from muster.domain.ids import AgentId, TaskId
from muster.domain.resources import ResourceVector
from muster.domain.task import POISON_DEATHS, TaskStatus
from muster.domain.task_lifecycle import ENDED_STATES, HELD_STATES, TaskState
from muster_scheduler.core.deadlines import Moment
from muster_scheduler.core.records import NOBODY, AgentEntry, Effect, OpenTask
from muster_scheduler.core.state import ClusterState
from muster_scheduler.placement.devices import NO_DEVICES, Devices
from muster_scheduler.placement.plan import Policy
from muster_scheduler.placement.snapshot import FIRST_COLUMNS

# Besides what is open: see Deadlines.
MAX_DEADLINES = 1_000
DEADLINES_PER_TASK = 8
# A task that agents died with waits for so long for one of its own.
ALONE_MS = 60_000
_STEPS = frozenset((before, after) for (before, _), after in TRANSITIONS.items())


class WatchedState(ClusterState):
    """The production state; notes what was touched since it was last looked at."""

    def __init__(self, policy: Policy, rng: Generator, jitter: Callable[[], float]) -> None:
        super().__init__(policy, rng, jitter)
        self.touched: dict[TaskId, OpenTask] = {}
        self.touched_agents: dict[AgentId, None] = {}
        self.placed: list[OpenTask] | None = None
        # Called before a task changes, with its next status and what follows.
        self.on_decide: Callable[[OpenTask, TaskStatus, tuple[Effect, ...]], None] | None = None

    def enqueue(self, task: OpenTask) -> None:
        self.touched[task.id] = task
        super().enqueue(task)

    def charge(self, task: OpenTask, agent: AgentEntry, devices: Devices = NO_DEVICES) -> None:
        self.touched[task.id] = task
        self.touched_agents[agent.id] = None
        if self.placed is not None:
            self.placed.append(task)
        super().charge(task, agent, devices)

    def release(self, task: OpenTask) -> None:
        self.touched[task.id] = task
        self.touched_agents[task.status.agent] = None
        super().release(task)

    def set_waiting(self, task: OpenTask, waiting: bool) -> None:
        self.touched_agents[task.status.agent] = None
        super().set_waiting(task, waiting)

    def decide(self, task: OpenTask, status: TaskStatus, *effects: Effect) -> None:
        self.touched[task.id] = task
        if self.on_decide is not None and task.status.state is not status.state:
            self.on_decide(task, status, effects)
        super().decide(task, status, *effects)

    def forget(self, task: OpenTask) -> None:
        self.touched[task.id] = task
        super().forget(task)

    def enter(self, agent: AgentEntry, *args: Any) -> None:
        before = agent.state
        super().enter(agent, *args)
        if (before, agent.state) not in _STEPS:
            raise SimulationError(f"invariant 2: {agent.id} goes from {before} to {agent.state}")
        if agent.state is AgentState.QUARANTINED and before is not AgentState.PAROLE:
            self._check_quarantine()

    def _check_quarantine(self) -> None:
        """Never more than a share of the agents."""
        states = [agent.state for agent in self.agents.values()]
        apart = sum(one in (AgentState.QUARANTINED, AgentState.PAROLE) for one in states)
        there = sum(one not in (AgentState.DOWN, AgentState.LEFT) for one in states)
        if there < 2 or apart > max(1, int(self.quarantines.share * there)):
            raise SimulationError(f"{apart} of {there} agents are set apart")


def check_touched(state: WatchedState) -> None:
    """After a step of the leader: what it has touched is whole."""
    if state.touched:
        touched, state.touched = state.touched, {}
        pausing = None
        for task in touched.values():
            if state.tasks.get(task.id) is not task:
                _check_gone(state, task)
                continue
            if task.status.state is TaskState.PENDING and not task.queued and pausing is None:
                # What was held for an agent may be placed before its pause is over: that moment
                # of an earlier attempt means nothing any more.
                pausing = {
                    e[3].id
                    for e in state.deadlines._heap
                    if e[2] is Moment.RETRY
                    and e[4] == e[3].status.attempt
                    and state.tasks.get(e[3].id) is e[3]
                }
            _check_place(state, task, pausing or set())
    if state.touched_agents:
        touched_agents, state.touched_agents = state.touched_agents, {}
        for ident in touched_agents:
            agent = state.agents.get(ident)
            if agent is not None:
                _check_agent(state, agent)


def check_drained(state: WatchedState, tasks: list[OpenTask]) -> None:
    """After its commands were taken: what was decided of these tasks is being written."""
    for task in tasks:
        status = task.status
        settled = (status.state, status.attempt) == task.stored
        waits = task.write is not None or task.id in state.dirty
        if state.tasks.get(task.id) is task and not (settled or waits):
            raise SimulationError(f"{task!r} is stored as {task.stored}, nobody writes it")


def check_all(state: WatchedState) -> None:
    """Everything, touched or not."""
    state.touched.update(state.tasks)
    state.touched_agents.update(dict.fromkeys(state.agents))
    check_touched(state)
    queued = sum(1 for task in state.tasks.values() if task.queued)
    if queued != len(state.queue):
        raise SimulationError(f"{len(state.queue)} tasks are counted in the queue, not {queued}")
    for line in state.queue.lines():
        for task in line:
            own = (task.spec.tenant, task.spec.priority, task.class_id)
            if line.key != own or state.tasks.get(task.id) is not task:
                raise SimulationError(f"{task!r} of line {own} stands in line {line.key}")
    held: dict[str, int] = {}
    for agent in state.agents.values():
        for task in agent.tasks.values():
            held[task.spec.tenant] = held.get(task.spec.tenant, 0) + 1
    if held != state.held:
        raise SimulationError(f"held by tenants: {dict(state.held)}, counted {held}")
    for ident in (*state.dirty, *state.to_start):
        if ident not in state.tasks:
            raise SimulationError(f"{label(ident, 0)} is not open and has something to be written")
    most = MAX_DEADLINES + DEADLINES_PER_TASK * len(state.tasks)
    if len(state.deadlines) > most + len(state.tasks):
        raise SimulationError(f"invariant 14: {len(state.deadlines)} deadlines are kept")


def _check_gone(state: WatchedState, task: OpenTask) -> None:
    agent = state.agents.get(task.status.agent)
    if task.queued or task.row >= 0 or (agent is not None and agent.tasks.get(task.id) is task):
        raise SimulationError(f"{task!r} is forgotten and still queued or charged")


def _check_place(state: WatchedState, task: OpenTask, pausing: set[TaskId]) -> None:
    status = task.status
    pending, ended = status.state is TaskState.PENDING, status.state in ENDED_STATES
    agent = state.agents.get(status.agent)
    where = (
        task.queued,
        pending and not task.queued and task.id in pausing,
        agent is not None and agent.tasks.get(task.id) is task,
        ended and (task.write is not None or task.id in state.dirty),
        pending and task.id in state.suspects,
    )
    if sum(where) != 1:
        raise SimulationError(
            f"{task!r} is queued, pausing, held, being recorded, suspect: {where}"
        )
    if task.id in state.dirty and task.write is not None:
        raise SimulationError(f"{task!r} is written twice at once")


def _check_agent(state: WatchedState, agent: AgentEntry) -> None:
    used = [0] * len(FIRST_COLUMNS)
    for task in agent.tasks.values():
        if state.tasks.get(task.id) is not task or task.status.state not in HELD_STATES:
            raise SimulationError(f"{agent!r} holds {task!r}")
        if task.status.incarnation != agent.incarnation:
            raise SimulationError(f"invariant 5: {agent!r} holds {task!r} of another incarnation")
        for column, amount in enumerate(_demand(task.spec.resources, task.waiting)):
            used[column] += amount
    if agent.id in state.table:
        row = state.table.view().used[state.table.row_of(agent.id)].tolist()
        if row != used:
            raise SimulationError(f"{agent!r} is charged {row} of {FIRST_COLUMNS}, not {used}")
    if agent.wish is not state.wishes.get(agent.id, AgentWish.NONE):
        raise SimulationError(f"invariant 11: {agent!r} has another wish than was stored")


@cache
def _demand(resources: ResourceVector, waiting: bool) -> tuple[int, ...]:
    whole = resources.with_slot()
    lent = ("cpu", "slots") if waiting else ()
    return tuple(0 if name in lent else whole.get(name) for name in FIRST_COLUMNS)


def check_placed(state: WatchedState, doubted: dict[AgentId, int], boot_ms: int) -> None:
    """Nothing was placed where there was no room, or where nothing may be placed. What a task
    does not ask for may be overdrawn by a parent that has gone on after it waited."""
    placed, state.placed = state.placed or [], None
    if not placed:
        return
    free = state.table.view().free
    for task in placed:
        if task.row < 0:
            continue
        agent = state.agents[task.status.agent]
        if agent.kept_for not in (NOBODY, task.id):
            raise SimulationError(f"invariant 9: {task!r} was placed beside a suspect on {agent!r}")
        waited_ms = boot_ms - task.alone_since_boot_ms if task.alone_since_boot_ms else 0
        suspect = task.status.agent_deaths >= POISON_DEATHS - 1
        if suspect and waited_ms < ALONE_MS and list(agent.tasks.values()) != [task]:
            raise SimulationError(f"invariant 9: suspect {task!r} was placed beside others")
        allowed = may_receive_work(agent.state, agent.wish) and agent.session and agent.leased
        if not allowed or agent.draining or doubted.get(agent.id) == agent.incarnation:
            raise SimulationError(f"invariants 10 and 11: {task!r} was placed on {agent!r}")
        probes = agent.state is AgentState.PAROLE and agent.probe == (task.id, task.status.attempt)
        if agent.state is not AgentState.READY and not probes:
            raise SimulationError(f"{task!r} was placed on {agent!r}")
        for column, amount in enumerate(_demand(task.spec.resources, False)):
            if amount and int(free[task.row, column]) < 0:
                raise SimulationError(f"invariant 13: {task!r} was placed where there is no room")
