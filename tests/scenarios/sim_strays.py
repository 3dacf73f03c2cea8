"""Messages that should not be: words of who was replaced, said twice or late."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tests.scenarios.sim_agent import Runtime
from tests.scenarios.sim_books import label
from tests.scenarios.sim_network import Link

from muster.agent.events import Assigned, AttemptKey, CancelAsked, Dropped, LeaderDrain
from muster.domain.task import Wish
from muster_scheduler.core.records import AttemptRef

if TYPE_CHECKING:
    from tests.scenarios.sim_leader import SimLeader
    from tests.scenarios.sim_world import World


class Strays:
    """Each method says whether it found something to send."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._rng = world.rng

    def outcome(self, leader: SimLeader | None) -> bool:
        """Of another attempt, incarnation or agent than the task has now; or its start."""
        held = self._world.store.load_open()[0]
        given = [(spec, status) for spec, status in held if status.agent]
        if leader is None or not leader.ready or not given:
            return False
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
        return True

    def command(self, runtime: Runtime | None) -> bool:
        """A word of a leader that was replaced reaches an agent after its successor's, or one that
        was meant for another incarnation, or that it has heard before."""
        if runtime is None or runtime.link is None or not runtime.core.term:
            return False
        if self._rng.random() < 0.5:
            self._repeat_assignment(runtime, runtime.link)
            return True
        held = list(runtime.core._held)
        link, term = runtime.link, runtime.core.term - 1
        if not held:
            return False
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
        return True

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
