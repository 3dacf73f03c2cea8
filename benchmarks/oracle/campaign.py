"""Runs a fault with several seeds, on one cluster for as long as that stays well."""

from __future__ import annotations

import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

from benchmarks.oracle.catalogue import FAULTS
from benchmarks.oracle.cluster import Cluster
from benchmarks.oracle.scene import Run, run_fault

# Of a log, when a run breaks off.
_SHOWN_CHARS = 1500
_LOGS = ("up", "gateway", "scheduler", "standby", "storage")


def campaign(
    numbers: list[str],
    seeds: list[int],
    *,
    tasks: int,
    agents: int,
    folder: Path | None = None,
    short: bool = False,
    tell: Callable[[str], None],
) -> Iterator[Run]:
    """Each fault on a cluster of its own, all of its seeds one after another.

    A run that breaks off counts as failed, and the next one has a fresh cluster.
    """
    for number in numbers:
        left = list(seeds)
        while left:
            with ExitStack() as stack:
                place = tempfile.TemporaryDirectory(prefix="muster-chaos-", dir=folder)
                path = Path(stack.enter_context(place))
                proxied = FAULTS[number]().proxied
                cluster = stack.enter_context(Cluster(path, agents=agents, proxied=proxied))
                while left:
                    run = _run(number, cluster, path, left.pop(0), tasks, short)
                    tell(_sentence(run))
                    yield run
                    if run.broken:
                        break


def _run(number: str, cluster: Cluster, folder: Path, seed: int, tasks: int, short: bool) -> Run:
    try:
        return run_fault(FAULTS[number](), cluster, folder, seed=seed, tasks=tasks, short=short)
    except Exception as error:  # noqa: BLE001 -- whatever it is, it is told and counts as failed
        traceback.print_exc()
        for name in _LOGS:
            print(f"--- {name}\n{cluster.log(name)[-_SHOWN_CHARS:]}", file=sys.stderr)
        return Run(number, seed, problems=[f"{type(error).__name__}: {error}"], broken=True)


def _sentence(run: Run) -> str:
    how = "clean" if run.clean else "; ".join([*run.violations, *run.problems][:5])
    return f"fault {run.fault}, seed {run.seed}: {run.tasks} tasks, {run.took_s:.1f} s: {how}"
