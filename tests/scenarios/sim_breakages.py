"""Cores and shells broken on purpose: each must make one of the simulation's checks fail.

A breakage replaces as little as it can, by name, so that it breaks the code as it is now.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from msgspec.structs import replace as replace_struct
from tests.scenarios.sim_kernel import WALL_MS
from tests.scenarios.sim_leader import SimLeader
from tests.scenarios.sim_store import SimStore

from muster.agent import core as agent_core
from muster.agent import supervisor_core
from muster.agent.core import AgentCore
from muster.agent.events import Forget
from muster.agent.supervisor_core import Deaths, SupervisorCore
from muster.domain.agent_lifecycle import AgentEvent, AgentState
from muster.domain.task import OutcomeKind
from muster.domain.task_lifecycle import HELD_STATES, TaskEvent, TaskState
from muster.etcd import election_core
from muster_monitor.failure_detector import FailureTable, PhiDetector
from muster_scheduler.core import (
    agents,
    outcomes,
    overdue,
    progress,
    quarantine,
    recovering,
    state,
    tasks,
)
from muster_scheduler.core.records import EffectKind, Now
from muster_scheduler.core.state import ClusterState
from muster_storage.memory_store import MemoryCluster
from muster_storage.memory_tasks import Memory, MemoryTasks

Patch = pytest.MonkeyPatch


@dataclass(frozen=True)
class Breakage:
    """`number`: of the invariant in ARCHITECTURE.md that the check is for, 0 = of none of them.

    `says`: a part of what the check says. `storm`: the kind of fault that brings it out.
    """

    number: int
    what: str
    says: str
    apply: Callable[[Patch], None]
    storm: str = ""

    def __str__(self) -> str:
        return f"{self.number}-{self.what}".replace(" ", "-")


def around(owner: Any, name: str, wrap: Callable[..., Any]) -> Callable[[Patch], None]:
    """`wrap` is called with the original and then its arguments."""

    def apply(patch: Patch) -> None:
        original = getattr(owner, name)
        patch.setattr(owner, name, lambda *args, **kwargs: wrap(original, *args, **kwargs))

    return apply


def constant(owner: Any, **values: object) -> Callable[[Patch], None]:
    """Other figures than those decided on."""

    def apply(patch: Patch) -> None:
        for name, value in values.items():
            patch.setattr(owner, name, value)

    return apply


def ignored(owner: Any, name: str, answer: object = None) -> Callable[[Patch], None]:
    """Nothing is done any more."""
    return around(owner, name, lambda _, *__, **___: answer)


def turned(owner: Any, event: object, into: object) -> Callable[[Patch], None]:
    """`advance` as `owner` knows it goes elsewhere on this event."""

    def wrap(original: Any, before: object, happened: object, **more: object) -> object:
        return into if happened is event else original(before, happened, **more)

    name = "advance_agent" if owner is state else "advance"
    return around(owner, name, wrap)


# --- the leader -----------------------------------------------------------------------------


def _answers_at_once(original: Any, leader: SimLeader, spec: Any, done: Any) -> None:
    original(leader, spec, done)
    if leader.ready:
        done()


def _held_by_anyone(_: Any, state: ClusterState, agent: object, number: object, ref: Any) -> Any:
    task = state.tasks.get(ref.task_id)
    return task if task is not None and task.status.state in HELD_STATES else None


def _acknowledges_first(
    original: Any, state: ClusterState, agent: Any, number: int, ref: Any, *more: Any
) -> Any:
    current = original(state, agent, number, ref, *more)
    if current:
        state.commands.pushes[agent].acks.append((ref, True))
    return current


def _pushes_first(original: Any, state: ClusterState, task: Any, status: Any, *effects: Any) -> Any:
    original(state, task, status, *effects)
    for effect in effects:
        if effect.kind is EffectKind.ASSIGN:
            state.commands.pushes[effect.agent].assign.append(task)


def _counts_returns(original: Any, spec: Any, status: Any, outcome: Any, **now: Any) -> Any:
    if outcome.kind is OutcomeKind.RETURNED:
        outcome = replace_struct(outcome, kind=OutcomeKind.FAILED)
    return original(spec, status, outcome, **now)


def _blames_all(original: Any, *args: Any, **fence: Any) -> Any:
    state, task, why, _, now = args
    return original(state, task, why, True, now, **fence)


def _by_the_date(original: Any, state: ClusterState, now: Now) -> Any:
    return original(state, Now(now.boot_ms, now.wall_ms, now.wall_ms))


def _holds_on(original: Any, state: ClusterState, recovery: Any, *more: Any) -> None:
    original(state, recovery, *more)
    recovery.holding = True


# --- agents ---------------------------------------------------------------------------------


def _forgets_what_it_said(original: Any, core: AgentCore, key: Any) -> None:
    original(core, key)
    if core._welcomed and core._outbox.pop(key, None) is not None:
        core._out.append(Forget(key))


def _obeys_all(original: Any, core: AgentCore, term: int) -> bool:
    original(core, term)
    return True


def _says_nothing_again(original: Any, core: AgentCore, event: Any, now_ms: int) -> None:
    outbox, core._outbox = core._outbox, {}
    original(core, event, now_ms)
    core._outbox = outbox


def _resumes_all(original: Any, core: AgentCore) -> None:
    slots, core.slots = core.slots, 99
    original(core)
    core.slots = slots


def _says_it_failed(original: Any, held: Any, seen: Any) -> Any:
    outcome = original(held, seen)
    if held.stop is not None and outcome.kind is OutcomeKind.RETURNED:
        return replace_struct(outcome, kind=OutcomeKind.FAILED)
    return outcome


def _never_mind_the_slots(original: Any, core: AgentCore, spec: Any, now_ms: int) -> None:
    slots, core.slots = core.slots, 99
    original(core, spec, now_ms)
    core.slots = slots


def _never_mind_the_incarnation(original: Any, core: AgentCore, event: Any, now_ms: int) -> None:
    mine = tuple(replace(spec, incarnation=core.incarnation) for spec in event.attempts)
    original(core, replace(event, attempts=mine), now_ms)


def _keeps_all_deaths(original: Any, deaths: Deaths, death: Any) -> None:
    for _ in range(40):
        original(deaths, death)


# --- storage --------------------------------------------------------------------------------


def _loses_events(original: Any, memory: Memory, head: str, event: bytes) -> None:
    original(memory, head, event)
    if memory.seq % 20 == 0:
        memory.seq -= 1


async def _creates_again(original: Any, store: MemoryTasks, term: int, new: Any) -> Any:
    for one in new:
        store._memory.tasks.get(one.tenant, {}).pop(one.id, None)
    return await original(store, term, new)


async def _overwrites(original: Any, store: MemoryTasks, term: int, changes: Any) -> Any:
    taken = []
    for change in changes:
        present = store._memory.task(change.tenant, change.id)
        assert present is not None
        taken.append(change._replace(expect_state=present.state, expect_attempt=present.attempt))
    return await original(store, term, taken)


async def _keeps_the_term(original: Any, cluster: MemoryCluster, *args: Any) -> Any:
    await original(cluster, *args)
    cluster._memory.term = 1
    return 1, cluster._memory.clock_ms


async def _counts_twice(original: Any, cluster: MemoryCluster, term: int, advance_ms: int) -> Any:
    return await original(cluster, term, 2 * advance_ms)


async def _loses_a_task(original: Any, store: MemoryTasks, term: int, new: Any) -> Any:
    created = await original(store, term, new)
    store.lost = getattr(store, "lost", 0) + 1  # type: ignore[attr-defined]
    if store.lost == 5:  # type: ignore[attr-defined]
        store._memory.tasks[new[0].tenant].pop(new[0].id, None)
    return created


BREAKAGES = (
    Breakage(1, "the leader answers before it has written", "accepted and not durable",
             around(SimLeader, "submit", _answers_at_once)),
    Breakage(1, "a wish to cancel is not written", "invariant 1: ", ignored(tasks, "_wish")),
    Breakage(2, "an agent goes where its table does not lead", "invariant 2: ",
             turned(state, AgentEvent.SUSPECTED, AgentState.PAROLE)),
    Breakage(2, "a failed task is called cancelled", "nobody asked for it",
             turned(outcomes, TaskEvent.FAIL, TaskState.CANCELLED)),
    Breakage(3, "a change without its event", "invariant 3: ",
             around(Memory, "emit", _loses_events)),
    Breakage(3, "a change whatever stands there", "invariant 3: ",
             around(MemoryTasks, "apply", _overwrites)),
    Breakage(4, "storage asks for no term", "invariant 4: term", ignored(Memory, "check_term")),
    Breakage(4, "terms do not grow", "invariant 4: term 1 follows",
             around(MemoryCluster, "acquire_term", _keeps_the_term)),
    Breakage(4, "an agent obeys every leader", "obeys term",
             around(AgentCore, "_obeys", _obeys_all), "stray command"),
    Breakage(5, "outcomes of anybody count", "invariant 5: ",
             around(tasks, "_held", _held_by_anyone)),
    Breakage(5, "an agent takes what another incarnation was given", "invariant ",
             around(AgentCore, "_on_assigned", _never_mind_the_incarnation), "stray command"),
    Breakage(6, "an agent forgets what it has said", "unasked",
             around(AgentCore, "_send_outcome", _forgets_what_it_said)),
    Breakage(6, "outcomes are acknowledged before they are written", "invariant 6: ",
             around(tasks, "outcome", _acknowledges_first)),
    Breakage(7, "attempts are pushed before they are written", "invariant 7: ",
             around(ClusterState, "decide", _pushes_first)),
    Breakage(8, "a task is created over the one that is there", "created twice",
             around(MemoryTasks, "create", _creates_again)),
    Breakage(8, "a request is given other ids when it is repeated", "the second time",
             around(SimStore, "reserve", lambda _, store, *__: WALL_MS + store.kernel.now_ms)),
    Breakage(9, "two deaths are enough", "DEAD after 2 deaths",
             constant(outcomes, POISON_DEATHS=2)),
    Breakage(9, "what was given back is a failure", "is charged a failure for",
             around(tasks, "after_outcome", _counts_returns)),
    Breakage(9, "what had not begun is blamed", "had not started",
             around(tasks, "lost", _blames_all)),
    Breakage(9, "a drained attempt is called a failure", "is said to be failed",
             around(agent_core, "_verdict", _says_it_failed)),
    Breakage(9, "suspects are placed beside others", "invariant 9: ",
             constant(state, SUSPECT_DEATHS=99)),
    Breakage(10, "three seconds of silence are death", "is DOWN after",
             constant(agents, SILENT_AND_LEASELESS_MS=3_000)),
    Breakage(10, "suspects get new work", "invariants 10 and 11",
             ignored(agents, "suspicion")),
    Breakage(11, "wishes are not taken to heart", "invariant 11",
             ignored(agents, "set_wish"), "wish"),
    Breakage(12, "deadlines go by the date", "invariant 12: ", around(tasks, "due", _by_the_date)),
    Breakage(12, "the cluster's clock runs twice as fast", "clock runs ahead",
             around(MemoryCluster, "confirm_term", _counts_twice)),
    Breakage(13, "parents resume without a slot", "invariant 13: ",
             around(AgentCore, "_grant_resumes", _resumes_all)),
    Breakage(13, "an agent takes more than its slots", "slots",
             around(AgentCore, "_take", _never_mind_the_slots)),
    Breakage(14, "deaths are kept for ever", "invariant 14: ", lambda patch: (
        around(Deaths, "add", _keeps_all_deaths)(patch),
        patch.setattr(supervisor_core, "MAX_DEATHS", 1_000),
    )[0]),
    Breakage(17, "an agent ends `stop` tasks late", "invariant 17: ",
             constant(agent_core, CUT_OFF_AFTER_MS=15_000)),
    Breakage(17, "the leader gives `stop` tasks out early", "invariant 17: ",
             constant(agents, STOP_GIVEN_AWAY_MS=5_000)),
    Breakage(17, "a hung runtime keeps its `stop` tasks", "invariant 17: ",
             ignored(SupervisorCore, "look", answer=""), "runtime frozen"),
    Breakage(18, "what is not begun is not taken back", "invariant 18: ",
             ignored(overdue, "look_at", answer=False), "agent hung"),
    Breakage(18, "agents are not told to end", "invariants 13 and 18",
             ignored(AgentCore, "_on_cancel_asked")),
    Breakage(19, "what is to be given away is held on to", "invariant 19: ",
             around(recovering, "_act", _holds_on), "runtime killed"),
    Breakage(10, "agents are given up although most are silent", "while so many are silent",
             constant(agents, SUSPECT_MS=10**9), "many agents cut off"),
    Breakage(0, "any number of agents is quarantined", "are set apart",
             ignored(quarantine, "_may_be_spared", answer=True), "runtime killed"),
    Breakage(12, "what gets on is taken to be stuck", "is stuck after",
             ignored(progress, "told")),
    Breakage(17, "held `stop` tasks are given away as if they were dead", "invariant 17: ",
             around(recovering, "_silent_ms", lambda *_: 60_000), "agent frozen"),
    Breakage(0, "a leader holds on after its lease", "as well",
             constant(election_core, SAFETY_SHARE=-3.0)),
    Breakage(0, "the detector suspects at once", "is suspected after",
             around(PhiDetector, "phi", lambda *_: 100.0)),
    Breakage(0, "the detector suspects nobody", "is not suspected after",
             ignored(FailureTable, "_suspect")),
    Breakage(0, "outcomes are not said again", "it does not end",
             around(AgentCore, "_on_welcomed", _says_nothing_again)),
)  # fmt: skip
