"""Runs many schedules, side by side where asked, and sums up what they covered."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence

from tests.scenarios.sim_kernel import SimulationError
from tests.scenarios.sim_tally import Coverage
from tests.scenarios.sim_world import World

# Schedules that one process runs before it reports.
AT_ONCE = 50


def run_schedules(seeds: Sequence[int]) -> Coverage:
    """In this process. A schedule that fails is noted with the first line of what it says."""
    covered = Coverage()
    for seed in seeds:
        world = World(seed)
        try:
            world.run()
        except SimulationError as error:
            covered.failed[seed] = str(error).split("\n", 1)[0]
        covered.add(world.kernel.tally, world.kernel.steps)
    return covered


def run_campaign(seeds: range, jobs: int, on_progress: Callable[[Coverage], None]) -> Coverage:
    """With `jobs` processes; `on_progress` is called with the sums so far."""
    pieces = [seeds[start : start + AT_ONCE] for start in range(0, len(seeds), AT_ONCE)]
    covered = Coverage()
    for piece in _each(pieces, jobs):
        covered.merge(piece)
        on_progress(covered)
    return covered


def _each(pieces: Sequence[range], jobs: int) -> Iterator[Coverage]:
    if jobs == 1:
        yield from map(run_schedules, pieces)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap_unordered(run_schedules, pieces)
