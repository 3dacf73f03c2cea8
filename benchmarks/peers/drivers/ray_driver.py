"""Ray on one node: tasks, or two actors that take turns."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from typing import Any

# Read when ray is imported. The second is the only way to have all of Ray listen on 127.0.0.1:
# otherwise it looks for an address that other machines reach, also when told that one.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"

import ray
from ray.exceptions import RayError

from benchmarks.peers.drivers.measuring import CALL_TIMEOUT_S, NAPS, Ends, Job, Peer, nap, run


class RayTasks(Peer):
    """`max_retries` is Ray's default, 3: a task whose worker died is given out again."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self._naps: list[Any] = []
        self._ended: dict[int, bool] = {}

    def start(self) -> None:
        ray.init(
            num_cpus=self.job.workers,
            include_dashboard=False,
            _node_ip_address="127.0.0.1",
            _temp_dir=str(self.job.folder),
            object_store_memory=256 * 2**20,
            log_to_driver=False,
            logging_level="error",
        )
        self._echo = ray.remote(num_cpus=1)(_same)
        self._nap = ray.remote(num_cpus=1)(nap)

    def stop(self) -> None:
        ray.shutdown()

    def echo_many(self, count: int) -> Sequence[object]:
        got: list[object] = ray.get([self._echo.remote(number) for number in range(count)])
        return got

    def echo(self, number: int) -> object:
        return ray.get(self._echo.remote(number), timeout=CALL_TIMEOUT_S)

    def begin_naps(self) -> None:
        journal = str(self.job.journal)
        self._naps = [self._nap.remote(number, journal) for number in range(NAPS)]

    def ends(self) -> Ends:
        waiting = [ref for number, ref in enumerate(self._naps) if number not in self._ended]
        if waiting:
            ready, _ = ray.wait(waiting, num_returns=len(waiting), timeout=0)
            for ref in ready:
                number = self._naps.index(ref)
                self._ended[number] = False
                with contextlib.suppress(RayError):
                    self._ended[number] = ray.get(ref) == number
        done = frozenset(number for number, right in self._ended.items() if right)
        return Ends(done, frozenset(self._ended) - done)


class RayActors(RayTasks):
    """Restarted and asked again without end, as Ray's documentation says for at-least-once."""

    def start(self) -> None:
        super().start()
        actor = ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=-1)(_Actor)
        self._actors = [actor.remote() for _ in range(self.job.workers)]
        # Methods run only when the actor is up.
        ray.get([each.same.remote(0) for each in self._actors], timeout=CALL_TIMEOUT_S)

    def echo_many(self, count: int) -> Sequence[object]:
        turns = len(self._actors)
        refs = [self._actors[number % turns].same.remote(number) for number in range(count)]
        got: list[object] = ray.get(refs)
        return got

    def echo(self, number: int) -> object:
        actor = self._actors[number % len(self._actors)]
        return ray.get(actor.same.remote(number), timeout=CALL_TIMEOUT_S)

    def begin_naps(self) -> None:
        journal, turns = str(self.job.journal), len(self._actors)
        self._naps = [self._actors[n % turns].nap.remote(n, journal) for n in range(NAPS)]


class _Actor:
    def same(self, number: int) -> int:
        return number

    def nap(self, number: int, journal: str) -> int:
        return nap(number, journal)


def _same(number: int) -> int:
    return number


if __name__ == "__main__":
    run(RayActors if sys.argv[2:] == ["actors"] else RayTasks)
