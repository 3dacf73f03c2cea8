"""Muster's own history, as `muster tasks --all --json` prints it.

One JSON object with `items`, a list, or one task a line. Recorded run times are of the agent that
a task ran on. To say how long it would have run elsewhere, the agents' speeds are estimated from
the whole history (see `learning.effects`): where an agent was twice as fast with what it was given,
it is taken to be twice as fast with everything of that skill.
"""

from __future__ import annotations

import heapq
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from muster.domain.errors import InvalidInput
from muster.domain.resources import ResourceVector
from muster.domain.task import Constraint
from muster_scheduler.learning.attempts import AgentFeatures, Attempt, TaskFeatures
from muster_scheduler.learning.ridge import fit_linear
from muster_scheduler.replay.trace import Trace, TraceAgent, TraceTask, checked

_LEAST_S = 0.001
_NUMBER = r"([0-9]{1,9}(?:\.[0-9]{1,9})?)"
_DURATION = re.compile(
    rf"(?:{_NUMBER}d)?(?:{_NUMBER}h)?(?:{_NUMBER}m(?!s))?(?:{_NUMBER}s)?(?:{_NUMBER}ms)?"
)
_UNITS_S = (86_400.0, 3600.0, 60.0, 1.0, 0.001)
# Attempts from which speeds are estimated, the newest.
_FITTED = 20_000


class _Past(NamedTuple):
    submitted_s: float
    started_s: float
    ended_s: float
    agent: str
    skill: str
    declared_s: float
    demand: ResourceVector
    priority: int
    constraints: tuple[Constraint, ...]


def read_history(path: Path, agents: Sequence[TraceAgent] | None) -> Trace:
    """With `agents` None those of the history, each as large as the most that it held at once.

    Tasks that did not both start and end are left out and counted in the notes. Raises
    InvalidInput naming the row (from 1) and the key.
    """
    return history_of(path.name, _rows(path), agents)


