"""Everything that the leader knows, in memory, and the few moves that all decisions share."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING

from numpy.random import Generator

from muster.domain.agent_lifecycle import AgentEvent, AgentState, AgentWish
from muster.domain.agent_lifecycle import advance as advance_agent
from muster.domain.ids import AgentId, TaskId, TenantId
from muster.domain.resources import ResourceKind, ResourceVector, kind_of
from muster.domain.task import SPREAD_OP, TaskSpec, TaskStatus
from muster.domain.task_lifecycle import ENDED_STATES
from muster_scheduler.core.choices import Choices
from muster_scheduler.core.commands import AgentChanged, Commands
from muster_scheduler.core.deadlines import Deadlines
from muster_scheduler.core.health import HealthBook, QuarantineSettings
from muster_scheduler.core.mass_failure import MassFailure
from muster_scheduler.core.mix import ArrivalMix
from muster_scheduler.core.notes import Notes
from muster_scheduler.core.queue import WaitingQueue
from muster_scheduler.core.records import (
    MAX_WHY_CHARS,
    NOBODY,
    SUSPECT_DEATHS,
    AgentEntry,
    Effect,
    Evidence,
    Now,
    OpenTask,
    Write,
)
from muster_scheduler.core.recoveries import Recoveries
from muster_scheduler.learning.foresight import Foresight
from muster_scheduler.placement.classes import ClassTable, Spread
from muster_scheduler.placement.devices import NO_DEVICES, Devices
from muster_scheduler.placement.plan import Policy
from muster_scheduler.placement.snapshot import AgentTable

if TYPE_CHECKING:
    from muster_scheduler.core.improving import Proposal

# What a parent does not use while it waits; memory and devices stay occupied.
_LENT_WHILE_WAITING = frozenset({"cpu", "slots"})
# Of task and agent, up to which each is asked of the model's trees: some 10 ms a plan.
_TREE_PAIRS = 1024


class ClusterState:
    """One leader's view, from taking its term to losing it. `jitter()` is uniform in [0, 1)."""

    def __init__(self, policy: Policy, rng: Generator, jitter: Callable[[], float]) -> None:
        self.policy = policy
        self.rng = rng
        self.jitter = jitter
        self.table = AgentTable()
        self.classes = ClassTable()
        self.arrivals = ArrivalMix()
        self.queue = WaitingQueue()
        # Tasks that wait to run alone, and the agents that are kept for them or that they run on.
        self.suspects: dict[TaskId, OpenTask] = {}
        self.kept: dict[AgentId, AgentEntry] = {}
        self.deadlines = Deadlines()
        self.tasks: dict[TaskId, OpenTask] = {}
        self.agents: dict[AgentId, AgentEntry] = {}
        self.wishes: dict[AgentId, AgentWish] = {}
        # Of drains, until when (cluster time) tasks may run on.
        self.drains: dict[AgentId, int] = {}
        self.health = HealthBook()
        self.pruned_clock_ms = 0
        # Agents on parole.
        self.on_parole: set[AgentId] = set()
        self.quarantines = QuarantineSettings()
        self.mass_failure = MassFailure()
        # How many tasks of each tenant have a place; the queue's fairness.
        self.held: dict[TenantId, int] = defaultdict(int)
        # Started attempts whose RUNNING is not written yet.
        self.to_start: dict[TaskId, OpenTask] = {}
        self.commands = Commands()
        # Tasks to be written at the next drain; none of them has a write under way.
        self.dirty: dict[TaskId, OpenTask] = {}
        # Until the registry has shown its agents once, a missing lease says nothing.
        self.registry_seen = False
        # When agents were judged last (boot time).
        self.judged_boot_ms: int | None = None
        # Cancelled while they turned out to be stored otherwise than believed.
        self.cancel_again: set[TaskId] = set()
        # Something changed that may let a waiting task be placed.
        self.place_again = False
        # What was learned, for which agents it was last asked, and what is yet to be learned.
        self.foresight = Foresight(tree_pairs=_TREE_PAIRS)
        self.foreseen: tuple[int, int, int] | None = None
        self.notes = Notes()
        self.choices = Choices()
        # An improving strategy's plan for what waits, while it is followed; how many of such plans'
        # parts were carried out, and how many did not hold any more when their turn came.
        self.proposal: Proposal | None = None
        self.followed_proposals = 0
        self.stale_proposals = 0
        # What is done about agents that are down.
        self.recoveries = Recoveries()
        self.ended_count = 0
        self.placed_count = 0

    def drain(self, *, writes: bool = True) -> Commands:
        """What is to be done since the last call; each changed task that has no write gets one.

        Without `writes` decisions go on gathering, and no task changes hands.
        """
        commands, self.commands = self.commands, Commands()
        if not writes:
            return commands
        dirty, self.dirty = self.dirty, {}
        for task in dirty.values():
            assert task.write is None, f"{task!r} is written twice at once"
            if task.stored is None and task.status.state in ENDED_STATES:
                # Tasks are created open: one that ended before it was ever written is written
                # twice.
                first = TaskStatus(created_clock_ms=task.status.created_clock_ms)
                task.write = Write(task, None, first, ())
                task.ahead = True
            else:
                task.write = Write(task, task.stored, task.status, tuple(task.effects))
                task.effects.clear()
            commands.writes.append(task.write)
        return commands

    # ------------------------------------------------------------------ tasks

    def classify(self, task: OpenTask) -> None:
        """Sets the task's placement class."""
        spec = task.spec
        demand = held_demand(spec.resources)
        spread = spread_of(spec) if spec.constraints else ()
        nobody = frozenset[str]()
        plain = self.classes.id_of(spec.skill, demand, spec.constraints, nobody, spread)
        task.plain_class_id = task.class_id = plain
        self.arrivals.note(plain)
        if task.status.avoid:
            avoid = frozenset(task.status.avoid)
            task.class_id = self.classes.id_of(spec.skill, demand, spec.constraints, avoid, spread)

    def enqueue(self, task: OpenTask) -> None:
        """Lets a PENDING task wait for a place."""
        self.classify(task)
        if task.status.agent_deaths < SUSPECT_DEATHS:
            self.queue.add(task)
        else:
            task.alone_since_boot_ms = 0
            self.suspects[task.id] = task
        self.place_again = True

    def unqueue(self, task: OpenTask) -> None:
        """The task waits for a place no more; harmless when it does not."""
        self.queue.discard(task)
        if self.suspects and self.suspects.pop(task.id, None) is not None:
            for agent in [a for a in self.kept.values() if a.kept_for == task.id]:
                self.open_again(agent)

    def let_join(self, ident: TaskId) -> None:
        """A suspect that has waited for long enough is placed as others are."""
        task = self.suspects.pop(ident, None)
        if task is not None:
            self.queue.add(task)
            self.place_again = True

    def devices_on(
        self, task: OpenTask, agent_id: AgentId, planned: Devices = NO_DEVICES
    ) -> Devices | None:
        """The devices that the task is given on the agent: those planned, where they are free.

        None where no such devices are free: more was taken than the plan knew of.
        """
        if not self.table.has_devices or agent_id not in self.table:
            return NO_DEVICES
        demand_row = self.classes.demand_row(task.plain_class_id, self.table)
        if not self.table.asks_for_devices(demand_row):
            return NO_DEVICES
        row = self.table.row_of(agent_id)
        if self.table.fits_on(row, demand_row, planned):
            return planned
        best = self.table.devices_for(row, demand_row)
        return best if self.table.accepts(row, demand_row, best) else None

    def charge(self, task: OpenTask, agent: AgentEntry, devices: Devices = NO_DEVICES) -> None:
        """Books the task on the agent, on these devices, else on those that its record names.

        A record of before devices were recorded names none: it gets those that it is best given.
        """
        assert task.row < 0, f"{task!r} is charged twice"
        agent.tasks[task.id] = task
        self.held[task.spec.tenant] += 1
        if agent.id in self.table:
            task.row = self.table.row_of(agent.id)
            demand_row = self.classes.demand_row(task.plain_class_id, self.table)
            if self.table.has_devices and self.table.asks_for_devices(demand_row):
                given = devices or dict(task.status.devices)
                known = self.table.accepts(task.row, demand_row, given)
                task.devices = given if known else self.table.devices_for(task.row, demand_row)
            self.table.take(task.row, demand_row, task.devices)
            for spread in self.classes.spread(task.plain_class_id):
                self.table.join(task.row, spread.group)
            if task.waiting:
                self._lend(task, back=False)

    def release(self, task: OpenTask) -> None:
        """Frees what the task holds on its agent; harmless when it holds nothing."""
        agent = self.agents.get(task.status.agent)
        if agent is None or agent.tasks.pop(task.id, None) is None:
            return
        self.held[task.spec.tenant] -= 1
        if not self.held[task.spec.tenant]:
            del self.held[task.spec.tenant]
        self.to_start.pop(task.id, None)
        if agent.kept_for == task.id:
            self.open_again(agent)
        if task.row >= 0:
            if task.waiting:
                self._lend(task, back=True)
            demand_row = self.classes.demand_row(task.plain_class_id, self.table)
            self.table.give_back(task.row, demand_row, task.devices)
            task.devices = NO_DEVICES
            for spread in self.classes.spread(task.plain_class_id):
                self.table.leave(task.row, spread.group)
            task.row = -1
            self.place_again = True
        task.waiting = False

    def set_waiting(self, task: OpenTask, waiting: bool) -> None:
        """A parent that waits for its children lends its slot and cpu, and keeps the rest."""
        if task.waiting == waiting:
            return
        task.waiting = waiting
        if task.row >= 0:
            self._lend(task, back=not waiting)
            self.place_again = True

    def _lend(self, task: OpenTask, *, back: bool) -> None:
        demand = self.classes[task.plain_class_id].demand
        lent = self.table.demand_row(
            ResourceVector.of({n: a for n, a in demand.items() if n in _LENT_WHILE_WAITING})
        )
        if back:
            self.table.take(task.row, lent)
        else:
            self.table.give_back(task.row, lent)

    def decide(self, task: OpenTask, status: TaskStatus, *effects: Effect) -> None:
        """Changes the task's status; it is written at the next drain, with these effects."""
        task.status = status
        task.effects.extend(effects)
        if task.write is None:
            self.dirty[task.id] = task
        else:
            task.ahead = True

    def forget(self, task: OpenTask) -> None:
        """The task is no longer open, or is to be loaded again."""
        self.release(task)
        self.unqueue(task)
        self.dirty.pop(task.id, None)
        self.tasks.pop(task.id, None)

    # ----------------------------------------------------------------- agents

    def entry(self, ident: AgentId, now: Now) -> AgentEntry:
        """The agent, made known when it is met for the first time."""
        found = self.agents.get(ident)
        if found is None:
            found = self.agents[ident] = AgentEntry(ident, now)
            found.wish = self.wishes.get(ident, AgentWish.NONE)
        return found

    def enter(self, agent: AgentEntry, event: AgentEvent, why: str, now: Now) -> None:
        """Moves the agent to its next state, keeps the evidence, and says so."""
        agent.state = advance_agent(
            agent.state,
            event,
            ident=agent.id,
            history=tuple(e.state.value for e in agent.evidence),
        )
        agent.since_boot_ms = now.boot_ms
        self.note(agent, event.value, why, now)
        if agent.state is AgentState.PAROLE:
            self.on_parole.add(agent.id)
        else:
            self.on_parole.discard(agent.id)
        self.commands.changed.append(AgentChanged(agent.id, agent.incarnation, agent.state, why))
        self.refresh(agent)

    def note(self, agent: AgentEntry, what: str, why: str, now: Now, who: str = "") -> None:
        """An entry for the agent's timeline."""
        silent_ms = max(0, now.boot_ms - agent.heard_boot_ms)
        agent.note(
            Evidence(
                now.wall_ms,
                agent.state,
                why[:MAX_WHY_CHARS],
                what,
                who,
                agent.phi,
                silent_ms,
                agent.incarnation,
            )
        )
        self.commands.noted.add(agent.id)

    def refresh(self, agent: AgentEntry) -> None:
        """Brings the agent's row up to date after any change of it."""
        if agent.id not in self.table:
            return
        placeable = agent.usable and agent.kept_for == NOBODY
        self.table.set_placeable(agent.id, placeable, why_not=_why_not(agent))
        self.place_again = self.place_again or placeable

    def keep(self, agent: AgentEntry, task: OpenTask, until_boot_ms: int) -> None:
        """Nothing new is placed on the agent but this suspect."""
        assert agent.kept_for == NOBODY, f"{agent!r} is kept twice"
        agent.kept_for, agent.kept_until_boot_ms = task.id, until_boot_ms
        self.kept[agent.id] = agent
        self.refresh(agent)

    def open_again(self, agent: AgentEntry) -> None:
        """The agent is no longer kept for anyone."""
        agent.kept_for = NOBODY
        del self.kept[agent.id]
        self.refresh(agent)

    def counts(self) -> Mapping[str, int]:
        """Open tasks by what they do: queued, assigned, running."""
        held = sum(len(a.tasks) for a in self.agents.values())
        running = sum(1 for a in self.agents.values() for t in a.tasks.values() if t.started)
        return {
            "queued": len(self.queue) + len(self.suspects),
            "assigned": held - running,
            "running": running,
        }


