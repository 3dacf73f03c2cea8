"""Runs faults with several seeds, and tells of each run."""

from __future__ import annotations

import shutil
import sys
import time
import traceback
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from benchmarks.oracle.catalogue import FAULTS
from benchmarks.oracle.cluster import Cluster
from benchmarks.oracle.leftovers import leave_if_told, own_folder
from benchmarks.oracle.scene import Run, run_fault

# Of a log, when a run breaks off.
_SHOWN_CHARS = 1500
_LOGS = ("up", "gateway", "scheduler", "standby", "storage", "redis", "etcd")


def campaign(
    numbers: list[str],
    seeds: list[int],
    *,
    tasks: int,
    agents: int,
    folder: Path | None = None,
    short: bool = False,
    but_for: Callable[[str], Collection[int]] = lambda _: (),
    evidence: Path | None = None,
    tell: Callable[[str], None],
) -> Iterator[Run]:
    """All seeds of one fault after another; a run that breaks off counts as failed.

    Each run has a fresh cluster: a part that dies again and again is started again ever later.
    `but_for` gives seeds of a fault that are left out; into `evidence` go the logs and marks of
    each run that did not hold.
    """
    for number in numbers:
        why_not = FAULTS[number]().why_not()
        done = but_for(number)
        for seed in seeds[:1] if why_not else [seed for seed in seeds if seed not in done]:
            began_s = time.monotonic()
            if why_not:
                run = Run(number, seed, skipped=why_not)
            else:
                with own_folder("chaos", folder) as place:
                    run = _in_a_cluster(number, place, agents, seed, tasks, short)
                    if evidence is not None and not run.clean:
                        _keep(place, evidence / f"fault-{number}-seed-{seed}")
                run.took_s = time.monotonic() - began_s
            tell(_sentence(run))
            yield run


def _keep(folder: Path, evidence: Path) -> None:
    shutil.rmtree(evidence, ignore_errors=True)
    evidence.mkdir(parents=True)
    for path in (*folder.glob("*.log"), *folder.glob("*.journal"), *folder.glob("*.marks")):
        shutil.copy2(path, evidence)
    shutil.copytree(folder / "state" / "logs", evidence / "logs")


def _in_a_cluster(
    number: str, folder: Path, agents: int, seed: int, tasks: int, short: bool
) -> Run:
    fault = FAULTS[number]()
    with Cluster(
        folder,
        agents=max(agents, fault.agents),
        proxied=fault.proxied,
        wired=fault.wired,
        clocked=fault.clocked,
        stores=fault.stores,
    ) as cluster:
        return _run(number, cluster, folder, seed, tasks, short)


def _run(number: str, cluster: Cluster, folder: Path, seed: int, tasks: int, short: bool) -> Run:
    try:
        return run_fault(FAULTS[number](), cluster, folder, seed=seed, tasks=tasks, short=short)
    except Exception as error:  # noqa: BLE001 -- whatever it is, it is told and counts as failed
        leave_if_told()
        traceback.print_exc()
        for name in _LOGS:
            print(f"--- {name}\n{cluster.log(name)[-_SHOWN_CHARS:]}", file=sys.stderr)
        return Run(number, seed, problems=[f"{type(error).__name__}: {error}"])


def _sentence(run: Run) -> str:
    if run.skipped:
        return f"fault {run.fault}: skipped: {run.skipped}"
    how = "clean" if run.clean else "; ".join([*run.violations, *run.problems][:5])
    return f"fault {run.fault}, seed {run.seed}: {run.tasks} tasks, {run.took_s:.1f} s: {how}"
