"""A genetic algorithm whose children are repaired and then descend."""

from __future__ import annotations

import numpy as np

from muster_scheduler.placement.breeding import Member, crossed, founders, repaired
from muster_scheduler.placement.guidance import guide
from muster_scheduler.placement.improvement import ImprovingStrategy, Work, learn_pressures
from muster_scheduler.placement.strategy import register

_MEMBERS = 16
_MUTATION = 0.02
# Children between two looks at what a second on each agent is worth.
_LEARN_EVERY = 16


@register("genetic")
class Genetic(ImprovingStrategy):
    """Steady state: a child takes the place of the worst member unless it is one's equal.

    Seeded with the best start, greedy plans and the rounded relaxation; parents by tournament,
    uniform crossover of varying share, mutation by placing some tasks anew. With the descent it
    is a memetic algorithm (Moscato 1989).
    """

    name = "genetic"

    def improve(self, work: Work) -> None:
        guide(work)
        members = founders(work, _MEMBERS)
        children = 0
        while work.goes_on():
            mother, father = _parent(work, members), _parent(work, members)
            child = repaired(work, crossed(work, mother.place, father.place, _MUTATION))
            work.offer(child.place, child.energy)
            _admit(members, child)
            children += 1
            if children % _LEARN_EVERY == 0:
                learn_pressures(work)


def _parent(work: Work, members: list[Member]) -> Member:
    one, other = work.rng.integers(len(members), size=2)
    best: Member = min(members[one], members[other], key=lambda member: member.energy)
    return best


def _admit(members: list[Member], child: Member) -> None:
    if any(np.array_equal(child.place, member.place) for member in members):
        return
    worst = max(range(len(members)), key=lambda index: members[index].energy)
    if len(members) < _MEMBERS:
        members.append(child)
    elif child.energy < members[worst].energy:
        members[worst] = child
