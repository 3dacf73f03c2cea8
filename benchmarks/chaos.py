"""Disturbs a loaded cluster of real processes and checks that the books balance.

python benchmarks/chaos.py --fault N --seeds K [--tasks 2000] [--json] [--markdown FILE]

`--fault` is `all`, a number of the catalogue (`6` is `6a` and `6b`) or a comma list. Each run
has a fresh cluster; `--json` prints one line per run. With `--results DIR` the runs of each
fault are kept in a file, and the table is made of all that lie there: a long campaign may be
done in parts (`--first-seed`), and `--seeds 0` only prints. `--resume` leaves out what lies there
already, held, and was run with the very same code; `--jobs N` makes so many runs at a time.
`--schedules N` simulates so many besides. The exit code is 1 when anything did not hold; a fault
that this machine cannot make is skipped.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measured_cluster import describe_machine
from benchmarks.oracle.campaign import campaign
from benchmarks.oracle.catalogue import FAULTS, named
from benchmarks.oracle.leftovers import end_in_order, own_folder, sweep
from benchmarks.oracle.reliability_page import page
from benchmarks.oracle.report import HEAD, holds, row
from benchmarks.oracle.results import FAULT_CODE, SCHEDULE_CODE, Results, fingerprint
from benchmarks.oracle.scene import Run
from benchmarks.oracle.schedules import run_schedules
from benchmarks.oracle.side_by_side import MAX_JOBS, SideBySide
from muster.local.binaries import find_etcd, find_redis

MAX_SEEDS, MAX_TASKS, MAX_AGENTS, MAX_SCHEDULES = 1_000, 100_000, 16, 1_000_000


def main() -> int:
    options = _options()
    end_in_order()
    for folder in sweep(options.folder):
        _tell(f"{folder} was left by a run that is dead; it is removed")
    results = Results(options.results) if options.results else None
    runs = _run(options, results)
    schedules: dict[str, Any] = results.schedules() if results else {}
    if options.schedules:
        schedules = run_schedules(options.schedules, fingerprint(SCHEDULE_CODE))
        _tell(f"{options.schedules} schedules: {schedules['said'][-1]}")
        if results:
            results.keep_schedules(schedules)
    if not options.json:
        _print_table(runs)
    if options.markdown:
        facts = {**_facts(options, runs), "schedules": schedules}
        options.markdown.write_text(page(runs, facts))
    held = all(holds(number, found) for number, found in runs.items())
    return 0 if runs and held and schedules.get("held", True) else 1


def _run(options: argparse.Namespace, results: Results | None) -> dict[str, list[Run]]:
    """What was run now; with a folder of results, all that lies there."""
    seeds = list(range(options.first_seed, options.first_seed + options.seeds))
    code = fingerprint(FAULT_CODE)
    runs: dict[str, list[Run]] = {}

    def held(number: str) -> set[int]:
        return results.held(number, code) if results and options.resume else set()

    # Closed at once when this is broken off: what runs side by side ends then.
    with closing(_campaign(options, seeds, held)) as done:
        for run in done:
            run.code = code
            runs.setdefault(run.fault, []).append(run)
            if options.json:
                print(json.dumps(run.as_dict()), flush=True)
            if results:
                results.keep(run)
    return results.all() if results else runs


def _campaign(
    options: argparse.Namespace, seeds: list[int], held: Callable[[str], set[int]]
) -> Generator[Run, None, None]:
    """One after another fault by fault, or side by side seed by seed: what is broken off has all
    faults with fewer seeds."""
    numbers = named(options.fault) if seeds else []
    if options.jobs == 1:
        yield from campaign(
            numbers,
            seeds,
            tasks=options.tasks,
            agents=options.agents,
            folder=options.folder,
            short=options.short,
            but_for=held,
            evidence=options.evidence,
            tell=_tell,
        )
        return
    done = {number: held(number) for number in numbers}
    cannot = {number for number in numbers if FAULTS[number]().why_not()}
    wanted = [
        (number, seed)
        for seed in seeds
        for number in numbers
        if seed not in done[number] and not (number in cannot and seed != seeds[0])
    ]
    words = ["--tasks", str(options.tasks), "--agents", str(options.agents)]
    words += ["--short"] if options.short else []
    words += ["--folder", str(options.folder)] if options.folder else []
    words += ["--evidence", str(options.evidence)] if options.evidence else []
    yield from SideBySide(options.jobs, words).runs(wanted)


def _tell(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--fault", default="all", help=f"all, or some of {', '.join(FAULTS)}")
    parser.add_argument("--seeds", type=int, default=5, help="how many (default 5)")
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--tasks", type=int, default=2_000, help="of the burst (default 2000)")
    parser.add_argument("--agents", type=int, default=3)
    parser.add_argument("--short", action="store_true", help="shorter pauses, as in `make test`")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side (default 1)")
    parser.add_argument("--folder", type=Path, help="where state directories are made")
    parser.add_argument("--results", type=Path, help="a folder that keeps the runs of each fault")
    parser.add_argument("--evidence", type=Path, help="where logs of runs that fail are kept")
    parser.add_argument("--resume", action="store_true", help="leave out what is kept and held")
    parser.add_argument("--schedules", type=int, default=0, help="simulate so many (default 0)")
    parser.add_argument("--markdown", type=Path, help="write the page with the table there")
    parser.add_argument("--json", action="store_true", help="one JSON line per run on stdout")
    options = parser.parse_args()
    for name, least, most in (
        ("seeds", 0, MAX_SEEDS),
        ("tasks", 50, MAX_TASKS),
        ("agents", 2, MAX_AGENTS),
        ("jobs", 1, MAX_JOBS),
        ("schedules", 0, MAX_SCHEDULES),
    ):
        value = getattr(options, name)
        if not least <= value <= most:
            parser.error(f"--{name}: {value} is not accepted; {least} to {most}")
    try:
        named(options.fault)
    except KeyError as error:
        parser.error(f"--fault: {error.args[0]} is not accepted; all, or {', '.join(FAULTS)}")
    return options


def _facts(options: argparse.Namespace, runs: Mapping[str, Sequence[Run]]) -> Mapping[str, Any]:
    """What a reader must know of the machine, the versions and the command."""
    seeds = max((len(found) for found in runs.values()), default=0)
    with own_folder("chaos", options.folder) as folder:
        machine = describe_machine(folder)
    versions = {name: version(name) for name in ("muster-cluster", "grpcio")}
    versions["Python"] = platform.python_version()
    versions["Redis"] = _version_of(find_redis(os.environ))
    versions["etcd"] = _version_of(find_etcd(os.environ))
    codes = {run.code for found in runs.values() for run in found if not run.skipped}
    parts = f", in parts, by {len(codes)} versions of the code," if len(codes) > 1 else ""
    return {
        "machine": machine,
        "versions": versions,
        "agents": options.agents,
        "command": f"benchmarks/chaos.py --fault all --seeds {seeds} --tasks {options.tasks}"
        + (f" --jobs {options.jobs}" if options.jobs > 1 else ""),
        "order": "one after another" if options.jobs == 1 else f"{options.jobs} at a time",
        "parts": parts,
    }


def _version_of(binary: Path) -> str:
    said = subprocess.run(
        [str(binary), "--version"], capture_output=True, text=True, timeout=10, check=True
    ).stdout
    found = re.search(r"\d+\.\d+\.\d+", said)
    return found.group() if found else "unknown"


def _print_table(runs: Mapping[str, Sequence[Run]]) -> None:
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 240)
    table = Table()
    for column in HEAD:
        table.add_column(column)
    for number in FAULTS:
        if number in runs:
            table.add_row(*(cell.replace("**", "") for cell in row(number, runs[number])))
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
