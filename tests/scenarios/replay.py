"""Runs one seed and shows what happened: `python -m tests.scenarios.replay --seed N`."""

from __future__ import annotations

import argparse
import sys

from tests.scenarios.sim_kernel import SimulationError
from tests.scenarios.sim_world import World


def main(arguments: list[str] | None = None) -> int:
    """The process's exit code: 1 when an invariant did not hold."""
    parser = argparse.ArgumentParser(prog="python -m tests.scenarios.replay", description=__doc__)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--only", default="", help="show only lines that contain this text")
    parser.add_argument("--until", type=int, default=0, help="then run all seeds up to this one")
    options = parser.parse_args(arguments)
    if options.until:
        return _run_many(range(options.seed, options.until))
    world = World(options.seed)
    verdict = "everything ended, and the books balance"
    failed = False
    try:
        world.run()
    except SimulationError as error:
        failed, verdict = True, str(error).split("\n", 1)[0]
    for line in world.kernel.trace(None).splitlines():
        if options.only in line:
            print(line)
    print(f"seed {options.seed}, {world.kernel.steps} steps: {verdict}")
    return 1 if failed else 0


def _run_many(seeds: range) -> int:
    failed = 0
    for seed in seeds:
        try:
            World(seed).run()
        except SimulationError as error:
            failed += 1
            print(str(error).split("\n", 1)[0], flush=True)
    print(f"{failed} of {len(seeds)} seeds failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
