"""Agents of ill health get no work for a while, then one probe, and by it all or nothing.

An agent whose health is under the floor is quarantined: what it has goes on, nothing new comes.
After a back-off it is on parole: exactly one task is placed there as a probe. The probe's success
absolves the agent, its failure sends it back for twice as long. Never is more than a share of the
agents quarantined, and never the last one that offers a skill: an agent that fails half of its
tasks is better than none. An agent that is spared so keeps its health, and comes last in placing.
"""

from __future__ import annotations

from typing import Final

from muster.agent.error_kinds import (
    NO_DEVICE,
    NO_SLOT,
    NON_RETRYABLE_ERROR_KINDS,
    UNKNOWN_SKILL,
)
from muster.domain.agent_lifecycle import AgentEvent, AgentState, AgentWish
from muster.domain.task import Outcome, OutcomeKind, Wish
from muster_scheduler.core.health import FLOOR, Blame, Sentence
from muster_scheduler.core.records import AgentEntry, Now, OpenTask
from muster_scheduler.core.state import ClusterState

# A relapse waits twice as long as the sentence before it.
LONGEST_WAIT_MS: Final = 3_600_000
# A sentence that was served counts against the next one for so long.
REMEMBERED_MS: Final = 3_600_000
# A probe that runs for so long without trouble is as good as one that has succeeded.
LONG_PROBE_MS: Final = 10 * 60_000
PRUNE_EVERY_MS: Final = 60_000

_COUNTED = frozenset(AgentState) - {AgentState.DOWN, AgentState.LEFT}
_SET_APART = (AgentState.QUARANTINED, AgentState.PAROLE)
# Given back for what the agent lacks, though it had said that it has it.
_REFUSALS = frozenset({NO_SLOT, NO_DEVICE, UNKNOWN_SKILL})
_TRIED = frozenset({OutcomeKind.SUCCEEDED, OutcomeKind.FAILED, OutcomeKind.TIMED_OUT})


def most_quarantined(agents: int, share: float) -> int:
    """How many of so many agents may be quarantined or on parole at once: never all, and of a few
    at most one."""
    if share <= 0 or agents < 2:
        return 0
    return max(1, int(share * agents))


def attempt_ended(state: ClusterState, task: OpenTask, result: Outcome, now: Now) -> None:
    """An attempt has ended; `task` still has the status of before."""
    status = task.status
    agent = state.agents.get(status.agent)
    if agent is None:
        return
    told_to_end = status.wish is Wish.CANCEL
    kind = OutcomeKind.TIMED_OUT if status.wish is Wish.TIME_OUT else result.kind
    refused = kind is OutcomeKind.RETURNED and result.error_kind in _REFUSALS
    if refused:
        state.health.blame(agent.id, Blame.REFUSED, now.clock_ms)
    # What has failed elsewhere, or would fail anywhere, says nothing about this agent.
    telling = kind in _TRIED and not told_to_end and status.failures == 0
    if kind is not OutcomeKind.SUCCEEDED:
        telling = telling and result.error_kind not in NON_RETRYABLE_ERROR_KINDS
    if telling:
        failed = kind is not OutcomeKind.SUCCEEDED
        state.health.tried(agent.id, task.spec.skill, failed, now.clock_ms)
    if agent.probe == (task.id, status.attempt):
        agent.probe = None
        _judge_probe(state, agent, task, kind, telling or refused, now)


def _judge_probe(
    state: ClusterState,
    agent: AgentEntry,
    task: OpenTask,
    kind: OutcomeKind,
    telling: bool,
    now: Now,
) -> None:
    if agent.state is not AgentState.PAROLE:
        return
    if kind is OutcomeKind.SUCCEEDED:
        _absolve(state, agent, f"its probe, task {task.id}, succeeded", now)
    elif telling:
        sentence = state.health.sentence(agent.id)
        times = 1 if sentence is None else sentence.times + 1
        why = f"its probe, task {task.id}, ended as {kind.value}"
        _condemn(state, agent, AgentEvent.RELAPSE, times, why, now)
    else:
        # It was cancelled, or would have failed anywhere: another probe.
        state.refresh(agent)


def probe_given(state: ClusterState, agent: AgentEntry, task: OpenTask, attempt: int) -> None:
    """A task was placed on an agent on parole: nothing more is."""
    agent.probe = (task.id, attempt)
    state.refresh(agent)
    # Others that were planned for this agent are placed anew.
    state.place_again = True


