"""Fragmentation's rule with the taste and the quotas that do best on arrivals as expected.

No one taste is best for every workload, and quotas from the fluid optimum, which knows nothing of
whole devices, help FGD's own rule on most lists and harm it on others (those with many tasks for
several devices, and those with many for none). So none is trusted: each candidate places the same
drawn sequences of expected tasks on the cluster as it is, and the one that gives out most value is
used. FGD as published is a candidate, so what is used is never expected to be worse.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from muster_scheduler.placement.classes import TaskBatch
from muster_scheduler.placement.field import Scene, Taste, draw
from muster_scheduler.placement.fluid import Quotas, fluid_quotas
from muster_scheduler.placement.fragmentation import BALANCED, FGD, place_by_row, plan_in_order
from muster_scheduler.placement.plan import Plan, Policy
from muster_scheduler.placement.snapshot import Snapshot
from muster_scheduler.placement.strategy import register

# Expected tasks ask for this multiple of the free value. Fixed: nobody tells how many will come.
_HORIZON = 1.3
# Most tasks of one drawn sequence: a second of work on a thousand agents.
_MAX_DRAWN = 20_000
# Sequences that every candidate places, and that the better half of them places besides.
_FIRST_DRAWS, _FURTHER_DRAWS = 1, 2
# Better by less than this share of the free value is chance.
_MARGIN = 0.0005

_PACKED = Taste(size_power=-1.0, plain_weight=1.0, strand=0.34, open_row=25.0)
_LEVEL = Taste(plain_weight=1.0, strand=0.34, open_row=5.0)
_EVEN = Taste(size_power=-1.0, strand=0.35, strand_other=0.1)


@dataclass(frozen=True, slots=True)
class Candidate:
    taste: Taste
    with_quotas: bool = False


# The first is used where there is no time to choose.
CANDIDATES = (
    Candidate(BALANCED),
    Candidate(_PACKED),
    Candidate(_LEVEL),
    Candidate(_EVEN),
    Candidate(Taste()),
    Candidate(FGD),
    Candidate(BALANCED, with_quotas=True),
    Candidate(FGD, with_quotas=True),
)


@register("quota")
class Quota:
    """See the module; told of the future only the batch's `mix`, and without it the batch.

    A step is one candidate placing one drawn sequence: without steps the first candidate is used,
    which is `fragmentation`. Where a class's quotas are used up, or no agent that it has any on
    fits, the other agents serve. Ties go to the lower row; health does not count.
    """

    name: ClassVar[str] = "quota"

    def plan(
        self,
        snapshot: Snapshot,
        tasks: TaskBatch,
        policy: Policy,
        now_s: float,  # noqa: ARG002
        rng: Generator,
        stop: Callable[[], bool],
        max_steps: int,
    ) -> Plan:
        """See Strategy."""
        assert snapshot.is_current(), "the agent table changed after this view was taken"
        if tasks.demand_by_agent is not None:
            return place_by_row(self.name, snapshot, tasks, policy, stop)
        scene = Scene(snapshot, tasks)
        quotas: Quotas | None = None
        chosen = CANDIDATES[0]
        value = scene.free_value()
        if max_steps > 0 and value > 0 and len(scene.types):
            quotas = fluid_quotas(scene, _HORIZON * value)
            contest = _Contest(scene, quotas, value, rng)
            chosen = contest.winner(stop, max_steps)
        kind, quota = (None, None)
        if chosen.with_quotas and quotas is not None:
            kind, quota = quotas.kind, quotas.left
        rows = scene.rows(kind, quota)
        return plan_in_order(self.name, scene, scene.field(chosen.taste), rows, policy, stop)


class _Contest:
    """Candidates against each other on the same draws."""

    def __init__(self, scene: Scene, quotas: Quotas | None, value: float, rng: Generator) -> None:
        self._scene, self._quotas, self._value = scene, quotas, value
        self._draws = [
            draw(scene, _HORIZON * value, rng.random(_MAX_DRAWN))
            for _ in range(_FIRST_DRAWS + _FURTHER_DRAWS)
        ]

    def winner(self, stop: Callable[[], bool], max_steps: int) -> Candidate:
        able = [c for c in CANDIDATES if self._quotas is not None or not c.with_quotas]
        totals = [0.0] * len(able)
        steps = 0
        running = list(range(len(able)))
        for number, sequence in enumerate(self._draws):
            if number == _FIRST_DRAWS:
                running = sorted(running, key=lambda i: -totals[i])[: -(-len(able) // 2)]
                running = sorted({0, *running})
            results = []
            for index in running:
                if steps == max_steps or stop():
                    return able[self._best(running, totals, number)]
                steps += 1
                results.append(self._placed(able[index], sequence))
            for index, result in zip(running, results, strict=True):
                totals[index] += result
        return able[self._best(running, totals, len(self._draws))]

    def _best(self, running: list[int], totals: list[float], draws: int) -> int:
        """Of complete rounds only; the first candidate unless another is clearly better."""
        best = max(running, key=lambda index: (totals[index], -index))
        return best if totals[best] > totals[0] + draws * _MARGIN * self._value else 0

    def _placed(self, candidate: Candidate, sequence: NDArray[np.int32]) -> float:
        from muster_scheduler.placement.compiled.fragments import place_all  # noqa: PLC0415

        scene, quotas = self._scene, self._quotas
        rows = scene.rows()
        if candidate.with_quotas and quotas is not None:
            rows = scene.rows(quotas.kind, quotas.left)
        out = np.empty(len(sequence), np.int32)
        none = np.zeros((0, rows.devices.shape[1]), np.bool_)
        return place_all(scene.field(candidate.taste), rows, scene.memo(), sequence, out, none)
