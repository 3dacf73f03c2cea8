"""Runs a driver in its environment, and ends every process that it leaves behind."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from benchmarks.peers.catalog import AOF_ALWAYS, NO_REDIS, Peer
from benchmarks.peers.machine_load import cpu_seconds, others_share
from benchmarks.peers.redis_process import RedisProcess

ROOT = Path(__file__).resolve().parents[2]
# Start, warm-up and load at a tenth of the slowest rate that was ever seen here; and the 120 s of
# a killed run with its start.
SPEED_TIMEOUT_S = 300.0
KILL_TIMEOUT_S = 240.0
_END_TIMEOUT_S = 10.0
_REASON_CHARS = 300
_PR_SET_CHILD_SUBREAPER = 36
_KEPT_VARIABLES = (
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "XDG_CACHE_HOME",
    "MUSTER_REDIS",
    "MUSTER_ETCD",
)


class DriverFailed(Exception):
    """The text says why, in a line."""


def adopt_orphans() -> None:
    """From now on a process whose parent dies becomes this one's child, and so can be ended."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def drive(
    peer: Peer, variant: str, python: Path, job: Mapping[str, Any], parent_folder: Path
) -> dict[str, Any]:
    """What the driver measured. `job` is all of measuring.Job but folder, Redis and packages.

    `others_cpu` in it is the share of the machine that was not ours meanwhile. Raises
    DriverFailed. When it returns or raises, no process of the run is left.
    """
    before = cpu_seconds()
    measured = _drive(peer, variant, python, job, parent_folder)
    return measured | {"others_cpu": round(others_share(before, cpu_seconds()), 4)}


def _drive(
    peer: Peer, variant: str, python: Path, job: Mapping[str, Any], parent_folder: Path
) -> dict[str, Any]:
    # Short: Ray's socket paths below it must stay under 107 characters.
    with tempfile.TemporaryDirectory(prefix="p", dir=parent_folder) as name:
        folder = Path(name)
        redis = None
        try:
            # Muster starts its own.
            if variant != NO_REDIS and peer.packages:
                redis = RedisProcess(folder, synced=variant == AOF_ALWAYS)
            asked = {
                **job,
                "folder": str(folder),
                "redis_url": redis.url if redis else "",
                "packages": list(peer.reported),
            }
            return _run(peer, python, asked, folder)
        except (OSError, RuntimeError) as error:
            raise DriverFailed(str(error)[:_REASON_CHARS]) from error
        finally:
            if redis is not None:
                redis.stop()
            end_children()


def _run(peer: Peer, python: Path, job: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    environ = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    timeout_s = KILL_TIMEOUT_S if job["kind"] == "kill" else SPEED_TIMEOUT_S
    out, err = folder / "driver.out", folder / "driver.err"
    # Files, not pipes: daemons that a driver leaves behind would hold a pipe open.
    with out.open("wb") as stdout, err.open("wb") as stderr:
        process = subprocess.Popen(
            [
                *(str(python), "-m", f"benchmarks.peers.drivers.{peer.driver}"),
                *(json.dumps(job), *peer.driver_args),
            ],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            env=environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(folder)},
            cwd=folder,
        )
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise DriverFailed(f"not done after {timeout_s:g} s") from None
    measured = measured_in(out.read_text(errors="replace"))
    if code != 0 or measured is None:
        raise DriverFailed(last_words(err.read_text(errors="replace"), code))
    return measured


def measured_in(output: str) -> dict[str, Any] | None:
    """What the last line says that is a driver's; libraries may print too."""
    for line in reversed(output.splitlines()):
        try:
            said = json.loads(line)
        except ValueError:
            continue
        if isinstance(said, dict) and isinstance(said.get("measured"), dict):
            found: dict[str, Any] = said["measured"]
            return found
    return None


def last_words(errors: str, code: int) -> str:
    """Why a driver ended: the last line that it wrote, which is a traceback's sentence."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    return (lines[-1] if lines else f"ended with code {code} and said nothing")[:_REASON_CHARS]


def end_children() -> None:
    """kill -9 of every process below this one, adopted ones too, until there is none."""
    while children := psutil.Process().children(recursive=True):
        for child in children:
            try:
                child.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(children, timeout=_END_TIMEOUT_S)
