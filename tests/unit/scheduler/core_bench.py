"""A leader's core on a workbench: time by hand, storage that answers when it is told to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from muster.domain.agent import AgentRecord, AgentSpec, SkillOffer
from muster.domain.agent_lifecycle import AgentState
from muster.domain.ids import AgentId, TaskId, TenantId
from muster.domain.resources import ResourceVector
from muster.domain.task import Outcome, OutcomeKind, TaskSpec, TaskStatus, Wish
from muster.domain.task_lifecycle import TaskState
from muster_scheduler.core import agents, tasks
from muster_scheduler.core.commands import Commands, Stuck
from muster_scheduler.core.mass_failure import Alarm
from muster_scheduler.core.placing import place
from muster_scheduler.core.records import AttemptRef, Now, OpenTask, Write
from muster_scheduler.core.state import ClusterState
from muster_scheduler.core.tasks import Verdict
from muster_scheduler.placement.plan import Policy

WALL_AT_BOOT_MS = 1_700_000_000_000
CLOCK_AT_BOOT_MS = 50_000
SUCCESS = Outcome(OutcomeKind.SUCCEEDED, output_json=b"1", started_at_ms=5, ended_at_ms=9)
FAILURE = Outcome(OutcomeKind.FAILED, error="it broke", error_kind="exception")
A, B, C = AgentId("a"), AgentId("b"), AgentId("c")


def ident(number: int) -> TaskId:
    """Ids in the order of their numbers."""
    return TaskId(f"{number:026d}")


def record(
    agent: AgentId,
    incarnation: int = 1,
    *,
    cpu: int = 4_000,
    slots: int = 64,
    skills: Sequence[str] = ("echo",),
    labels: Sequence[tuple[str, str]] = (),
) -> AgentRecord:
    """A registration; `cpu` in thousandths."""
    capacity = ResourceVector.of({"cpu": cpu, "memory": 1 << 30, "slots": slots})
    offers = tuple(SkillOffer(name) for name in skills)
    return AgentRecord(AgentSpec(agent, capacity, offers, tuple(labels)), incarnation)


class Bench:
    """Everything that was pushed is in `told`, everything durable in `stored`."""

    def __init__(
        self, *, jitter: Callable[[], float] = lambda: 0.5, recovery: str = "always_migrate"
    ) -> None:
        self.state = ClusterState(Policy(recovery=recovery), np.random.default_rng(1), jitter)
        self.boot_ms = 1_000_000
        # What cluster time has jumped beyond the boot clock.
        self.jumped_ms = 0
        self.stored: dict[TaskId, TaskStatus] = {}
        self.told: dict[AgentId, list[tuple[str, AttemptRef]]] = defaultdict(list)
        self.drains: list[AgentId] = []
        self.restarts: list[tuple[AgentId, int]] = []
        self.changes: list[tuple[AgentId, AgentState]] = []
        self.reloads: list[TaskId] = []
        self.alarms: list[Alarm] = []
        self.stuck: list[Stuck] = []
        self._count = 0

    @property
    def now(self) -> Now:
        passed = self.boot_ms - 1_000_000
        return Now(
            self.boot_ms, CLOCK_AT_BOOT_MS + passed + self.jumped_ms, WALL_AT_BOOT_MS + passed
        )

    def wait(self, ms: int) -> None:
        """Time passes and nobody is judged."""
        self.boot_ms += ms

    def silence(self, ms: int, *but: AgentId) -> None:
        """Time passes, judged every second; only the agents `but` are heard."""
        left = ms
        while left > 0:
            step = min(1_000, left)
            left -= step
            self.boot_ms += step
            for agent in but:
                self.heard(agent)
            agents.judge(self.state, self.now)
            tasks.due(self.state, self.now)
        self.settle()

    # ------------------------------------------------------------------- agents

    def join(self, agent: AgentId, incarnation: int = 1, **offer: object) -> None:
        """The agent registers and connects."""
        agents.registry_snapshot(self.state, self._shown(), self.now)
        agents.registered(self.state, record(agent, incarnation, **offer), self.now)  # type: ignore[arg-type]
        self.connect(agent, incarnation)

    def connect(
        self,
        agent: AgentId,
        incarnation: int = 1,
        held: Sequence[tuple[AttemptRef, bool]] = (),
    ) -> bool:
        return agents.connected(self.state, agent, incarnation, held, self.now)

    def heard(self, agent: AgentId, incarnation: int = 1) -> None:
        agents.heard(self.state, agent, incarnation, self.now)

    def agent_state(self, agent: AgentId) -> AgentState:
        return self.state.agents[agent].state

    def used(self, agent: AgentId, resource: str = "slots") -> int:
        view = self.state.table.view()
        return int(view.used[self.state.table.row_of(agent), view.columns[resource]])

    def _shown(self) -> list[AgentRecord]:
        entries = self.state.agents.values()
        return [e.record for e in entries if e.record is not None and e.leased]

    # -------------------------------------------------------------------- tasks

    def spec(self, **fields: object) -> TaskSpec:
        self._count += 1
        given: dict[str, object] = {"id": ident(self._count), "skill": "echo", **fields}
        return TaskSpec(**given)  # type: ignore[arg-type]

    def admit(self, **fields: object) -> OpenTask:
        return tasks.admit(self.state, self.spec(**fields), None, self.now)

    def load(self, status: TaskStatus, *, held_too: bool = True, **fields: object) -> OpenTask:
        spec = self.spec(**fields)
        self.stored[spec.id] = status
        tasks.load(self.state, spec, status, None, self.now, held_too=held_too)
        return self.state.tasks[spec.id]

    def run(self, **fields: object) -> OpenTask:
        """A task that is durably placed and has started."""
        task = self.admit(**fields)
        self.settle()
        assert task.status.state is TaskState.ASSIGNED, "no agent took it"
        self.start(task)
        return task

    def start(self, task: OpenTask) -> None:
        status = task.status
        tasks.started_attempt(
            self.state, status.agent, status.incarnation, task.ref(), self.now.wall_ms, self.now
        )

    def end(self, task: OpenTask, outcome: Outcome = SUCCESS) -> bool:
        """The outcome of the task's present attempt arrives."""
        status = task.status
        return tasks.outcome(
            self.state, status.agent, status.incarnation, task.ref(), outcome, self.now
        )

    # ------------------------------------------------------------------ storage

    def drain(self) -> list[Write]:
        """Places, carries out everything but the writes, which are returned unanswered."""
        if self.state.place_again:
            place(self.state, self.now)
        commands = self.state.drain()
        self._carry_out(commands)
        return commands.writes

    def answer(self, writes: Sequence[Write], verdict: Verdict = Verdict.OK) -> None:
        """Storage answers; with OK the writes are durable from here on."""
        for write in writes:
            ident_ = write.task.id
            standing = self.stored.get(ident_)
            if verdict is Verdict.OK:
                expected = None if standing is None else (standing.state, standing.attempt)
                assert write.expect == expected, f"{write.task!r}: stored is {expected}"
                self.stored[ident_] = write.status
            tasks.written(self.state, write, verdict, standing)

    def settle(self) -> None:
        """Until nothing is left to be written."""
        for _ in range(100):
            writes = self.drain()
            if not writes and not self.state.place_again:
                return
            self.answer(writes)
        raise AssertionError("it does not come to rest")

    def _carry_out(self, commands: Commands) -> None:
        for agent, push in commands.pushes.items():
            told = self.told[agent]
            told.extend(("assign", task.ref()) for task in push.assign)
            told.extend((f"cancel {wish.value}", ref) for ref, wish in push.cancel)
            told.extend(("ack" if ok else "stale", ref) for ref, ok in push.acks)
            told.extend(("drop", ref) for ref in push.drop)
            if push.drain:
                self.drains.append(agent)
        self.restarts.extend((agent, number) for agent, number, _ in commands.restarts)
        self.changes.extend((change.agent, change.state) for change in commands.changed)
        self.reloads.extend(ident_ for _, ident_ in commands.reload)
        self.alarms.extend(commands.alarms)
        self.stuck.extend(commands.stuck)

    def words(self, agent: AgentId) -> list[str]:
        """What the agent was told since the last call, without the attempts."""
        told = [word for word, _ in self.told[agent]]
        self.told[agent].clear()
        return told


def held(agent: AgentId, *, incarnation: int = 1, attempt: int = 1, **fields: object) -> TaskStatus:
    """The stored status of an assigned task."""
    given: dict[str, object] = {"state": TaskState.ASSIGNED, **fields}
    return TaskStatus(agent=agent, incarnation=incarnation, attempt=attempt, **given)  # type: ignore[arg-type]


def tenant(name: str) -> TenantId:
    return TenantId(name)


__all__ = [
    "CLOCK_AT_BOOT_MS",
    "FAILURE",
    "SUCCESS",
    "WALL_AT_BOOT_MS",
    "A",
    "B",
    "Bench",
    "C",
    "Wish",
    "held",
    "ident",
    "record",
    "tenant",
]
