"""Celery on Redis with a prefork pool."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

from celery import group

from benchmarks.peers.drivers.measuring import (
    CALL_TIMEOUT_S,
    NAPS,
    Ends,
    Job,
    Peer,
    WorkerProcess,
    run,
)


class Celery(Peer):
    """Late acknowledgement; no gossip and no mingling with other workers: there are none."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        os.environ["PEER_REDIS_URL"] = job.redis_url
        os.environ["PEER_RECOVERY"] = job.case
        os.environ["PEER_ONE_AT_A_TIME"] = "1" if job.kind == "kill" else "0"
        self._worker: WorkerProcess | None = None
        self._naps: list[Any] = []
        self._done: set[int] = set()
        self._failed: set[int] = set()

    def start(self) -> None:
        from benchmarks.peers.drivers import celery_worker  # noqa: PLC0415  reads PEER_*

        self._app = celery_worker
        self._start_workers()

    def stop(self) -> None:
        if self._worker is not None:
            self._worker.stop()

    def echo_many(self, count: int) -> Sequence[object]:
        sent = group(self._app.same.s(number) for number in range(count)).apply_async()
        return list(sent.join_native(timeout=CALL_TIMEOUT_S * 2))

    def echo(self, number: int) -> object:
        answer: object = self._app.same.delay(number).get(timeout=CALL_TIMEOUT_S)
        return answer

    def begin_naps(self) -> None:
        self._naps = [self._app.nap.delay(n, str(self.job.journal)) for n in range(NAPS)]

    def ends(self) -> Ends:
        for number, sent in enumerate(self._naps):
            if number in self._done | self._failed:
                continue
            state = sent.state
            if state == "SUCCESS" and sent.result == number:
                self._done.add(number)
            elif state in {"SUCCESS", "FAILURE", "REVOKED"}:
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
                *(sys.executable, "-m", "celery"),
                *("-A", "benchmarks.peers.drivers.celery_worker", "worker"),
                *("--concurrency", str(self.job.workers), "--loglevel", "WARNING"),
                *("--without-gossip", "--without-mingle", "-O", "fair"),
            ],
            # Celery warns about root; here it runs this benchmark's own two functions.
            env={"C_FORCE_ROOT": "1"},
        )


if __name__ == "__main__":
    run(Celery)
