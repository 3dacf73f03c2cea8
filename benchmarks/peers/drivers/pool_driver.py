"""Python's own `concurrent.futures.ProcessPoolExecutor`."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor

from benchmarks.peers.drivers.measuring import CALL_TIMEOUT_S, NAPS, Ends, Job, Peer, nap, run


class Pool(Peer):
    """One future per task; the pool breaks when a worker dies, and starts none again."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self._naps: list[Future[int]] = []

    def start(self) -> None:
        self._pool = ProcessPoolExecutor(self.job.workers)

    def stop(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def echo_many(self, count: int) -> Sequence[object]:
        futures = [self._pool.submit(_same, number) for number in range(count)]
        return [future.result(CALL_TIMEOUT_S) for future in futures]

    def echo(self, number: int) -> object:
        return self._pool.submit(_same, number).result(CALL_TIMEOUT_S)

    def begin_naps(self) -> None:
        journal = str(self.job.journal)
        self._naps = [self._pool.submit(nap, number, journal) for number in range(NAPS)]

    def ends(self) -> Ends:
        ended = {number: future for number, future in enumerate(self._naps) if future.done()}
        done = frozenset(
            number
            for number, future in ended.items()
            if future.exception() is None and future.result() == number
        )
        return Ends(done, frozenset(ended) - done)


def _same(number: int) -> int:
    return number


if __name__ == "__main__":
    run(Pool)
