"""What goes wrong in a run: drawn from the seed, and over once the faults are to stop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from tests.scenarios.sim_agent import Machine, Runtime
from tests.scenarios.sim_books import label
from tests.scenarios.sim_kernel import MAX_WALL_SKEW_MS, Part
from tests.scenarios.sim_leader import SimLeader
from tests.scenarios.sim_network import EVERYBODY, Link, call

from muster.agent.events import Assigned, AttemptKey, CancelAsked, Dropped, LeaderDrain
from muster.domain.agent_lifecycle import AgentWish
from muster.domain.ids import AgentId
from muster.domain.task import Wish
from muster_scheduler.core import agents
from muster_scheduler.core.records import AttemptRef

if TYPE_CHECKING:
    from tests.scenarios.sim_world import World

WISH_AGAIN_MS = 4_000


class Faults:
    """Whatever hits a cluster, and the operators of it."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._rng = world.rng
        self._kernel = world.kernel
        # What operators want of agents and no leader has confirmed.
        self.wishes_open: dict[AgentId, AgentWish] = {}

        self._has_hung = False

    def plan(self, until_ms: int) -> None:
        """Some seeds are calm, some meet fifteen faults."""
        for _ in range(self._rng.choice((0, 3, 8, 15))):
            self._kernel.at(self._rng.random() * until_ms, self._strike)

    def _strike(self) -> None:
        faults: tuple[Callable[[], None], ...] = (
            self._kill_leader,
            self._freeze_leader,
            self._sleep,
            self._leave_leader_to_agents,
            self._part_leader,
            self._kill_runtime,
            self._kill_runtime,
            self._crash_machine,
            self._freeze_agent,
            self._freeze_agent,
            self._freeze_runtime,
            self._freeze_runtime,
            self._part_agent,
            self._part_agent,
            self._part_agent,
            self._cut_link,
            self._cut_link,
            self._lose_registry,
            self._lose_storage,
            self._freeze_monitor,
            self._drain_agent,
            self._wish_for_a_while,
            self._miss_events,
            self._miss_events,
            self._ask_restart,
            self._hang_agent,
            self._turn_clock,
            self._stray_outcome,
            self._stray_outcome,
            self._stray_command,
        )
        self._rng.choice(faults)()

    # ----------------------------------------------------------------------- leaders

    def _leader(self) -> SimLeader | None:
        leader = self._world.leader
        return leader if leader is not None and not leader.frozen else None

    def _kill_leader(self) -> None:
        if (leader := self._leader()) is not None:
            leader.say("is killed")
            leader.end()

    def _freeze_leader(self) -> None:
        if (leader := self._leader()) is not None:
            leader.freeze(self._rng.choice((500, 4_000, 9_000, 15_000)))

    def _sleep(self) -> None:
        """The lid of a machine that holds all of the cluster is closed."""
        world, ms = self._world, self._rng.choice((5_000, 15_000, 65_000))
        parts: list[Part] = [world.leaders[-1], world.monitor, world.gateway]
        for machine in world.machines.values():
            parts += machine.parts()
        if any(part.frozen for part in parts) or self._rng.random() < 0.5:
            return
        self._kernel.say("world", "sleeps for", ms, "ms")
        world.asleep_until_ms = self._kernel.now_ms + ms
        world.registry.sleep(ms)
        for part in parts:
            part.freeze(ms)

    def _leave_leader_to_agents(self) -> None:
        """It reaches agents, and neither etcd nor storage: another one is elected."""
        if (leader := self._leader()) is not None:
            for host in ("storage", "registry"):
                self._world.network.part(leader.host, host, 20_000)

    def _part_leader(self) -> None:
        if (leader := self._leader()) is not None:
            host = self._rng.choice((EVERYBODY, "storage", *self._world.machines))
            self._part(leader.host, host, self._rng.choice((1_000, 4_000, 12_000)))

    def _part(self, one: str, other: str, ms: int) -> None:
        """In one direction, the other, or both."""
        ways = self._rng.choice((1, 2, 3))
        if ways & 1:
            self._world.network.part(one, other, ms)
        if ways & 2:
            self._world.network.part(other, one, ms)

    def _miss_events(self) -> None:
        if (leader := self._leader()) is not None:
            leader.do(leader.loader.load_again)

    # ------------------------------------------------------------------------ agents

    def _machine(self) -> Machine:
        return self._rng.choice(list(self._world.machines.values()))

    def _runtime(self) -> Runtime | None:
        runtime = self._machine().runtime
        return runtime if runtime is not None and runtime.alive else None

    def _kill_runtime(self) -> None:
        if (runtime := self._runtime()) is not None:
            runtime.exit(-9)

    def _crash_machine(self) -> None:
        self._machine().crash()

    def _freeze_agent(self) -> None:
        """All of it, or one of its processes."""
        parts = self._machine().parts()
        if parts and self._rng.random() < 0.6:
            parts = [self._rng.choice(parts)]
        ms = self._rng.choice((500, 5_000, 11_000, 14_000, 14_000, 30_000))
        for part in parts:
            if not part.frozen:
                part.freeze(ms)

    def _freeze_runtime(self) -> None:
        """Its processes run on; rather one with a `stop` task."""
        runtimes = [m.runtime for m in self._world.machines.values() if m.runtime is not None]
        with_stop = [r for r in runtimes if r.alive and r.core.stop_deadline_ms and not r.frozen]
        runtime = self._rng.choice(with_stop) if with_stop else self._runtime()
        if runtime is not None and not runtime.frozen:
            runtime.freeze(self._rng.choice((9_000, 14_000)))

    def _part_agent(self) -> None:
        ident = self._machine().id
        ms = self._rng.choice((1_000, 4_000, 11_000, 11_000, 16_000, 16_000, 16_000, 70_000))
        leader = self._leader()
        only_leader = leader is not None and self._rng.random() < 0.4
        self._part(ident, leader.host if only_leader and leader is not None else EVERYBODY, ms)

    def _cut_link(self) -> None:
        runtime = self._runtime()
        if runtime is not None and runtime.link is not None:
            runtime.link.cut("somebody pulled the plug")

    def _drain_agent(self) -> None:
        supervisor = self._machine().supervisor
        if supervisor is not None and supervisor.alive:
            supervisor.do(supervisor.terminate)

    def _ask_restart(self) -> None:
        if (leader := self._leader()) is not None and leader.ready:
            ident = self._machine().id
            leader.do(lambda: leader.ask_restart(ident))

    def _stray_outcome(self) -> None:
        """Of another attempt, incarnation or agent than the task has now; or its start."""
        leader, held = self._leader(), self._world.store.load_open()[0]
        given = [(spec, status) for spec, status in held if status.agent]
        if leader is None or not leader.ready or not given:
            return
        spec, status = self._rng.choice(given)
        ident, number, attempt = status.agent, status.incarnation, status.attempt
        wrong = self._rng.choice(("agent", "incarnation", "attempt"))
        if wrong == "agent":
            ident = self._rng.choice([i for i in self._world.machines if i != ident])
        elif wrong == "incarnation":
            number += self._rng.choice((-1, 1))
        else:
            attempt += self._rng.choice((-1, 1))
        ref, ended = AttemptRef(spec.id, attempt, spec.tenant), self._rng.random() < 0.6
        leader.say("hears of", label(spec.id, attempt), "from", f"{ident}/{number}", "- a stray")
        leader.do(lambda: leader.stray(ident, number, ref, ended=ended))

    def _stray_command(self) -> None:
        """A word of a leader that was replaced reaches an agent after its successor's, or one that
        was meant for another incarnation, or that it has heard before."""
        runtime = self._runtime()
        if runtime is None or runtime.link is None or not runtime.core.term:
            return
        if self._rng.random() < 0.5:
            self._repeat_assignment(runtime, runtime.link)
            return
        held = list(runtime.core._held)
        link, term = runtime.link, runtime.core.term - 1
        if not held:
            return
        key = self._rng.choice(held)
        newer = replace(runtime.core._held[key].spec, key=AttemptKey(key.task_id, key.attempt + 1))
        events = self._rng.choice(
            (
                Assigned(term, (newer,)),
                CancelAsked(term, key, Wish.CANCEL),
                Dropped(term, (key,)),
                LeaderDrain(term),
            )
        )
        runtime.say("hears", type(events).__name__, label(*key), "of term", term, "- a stray")
        runtime.do(lambda: runtime.hear(link, term, [events]))

    def _repeat_assignment(self, runtime: Runtime, link: Link) -> None:
        """Of what it has not got rid of, or has got something newer for; or as if for another."""
        core, another = runtime.core, self._rng.random() < 0.3

        def hear() -> None:
            again = [
                spec
                for key, spec in runtime.given.items()
                if key in core._held or key in core._outbox or key.task_id in core._newest
            ][-core.slots :]
            if another:
                number = core.incarnation + self._rng.choice((-1, 1))
                again = [
                    replace(spec, key=AttemptKey(spec.key.task_id, 99), incarnation=number)
                    for spec in again
                ]
            runtime.say("hears of", *(label(*spec.key) for spec in again), "- a stray")
            runtime.hear(link, core.term, [Assigned(core.term, tuple(again))])

        runtime.do(hear)

    def _hang_agent(self) -> None:
        """It beats, takes attempts and starts none: of one agent in a run, for one incarnation."""
        runtime = self._runtime()
        if runtime is not None and self._rng.random() < 0.5 and not self._has_hung:
            self._has_hung = True
            runtime.say("starts nothing any more")
            runtime.do(runtime.executor.get_stuck)

    # ------------------------------------------------------------------ other servers

    def _lose_registry(self) -> None:
        self._world.registry.go_away(self._rng.choice((1_000, 12_000)))

    def _lose_storage(self) -> None:
        self._world.store.go_away(self._rng.choice((300, 2_000, 7_000)))

    def _freeze_monitor(self) -> None:
        if not self._world.monitor.frozen:
            self._world.monitor.freeze(self._rng.choice((500, 6_000)))

    def _turn_clock(self) -> None:
        """The date jumps by up to an hour."""
        parts: list[Part] = [*self._machine().parts(), self._world.leaders[-1], self._world.gateway]
        part = self._rng.choice(parts)
        part.wall_skew_ms = self._rng.randrange(-MAX_WALL_SKEW_MS, MAX_WALL_SKEW_MS)
        part.say("has its date turned")

    # --------------------------------------------------------------------- operators

    def _wish_for_a_while(self) -> None:
        ident = self._machine().id
        self.wish(ident, self._rng.choice((AgentWish.CORDON, AgentWish.DRAIN)))
        self._kernel.at(5_000, lambda: self.wish(ident, AgentWish.NONE))

    def wish(self, ident: AgentId, wish: AgentWish) -> None:
        """An operator asks again until a leader has confirmed it."""
        asked = ident in self.wishes_open
        self.wishes_open[ident] = wish
        if not asked:
            self._ask_wish(ident)

    def _ask_wish(self, ident: AgentId) -> None:
        wish = self.wishes_open.get(ident)
        if wish is None:
            return
        leader = self._leader()
        if leader is not None and leader.ready:
            leader.do(lambda: self._set_wish(leader, ident, wish))
        self._kernel.at(WISH_AGAIN_MS, lambda: self._ask_wish(ident))

    def _set_wish(self, leader: SimLeader, ident: AgentId, wish: AgentWish) -> None:
        """Persisted first, then acted on."""
        store = leader.store

        def stored(_: object) -> None:
            agents.set_wish(leader.state, ident, wish, leader.now())
            if self.wishes_open.get(ident) is wish:
                del self.wishes_open[ident]

        call(leader, store, lambda: store.set_wish(ident, wish), stored, repeat=False)