def settle(state: ClusterState, agent: AgentEntry, now: Now) -> None:
    """An agent that has become READY goes on with the quarantine that it has not served, and one
    of ill health begins one."""
    if agent.state is not AgentState.READY or agent.id not in state.health:
        return
    sentence = state.health.sentence(agent.id)
    unserved = sentence is not None and not sentence.served
    if not unserved and state.health.health(agent.id, now.clock_ms) >= FLOOR:
        return
    if not _may_be_spared(state, agent):
        return
    if unserved:
        why = "it has not served its quarantine"
        state.enter(agent, AgentEvent.QUARANTINE, why, now)
        return
    times = 1 if sentence is None else sentence.times + 1
    _condemn(state, agent, AgentEvent.QUARANTINE, times, "", now)


def judge(state: ClusterState, now: Now) -> None:
    """Brings each agent's health up to date, quarantines, paroles; called about once a second."""
    book = state.health
    if now.clock_ms - state.pruned_clock_ms >= PRUNE_EVERY_MS:
        state.pruned_clock_ms = now.clock_ms
        book.prune(now.clock_ms, REMEMBERED_MS)
    for agent in list(state.agents.values()):
        if agent.id in book or agent.health < 1.0:
            show_health(state, agent, now)
            settle(state, agent, now)
        if agent.state is AgentState.QUARANTINED:
            _judge_quarantined(state, agent, now)
        elif agent.state is AgentState.PAROLE and agent.probe is not None:
            _judge_parole(state, agent, now)


def show_health(state: ClusterState, agent: AgentEntry, now: Now) -> None:
    """Tells placement how well the agent is. One on parole must get its probe: it is placed on as
    if it were well."""
    agent.health = state.health.health(agent.id, now.clock_ms)
    if agent.id in state.table:
        placed_as = 1.0 if agent.state is AgentState.PAROLE else agent.health
        state.table.set_health(agent.id, placed_as)


def pardon(state: ClusterState, agent: AgentEntry, now: Now) -> None:
    """The operator wants it used: its parole may begin at once."""
    sentence = state.health.sentence(agent.id)
    if sentence is not None and not sentence.served:
        sentence.until_ms = min(sentence.until_ms, now.clock_ms)


def _judge_quarantined(state: ClusterState, agent: AgentEntry, now: Now) -> None:
    sentence = state.health.sentence(agent.id)
    over = sentence is None or now.clock_ms >= sentence.until_ms
    well = agent.session and agent.leased and not (agent.suspected or agent.draining)
    distrusted = now.boot_ms < agent.distrusted_until_boot_ms
    if over and well and not distrusted and agent.wish is AgentWish.NONE:
        state.enter(agent, AgentEvent.PAROLE, "its quarantine is over: one task as a probe", now)
        show_health(state, agent, now)


def _judge_parole(state: ClusterState, agent: AgentEntry, now: Now) -> None:
    assert agent.probe is not None
    ident, attempt = agent.probe
    task = agent.tasks.get(ident)
    if task is None or task.status.attempt != attempt:
        # It was lost without a word of the agent.
        agent.probe = None
        state.refresh(agent)
    elif task.started and now.clock_ms - task.status.started_clock_ms >= LONG_PROBE_MS:
        agent.probe = None
        minutes = LONG_PROBE_MS // 60_000
        _absolve(state, agent, f"its probe, task {task.id}, has run for {minutes} minutes", now)


def _absolve(state: ClusterState, agent: AgentEntry, why: str, now: Now) -> None:
    state.health.absolve(agent.id, now.clock_ms)
    state.enter(agent, AgentEvent.ABSOLVE, why, now)
    show_health(state, agent, now)


def _condemn(
    state: ClusterState, agent: AgentEntry, event: AgentEvent, times: int, why: str, now: Now
) -> None:
    wait_ms = state.quarantines.first_wait_ms * 2 ** min(times - 1, 20)
    wait_ms = min(max(wait_ms, state.quarantines.first_wait_ms), LONGEST_WAIT_MS)
    state.health.condemn(agent.id, Sentence(now.clock_ms + wait_ms, times))
    show_health(state, agent, now)
    reasons = ", ".join(state.health.reasons(agent.id, now.clock_ms))
    said = why or f"health {agent.health:.2f} ({reasons})"
    state.enter(agent, event, f"{said}; parole in {wait_ms / 1000:g} s", now)
    show_health(state, agent, now)


def _may_be_spared(state: ClusterState, agent: AgentEntry) -> bool:
    """Whether the cluster can do without it: the cap, and its skills."""
    counted = apart = 0
    skills = set() if agent.record is None else {s.name for s in agent.record.spec.skills}
    for other in state.agents.values():
        counted += other.state in _COUNTED
        apart += other.state in _SET_APART
        if other is not agent and other.usable and other.record is not None:
            skills -= {s.name for s in other.record.spec.skills}
    return not skills and apart < most_quarantined(counted, state.quarantines.share)
