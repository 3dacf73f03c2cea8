"""A whole cluster in virtual time: clients, operators and faults around leader, agents, storage.

For a while everything goes wrong that the seed wants; then faults stop, and everything that was
submitted must end.
"""

from __future__ import annotations

from collections.abc import Callable

from tests.scenarios.sim_kernel import CALM, Kernel, Link, SimulationError
from tests.scenarios.sim_leader import SimLeader
from tests.scenarios.sim_parts import Habits, Runtime, SimAgent, SimRegistry, SimStore

from muster.domain.agent_lifecycle import AgentWish
from muster.domain.ids import AgentId, TaskId, TenantId
from muster.domain.resources import ResourceVector
from muster.domain.task import Lifetime, OnDisconnect, OutcomeKind, TaskSpec, TaskStatus
from muster.domain.task_lifecycle import ENDED_STATES, TaskState
from muster_scheduler.core import agents

FAULTS_END_MS = 20_000
# Silence, fences, pauses and a last takeover, one after the other.
LIMIT_MS = 240_000
ELECTION_MS = (200, 3_000)
STRATEGIES = ("worst_fit", "greedy", "first_fit", "best_fit")
S, F, R, T = (
    OutcomeKind.SUCCEEDED,
    OutcomeKind.FAILED,
    OutcomeKind.RETURNED,
    OutcomeKind.TIMED_OUT,
)
DEMANDS = (
    ResourceVector(),
    ResourceVector.of({"cpu": 500}),
    ResourceVector.of({"cpu": 2_500, "memory": 1 << 28}),
)
KINDS = ((S,), (S,), (S,), (F, S), (R, S), (T, S), (F,), (F, F, S))


