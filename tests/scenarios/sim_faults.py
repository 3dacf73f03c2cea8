"""What goes wrong in a run: drawn from the seed, and over once the faults are to stop."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tests.scenarios.sim_agent import Machine, Runtime
from tests.scenarios.sim_kernel import MAX_WALL_SKEW_MS, Part
from tests.scenarios.sim_leader import SimLeader
from tests.scenarios.sim_network import EVERYBODY, Server
from tests.scenarios.sim_strays import Strays

if TYPE_CHECKING:
    from tests.scenarios.sim_world import World

Fault = Callable[[], bool]


class Faults:
    """Whatever hits a cluster. Each fault says whether it found something to hit.

    `storm`: only faults of this name strike, many of them. Raises ValueError for an unknown name.
    """

    def __init__(self, world: World, storm: str = "") -> None:
        self._world = world
        self._rng = world.rng
        self._kernel = world.kernel
        self._strays = Strays(world)
        self._has_hung = False
        # How often each is drawn beside the others.
        faults: tuple[tuple[int, str, Fault], ...] = (
            (2, "scheduler killed", self._kill_scheduler),
            (1, "scheduler resigned", self._resign),
            (2, "scheduler frozen", self._freeze_scheduler),
            (1, "all asleep", self._sleep),
            (1, "leader left to agents", self._leave_leader_to_agents),
            (1, "leader cut off", self._part_leader),
            (2, "any two cut off", self._part_any),
            (2, "runtime killed", self._kill_runtime),
            (1, "supervisor killed", self._kill_supervisor),
            (1, "agent killed", self._crash_machine),
            (2, "agent frozen", self._freeze_agent),
            (2, "runtime frozen", self._freeze_runtime),
            (3, "agent cut off", self._part_agent),
            (1, "many agents cut off", self._part_many),
            (1, "agent sick", self._sicken),
            (2, "session cut", self._cut_session),
            (1, "registry away", self._lose_registry),
            (1, "registry frozen", lambda: self._freeze(world.registry, (1_000, 14_000))),
            (1, "etcd away", self._lose_etcd),
            (1, "etcd frozen", lambda: self._freeze(world.etcd, (1_000, 6_000, 15_000))),
            (1, "storage away", self._lose_storage),
            (1, "storage frozen", lambda: self._freeze(world.store, (500, 3_000, 12_000))),
            (1, "storage slow", self._slow_storage),
            (1, "monitor frozen", lambda: self._freeze(world.monitor, (500, 6_000))),
            (1, "monitor killed", self._kill_monitor),
            (1, "agent drained itself", self._drain_agent),
            (2, "events missed", self._miss_events),
            (1, "agent hung", self._hang_agent),
            (1, "date turned", self._turn_clock),
            (2, "stray outcome", lambda: self._strays.outcome(self._leader())),
            (1, "stray command", lambda: self._strays.command(self._runtime())),
            (1, "wish", lambda: world.operators.wish_for_a_while(self._machine().id)),
            (1, "operator's restart", self._ask_restart),
        )
        self._faults = [
            (name, fault)
            for weight, name, fault in faults
            for _ in range(weight)
            if storm in ("", name)
        ]
        if not self._faults:
            raise ValueError(f"storm {storm!r}: must be one of {[name for _, name, _ in faults]}")
        self._counts = (0, 3, 8, 15) if not storm else (15,)

    def plan(self, until_ms: int) -> None:
        """Some seeds are calm, some meet fifteen faults."""
        for _ in range(self._rng.choice(self._counts)):
            self._kernel.at(self._rng.random() * until_ms, self._strike)

    def _strike(self) -> None:
        name, fault = self._rng.choice(self._faults)
        if fault():
            self._kernel.tally[name] += 1

    def _freeze(self, part: Part, choices: tuple[int, ...]) -> bool:
        """SIGSTOP, and SIGCONT some time later."""
        if part.frozen or not part.alive:
            return False
        part.freeze(self._rng.choice(choices))
        return True

    # ----------------------------------------------------------------------- leaders

    def _leader(self) -> SimLeader | None:
        leader = self._world.leader
        return leader if leader is not None and not leader.frozen else None

    def _kill_scheduler(self) -> bool:
        """Rather the one that leads."""
        leader, standby = self._leader(), self._rng.choice(self._world.schedulers)
        scheduler = leader.scheduler if leader and self._rng.random() < 0.8 else standby
        if not scheduler.alive:
            return False
        scheduler.kill()
        return True

    def _resign(self) -> bool:
        leader = self._leader()
        if leader is None or not leader.scheduler.alive:
            return False
        leader.scheduler.resign()
        return True

    def _freeze_scheduler(self) -> bool:
        leader, standby = self._leader(), self._rng.choice(self._world.schedulers)
        scheduler = leader.scheduler if leader and self._rng.random() < 0.8 else standby
        return self._freeze(scheduler, (500, 4_000, 9_000, 15_000))

    def _sleep(self) -> bool:
        """The lid of a machine that holds all of the cluster is closed."""
        world, ms = self._world, self._rng.choice((5_000, 15_000, 65_000))
        parts: list[Part] = [*world.schedulers, world.monitor, world.gateway, world.store]
        for machine in world.machines.values():
            parts += machine.parts()
        asleep = any(part.frozen for part in (*parts, world.etcd, world.registry))
        if asleep or self._rng.random() < 0.5:
            return False
        self._kernel.say("world", "sleeps for", ms, "ms")
        world.registry.sleep(ms)
        world.etcd.sleep(ms)
        for part in parts:
            if part.alive:
                part.freeze(ms)
        return True

    def _leave_leader_to_agents(self) -> bool:
        """It reaches agents, and neither etcd nor storage: another one is elected."""
        if (leader := self._leader()) is None:
            return False
        for host in ("storage", "etcd"):
            self._world.network.split(leader.host, host, 20_000, 1)
        return True

    def _part_leader(self) -> bool:
        if (leader := self._leader()) is None:
            return False
        host = self._rng.choice((EVERYBODY, "storage", "etcd", *self._world.machines))
        self._part(leader.host, host, self._rng.choice((1_000, 4_000, 12_000)))
        return True

    def _part(self, one: str, other: str, ms: int) -> None:
        """In one direction, the other, or both."""
        self._world.network.split(one, other, ms, self._rng.choice((1, 2, 3)))

    def _part_any(self) -> bool:
        hosts = [s.name for s in self._world.schedulers]
        hosts += ["storage", "monitor", "registry", "etcd", *self._world.machines]
        one, other = self._rng.sample(hosts, 2)
        if self._rng.random() < 0.3:
            other = EVERYBODY
        self._part(one, other, self._rng.choice((1_000, 4_000, 12_000)))
        return True

    def _miss_events(self) -> bool:
        if (leader := self._leader()) is None:
            return False
        leader.do(leader.loader.load_again)
        return True

    # ------------------------------------------------------------------------ agents

    def _machine(self) -> Machine:
        return self._rng.choice(list(self._world.machines.values()))

    def _runtime(self) -> Runtime | None:
        runtime = self._machine().runtime
        return runtime if runtime is not None and runtime.alive else None

    def _kill_runtime(self) -> bool:
        if (runtime := self._runtime()) is None:
            return False
        runtime.exit(-9)
        return True

    def _kill_supervisor(self) -> bool:
        """Its runtime dies with it, a moment later and without a word."""
        machine = self._machine()
        supervisor = machine.supervisor
        if supervisor is None or not supervisor.alive:
            return False
        supervisor.say("is killed")
        supervisor.end()
        self._kernel.at(20 * self._rng.random(), machine.crash)
        return True

    def _crash_machine(self) -> bool:
        machine = self._machine()
        if not machine.parts():
            return False
        machine.crash()
        return True

    def _freeze_agent(self) -> bool:
        """All of it, or one of its processes."""
        parts = self._machine().parts()
        if parts and self._rng.random() < 0.6:
            parts = [self._rng.choice(parts)]
        ms = self._rng.choice((500, 5_000, 11_000, 14_000, 14_000, 30_000))
        return sum(self._freeze(part, (ms,)) for part in parts) > 0

    def _freeze_runtime(self) -> bool:
        """Its processes run on; rather one with a `stop` task."""
        runtimes = [m.runtime for m in self._world.machines.values() if m.runtime is not None]
        with_stop = [r for r in runtimes if r.alive and r.core.stop_deadline_ms and not r.frozen]
        runtime = self._rng.choice(with_stop) if with_stop else self._runtime()
        return runtime is not None and self._freeze(runtime, (9_000, 14_000))

    def _part_agent(self) -> bool:
        ident = self._machine().id
        ms = self._rng.choice((1_000, 4_000, 11_000, 11_000, 16_000, 16_000, 16_000, 70_000))
        leader = self._leader()
        only_leader = leader is not None and self._rng.random() < 0.4
        self._part(ident, leader.host if only_leader and leader is not None else EVERYBODY, ms)
        return True

    def _part_many(self) -> bool:
        """A switch is lost: most agents, or all, fall silent together."""
        machines = list(self._world.machines.values())
        count = self._rng.randint(max(2, (2 * len(machines)) // 3), len(machines))
        ms = self._rng.choice((8_000, 16_000, 30_000))
        for machine in self._rng.sample(machines, count):
            self._world.network.split(machine.id, EVERYBODY, ms, 2)
        return True

    def _sicken(self) -> bool:
        """Whatever an agent runs fails for a while."""
        machine = self._machine()
        machine.sick_until_ms = self._kernel.now_ms + 12_000
        self._kernel.say(machine.id, "is sick")
        return True

    def _cut_session(self) -> bool:
        runtime = self._runtime()
        if runtime is None or runtime.link is None:
            return False
        runtime.link.cut("somebody pulled the plug")
        return True

    def _drain_agent(self) -> bool:
        supervisor = self._machine().supervisor
        if supervisor is None or not supervisor.alive or supervisor.core.stopping:
            return False
        supervisor.do(supervisor.terminate)
        return True

    def _ask_restart(self) -> bool:
        return self._world.operators.restart(self._leader(), self._machine().id)

    def _hang_agent(self) -> bool:
        """It beats, takes attempts and starts none: of one agent in a run, for one incarnation."""
        runtime = self._runtime()
        if runtime is None or self._rng.random() < 0.5 or self._has_hung:
            return False
        self._has_hung = True
        runtime.say("starts nothing any more")
        runtime.do(runtime.executor.get_stuck)
        return True

    # ------------------------------------------------------------------ other servers

    def _away(self, server: Server, choices: tuple[int, ...]) -> bool:
        if server.away or server.frozen:
            return False
        server.go_away(self._rng.choice(choices))
        return True

    def _lose_registry(self) -> bool:
        return self._away(self._world.registry, (1_000, 12_000))

    def _lose_etcd(self) -> bool:
        return self._away(self._world.etcd, (1_000, 5_000, 12_000))

    def _lose_storage(self) -> bool:
        return self._away(self._world.store, (300, 2_000, 7_000))

    def _slow_storage(self) -> bool:
        each_ms = self._rng.choice((30, 300, 1_500))
        self._world.store.slow_down(each_ms, self._rng.choice((2_000, 8_000)))
        return True

    def _kill_monitor(self) -> bool:
        """Nothing of what it knew is left."""
        self._world.restart_monitor(self._rng.choice((200, 2_000)))
        return True

    def _turn_clock(self) -> bool:
        """The date of a machine jumps by up to an hour."""
        parts: list[Part] = [*self._machine().parts(), *self._world.schedulers, self._world.gateway]
        part = self._rng.choice(parts)
        part.clock.wall_skew_ms = self._rng.randrange(-MAX_WALL_SKEW_MS, MAX_WALL_SKEW_MS)
        part.say("has its date turned")
        return True
