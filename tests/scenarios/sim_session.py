"""A leader's session with a runtime: what is to be said merges while the way is blocked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.scenarios.sim_books import label
from tests.scenarios.sim_network import Link

from muster.agent import events as ev
from muster.domain.task import OnDisconnect, TaskSpec, Wish
from muster_scheduler.core.commands import Push
from muster_scheduler.core.deadlines import timeout_for
from muster_scheduler.core.records import AttemptRef, OpenTask

if TYPE_CHECKING:
    from tests.scenarios.sim_agent import Runtime
    from tests.scenarios.sim_leader import SimLeader

# A message that takes longer than this holds the next one back: flow control.
FLOWS_MS = 20


class SimSession:
    """One stream of one runtime, from its hello to its end."""

    def __init__(self, leader: SimLeader, runtime: Runtime, link: Link) -> None:
        self.leader = leader
        self.runtime = runtime
        self.link = link
        self.incarnation = runtime.core.incarnation
        self._waits = False
        self._welcome = False
        self._beat: int | None = None
        self._acks: list[ev.AttemptKey] = []
        self._drops: list[ev.AttemptKey] = []
        self._assigned: list[ev.AttemptSpec] = []
        self._cancels: list[tuple[ev.AttemptKey, Wish]] = []
        self._drain = False

    def welcome(self) -> None:
        self._welcome = True
        self._send()

    def answer_beat(self, seq: int) -> None:
        self._beat = seq
        self._send()

    def push(self, push: Push) -> None:
        clock_ms = self.leader.now().clock_ms
        for task in push.assign:
            self.leader.say("gives", label(task.id, task.status.attempt), "to", self.runtime.name)
            self._assigned.append(_assignment(task, clock_ms))
        self._cancels += [(_key(ref), wish) for ref, wish in push.cancel]
        self._acks += [_key(ref) for ref, _ in push.acks]
        self.leader.kernel.tally["attempt dropped"] += len(push.drop)
        self._drops += [_key(ref) for ref in push.drop]
        self._drain = self._drain or push.drain
        self._send()

    @property
    def flows(self) -> bool:
        """Whether what is said arrives at once, and is read."""
        kernel, runtime = self.leader.kernel, self.runtime
        free = self.link.arrives_ms(runtime) - kernel.now_ms <= FLOWS_MS
        return free and self.link.open and runtime.link is self.link and not runtime.frozen

    def _send(self) -> None:
        if self._waits:
            return
        kernel = self.leader.kernel
        busy_ms = self.link.arrives_ms(self.runtime) - kernel.now_ms
        if busy_ms > FLOWS_MS:
            self._waits = True
            self.leader.later(busy_ms, self._go_on)
            return
        events = self._gathered()
        if events:
            term, runtime, link = self.leader.term, self.runtime, self.link
            link.send(runtime, lambda: runtime.hear(link, term, events))

    def _go_on(self) -> None:
        self._waits = False
        self._send()

    def _gathered(self) -> list[ev.Event]:
        """One message, in the order in which an agent takes what is in it."""
        term = self.leader.term
        events: list[ev.Event] = []
        if self._welcome:
            events.append(ev.Welcomed(term))
        if self._beat is not None:
            events.append(ev.BeatAnswered(term, self._beat))
        if self._acks:
            events.append(ev.OutcomesAcked(term, tuple(self._acks)))
        if self._drops:
            events.append(ev.Dropped(term, tuple(self._drops)))
        if self._assigned:
            events.append(ev.Assigned(term, tuple(self._assigned)))
        events += [ev.CancelAsked(term, key, wish) for key, wish in self._cancels]
        if self._drain:
            events.append(ev.LeaderDrain(term))
        self._welcome = self._drain = False
        self._beat = None
        self._acks, self._drops, self._assigned, self._cancels = [], [], [], []
        return events


def _assignment(task: OpenTask, clock_ms: int) -> ev.AttemptSpec:
    spec: TaskSpec = task.spec
    return ev.AttemptSpec(
        key=ev.AttemptKey(spec.id, task.status.attempt),
        tenant=spec.tenant,
        skill=spec.skill,
        input_json=spec.input_json,
        incarnation=task.status.incarnation,
        timeout_ms=timeout_for(spec, task.status, clock_ms),
        stop_when_cut_off=spec.on_disconnect is OnDisconnect.STOP,
        priority=spec.priority,
        depth=spec.depth,
    )


def _key(ref: AttemptRef) -> ev.AttemptKey:
    return ev.AttemptKey(ref.task_id, ref.attempt)
