"""What operators do, at any moment: cordon, drain, restart; each is asked for until it is done."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.scenarios.sim_network import call

from muster.domain.agent_lifecycle import AgentWish
from muster.domain.ids import AgentId
from muster_scheduler.core import agents

if TYPE_CHECKING:
    from tests.scenarios.sim_leader import SimLeader
    from tests.scenarios.sim_world import World

WISH_AGAIN_MS = 4_000
WISH_FOR_MS = 5_000


class Operators:
    """Each method that is a deed says whether it was done."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._rng = world.rng
        self._kernel = world.kernel
        # What operators want of agents and no leader has confirmed.
        self.wishes_open: dict[AgentId, AgentWish] = {}
        # By when a drained agent is to be empty.
        self._deadlines_ms: dict[AgentId, int] = {}

    def wish_for_a_while(self, ident: AgentId) -> bool:
        """Cordon or drain, taken back some seconds later."""
        wish = self._rng.choice((AgentWish.CORDON, AgentWish.DRAIN))
        self._kernel.tally[f"operator's {wish.value.lower()}"] += 1
        if wish is AgentWish.DRAIN:
            self._deadlines_ms[ident] = self._rng.choice((0, 1_000, 3_000))
            self._kernel.tally["operator's drain with a deadline"] += self._deadlines_ms[ident] > 0
        self.wish(ident, wish)
        self._kernel.at(WISH_FOR_MS, lambda: self.wish(ident, AgentWish.NONE))
        return True

    def wish(self, ident: AgentId, wish: AgentWish) -> None:
        """An operator asks again until a leader has confirmed it."""
        asked = ident in self.wishes_open
        self.wishes_open[ident] = wish
        if not asked:
            self._ask(ident)

    def _ask(self, ident: AgentId) -> None:
        wish = self.wishes_open.get(ident)
        if wish is None:
            return
        leader = self._world.leader
        if leader is not None and not leader.frozen and leader.ready:
            leader.do(lambda: self._set(leader, ident, wish))
        self._kernel.at(WISH_AGAIN_MS, lambda: self._ask(ident))

    def _set(self, leader: SimLeader, ident: AgentId, wish: AgentWish) -> None:
        """Persisted first, then acted on."""
        store = leader.store

        def stored(_: object) -> None:
            within_ms = self._deadlines_ms.get(ident, 0) if wish is AgentWish.DRAIN else 0
            agents.set_wish(leader.state, ident, wish, leader.now(), deadline_ms=within_ms)
            if within_ms:
                leader.witness.drains[ident] = leader.now().clock_ms + within_ms
            if self.wishes_open.get(ident) is wish:
                del self.wishes_open[ident]

        call(leader, store, lambda: store.set_wish(ident, wish), stored, repeat=False)

    def restart(self, leader: SimLeader | None, ident: AgentId) -> bool:
        """The agent's runtime is to be started anew."""
        if leader is None or not leader.ready or ident not in leader.state.agents:
            return False
        leader.do(lambda: leader.ask_restart(ident))
        return True
