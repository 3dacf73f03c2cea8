"""What every driver does: the same work, timed the same way, one JSON line at the end.

Runs in the peer's own environment, so it imports nothing but the standard library.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

WARM_UP_TASKS = 300
NAPS = 20
NAP_S = 0.5
# Two workers have done 6 to 8 of the naps by then and are asleep in two more.
KILL_AFTER_S = 2.0
# Who has no result by then has lost the task as far as its caller can tell.
GIVE_UP_S = 120.0
POLL_S = 0.05
# A single call; a peer that does not answer for so long has failed.
CALL_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Job:
    """What the driver is asked to do; `case` is the way of dying for `kind` "kill"."""

    kind: str
    case: str
    tasks: int
    latency_tasks: int
    workers: int
    folder: Path
    redis_url: str
    packages: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Job:
        """Of the JSON object on the driver's command line."""
        given: dict[str, Any] = json.loads(text)
        return cls(
            **{
                **given,
                "folder": Path(given["folder"]),
                "packages": tuple(given["packages"]),
            }
        )

    @property
    def journal(self) -> Path:
        """Where each nap writes that it begins."""
        return self.folder / "naps"


@dataclass(frozen=True, slots=True)
class Ends:
    """Numbers of the naps whose right result has come, and of those that never will."""

    done: frozenset[int]
    lost: frozenset[int] = frozenset()


class Peer(ABC):
    """A system under measurement, as its users use it."""

    def __init__(self, job: Job) -> None:
        self.job = job

    @abstractmethod
    def start(self) -> None:
        """Starts `job.workers` workers; returns when tasks can be submitted."""

    @abstractmethod
    def stop(self) -> None:
        """Ends what `start` started; harmless after a failed start."""

    @abstractmethod
    def echo_many(self, count: int) -> Sequence[object]:
        """Submits tasks that give back their numbers 0 … count-1; all results, in that order."""

    @abstractmethod
    def echo(self, number: int) -> object:
        """One task, from submission to result."""

    @abstractmethod
    def begin_naps(self) -> None:
        """Submits NAPS tasks of NAP_S, each giving back its number."""

    @abstractmethod
    def ends(self) -> Ends:
        """What has come of the naps so far; does not wait."""

    def kill_workers(self) -> str:
        """kill -9 of what runs tasks; says what was killed. Who ran a nap, unless overridden."""
        pids = {pid for _, pid in journal_lines(self.job.journal)}
        kill(pids)
        return f"{len(pids)} worker processes"

    def after_kill(self) -> None:  # noqa: B027  most peers start workers again by themselves
        """What an operator's supervisor would do: start workers again, if nobody else does."""

    def latencies_s(self, count: int) -> list[float]:
        """Of tasks submitted one after another."""
        taken: list[float] = []
        for number in range(count):
            began = time.perf_counter()
            answer = self.echo(number)
            taken.append(time.perf_counter() - began)
            _expect(answer, number)
        return taken


def run(peer_class: type[Peer]) -> None:
    """The main function of a driver."""
    job = Job.parse(sys.argv[1])
    peer = peer_class(job)
    try:
        peer.start()
        measured = _kill_run(peer) if job.kind == "kill" else _speed_run(peer)
    finally:
        peer.stop()
    measured["versions"] = {name: version(name) for name in job.packages}
    print(json.dumps({"measured": measured}), flush=True)


def nap(number: int, journal: str) -> int:
    """The body of a nap, the same for every peer."""
    note_nap(number, journal)
    time.sleep(NAP_S)
    return number


def note_nap(number: int, journal: str) -> None:
    """Appends a line that no other process can tear."""
    descriptor = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, f"{number} {os.getpid()}\n".encode())
    finally:
        os.close(descriptor)


def journal_lines(journal: Path) -> list[tuple[int, int]]:
    """(number, pid) of each nap that began, in order."""
    try:
        lines = journal.read_text().splitlines()
    except FileNotFoundError:
        return []
    return [(int(number), int(pid)) for number, pid in (line.split() for line in lines)]


class WorkerProcess:
    """A peer's worker command, with a log in the job's folder."""

    def __init__(self, job: Job, argv: Sequence[str], env: dict[str, str] | None = None) -> None:
        with (job.folder / "workers.log").open("ab") as log:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | (env or {}),
                cwd=job.folder,
            )

    def kill_all(self) -> int:
        """kill -9 of the command and everything below it; how many processes."""
        pids = self._tree()
        kill(pids)
        self._process.wait()
        return len(pids)

    def stop(self) -> None:
        """In order if it can, by force if it cannot."""
        below = self._tree()
        self._process.terminate()
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            kill(self._tree())
            self._process.wait()
        kill(below)

    def _tree(self) -> list[int]:
        if self._process.poll() is not None:
            return []
        # Halted first, so that it starts nobody while its children are being listed.
        root = self._process.pid
        os.kill(root, signal.SIGSTOP)
        found = [root, *_descendants(root)]
        os.kill(root, signal.SIGCONT)
        return found


def kill(pids: Iterable[int]) -> None:
    """kill -9; who is gone already is fine."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _descendants(root: int) -> list[int]:
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            parents.setdefault(parent, []).append(int(stat.parent.name))
    found = list(parents.get(root, ()))
    for pid in found:
        found.extend(parents.get(pid, ()))
    return found


def _speed_run(peer: Peer) -> dict[str, Any]:
    _check_all(peer.echo_many(WARM_UP_TASKS), WARM_UP_TASKS)
    latencies_s = sorted(peer.latencies_s(peer.job.latency_tasks))
    began = time.perf_counter()
    answers = peer.echo_many(peer.job.tasks)
    took_s = time.perf_counter() - began
    _check_all(answers, peer.job.tasks)
    return {
        "tasks_per_s": peer.job.tasks / took_s,
        "latency_ms_median": latencies_s[len(latencies_s) // 2] * 1000,
        "latency_ms_p99": latencies_s[min(len(latencies_s) * 99 // 100, len(latencies_s) - 1)]
        * 1000,
    }


def _kill_run(peer: Peer) -> dict[str, Any]:
    # Every worker is up and has what it needs; otherwise the kill would meet workers that start.
    _check_all(peer.echo_many(WARM_UP_TASKS), WARM_UP_TASKS)
    began = time.perf_counter()
    peer.begin_naps()
    time.sleep(max(0.0, began + KILL_AFTER_S - time.perf_counter()))
    done_before = len(peer.ends().done)
    killed = peer.kill_workers()
    peer.after_kill()
    done: frozenset[int] = frozenset()
    last_s = 0.0
    while (now_s := time.perf_counter() - began) < GIVE_UP_S:
        ends = peer.ends()
        if len(ends.done) > len(done):
            done, last_s = ends.done, time.perf_counter() - began
        if len(ends.done | ends.lost) == NAPS:
            break
        time.sleep(POLL_S)
    return {
        "killed": killed,
        "done_before": done_before,
        "results": len(done),
        "last_s": last_s,
        "ended_s": now_s,
        "executions": len(journal_lines(peer.job.journal)),
    }


def _check_all(answers: Sequence[object], count: int) -> None:
    if len(answers) != count:
        raise SystemExit(f"{len(answers)} results came for {count} tasks")
    for number, answer in enumerate(answers):
        _expect(answer, number)


def _expect(answer: object, number: int) -> None:
    if answer != number:
        raise SystemExit(f"task {number} gave {answer!r}")
