"""What the leader's events, and this monitor's own suspicions, mean as findings. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from muster.domain.agent_lifecycle import AgentState
from muster_monitor.alerting.alerts import MAX_LABEL_CHARS
from muster_monitor.findings import Finding, Severity

# An agent that stays away for longer is taken for removed; the leader forgets it after 10 min.
DOWN_KEPT_MS: Final = 3_600_000
# Told once, and not taken back: nobody says that a task is no longer stuck when it has ended.
TOLD_ONCE_KEPT_MS: Final = 15 * 60_000
# Clocks of two hosts may be wrong by so much together.
CLOCKS_APART_MS: Final = 2 * 3_600_000

_ENDS_DOWN: Final = frozenset({AgentState.READY, AgentState.LEFT, AgentState.PAROLE})
_IN_QUARANTINE: Final = frozenset({AgentState.QUARANTINED, AgentState.PAROLE})
# States that leave the quarantine where it is: a death or a restart absolves nobody.
_LEAVES_QUARANTINE: Final = frozenset({AgentState.READY, AgentState.LEFT, AgentState.DRAINING})


@dataclass(frozen=True, slots=True)
class Happening:
    """A finding of the leader's. It lapses after `hold_ms`, 0 = it stands until it is taken back;
    `tenant` None = the tenant of the agent that its label names."""

    finding: Finding
    hold_ms: int = 0
    tenant: str | None = None

    def is_past(self, now_ms: int) -> bool:
        """Whether it is read so late that it has lapsed, whatever the clocks of the two hosts."""
        age_ms = now_ms - self.finding.at_ms
        return self.finding.active and 0 < self.hold_ms < age_ms - CLOCKS_APART_MS


def of_agent(agent: str, state: AgentState, why: str, at_ms: int) -> Sequence[Happening]:
    """An agent has entered a state."""
    found: list[Happening] = []

    def say(rule: str, severity: Severity, active: bool, text: str, hold_ms: int = 0) -> None:
        finding = Finding(rule, {"agent": agent}, severity, active, text, at_ms)
        found.append(Happening(finding, hold_ms))

    if state is AgentState.DOWN:
        text = f"agent {agent} is down: {why}" if why else f"agent {agent} is down"
        say("agent_down", Severity.CRITICAL, True, text, DOWN_KEPT_MS)
    elif state in _ENDS_DOWN:
        say("agent_down", Severity.CRITICAL, False, f"agent {agent} is {state}")
    if state in _IN_QUARANTINE:
        text = f"agent {agent} is in quarantine: {why}" if why else f"{agent} is in quarantine"
        say("agent_quarantined", Severity.WARNING, True, text)
    elif state in _LEAVES_QUARANTINE:
        say("agent_quarantined", Severity.WARNING, False, f"agent {agent} is {state}")
    return found


def of_alarm(name: str, why: str, at_ms: int) -> Happening:
    """The leader's alarm about the whole cluster; an empty `why` ends it."""
    text = why or f"the alarm {name or 'of the cluster'} is over"
    labels = {"alarm": _short(name)}
    finding = Finding("cluster_alarm", labels, Severity.CRITICAL, bool(why), text, at_ms)
    return Happening(finding, tenant="")


def of_stuck_task(
    tenant: str, task: str, agent: str, skill: str, why: str, at_ms: int
) -> Happening:
    """A running task reports nothing although its process lives."""
    labels = {"task": task, "agent": agent, "skill": skill, "tenant": tenant}
    text = why or f"task {task} reports no progress"
    finding = Finding(
        "task_stuck",
        {name: _short(label) for name, label in labels.items() if label},
        Severity.WARNING,
        True,
        text,
        at_ms,
    )
    return Happening(finding, TOLD_ONCE_KEPT_MS, tenant)


def of_recovery(agent: str, note: str, why: str, at_ms: int) -> Happening:
    """What was done about an agent that was given up: for the record, not for a pager."""
    said = ": ".join(part for part in (note, why) if part) or "it is under way"
    text = f"recovery of agent {agent}: {said}"
    finding = Finding("agent_recovery", {"agent": agent}, Severity.INFO, True, text, at_ms)
    return Happening(finding, TOLD_ONCE_KEPT_MS)


def _short(text: str) -> str:
    return text[:MAX_LABEL_CHARS]