class World:
    """One run. `mutate` lets a test break the code to see that the run notices."""

    def __init__(self, seed: int, *, tasks: int = 24) -> None:
        self.seed = seed
        self.kernel = kernel = Kernel(seed)
        self.rng = kernel.rng
        self.store = SimStore(kernel)
        self.registry = SimRegistry(kernel)
        self.habits: dict[TaskId, Habits] = {}
        self.specs: dict[TaskId, TaskSpec] = {}
        self.accepted: set[TaskId] = set()
        self.leaders: list[SimLeader] = []
        self.calm = False
        self._tasks = tasks
        running_stop: dict[TaskId, list[Runtime]] = {}
        self.agents = {
            ident: SimAgent(ident, self.rng.choice((1, 2, 4)), running_stop=running_stop)
            for ident in map(AgentId, ("a", "b", "c")[: self.rng.choice((2, 3, 3))])
        }
        self._strategy = self.rng.choice(STRATEGIES)
        self._elect()
        for agent in self.agents.values():
            kernel.at(self.rng.random() * 1_000, lambda agent=agent: self._start(agent))  # type: ignore[misc]
        for number in range(1, tasks + 1):
            kernel.at(self.rng.random() * FAULTS_END_MS * 0.8, self._submitter(number))
        for _ in range(self.rng.choice((0, 3, 8, 15))):
            kernel.at(self.rng.random() * FAULTS_END_MS, self._fault)
        kernel.at(FAULTS_END_MS, self._becalm)

    def run(self) -> None:
        """Raises SimulationError with the seed and a readable trace."""
        try:
            if not self.kernel.run(self._over, LIMIT_MS):
                self._complain()
            self._check_end()
        except AssertionError as error:
            raise SimulationError(
                f"seed {self.seed}: {error}\n{self.kernel.trace()}\nseed {self.seed}: {error}"
            ) from error

    # ------------------------------------------------------------------ the leader

    @property
    def leader(self) -> SimLeader | None:
        """Whoever was elected last, if it lives."""
        return self.leaders[-1] if self.leaders and self.leaders[-1].alive else None

    def _elect(self) -> None:
        name = f"leader{len(self.leaders) + 1}"
        self.leaders.append(
            SimLeader(self.kernel, name, self.store, self.registry, self._strategy, self._restart)
        )
        self._watch(self.leaders[-1])

    def _watch(self, leader: SimLeader) -> None:
        """Its lease runs out when it is dead or frozen."""
        if self.leaders[-1] is not leader:
            return
        if not leader.alive or leader.frozen_until_ms - self.kernel.now_ms > ELECTION_MS[1]:
            self.kernel.at(self.rng.randint(*ELECTION_MS), self._elect)
        else:
            self.kernel.at(200, lambda: self._watch(leader))

    # ------------------------------------------------------------------ agents

    def _start(self, agent: SimAgent) -> None:
        if agent.runtime is not None and agent.runtime.alive:
            return
        agent.incarnation += 1
        agent.runtime = Runtime(
            self.kernel, agent, self.habits, self._dial, self.registry, self._died
        )

    def _dial(self, runtime: Runtime) -> Link | None:
        leader = self.leader
        if self.rng.random() < 0.1 and len(self.leaders) > 1 and not self.calm:
            leader = self.leaders[-2]
        if leader is None or not leader.alive or not leader.ready or self.kernel.is_lost():
            return None
        runtime.leader = leader
        return Link(self.kernel, runtime, leader)

    def _died(self, runtime: Runtime) -> None:
        """The supervisor starts it again; mostly it can also tell the leader."""
        agent = runtime.agent
        runtime.say("is gone")
        started = [a.ref for a in runtime.held.values() if a.started]
        known = self.rng.random() < 0.7
        if self.rng.random() < 0.6:
            self._report_death(agent.id, runtime.incarnation, started, known)
        pause_ms = self.rng.choice((100, 1_000, 15_000))
        self.kernel.at(pause_ms, lambda: self._start(agent))

    def _report_death(self, ident: AgentId, incarnation: int, started: list, known: bool) -> None:  # type: ignore[type-arg]
        def report() -> None:
            leader = self.leader
            if leader is not None and leader.ready and not leader.frozen:
                leader.do(lambda: leader.on_runtime_died(ident, incarnation, started, known))
            else:
                self.kernel.at(500, report)

        self.kernel.at(self.kernel.delay_ms(), report)

    def _restart(self, ident: AgentId, incarnation: int) -> None:
        runtime = self.agents[ident].runtime
        if runtime is not None and runtime.alive and runtime.incarnation == incarnation:
            runtime.say("is restarted")
            runtime.end()

    # ------------------------------------------------------------------ clients

    def _submitter(self, number: int) -> Callable[[], None]:
        rng = self.rng
        ident = TaskId(f"{number:026d}")
        service = rng.random() < 0.05
        self.habits[ident] = Habits(
            runs_ms=rng.choice((5, 40, 200, 1_000, 4_000, 25_000)),
            kinds=rng.choice(KINDS),
            poison=rng.random() < 0.04,
            waits=rng.random() < 0.15,
        )
        spec = self.specs[ident] = TaskSpec(
            ident,
            "echo",
            tenant=TenantId(rng.choice(("default", "other"))),
            resources=rng.choice(DEMANDS),
            priority=rng.choice((10, 50, 50, 90)),
            timeout_ms=rng.choice((0, 0, 0, 600)),
            start_deadline_ms=rng.choice((0, 0, 0, 0, 5_000)),
            total_deadline_ms=rng.choice((0, 0, 0, 0, 9_000)),
            on_disconnect=rng.choice((OnDisconnect.KEEP, OnDisconnect.STOP)),
            lifetime=Lifetime.SERVICE if service else Lifetime.FINITE,
        )
        if rng.random() < 0.15:
            self.kernel.at(rng.random() * FAULTS_END_MS, lambda: self._cancel(ident))

        def submit() -> None:
            """The gateway: the leader, or storage when it does not answer; and again."""
            if ident in self.accepted:
                return
            leader = self.leader
            if rng.random() < 0.2 or leader is None or not leader.submit(spec, accept):
                self.store.create(0, [(spec, TaskStatus(created_clock_ms=self.store.clock_ms))])
                accept()
            if rng.random() < 0.1 and not self.calm:
                # Nobody knows of the first one's success.
                self.accepted.discard(ident)
            self.kernel.at(1_500, submit)

        def accept() -> None:
            if ident not in self.store.tasks:
                raise SimulationError(f"{ident} is accepted and not durable")
            self.accepted.add(ident)

        return submit

    def _cancel(self, ident: TaskId) -> None:
        """Again and again until it has ended: a leader may die with the wish."""
        row = self.store.tasks.get(ident)
        if row is None or row[1].state not in ENDED_STATES:
            leader = self.leader
            if leader is not None and leader.ready and not leader.frozen:
                leader.do(lambda: leader.cancel(ident))
            self.kernel.at(2_000, lambda: self._cancel(ident))

    # ------------------------------------------------------------------ faults

    def _fault(self) -> None:
        rng = self.rng
        faults: list[Callable[[], None]] = [
            self._kill_leader,
            self._freeze_leader,
            self._kill_agent,
            self._kill_agent,
            self._freeze_agent,
            self._part_agent,
            self._part_agent,
            self._cut_link,
            self._cut_link,
            self._lose_registry,
            self._drain_agent,
            self._wish,
            self._suspect,
            self._gap,
            self._ask_restart,
        ]
        rng.choice(faults)()

    def _runtime(self) -> Runtime | None:
        runtime = self.rng.choice(list(self.agents.values())).runtime
        return runtime if runtime is not None and runtime.alive else None

    def _kill_leader(self) -> None:
        if (leader := self.leader) is not None:
            leader.say("is killed")
            leader.end()

    def _freeze_leader(self) -> None:
        if (leader := self.leader) is not None and not leader.frozen:
            leader.freeze(self.rng.choice((500, 4_000, 9_000, 15_000)))
            self._watch(leader)

    def _kill_agent(self) -> None:
        if (runtime := self._runtime()) is not None:
            runtime.end()

    def _freeze_agent(self) -> None:
        runtime = self._runtime()
        if runtime is not None and not runtime.frozen:
            runtime.freeze(self.rng.choice((500, 5_000, 14_000, 30_000)))

    def _part_agent(self) -> None:
        if (runtime := self._runtime()) is not None:
            runtime.cut_from_all(self.rng.choice((2_000, 11_000, 16_000, 70_000)))

    def _cut_link(self) -> None:
        runtime = self._runtime()
        if runtime is not None and runtime.link is not None:
            runtime.link.cut("somebody pulled the plug")

    def _lose_registry(self) -> None:
        self.kernel.say("registry", "is away")
        self.registry.away = True
        self.kernel.at(self.rng.choice((1_000, 12_000)), self.registry.come_back)

    def _drain_agent(self) -> None:
        runtime = self._runtime()
        if runtime is not None and not runtime.frozen and not runtime.draining:
            runtime.drain()

    def _wish(self) -> None:
        ident = self.rng.choice(list(self.agents))
        wish = self.rng.choice((AgentWish.CORDON, AgentWish.DRAIN, AgentWish.NONE))
        self._set_wish(ident, wish)
        self.kernel.at(3_000, lambda: self._set_wish(ident, AgentWish.NONE))

    def _set_wish(self, ident: AgentId, wish: AgentWish) -> None:
        self.store.wishes[ident] = wish
        leader = self.leader
        if leader is not None and not leader.frozen:
            leader.do(lambda: agents.set_wish(leader.state, ident, wish, leader.now()))

    def _suspect(self) -> None:
        ident = self.rng.choice(list(self.agents))
        for delay_ms, suspected in ((0, True), (2_000, False)):
            self.kernel.at(delay_ms, lambda s=suspected: self._say_suspicion(ident, s))  # type: ignore[misc]

    def _say_suspicion(self, ident: AgentId, suspected: bool) -> None:
        if (leader := self.leader) is not None:
            leader.do(lambda: leader.on_suspicion(ident, suspected))

    def _gap(self) -> None:
        if (leader := self.leader) is not None:
            leader.do(leader.load_again)

    def _ask_restart(self) -> None:
        leader = self.leader
        if leader is not None and not leader.frozen and leader.ready:
            ident = self.rng.choice(list(self.agents))
            if ident in leader.state.agents:
                leader.do(lambda: leader.ask_restart(ident))

    # ------------------------------------------------------------------ the end

    def _becalm(self) -> None:
        self.kernel.say("world", "faults stop")
        self.calm = True
        self.kernel.weather = CALM
        for ident, spec in self.specs.items():
            if spec.lifetime is Lifetime.SERVICE:
                self._cancel(ident)
        for agent in self.agents:
            self._set_wish(agent, AgentWish.NONE)

    def _over(self) -> bool:
        if not self.calm or len(self.store.tasks) < self._tasks:
            return False
        leader = self.leader
        if leader is None or leader.state.tasks or not leader.ready:
            return False
        runtimes = [a.runtime for a in self.agents.values() if a.runtime is not None]
        return all(not (r.alive and (r.held or r.outbox)) for r in runtimes) and all(
            status.state in ENDED_STATES for _, status in self.store.tasks.values()
        )

    def _complain(self) -> None:
        open_tasks = [
            f"{int(i)} {s.state} attempt {s.attempt} on {s.agent or 'nobody'} {s.why}"
            for i, (_, s) in self.store.tasks.items()
            if s.state not in ENDED_STATES
        ]
        leader = self.leader
        known = list(leader.state.tasks.values()) if leader is not None else "no leader"
        held = {a.id: (a.runtime.held, a.runtime.outbox) for a in self.agents.values() if a.runtime}
        raise SimulationError(f"it does not end: stored {open_tasks}; leader {known}; held {held}")

    def _check_end(self) -> None:
        leader = self.leader
        assert leader is not None
        used = leader.state.table.view().used
        if int(abs(used).sum()) or leader.state.held or len(leader.state.queue):
            raise SimulationError(f"all has ended and still is used: {used.tolist()}")
        missing = self.accepted - self.store.tasks.keys()
        if missing:
            raise SimulationError(f"accepted and lost: {sorted(missing)}")
        for ident, (spec, status) in self.store.tasks.items():
            if status.state is TaskState.FAILED and status.failures < spec.max_attempts:
                raise SimulationError(f"{ident} failed after {status.failures} failures")
            if status.state is TaskState.DEAD and status.agent_deaths < 3:
                raise SimulationError(f"{ident} is dead after {status.agent_deaths} deaths")
