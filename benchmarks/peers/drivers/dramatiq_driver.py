"""dramatiq on Redis: acknowledged after the run, its default."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import dramatiq
from dramatiq.results import ResultError, ResultMissing

from benchmarks.peers.drivers.measuring import (
    CALL_TIMEOUT_S,
    NAPS,
    Ends,
    Job,
    Peer,
    WorkerProcess,
    run,
)

_TIMEOUT_MS = int(CALL_TIMEOUT_S * 1000)


class Dramatiq(Peer):
    """8 threads in each worker process, dramatiq's default; 1 where tasks are long."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        os.environ["PEER_REDIS_URL"] = job.redis_url
        os.environ["PEER_RECOVERY"] = job.case
        self._worker: WorkerProcess | None = None
        self._naps: list[Any] = []
        self._done: set[int] = set()
        self._failed: set[int] = set()

    def start(self) -> None:
        from benchmarks.peers.drivers import dramatiq_worker  # noqa: PLC0415  reads PEER_*

        self._app = dramatiq_worker
        self._start_workers()

    def stop(self) -> None:
        if self._worker is not None:
            self._worker.stop()

    def echo_many(self, count: int) -> Sequence[object]:
        group = dramatiq.group([self._app.same.message(number) for number in range(count)])
        return list(group.run().get_results(block=True, timeout=_TIMEOUT_MS))

    def echo(self, number: int) -> object:
        message = self._app.same.send(number)
        answer: object = message.get_result(block=True, timeout=_TIMEOUT_MS)
        return answer

    def begin_naps(self) -> None:
        self._naps = [self._app.nap.send(n, str(self.job.journal)) for n in range(NAPS)]

    def ends(self) -> Ends:
        for number, message in enumerate(self._naps):
            if number in self._done | self._failed:
                continue
            try:
                if message.get_result() == number:
                    self._done.add(number)
            except ResultMissing:
                continue
            except ResultError:
                self._failed.add(number)
        return Ends(frozenset(self._done), frozenset(self._failed))

    def kill_workers(self) -> str:
        assert self._worker is not None
        return f"the worker command, {self._worker.kill_all()} processes"

    def after_kill(self) -> None:
        self._start_workers()

    def _start_workers(self) -> None:
        self._worker = WorkerProcess(
            self.job,
            [
                *(sys.executable, "-m", "dramatiq"),
                *("--processes", str(self.job.workers)),
                *(("--threads", "1") if self.job.kind == "kill" else ()),
                "benchmarks.peers.drivers.dramatiq_worker",
            ],
        )


if __name__ == "__main__":
    run(Dramatiq)
