"""A whole cluster in virtual time: clients and operators around leaders, agents and storage.

For a while everything goes wrong that the seed wants; then faults stop, and everything that was
submitted must end.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable

from tests.scenarios.sim_agent import Machine, Runtime
from tests.scenarios.sim_books import Books, label
from tests.scenarios.sim_checks import check_all
from tests.scenarios.sim_clients import Gateway
from tests.scenarios.sim_etcd import SimEtcd
from tests.scenarios.sim_executor import Habits, RunsOfStop
from tests.scenarios.sim_faults import Faults
from tests.scenarios.sim_kernel import CALM, Kernel, Part, SimulationError
from tests.scenarios.sim_leader import SimLeader
from tests.scenarios.sim_network import Network
from tests.scenarios.sim_operators import Operators
from tests.scenarios.sim_scheduler import SimScheduler
from tests.scenarios.sim_servers import SimMonitor, SimRegistry
from tests.scenarios.sim_store import SimStore

from muster.domain.agent_lifecycle import AgentState, AgentWish
from muster.domain.ids import AgentId, TaskId
from muster.domain.policy import RECOVERIES
from muster.domain.task import POISON_DEATHS, TaskSpec
from muster.domain.task_lifecycle import ENDED_STATES, TaskState
from muster_scheduler.core.health import QuarantineSettings
from muster_scheduler.core.records import AgentEntry

FAULTS_END_MS = 10_000
# Silence, fences, pauses and a last takeover, one after the other.
LIMIT_MS = 600_000
LOOK_MS = 500
AGENTS = (2, 3, 3, 3, 3, 5)
# One seed in so many has two storage services.
OVERTAKING_SEEDS = 4
STRATEGIES = ("worst_fit", "greedy", "first_fit", "best_fit")
REQUESTS = 16
REPLAY = "python -m tests.scenarios.replay"


class World:
    """One run."""

    def __init__(self, seed: int, *, requests: int = REQUESTS, storm: str = "") -> None:
        """`storm`: all that goes wrong is of this kind, see `Faults`."""
        self.seed, self.requests, self.storm = seed, requests, storm
        # Of two storage services: what one was asked may be carried out after newer requests.
        self.overtaking = seed % OVERTAKING_SEEDS == 0
        self.kernel = kernel = Kernel(seed)
        self.rng = kernel.rng
        self.calm = False
        self.books = Books(kernel)
        self.network = Network(kernel)
        self.store = SimStore(kernel, self.network, self.books)
        self.etcd = SimEtcd(kernel, self.network)
        self.registry = SimRegistry(kernel, self.network, self.store)
        self.monitor = SimMonitor(kernel, self.network)
        self.stops = RunsOfStop()
        self.habits: dict[TaskId, Habits] = {}
        self.leaders: list[SimLeader] = []
        self.incarnations: dict[tuple[AgentId, int], Runtime] = {}
        self.quarantines = QuarantineSettings(
            share=self.rng.choice((0.2, 0.5)), first_wait_ms=self.rng.choice((2_000, 60_000))
        )
        self.strategy = self.rng.choice(STRATEGIES)
        self.recovery = RECOVERIES[seed // OVERTAKING_SEEDS % len(RECOVERIES)]
        # Whether a leader without etcd holds back, as it should; it must be safe if it does not.
        self.holds_back = self.rng.random() < 0.5
        self.machines = {
            ident: Machine(self, ident, self.rng.choice((1, 2, 4)))
            for ident in map(AgentId, ("a", "b", "c", "d", "e")[: self.rng.choice(AGENTS)])
        }
        names = ("s1", "s2", "s3")[: self.rng.choice((1, 2, 2, 3))]
        self.schedulers = [SimScheduler(self, name) for name in names]
        self.operators = Operators(self)
        for machine in self.machines.values():
            kernel.at(self.rng.random() * 1_000, machine.start)
        self.gateway = Gateway(self)
        self.gateway.plan(requests, FAULTS_END_MS)
        Faults(self, storm).plan(FAULTS_END_MS)
        kernel.at(FAULTS_END_MS, self._becalm)

    def run(self) -> None:
        """Raises SimulationError with the seed, how to replay it, and the end of the trace."""
        try:
            if not self.kernel.run(LIMIT_MS):
                self._complain()
            self._check_end()
        except AssertionError as error:
            what = f"seed {self.seed} at {self.kernel.now_ms / 1000:.3f} s: {error}"
            raise SimulationError(
                f"{what}\n{self.kernel.trace()}\n{what}\nall of it: {self.replay}"
            ) from error

    @property
    def replay(self) -> str:
        """The command, for a shell, that shows this very run."""
        words = [REPLAY, str(self.seed)]
        if self.storm:
            words += ["--storm", shlex.quote(self.storm)]
        if self.requests != REQUESTS:
            words += ["--requests", str(self.requests)]
        return " ".join(words)

    # -------------------------------------------------------------------- services

    @property
    def leader(self) -> SimLeader | None:
        """Whom etcd names, else whoever began to lead last, if it lives."""
        holder = self.etcd.holder
        for scheduler in self.schedulers:
            leads = scheduler.leader is not None and scheduler.leader.alive
            if holder is not None and scheduler.name.encode() == holder.value and leads:
                return scheduler.leader
        return self.leaders[-1] if self.leaders and self.leaders[-1].alive else None

    def start_scheduler_later(self, name: str) -> None:
        """Somebody starts a scheduler that has ended."""

        def start() -> None:
            self.schedulers = [s for s in self.schedulers if s.name != name]
            self.schedulers.append(SimScheduler(self, name))

        self.kernel.at(self.rng.choice((200, 1_500)), start)

    def restart_monitor(self, after_ms: int) -> None:
        """It is killed, and another one started."""
        self.monitor.say("is killed")
        self.monitor.end()

        def start() -> None:
            if not self.monitor.alive:
                self.monitor = SimMonitor(self.kernel, self.network)

        self.kernel.at(after_ms, start)

    def dial(self, part: Part) -> SimLeader | None:
        """A leader as the part knows it: now and then the one before."""
        leader = self.leader
        if self.rng.random() < 0.1 and len(self.leaders) > 1 and not self.calm:
            leader = self.leaders[-2]
        if leader is None:
            return None
        reached = self.network.passes(part, leader) and self.network.passes(leader, part)
        return leader if leader.alive and reached and not self.kernel.is_lost() else None

    # ------------------------------------------------------------------ agents

    def later_start(self, machine: Machine) -> None:
        """Somebody starts an agent that has ended."""
        self.kernel.at(self.rng.choice((100, 1_000, 15_000)), machine.start)

    def submit_child(self, runtime: Runtime, child: TaskSpec, then: Callable[[], None]) -> None:
        """An attempt submits a task of its own; `then`: it is durable."""
        self.habits.setdefault(child.id, Habits(runs_ms=40, kinds=(self.gateway.draw_kind(),)))
        self.gateway.submit(runtime, child, then)

    def has_ended(self, task: TaskId) -> bool:
        row = self.store.row(task)
        return row is not None and row[1].state in ENDED_STATES

    # ------------------------------------------------------------------ the end

    def _becalm(self) -> None:
        self.kernel.say("world", "faults stop")
        self.calm = True
        self.kernel.weather = CALM
        self.gateway.end_services()
        for ident in self.machines:
            self.operators.wish(ident, AgentWish.NONE)
        self._look()

    def _look(self) -> None:
        self.kernel.over = self._is_over()
        if not self.kernel.over:
            self.kernel.at(LOOK_MS, self._look)

    def _is_over(self) -> bool:
        leader = self.leader
        if self.store.open or leader is None or leader.frozen or leader.state.tasks:
            return False
        if not leader.ready or self.gateway.unanswered or self.operators.wishes_open:
            return False
        return all(_is_at_rest(m, leader.state.agents.get(m.id)) for m in self.machines.values())

    def _complain(self) -> None:
        open_tasks = [
            f"{label(s.id, status.attempt)} {status.state} on {status.agent} {status.why}"
            for s, status in self.store.load_open()[0]
        ]
        known = list(self.leader.state.tasks.values()) if self.leader is not None else "no leader"
        held = {
            m.id: (list(m.runtime.core._held), list(m.runtime.core._outbox), m.runtime.alive)
            for m in self.machines.values()
            if m.runtime is not None
        }
        raise SimulationError(
            f"it does not end: stored {open_tasks}; the leader knows {known}; agents hold {held};"
            f" unanswered {sorted(self.gateway.unanswered)}"
        )

    def _check_end(self) -> None:
        leader = self.leader
        assert leader is not None
        state = leader.state
        check_all(state)
        used = state.table.view().used
        if int(abs(used).sum()) or state.held or len(state.queue):
            raise SimulationError(f"all has ended and still is used: {used.tolist()}")
        left = {
            "dirty": state.dirty,
            "to_start": state.to_start,
            "cancel": state.cancel_again,
            "suspects": state.suspects,
            "kept": state.kept,
        }
        if any(left.values()) or any(agent.tasks for agent in state.agents.values()):
            raise SimulationError(f"all has ended, and the leader keeps {left}")
        wishes = {i: w for i, w in state.wishes.items() if w is not AgentWish.NONE}
        if wishes != self.store.wishes():
            raise SimulationError(f"invariant 11: {wishes} are not {self.store.wishes()}")
        self._check_records()
        leader.recoveries.check_end()
        for machine in self.machines.values():
            if machine.runtime is not None and machine.runtime.alive:
                _check_empty(machine.runtime)

    def _check_records(self) -> None:
        """0 lost, 0 twice."""
        missing = self.books.accepted - self.books.specs.keys()
        if missing:
            raise SimulationError(f"invariant 1: accepted and lost: {sorted(missing)}")
        for spec, status in self.store.rows():
            name = label(spec.id, status.attempt)
            if status.state not in ENDED_STATES:
                raise SimulationError(f"{name} has not ended")
            succeeded = status.state is TaskState.SUCCEEDED
            if succeeded != (self.books.succeeded.get(spec.id) == status.attempt):
                raise SimulationError(f"{name} is {status.state}: {self.books.succeeded}")
            if status.state is TaskState.DEAD and status.agent_deaths != POISON_DEATHS:
                raise SimulationError(f"{name} is DEAD after {status.agent_deaths} deaths")


def _is_at_rest(machine: Machine, entry: AgentEntry | None) -> bool:
    """Nothing of it is on its way, and the leader gives it work again."""
    supervisor, runtime = machine.supervisor, machine.runtime
    if supervisor is None or not supervisor.alive:
        return runtime is None or not runtime.alive
    if len(supervisor.deaths) or runtime is None or not runtime.alive or runtime.frozen:
        return False
    if runtime.core._held or runtime.core.outbox_size:
        return False
    if entry is not None and entry.state is AgentState.QUARANTINED:
        return True
    if entry is None or not entry.session or entry.incarnation != runtime.core.incarnation:
        return False
    return entry.usable or entry.distrusted_until_boot_ms > 0


def _check_empty(runtime: Runtime) -> None:
    core = runtime.core
    left = {
        "newest": core._newest,
        "resume": core._resume,
        "stop tasks": core._stop_tasks,
        "table": runtime.table.started,
        "processes": runtime.executor.live,
        "pool": runtime.executor.leaks(),
    }
    kept = {name: content for name, content in left.items() if content}
    if kept or core.slots_used:
        raise SimulationError(f"{runtime.name} holds nothing and keeps {kept}, {core.slots_used}")