# Tasks ask for few distinct vectors.
@lru_cache(maxsize=4096)
def held_demand(resources: ResourceVector) -> ResourceVector:
    """What a task holds until it ends; rates are not held, so they do not exclude yet."""
    demand = resources.with_slot()
    if any(kind_of(name) is ResourceKind.RATE for name in demand.names()):
        kept = {n: a for n, a in demand.items() if kind_of(n) is not ResourceKind.RATE}
        demand = ResourceVector.of(kept)
    return demand


def spread_of(spec: TaskSpec) -> tuple[Spread, ...]:
    labels = dict(spec.labels)
    return tuple(
        Spread((spec.tenant, one.key, labels.get(one.key, "")), int(one.values[0]))
        for one in spec.constraints
        if one.op == SPREAD_OP
    )


def _why_not(agent: AgentEntry) -> str:
    if agent.wish is AgentWish.CORDON:
        return "cordoned"
    if agent.wish is AgentWish.DRAIN or agent.draining or agent.state is AgentState.DRAINING:
        return "draining"
    if agent.state in (AgentState.READY, AgentState.PAROLE):
        if agent.kept_for != NOBODY and agent.session:
            return "kept for a task that agents died with"
        if agent.probe is not None and agent.state is AgentState.PAROLE and agent.session:
            return "on parole, with its probe"
        return "suspect" if agent.suspected else "not connected"
    return agent.state.value.lower()
