"""The smallest single change that would give a class of tasks a place; worked out when asked.

Changes are ranked by what is given up for them, the first that helps is the smallest:

1. a cut of one resource to no less than half, the smallest share first
2. a larger `max` of one spread, the smallest raise first
3. one constraint less, in the task's order
4. the agents that failed it are no longer avoided
5. one agent uncordoned, by row
6. a cut of one resource to less than half; something of cpu and memory stays, others may go to 0
7. one more agent: with the skill, labels that meet the constraints, and room for the demand

Slots are never cut, for every task takes one. Ties go to the lower row, then to the first name.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import islice, pairwise

from muster.domain.quantity import format_quantity
from muster.domain.resources import unit_of
from muster.domain.task import MAX_SPREAD, SPREAD_OP, Constraint
from muster_scheduler.placement.classes import (
    AGENT_ID_LABEL,
    Spread,
    TaskClass,
    first_unmet,
    is_met,
)
from muster_scheduler.placement.devices import WHOLE, pick_devices
from muster_scheduler.placement.snapshot import Snapshot

# No program runs without them.
_NEEDED = frozenset({"cpu", "memory"})
_NEVER_CUT = "slots"
_HALF = 0.5


class ChangeKind(Enum):
    """What would be done."""

    CUT = "ask for less of a resource"
    RAISE_MAX = "let agents hold more of its kind"
    LIFT_CONSTRAINT = "drop a constraint"
    DROP_AVOID = "let it go to agents that failed it"
    UNCORDON = "uncordon an agent"
    ADD_AGENT = "add an agent"


@dataclass(frozen=True, slots=True)
class Change:
    """One change in parts; of a kind only those that belong to it are set.

    CUT           resource, from_amount, to_amount (base units)
    RAISE_MAX     constraint, from_amount, to_amount
    LIFT_CONSTRAINT  constraint
    UNCORDON      agent
    ADD_AGENT     skill, labels, capacity (base units, the task's slot among them); agent where the
                  constraints name an id
    """

    kind: ChangeKind
    resource: str = ""
    from_amount: int = 0
    to_amount: int = 0
    constraint: Constraint | None = None
    agent: str = ""
    skill: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    capacity: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        """In a few words; of a new agent only its skill, which the caller completes."""
        if self.kind is ChangeKind.CUT:
            unit = unit_of(self.resource)
            before = format_quantity(self.from_amount, unit)
            return f"{self.resource} {before} → {format_quantity(self.to_amount, unit)}"
        if self.kind is ChangeKind.UNCORDON:
            return f"uncordon agent {self.agent}"
        if self.kind is ChangeKind.DROP_AVOID:
            return "let it go back to agents that failed it"
        if self.kind is ChangeKind.ADD_AGENT:
            return f"one more agent with skill {self.skill}"
        assert self.constraint is not None
        if self.kind is ChangeKind.RAISE_MAX:
            return f"{self.constraint.key} {SPREAD_OP} {self.from_amount} → {self.to_amount}"
        return f"no constraint {constraint_text(self.constraint)}"


def constraint_text(constraint: Constraint) -> str:
    """As a person would write it."""
    return " ".join([constraint.key, constraint.op, ", ".join(constraint.values)]).rstrip()


def fits(snapshot: Snapshot, row: int, task_class: TaskClass) -> bool:
    """Whether the row's agent could take a task of the class now."""
    free = _free_of(snapshot, task_class)
    return bool(snapshot.alive[row]) and not any(
        True for _ in _obstacles(snapshot, row, task_class, free)
    )


def smallest_change(
    snapshot: Snapshot, task_class: TaskClass, cordoned: Collection[int] = ()
) -> Change | None:
    """None where some agent fits already, or nothing single helps: constraints that contradict
    each other, or that name an agent which is there and has no room.

    `cordoned` are the rows that would take work at once if they were uncordoned.
    """
    best: tuple[tuple[float, ...], Change] | None = None
    free = _free_of(snapshot, task_class)
    for row in snapshot.alive.nonzero()[0].tolist():
        if task_class.skill not in snapshot.skills[row]:
            continue
        # Two are too many for one change.
        obstacles = list(islice(_obstacles(snapshot, row, task_class, free, cordoned), 2))
        if not obstacles:
            return None
        if len(obstacles) == 1 and obstacles[0] is not None:
            rank, change = obstacles[0]
            ranked = (*rank, row)
            if best is None or ranked < best[0]:
                best = ranked, change
    return best[1] if best is not None else _new_agent(snapshot, task_class)


# Of each resource that is asked for: its name, how much, and what is free by row; None where no
# agent ever offered it.
_Free = Sequence[tuple[str, int, Sequence[int] | None]]


def _free_of(snapshot: Snapshot, task_class: TaskClass) -> _Free:
    # Plain numbers: each is looked at alone.
    return [
        (name, wanted, snapshot.free[:, snapshot.columns[name]].tolist())
        if name in snapshot.columns
        else (name, wanted, None)
        for name, wanted in task_class.demand.items()
    ]


# Rank of the change that takes the obstacle away, and the change; None: no change does.
_Obstacle = tuple[tuple[float, float], Change] | None


def _obstacles(
    snapshot: Snapshot,
    row: int,
    task_class: TaskClass,
    free: _Free,
    cordoned: Collection[int] = (),
) -> Iterator[_Obstacle]:
    """What keeps the class from the row, found one by one."""
    if task_class.skill not in snapshot.skills[row]:
        yield None
    if not snapshot.placeable[row]:
        agent = snapshot.agent_ids[row]
        yield ((4, 0), Change(ChangeKind.UNCORDON, agent=agent)) if row in cordoned else None
    for index, constraint in enumerate(task_class.constraints):
        if first_unmet((constraint,), snapshot, row) is not None:
            yield (2, index), Change(ChangeKind.LIFT_CONSTRAINT, constraint=constraint)
    if snapshot.agent_ids[row] in task_class.avoid:
        yield (3, 0), Change(ChangeKind.DROP_AVOID)
    for spread in task_class.spread:
        count = snapshot.crowds.get(spread.group, {}).get(row, 0)
        if count >= spread.most:
            yield _raised(spread, count + 1)
    for name, wanted, of_row in free:
        available = min(wanted, max(0, of_row[row])) if of_row is not None else 0
        grid = snapshot.device_free.get(snapshot.columns.get(name, -1))
        if grid is not None and available:
            available = _on_devices(grid[row].tolist(), wanted, available)
        if available < wanted:
            yield _cut(name, wanted, available)


def _raised(spread: Spread, most: int) -> _Obstacle:
    if most > MAX_SPREAD:
        return None
    constraint = Constraint(spread.group[1], SPREAD_OP, (str(spread.most),))
    change = Change(
        ChangeKind.RAISE_MAX, constraint=constraint, from_amount=spread.most, to_amount=most
    )
    return (1, most - spread.most), change


def _cut(name: str, wanted: int, available: int) -> _Obstacle:
    if name == _NEVER_CUT or (name in _NEEDED and not available):
        return None
    share = 1.0 - available / wanted
    change = Change(ChangeKind.CUT, resource=name, from_amount=wanted, to_amount=available)
    return (0 if share <= _HALF else 5, share), change


def _on_devices(free: Sequence[int], wanted: int, available: int) -> int:
    """The most of the resource, up to `available`, that can be given as devices are given."""
    if available == wanted and pick_devices(free, wanted) is not None:
        return wanted
    whole = sum(1 for left in free if left >= WHOLE) * WHOLE
    if wanted > WHOLE and min(whole, available) >= WHOLE:
        return min(whole, available // WHOLE * WHOLE)
    return max(0, min(available, WHOLE, max(free, default=0)))


def _new_agent(snapshot: Snapshot, task_class: TaskClass) -> Change | None:
    labels: dict[str, str] = {}
    for key in dict.fromkeys(one.key for one in task_class.constraints):
        wanted = [one for one in task_class.constraints if one.key == key and one.op != SPREAD_OP]
        if not wanted:
            continue
        value = _meeting(wanted, may_lack=key != AGENT_ID_LABEL)
        if value is None:
            return None
        if value:
            labels[key] = value[0]
    agent = labels.pop(AGENT_ID_LABEL, "")
    if agent in snapshot.rows or agent in task_class.avoid:
        return None
    return Change(
        ChangeKind.ADD_AGENT,
        agent=agent,
        skill=task_class.skill,
        labels=labels,
        capacity=task_class.demand.as_dict(),
    )


def _meeting(constraints: list[Constraint], *, may_lack: bool) -> tuple[str, ...] | None:
    """A label's value that meets all of them; () where it need not be there, None where none does.

    Whatever is asked for at all is met by a value that is named, one beside a number that is
    named, or a word that nobody names.
    """
    if may_lack and all(is_met(one, None) for one in constraints):
        return ()
    named = [value for one in constraints for value in one.values]
    numbers = sorted({number for value in named if (number := _finite(value)) is not None})
    between = [(low + high) / 2 for low, high in pairwise(numbers)]
    outside = [numbers[0] - 1, numbers[-1] + 1] if numbers else []
    unnamed = "any"
    while unnamed in named:
        unnamed += "-other"
    for value in [*named, *(f"{number:.17g}" for number in [*outside, *between]), unnamed]:
        if all(is_met(one, value) for one in constraints):
            return (value,)
    return None


def _finite(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
