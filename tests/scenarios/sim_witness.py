"""What a leader's shell has seen of agents, to judge what the core makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tests.scenarios.sim_books import CLOCK_JUMPS_MS, label
from tests.scenarios.sim_kernel import FASTEST, SimulationError

from muster.agent.events import AttemptKey
from muster.domain.agent import AgentRecord
from muster.domain.agent_lifecycle import AgentWish
from muster.domain.ids import AgentId
from muster.domain.task import OnDisconnect, TaskStatus, Wish
from muster.domain.task_lifecycle import HELD_STATES, TaskState
from muster_monitor.failure_detector import Verdict as Suspicion
from muster_scheduler.core.agents import JUDGED_LATE_MS
from muster_scheduler.core.commands import Push
from muster_scheduler.core.overdue import UNSTARTED_MS
from muster_scheduler.core.overdue import _was_pushed as was_pushed
from muster_scheduler.core.records import SUSPECT_DEATHS, AttemptRef, Effect, EffectKind, OpenTask

if TYPE_CHECKING:
    from tests.scenarios.sim_leader import SimLeader

# Silence that may move tasks at all: written down here once more, see invariant 10.
SILENT_AND_LEASELESS_MS = 10_000
SILENT_MS = 60_000
GIVEN_AWAY_MS = 13_000
# Confirmations that are late let the cluster's clock catch up.
FENCES_SHRINK_MS = 2 * CLOCK_JUMPS_MS
# An agent that is spoken with has been told of what it lost by then.
FOREIGN_MS = 5_000
# Who was heard this lately is heard: what it said before has arrived.
HEARD_MS = 2_000
# 30 s, and some for the look at it.
UNBEGUN_MS = 33_000


class Witness:
    """Numbers are those of ARCHITECTURE.md's invariants."""

    def __init__(self, leader: SimLeader) -> None:
        self._leader = leader
        self._heard_ms: dict[AgentId, int] = {}
        # None until the registry has shown its agents once.
        self._leased: dict[AgentId, int] | None = None
        # Agents whose tasks may move because of what was just heard.
        self.excuses: set[AgentId] = set()
        # When each incarnation was heard last, and those of which a supervisor said they are dead.
        self._spoken_ms: dict[tuple[AgentId, int], int] = {}
        # When each was last answered.
        self._answered_ms: dict[tuple[AgentId, int], int] = {}
        self.buried: set[tuple[AgentId, int]] = set()
        # Incarnations whose death was charged to a task that others had died with.
        self._killed: set[tuple[AgentId, int]] = set()
        # Incarnations that say that they drain.
        self.leaving: dict[AgentId, int] = {}
        # Until when what was lost may go on where it was.
        self._fenced_until_ms: dict[OpenTask, int] = {}
        # Incarnations that the core was told to suspect.
        self.doubted: dict[AgentId, int] = {}
        # By when agents are to be empty, in the cluster's time.
        self.drains: dict[AgentId, int] = {}
        # When attempts were last heard to get on.
        self.progress_ms: dict[AttemptKey, int] = {}
        self._stood_still_ms = 0
        self._led_since_ms = self._began_ms = 0
        # Attempts that agents hold and that are not theirs, since when that is so.
        self._foreign_ms: dict[tuple[AgentId, AttemptKey], int] = {}
        # Their own attempts, of which they and the leader know different things.
        self._untold_ms: dict[tuple[AgentId, AttemptKey], int] = {}

    # ----------------------------------------------------------------- what was seen

    def begin(self) -> None:
        """The leader has its term."""
        self._led_since_ms = self._listened_ms()
        self._began_ms = self._leader.boot_ms()

    def stand_still(self, ms: int) -> None:
        """The leader is frozen, and hears nobody."""
        if ms > JUDGED_LATE_MS:
            self._stood_still_ms += ms - JUDGED_LATE_MS

    def _listened_ms(self) -> int:
        """A clock that stands still while the leader does."""
        return self._leader.boot_ms() - self._stood_still_ms

    def hear(self, ident: AgentId, incarnation: int = 0) -> None:
        self._heard_ms[ident] = self._listened_ms()
        if incarnation:
            self._spoken_ms[ident, incarnation] = self._leader.boot_ms()

    def answered(self, ident: AgentId, incarnation: int) -> None:
        """A beat or the hello of a session is answered."""
        self._answered_ms[ident, incarnation] = self._leader.boot_ms()

    def excuse(self, ident: AgentId) -> None:
        """Something was heard that lets this agent's tasks move."""
        self.excuses.add(ident)

    def shown(self, records: Sequence[AgentRecord]) -> None:
        """All that the registry shows."""
        self._leased = {}
        for record in records:
            self.leased(record)

    def leased(self, record: AgentRecord) -> None:
        ident = record.spec.id
        if self._leased is not None:
            self._leased[ident] = record.incarnation
        known = self._leader.state.agents.get(ident)
        if known is not None and record.incarnation > known.incarnation:
            self.excuse(ident)
            self.hear(ident)

    def lease_gone(self, ident: AgentId) -> None:
        if self._leased is not None:
            self._leased.pop(ident, None)

    def suspicion(self, verdict: Suspicion) -> None:
        known = self._leader.state.agents.get(verdict.agent)
        if not verdict.suspected:
            self.trust(verdict.agent)
        elif known is not None and known.incarnation == verdict.incarnation:
            self.doubted[verdict.agent] = verdict.incarnation

    def trust(self, ident: AgentId | None = None) -> None:
        """None: everybody, for the monitor is gone."""
        if ident is None:
            self.doubted.clear()
        else:
            self.doubted.pop(ident, None)

    # ---------------------------------------------------------------- what is decided

    def _silent_ms(self, ident: AgentId) -> int:
        return self._listened_ms() - self._heard_ms.get(ident, self._led_since_ms)

    def check_down(self, ident: AgentId) -> None:
        """10: it takes more than a suspicion and a missing lease."""
        silent_ms = self._silent_ms(ident)
        agent = self._leader.state.agents.get(ident)
        spared = agent is not None and self._leader.state.mass_failure.spares(agent.zone)
        if spared and ident not in self.excuses:
            raise SimulationError(f"invariant 10: {ident} is DOWN while so many are silent")
        leaseless = self._leased is not None and ident not in self._leased
        gone = leaseless and silent_ms >= SILENT_AND_LEASELESS_MS
        if not (gone or silent_ms >= SILENT_MS or ident in self.excuses):
            raise SimulationError(f"invariant 10: {ident} is DOWN after {silent_ms} ms of silence")

    def check_push(self, ident: AgentId, push: Push) -> None:
        """What an agent is going to be told."""
        leader = self._leader
        self._check_moves(ident, push.drop)
        for task in push.assign:
            key = task.id, task.status.attempt
            leader.world.books.pushed(ident, task.status.incarnation, key)
        for ref, recorded in push.acks:
            row = leader.store.row(ref.task_id) if recorded else None
            if row is not None:
                leader.world.books.acknowledged((ref.task_id, ref.attempt), row[1])
            elif _is_being_recorded(leader.state.tasks.get(ref.task_id), ref):
                name = label(ref.task_id, ref.attempt)
                raise SimulationError(f"invariant 6: {name} is refused while it is being recorded")

    def _check_moves(self, ident: AgentId, dropped: Sequence[AttemptRef]) -> None:
        """10 and 18: tasks move for a reason."""
        agent = self._leader.state.agents.get(ident)
        if not dropped or ident in self.excuses or agent is None or agent.draining:
            return
        silent_ms = self._silent_ms(ident)
        if silent_ms >= SILENT_AND_LEASELESS_MS:
            return
        empty_by_ms = self.drains.get(ident)
        if empty_by_ms is not None and self._leader.now().clock_ms >= empty_by_ms:
            return
        for ref in dropped:
            truth = self._leader.world.books.attempts.get((ref.task_id, ref.attempt))
            if truth is None or (ident, truth.incarnation) in self.buried:
                # Never pushed; or held since a supervisor told of the death, and now given away.
                continue
            waited_ms = self._leader.kernel.now_ms - truth.pushed_ms
            never_began = not truth.started and waited_ms * FASTEST >= UNSTARTED_MS
            if truth.incarnation >= agent.incarnation and not never_began:
                name = label(ref.task_id, ref.attempt)
                raise SimulationError(
                    f"invariant 10: {ident} loses {name} after {silent_ms} ms of silence"
                )

    def check_records(self) -> None:
        """Nobody but the leader changes tasks: what it takes for stored is stored.

        But a task that waits may have ended while it was being read; that shows when it is placed.
        """
        leader = self._leader
        if leader.term != leader.store.term:
            return
        for task in leader.state.tasks.values():
            if task.write is not None or task.stored is None:
                continue
            status = leader.store.status(task.spec.tenant, task.id)
            if task.stored[0] is TaskState.PENDING and status is not None:
                continue
            if status is None or (status.state, status.attempt) != task.stored:
                raise SimulationError(f"{task!r} is taken to be stored as {task.stored}: {status}")
            truth = leader.world.books.attempts.get((task.id, task.status.attempt))
            if task.started and truth is not None and not truth.started:
                raise SimulationError(f"invariant 5: {task!r} is taken to have started: {truth}")

    def check_wishes(self) -> None:
        """11: what operators were told is wished is what the leader heeds."""
        leader, open_ones = self._leader, self._leader.world.operators.wishes_open
        if not leader.ready or leader.term != leader.store.term:
            return
        stored = leader.store.wishes()
        for ident in {*stored, *leader.state.wishes} - open_ones.keys():
            wish, none = leader.state.wishes.get(ident, AgentWish.NONE), AgentWish.NONE
            if wish is not stored.get(ident, none):
                raise SimulationError(f"invariant 11: {ident} is taken to be {wish}: {stored}")

    def check_decision(
        self, task: OpenTask, status: TaskStatus, effects: tuple[Effect, ...]
    ) -> None:
        """17: what may still run elsewhere is not given out before that is over."""
        leader, before = self._leader, task.status
        now_ms = leader.boot_ms()
        if status.state is TaskState.ASSIGNED:
            early_ms = self._fenced_until_ms.pop(task, 0) - now_ms
            if early_ms > FENCES_SHRINK_MS:
                raise SimulationError(f"invariant 17: {task!r} is placed {early_ms} ms too early")
            if self.leaving.get(status.agent) == status.incarnation:
                raise SimulationError(f"{task!r} is placed on {status.agent}, which drains")
        agent = leader.state.agents.get(before.agent)
        on_purpose = agent is not None and (agent.restarting or agent.draining)
        if on_purpose and status.agent_deaths > before.agent_deaths:
            raise SimulationError(f"invariant 9: {task!r} is blamed, and {agent!r} ends on purpose")
        if before.agent_deaths >= SUSPECT_DEATHS and status.agent_deaths > before.agent_deaths:
            died = before.agent, before.incarnation
            if died in self._killed:
                raise SimulationError(f"invariant 9: two suspects are charged with {died}")
            self._killed.add(died)
        self._count(task, status, effects)
        stop = task.spec.on_disconnect is OnDisconnect.STOP and before.state in HELD_STATES
        if not stop or status.state is not TaskState.PENDING:
            return
        holder = before.agent, before.incarnation
        if holder in self.buried or any(e.kind is EffectKind.ACK for e in effects):
            return
        silent_ms = now_ms - self._spoken_ms.get(holder, self._began_ms)
        fence_ms = max(0, status.not_before_clock_ms - leader.now().clock_ms)
        # A leader that stood still may not have known the time when it set the fence; it had not
        # answered the agent since then, either.
        answered_ms = self._answered_ms.get(holder, self._began_ms)
        self._fenced_until_ms[task] = min(now_ms + fence_ms, answered_ms + GIVEN_AWAY_MS)
        if silent_ms + fence_ms < GIVEN_AWAY_MS:
            raise SimulationError(
                f"invariant 17: {task!r} is lost after {silent_ms} ms and waits {fence_ms} ms"
            )

    def _count(self, task: OpenTask, status: TaskStatus, effects: tuple[Effect, ...]) -> None:
        given_back = any(e.kind is EffectKind.ACK for e in effects)
        if task.status.state not in HELD_STATES or status.state is not TaskState.PENDING:
            return
        if not given_back:
            unstarted = "did not start it" in status.why
            kind = f"`{task.spec.on_disconnect.value.lower()}` task lost"
            tally = self._leader.kernel.tally
            tally["task taken back unstarted" if unstarted else kind] += 1

    def check_told(self) -> None:
        """Where there is a session, an agent knows what it is to end, and the leader who waits."""
        leader = self._leader
        before, self._untold_ms = self._untold_ms, {}
        for ident, session in leader.sessions.items():
            runtime, agent = session.runtime, leader.state.agents.get(ident)
            if agent is None or leader.term != leader.store.term or not session.flows:
                continue
            if self._silent_ms(ident) > HEARD_MS:
                continue
            for task in agent.tasks.values():
                key = AttemptKey(task.id, task.status.attempt)
                self._check_begun(ident, task, before)
                held = runtime.core._held.get(key)
                wished = task.status.wish is not Wish.NONE and was_pushed(task)
                if held is None or held.stop is not None:
                    continue
                if not wished and held.waiting == task.waiting:
                    continue
                since_ms = before.get((ident, key), leader.boot_ms())
                self._untold_ms[ident, key] = since_ms
                if leader.boot_ms() - since_ms > FOREIGN_MS:
                    what = "to end" if wished else "who waits"
                    raise SimulationError(f"invariants 13 and 18: {ident} and {task!r}: {what}")

    def _check_begun(
        self, ident: AgentId, task: OpenTask, before: dict[tuple[AgentId, AttemptKey], int]
    ) -> None:
        """18: who is heard and does not begin what it was given loses it."""
        if task.started or task.status.wish is not Wish.NONE or not was_pushed(task):
            return
        now_ms = self._leader.boot_ms()
        key = AttemptKey(task.id, -task.status.attempt)
        since_ms = self._untold_ms[ident, key] = before.get((ident, key), now_ms)
        if task.spec.on_disconnect is OnDisconnect.KEEP and now_ms - since_ms > UNBEGUN_MS:
            raise SimulationError(f"invariant 18: {ident} keeps {task!r}, which it does not begin")

    def check_stuck(self, task: OpenTask, attempt: int) -> None:
        """12: nothing is stuck that has been heard to get on."""
        key = AttemptKey(task.id, attempt)
        heard_ms = self.progress_ms.get(key)
        if heard_ms is None:
            return
        still_ms = self._leader.boot_ms() - heard_ms
        if still_ms * FASTEST + CLOCK_JUMPS_MS < task.spec.progress_timeout_ms:
            raise SimulationError(f"invariant 12: {label(*key)} is stuck after {still_ms} ms")

    def check_foreign(self) -> None:
        """What was given away does not run on for long where there is a session."""
        leader = self._leader
        before, self._foreign_ms = self._foreign_ms, {}
        for ident, session in leader.sessions.items():
            runtime, agent = session.runtime, leader.state.agents.get(ident)
            if agent is None or leader.term != leader.store.term or not session.flows:
                continue
            for key, held in runtime.core._held.items():
                task = agent.tasks.get(key.task_id)
                ours = task is not None and task.status.attempt == key.attempt
                if ours or held.stop is not None:
                    continue
                since_ms = before.get((ident, key), leader.boot_ms())
                self._foreign_ms[ident, key] = since_ms
                if leader.boot_ms() - since_ms > FOREIGN_MS:
                    raise SimulationError(f"{runtime.name} goes on with {label(*key)}, not its own")


def _is_being_recorded(task: OpenTask | None, ref: AttemptRef) -> bool:
    if task is None:
        return False
    written = task.write.effects if task.write is not None else ()
    return any(e.kind is EffectKind.ACK and e.ref == ref for e in (*written, *task.effects))
