"""Dask distributed: a scheduler and worker processes of one thread, each under a nanny."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distributed import Client, LocalCluster

from benchmarks.peers.drivers.measuring import CALL_TIMEOUT_S, NAPS, Ends, Job, Peer, nap, run


class Dask(Peer):
    """Nothing to set: lost work is computed again, at most 3 times (allowed-failures)."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self._cluster: Any = None
        self._client: Any = None
        self._naps: list[Any] = []

    def start(self) -> None:
        self._cluster = LocalCluster(
            n_workers=self.job.workers,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address=None,
            worker_dashboard_address=None,
            local_directory=str(self.job.folder),
            silence_logs=50,
        )
        self._client = Client(self._cluster)
        self._client.wait_for_workers(self.job.workers, timeout=CALL_TIMEOUT_S)

    def stop(self) -> None:
        if self._client is not None:
            self._client.close()
        if self._cluster is not None:
            self._cluster.close()

    def echo_many(self, count: int) -> Sequence[object]:
        # Not pure: the same number is a new task, not a remembered result.
        got: list[object] = self._client.gather(self._client.map(_same, range(count), pure=False))
        return got

    def echo(self, number: int) -> object:
        future = self._client.submit(_same, number, pure=False)
        answer: object = future.result(timeout=CALL_TIMEOUT_S)
        return answer

    def begin_naps(self) -> None:
        journal = [str(self.job.journal)] * NAPS
        self._naps = self._client.map(nap, range(NAPS), journal, pure=False)

    def ends(self) -> Ends:
        states = {number: future.status for number, future in enumerate(self._naps)}
        finished = frozenset(number for number, state in states.items() if state == "finished")
        lost = frozenset(n for n, s in states.items() if s in {"error", "lost", "cancelled"})
        return Ends(finished, lost)


def _same(number: int) -> int:
    return number


if __name__ == "__main__":
    run(Dask)
