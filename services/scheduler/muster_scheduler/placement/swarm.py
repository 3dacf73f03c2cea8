"""Particle swarm over assignments: velocities are probabilities of moving."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from muster_scheduler.placement.breeding import Member, founders, repaired
from muster_scheduler.placement.guidance import guide
from muster_scheduler.placement.improvement import ImprovingStrategy, Work, learn_pressures
from muster_scheduler.placement.problem import Floats, Ints32
from muster_scheduler.placement.strategy import register

_PARTICLES = 10
# Inertia and attraction as is usual for swarms (Clerc and Kennedy 2002), halved because they
# are probabilities here.
_INERTIA, _TO_OWN, _TO_BEST = 0.6, 0.35, 0.35
_MUTATION = 0.02
_LEARN_EVERY = 16


@dataclass(slots=True, eq=False)
class _Particle:
    """place: where it is; own: its best; to_own, to_best: float64 [N], probabilities per task."""

    place: Ints32
    own: Member
    to_own: Floats
    to_best: Floats


@register("swarm")
class Swarm(ImprovingStrategy):
    """Discrete PSO: per task, a probability to move where the particle's best has it, and one to
    move where the swarm's best has it; both grow while the particle differs and fade otherwise.

    Agent ids have no order, so positions are never added or subtracted. Particles are repaired
    and descend after each move.
    """

    name = "swarm"

    def improve(self, work: Work) -> None:
        guide(work)
        size = len(work.place)
        particles = [
            _Particle(member.place, member, np.zeros(size), np.zeros(size))
            for member in founders(work, _PARTICLES)
        ]
        moved = 0
        while True:
            for particle in particles:
                if not work.goes_on():
                    return
                _fly(work, particle)
                moved += 1
                if moved % _LEARN_EVERY == 0:
                    learn_pressures(work)


def _fly(work: Work, particle: _Particle) -> None:
    rng, size = work.rng, len(particle.place)
    away_from_own = particle.place != particle.own.place
    away_from_best = particle.place != work.place
    particle.to_own = _INERTIA * particle.to_own + _TO_OWN * rng.random(size) * away_from_own
    particle.to_best = _INERTIA * particle.to_best + _TO_BEST * rng.random(size) * away_from_best
    to_own, to_best = rng.random(size) < particle.to_own, rng.random(size) < particle.to_best
    place = np.where(to_best, work.place, np.where(to_own, particle.own.place, particle.place))
    place[work.movable[rng.random(len(work.movable)) < _MUTATION]] = -1
    landed = repaired(work, place.astype(np.int32))
    particle.place = landed.place
    if landed.energy < particle.own.energy:
        particle.own = landed
    work.offer(landed.place, landed.energy)
