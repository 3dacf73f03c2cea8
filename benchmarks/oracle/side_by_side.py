"""Runs of faults in processes of their own, several at a time.

Most of a run is waiting: for leases, for pauses, for what was cut off. Side by side a campaign
takes a fraction of its time; times are measured on a busier machine and so can only be worse.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path

from benchmarks.oracle.catalogue import FAULTS
from benchmarks.oracle.scene import Run

MAX_JOBS = 16
# Far above what the slowest fault takes, which waits five minutes.
_RUN_WITHIN_S = 1200.0
# For a run that is told to end, to take down its cluster.
_END_WITHIN_S = 90.0
_SCRIPT = Path(__file__).resolve().parents[1] / "chaos.py"


class SideBySide:
    """`jobs` runs at a time. `options`: further words of the command line of each run."""

    def __init__(self, jobs: int, options: Sequence[str]) -> None:
        self._jobs, self._options = jobs, tuple(options)
        self._processes: list[subprocess.Popen[str]] = []
        self._closed = False

    def runs(self, wanted: Sequence[tuple[str, int]]) -> Iterator[Run]:
        """In the order in which they end. `wanted`: faults with seeds; faults that need all cores
        come last, one after another. Ends the processes when it is not read to the end."""
        crowd = [pair for pair in wanted if not FAULTS[pair[0]]().alone]
        alone = [pair for pair in wanted if FAULTS[pair[0]]().alone]
        try:
            yield from self._some(crowd, self._jobs)
            yield from self._some(alone, 1)
        finally:
            self._end()

    def _some(self, wanted: Sequence[tuple[str, int]], jobs: int) -> Iterator[Run]:
        with ThreadPoolExecutor(jobs) as threads:
            try:
                open_runs: set[Future[Run]] = {threads.submit(self._one, *w) for w in wanted}
                while open_runs:
                    done, open_runs = wait(open_runs, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            except BaseException:
                threads.shutdown(wait=False, cancel_futures=True)
                self._end()
                raise

    def _one(self, number: str, seed: int) -> Run:
        words = ["--fault", number, "--seeds", "1", "--first-seed", str(seed), "--json"]
        process = subprocess.Popen(
            [sys.executable, str(_SCRIPT), *words, *self._options],
            stdout=subprocess.PIPE,
            text=True,
        )
        self._processes.append(process)
        if self._closed:
            process.terminate()
        try:
            said, _ = process.communicate(timeout=_RUN_WITHIN_S)
        except subprocess.TimeoutExpired:
            said = ""
            self._end_one(process)
        finally:
            self._processes.remove(process)
        try:
            return Run(**json.loads(said.splitlines()[0]))
        except (IndexError, ValueError, TypeError):
            return Run(number, seed, problems=[f"it ended with {process.returncode}, no word"])

    def _end(self) -> None:
        self._closed = True
        for process in list(self._processes):
            process.terminate()
        for process in list(self._processes):
            self._end_one(process)

    @staticmethod
    def _end_one(process: subprocess.Popen[str]) -> None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_END_WITHIN_S)
        process.kill()
