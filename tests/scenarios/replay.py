"""Runs one schedule and shows what happened, or many and what they covered.

`python -m tests.scenarios.replay SEED`, `python -m tests.scenarios.replay --schedules 10000`.
"""

from __future__ import annotations

import argparse
import sys

from tests.scenarios.sim_campaign import run_campaign
from tests.scenarios.sim_kernel import SimulationError
from tests.scenarios.sim_tally import Coverage
from tests.scenarios.sim_world import REPLAY, REQUESTS, World

PROGRESS_EVERY = 1_000
# Of the trace of the first schedule that failed, after many: with what is said after it they fit
# into the end that pages keep.
SHOWN_LINES = 28


def main(arguments: list[str] | None = None) -> int:
    """The process's exit code: 1 when an invariant did not hold."""
    parser = argparse.ArgumentParser(prog="python -m tests.scenarios.replay", description=__doc__)
    parser.add_argument("seed", type=int, nargs="?", help="the schedule to show")
    parser.add_argument("--only", default="", help="show only lines that contain this text")
    parser.add_argument("--storm", default="", help="only faults of this name, many of them")
    parser.add_argument("--requests", type=int, default=REQUESTS, help=f"clients' ({REQUESTS})")
    parser.add_argument("--schedules", type=int, help="run so many instead")
    parser.add_argument("--first-seed", type=int, default=0, help="of these (0)")
    parser.add_argument("--jobs", type=int, default=1, help="processes side by side (1)")
    options = parser.parse_args(arguments)
    if (options.seed is None) == (options.schedules is None):
        parser.error("give either a seed or --schedules")
    if options.schedules is not None and (options.schedules < 1 or options.jobs < 1):
        parser.error("--schedules and --jobs must be at least 1")
    if options.schedules is not None and (options.storm or options.requests != REQUESTS):
        parser.error("--storm and --requests are of one schedule, not of --schedules")
    if options.schedules is not None:
        first = options.first_seed
        return _run_many(range(first, first + options.schedules), options.jobs)
    try:
        world = World(options.seed, requests=options.requests, storm=options.storm)
    except ValueError as error:
        parser.error(str(error))
    return _show(world, options.only)


def _show(world: World, only: str) -> int:
    verdict = "everything ended, and the books balance"
    failed = False
    try:
        world.run()
    except SimulationError as error:
        failed, verdict = True, str(error).split("\n", 1)[0]
    for line in world.kernel.trace(None).splitlines():
        if only in line:
            print(line)
    print(f"seed {world.seed}, {world.kernel.steps} steps: {verdict}")
    return 1 if failed else 0


def _run_many(seeds: range, jobs: int) -> int:
    said: set[int] = set()

    def progress(covered: Coverage) -> None:
        for seed in covered.failed.keys() - said:
            said.add(seed)
            print(covered.failed[seed], flush=True)
        if covered.schedules % PROGRESS_EVERY == 0:
            print(f"{covered.schedules} schedules, {len(covered.failed)} failed", flush=True)

    covered = run_campaign(seeds, jobs, progress)
    print(covered.table())
    print(f"{covered.schedules} schedules of {covered.steps} steps, {len(covered.failed)} failed")
    if covered.failed:
        failing = " ".join(map(str, sorted(covered.failed)))
        _show_end(min(covered.failed))
        print(f"failed: {failing}\nsee one: {REPLAY} SEED")
    return 1 if covered.failed else 0


def _show_end(seed: int) -> None:
    """The same run again, and the end of what happened in it."""
    world = World(seed)
    said = f"seed {seed} did not fail again: it depends on more than its seed"
    try:
        world.run()
    except SimulationError as error:
        said = str(error).split("\n", 1)[0]
    print(world.kernel.trace(SHOWN_LINES))
    print(f"{said}\nall of it: {world.replay}")


if __name__ == "__main__":
    sys.exit(main())
