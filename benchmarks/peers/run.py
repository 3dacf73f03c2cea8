"""Muster and its peers on the same work, one after another on this machine.

python benchmarks/peers/run.py [--only ray,taskiq] [--runs 3] [--json] [--markdown FILE]
python benchmarks/peers/run.py --merge FILE… [--json] [--markdown FILE]

Each peer has an environment of its own, installed when it is first needed; a peer that cannot be
installed or run is a row with the reason. Everything listens on loopback, and no process is left.
"""

from __future__ import annotations

import argparse
import json
import platform
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.measured_cluster import describe_machine
from benchmarks.peers.catalog import DEFAULTS, PEERS, Peer, chosen
from benchmarks.peers.driven import DriverFailed, adopt_orphans, drive
from benchmarks.peers.drivers import measuring
from benchmarks.peers.environments import InstallFailed, default_cache, python_of
from benchmarks.peers.figures import Document, Row, merge, new_row, note
from benchmarks.peers.redis_process import redis_version
from benchmarks.peers.report import into_page, render

LATENCY_TASKS = 500
# As many as the smallest machine that is worth measuring has cores; the same for every peer.
WORKERS = 2


def main() -> None:
    options = _options()
    if options.merge:
        document = merge([json.loads(path.read_text()) for path in options.merge])
    else:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        adopt_orphans()
        document = _measure_all(options)
    if options.markdown:
        page = options.markdown.read_text() if options.markdown.exists() else ""
        options.markdown.write_text(into_page(page, render(document)))
    print(json.dumps(document) if options.json else render(document))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    names = ", ".join(peer.name for peer in PEERS)
    add("--only", default="", metavar="NAMES", help=f"of {names}; 'ray' is both of its kinds")
    add("--measure", choices=("all", "speed", "kill"), default="all")
    add("--tasks", type=int, default=10_000, help="of the batch load")
    add("--runs", type=int, default=3, help="of the speed")
    add("--kill-runs", type=int, default=1, help="of each way of dying; up to 2 minutes each")
    add("--cache", type=Path, default=default_cache(), help="where environments are kept")
    add("--folder", type=Path, help="where Redis and the others keep their data while they run")
    add("--merge", type=Path, nargs="+", metavar="FILE", help="print these --json files as one")
    add("--json", action="store_true", help="one JSON line on stdout")
    add("--markdown", type=Path, metavar="FILE", help="put the tables between the file's marks")
    options = parser.parse_args()
    for name in ("tasks", "runs", "kill_runs"):
        if getattr(options, name) < 1:
            option = name.replace("_", "-")
            parser.error(f"--{option}: {getattr(options, name)} is not accepted; at least 1")
    try:
        options.peers = chosen(options.only)
    except ValueError as error:
        parser.error(str(error))
    return options


def _measure_all(options: argparse.Namespace) -> Document:
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="peers-", dir=options.folder) as name:
        folder = Path(name)
        machine = describe_machine(folder)
        for peer in options.peers:
            rows.extend(_measure(peer, options, folder))
    return {
        "machine": machine,
        "python": platform.python_version(),
        "redis": redis_version(),
        "tasks": options.tasks,
        "latency_tasks": LATENCY_TASKS,
        "workers": WORKERS,
        "kill": {
            "naps": measuring.NAPS,
            "nap_s": measuring.NAP_S,
            "kill_after_s": measuring.KILL_AFTER_S,
            "give_up_s": measuring.GIVE_UP_S,
        },
        "rows": rows,
    }


def _measure(peer: Peer, options: argparse.Namespace, folder: Path) -> list[Row]:
    """A row for each variant. Deaths are run with the most durable one only: Redis lives on."""
    rows = [new_row(peer.name, variant) for variant in peer.variants]
    speed, kill = (options.measure in ("all", part) for part in ("speed", "kill"))
    try:
        python = python_of(options.cache, peer.environment, peer.packages)
    except InstallFailed as error:
        for row in rows:
            row["failures"] = {"speed": f"not installed: {error}"}
        return rows
    for row in rows if speed else ():
        for _ in range(options.runs):
            _attempt(peer, row, python, folder, options, kind="speed", case=DEFAULTS)
    for case in peer.cases if kill else ():
        for _ in range(options.kill_runs):
            _attempt(peer, rows[-1], python, folder, options, kind="kill", case=case.name)
    return rows


def _attempt(
    peer: Peer,
    row: Row,
    python: Path,
    folder: Path,
    options: argparse.Namespace,
    *,
    kind: str,
    case: str,
) -> None:
    part = "speed" if kind == "speed" else case
    job: dict[str, Any] = {
        "kind": kind,
        "case": case,
        "tasks": options.tasks,
        "latency_tasks": LATENCY_TASKS,
        "workers": WORKERS,
    }
    try:
        measured = drive(peer, row["variant"], python, job, folder)
    except DriverFailed as error:
        row["failures"][part] = str(error)
        _say(row, part, f"failed: {error}")
        return
    if kind == "kill":
        measured |= {"case": case, "naps": measuring.NAPS}
    note(row, kind, measured)
    _say(row, part, json.dumps(row[kind][-1]))


def _say(row: Row, part: str, what: str) -> None:
    print(f"{row['peer']} {row['variant']} {part}: {what}", file=sys.stderr)


if __name__ == "__main__":
    main()