def history_of(
    name: str,
    numbered: Iterable[tuple[int, Mapping[str, Any]]],
    agents: Sequence[TraceAgent] | None,
) -> Trace:
    """As `read_history`, from rows as they are; `name` is what errors call their source."""
    rows = list(numbered)
    pasts = [past for past in (_past(name, n, row) for n, row in rows) if past is not None]
    pasts.sort(key=lambda past: past.submitted_s)
    left_out = len(rows) - len(pasts)
    notes = [f"{left_out} tasks that did not start and end are left out"] if left_out else []
    speeds = _speeds(pasts)
    if agents is None:
        agents = _recorded_agents(pasts, speeds)
        notes.append("agents are as large as the most that they held at once")
    notes.append("agents' speeds are estimated from the history")
    first_s = pasts[0].submitted_s if pasts else 0.0
    tasks = tuple(
        TraceTask(
            past.submitted_s - first_s,
            max(_LEAST_S, past.ended_s - past.started_s)
            * speeds.get(past.agent, {}).get(past.skill, 1.0),
            TaskFeatures(past.skill, past.declared_s),
            past.demand,
            past.priority,
            past.constraints,
        )
        for past in pasts
    )
    return checked(Trace(tasks, tuple(agents), tuple(notes)))


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InvalidInput("trace", str(path), f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InvalidInput("trace", str(path), f"is no UTF-8 text: {error.reason}") from None
    try:
        whole = json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        whole = None
    if isinstance(whole, dict) and isinstance(whole.get("items"), list):
        whole = whole["items"]
    if isinstance(whole, list):
        found = enumerate(whole, 1)
    else:
        found = enumerate(_lines(path.name, text), 1)
    for number, row in found:
        if not isinstance(row, dict):
            raise InvalidInput(f"{path.name} row {number}", row, "must be a JSON object")
        yield number, row


def _lines(name: str, text: str) -> Iterator[Any]:
    lines = (line for line in text.splitlines() if line.strip())
    for number, line in enumerate(lines, 1):
        try:
            yield json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise InvalidInput(f"{name} row {number}", line, f"is no JSON: {error}") from None


def _past(file: str, number: int, row: Mapping[str, Any]) -> _Past | None:
    """None for a task that did not start and end."""

    def place(key: str) -> str:
        return f"{file} row {number} column {key}"

    def text(key: str) -> str:
        value = row.get(key)
        if not isinstance(value, str) or not value:
            raise InvalidInput(place(key), value, "must be a text that is not empty")
        return value

    def at_s(key: str) -> float:
        try:
            return datetime.fromisoformat(text(key)).timestamp()
        except ValueError:
            limit = "must be a time such as 2026-01-31T12:00:00.123Z"
            raise InvalidInput(place(key), row.get(key), limit) from None

    if not row.get("started_at") or not row.get("ended_at"):
        return None
    submitted_s, started_s, ended_s = at_s("submitted_at"), at_s("started_at"), at_s("ended_at")
    if ended_s < started_s:
        raise InvalidInput(place("ended_at"), row["ended_at"], "is before started_at")
    priority = row.get("priority", 0)
    if isinstance(priority, bool) or not isinstance(priority, int) or not 0 <= priority <= 100:
        raise InvalidInput(place("priority"), priority, "must be an integer from 0 to 100")
    resources = row.get("resources") or {}
    if not isinstance(resources, dict):
        raise InvalidInput(place("resources"), resources, "must be an object")
    estimate = row.get("estimate")
    declared_s = 0.0
    if estimate is not None:
        declared_s = _duration_s(estimate, place("estimate"))
    return _Past(
        min(submitted_s, started_s),
        started_s,
        ended_s,
        text("agent"),
        text("skill"),
        declared_s,
        ResourceVector.parse(resources, place("resources")),
        priority,
        _constraints(place("constraints"), row.get("constraints") or []),
    )


def _duration_s(found: object, place: str) -> float:
    """As the gateway prints it: 90s is "1m30s"."""
    match = _DURATION.fullmatch(found) if isinstance(found, str) and found else None
    if match is None:
        raise InvalidInput(place, found, "must be a duration such as 500ms, 60s or 1h30m")
    amounts = zip(_UNITS_S, match.groups(default="0"), strict=True)
    return sum(unit_s * float(amount) for unit_s, amount in amounts)


def _constraints(place: str, found: object) -> tuple[Constraint, ...]:
    """Those on labels are of agents that are not known, so only ids of agents are kept."""
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise InvalidInput(place, found, "must be a list of objects")
    return tuple(
        Constraint(item["key"], item.get("op", ""), tuple(map(str, item.get("values", ()))))
        for item in found
        if item.get("key") == "agent.id"
    )


def _speeds(pasts: Sequence[_Past]) -> dict[str, dict[str, float]]:
    """By agent and skill, against the average attempt."""
    newest = pasts[-_FITTED:]
    attempts = [
        Attempt(
            TaskFeatures(past.skill, past.declared_s),
            AgentFeatures(past.agent),
            max(_LEAST_S, past.ended_s - past.started_s),
        )
        for past in newest
    ]
    effects = fit_linear(attempts).effects
    speeds: dict[str, dict[str, float]] = {}
    for past in pasts:
        of_agent = speeds.setdefault(past.agent, {})
        if past.skill not in of_agent:
            effect = effects.of(past.skill, AgentFeatures(past.agent))
            of_agent[past.skill] = float(np.exp(-effect))
    return speeds


def _recorded_agents(
    pasts: Sequence[_Past], speeds: Mapping[str, Mapping[str, float]]
) -> tuple[TraceAgent, ...]:
    most: dict[str, dict[str, int]] = {}
    held: dict[str, dict[str, int]] = {}
    ends: list[tuple[float, int, str, ResourceVector]] = []
    for index, past in enumerate(sorted(pasts, key=lambda past: past.started_s)):
        while ends and ends[0][0] <= past.started_s:
            _, _, agent, gone = heapq.heappop(ends)
            for name, amount in gone.items():
                held[agent][name] -= amount
        demand = past.demand.with_slot()
        now, peak = held.setdefault(past.agent, {}), most.setdefault(past.agent, {})
        for name, amount in demand.items():
            now[name] = now.get(name, 0) + amount
            peak[name] = max(peak.get(name, 0), now[name])
        heapq.heappush(ends, (past.ended_s, index, past.agent, demand))
    return tuple(
        TraceAgent(agent, ResourceVector.of(peak), speeds=speeds[agent])
        for agent, peak in sorted(most.items())
    )
