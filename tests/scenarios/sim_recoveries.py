"""A leader's recoveries beyond its core: their records, what was learned, and what must be true."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, cast

import msgspec
import orjson
from tests.scenarios.sim_kernel import FASTEST, SimulationError
from tests.scenarios.sim_network import call

from muster.domain.agent_lifecycle import AgentState
from muster.domain.ids import AgentId
from muster_scheduler.core.commands import Stuck
from muster_scheduler.core.health import PlainTrust
from muster_scheduler.core.mass_failure import Alarm
from muster_scheduler.core.recoveries import MAX_ACTIONS, Recovery
from muster_scheduler.core.recovery_record import OPEN, plain_record
from muster_scheduler.recovery import Action

if TYPE_CHECKING:
    from tests.scenarios.sim_leader import SimLeader

LEARNED_EVERY_MS = 5_000
# A second for the look at it, and some for a leader that is busy.
LATE_MS = 3_000
HEARD_MS = 10_000


class _Kept(msgspec.Struct):
    """As the production book keeps it."""

    at_clock_ms: int
    agents: dict[str, PlainTrust]
    drains: dict[str, int]


OUTCOMES = {"moved", "rerun", "kept", "no tasks"}


class SimKeeper:
    """As the production keeper: what was learned is read once and kept anew every few seconds."""

    def __init__(self, leader: SimLeader) -> None:
        self._leader = leader
        self._outcomes: dict[str, str] = {}

    def load(self) -> None:
        """What the leader before has learned."""
        leader = self._leader

        def loaded(answer: object) -> None:
            learned, health = cast("tuple[bytes, bytes]", answer)
            if learned:
                leader.state.recoveries.take_over(orjson.loads(learned))
                leader.kernel.tally["beliefs taken over"] += 1
            if health:
                self._take_health(msgspec.json.decode(health, type=_Kept))
            leader.later(LEARNED_EVERY_MS, self._keep)

        call(leader, leader.store, lambda: leader.store.kept, loaded)

    def _keep(self) -> None:
        leader = self._leader
        book = leader.state.recoveries
        if book.changed_beliefs:
            book.changed_beliefs = False
            learned = orjson.dumps(book.to_plain())
            call(leader, leader.store, lambda: leader.store.keep_learned(learned), lambda _: None)
        self._keep_health()
        leader.later(LEARNED_EVERY_MS, self._keep)

    def _take_health(self, kept: _Kept) -> None:
        state, clock_ms = self._leader.state, self._leader.now().clock_ms
        state.health.take_over(kept.agents, kept.at_clock_ms, clock_ms)
        self._leader.kernel.tally["health taken over"] += bool(kept.agents)
        for ident, at_ms in kept.drains.items():
            state.drains[AgentId(ident)] = self._leader.witness.drains[AgentId(ident)] = at_ms

    def _keep_health(self) -> None:
        leader, clock_ms = self._leader, self._leader.now().clock_ms
        drains = {str(i): at for i, at in leader.state.drains.items()}
        kept = _Kept(clock_ms, leader.state.health.to_plain(clock_ms), drains)
        health = msgspec.json.encode(kept)
        call(leader, leader.store, lambda: leader.store.keep_health(health), lambda _: None)

    def take(self, recoveries: Iterable[Recovery]) -> None:
        """Recoveries that began, ended or have another action."""
        tally = self._leader.kernel.tally
        for recovery in recoveries:
            record: dict[str, Any] = orjson.loads(
                orjson.dumps(plain_record(recovery, "default", self._leader.term))
            )
            before, outcome = self._outcomes.get(recovery.id), record["outcome"]
            self._outcomes[recovery.id] = outcome
            if before is None:
                tally[f"recovery of {record['kind']}"] += 1
            if outcome == OPEN:
                if before not in (None, OPEN):
                    raise SimulationError(f"recovery {recovery.id} is open after it was {before}")
            elif before in (None, OPEN):
                tally[f"recovery ended: {outcome}"] += 1
                for action in {str(action["action"]) for action in recovery.actions}:
                    tally[f"recovery chose {action}"] += 1
                if outcome not in OUTCOMES or len(recovery.actions) > MAX_ACTIONS:
                    raise SimulationError(f"recovery {recovery.id} ends as {record}")

    def note_alarms(self, alarms: Sequence[Alarm], stuck: Sequence[Stuck]) -> None:
        """What operators are told."""
        tally = self._leader.kernel.tally
        for alarm in alarms:
            self._leader.say("raises" if alarm.active else "ends", "its alarm:", alarm.why)
            what = f"mass failure of {'a zone' if alarm.zone else 'the cluster'}"
            tally[what if alarm.active else "mass failure over"] += 1
        tally["task stuck"] += len(stuck)
        for one in stuck:
            self._leader.witness.check_stuck(one.task, one.attempt)

    def check(self) -> None:
        """Looked at about once a second, when agents are judged."""
        leader = self._leader
        book, now_ms = leader.state.recoveries, leader.boot_ms()
        for recovery in book.open.values():
            agent = leader.state.agents.get(recovery.agent)
            if agent is None or not recovery.holding:
                continue
            held_ms = now_ms - recovery.began.boot_ms
            leader.kernel.tally["seconds in which tasks were held"] += bool(agent.tasks)
            heard = agent.session and now_ms - agent.heard_boot_ms < HEARD_MS
            longest_ms = book.settings.horizon_s * 1_000 + LATE_MS
            if held_ms > longest_ms * FASTEST and not heard:
                raise SimulationError(f"invariant 19: {agent!r} is waited for since {held_ms} ms")
            if agent.usable and recovery.back_boot_ms is None:
                raise SimulationError(
                    f"invariant 19: {agent!r} is used, and its tasks are held for it"
                )
            if recovery.action == Action.MIGRATE:
                raise SimulationError(
                    f"invariant 19: {agent!r} holds tasks that were to be given away"
                )
            if agent.state not in (AgentState.DOWN, AgentState.RESTARTING, AgentState.JOINING):
                raise SimulationError(f"invariant 19: {agent!r} holds tasks and is not down")

    def check_end(self) -> None:
        """All has ended: nothing is held, nothing is promised to nobody."""
        book = self._leader.state.recoveries
        agents = self._leader.state.agents
        busy = [r.id for r in book.open.values() if r.holding and agents[r.agent].tasks]
        lost = book.ledger.promised().keys() - book.open.keys()
        if busy or lost:
            raise SimulationError(f"all has ended, and {busy} are held, {lost} are promised slots")
