"""Faults of services: killed, paused, and replies that are lost."""

from __future__ import annotations

import time

from benchmarks.oracle.checker import Expectation
from benchmarks.oracle.cluster import BACK_WITHIN_S, until
from benchmarks.oracle.load import Shape
from benchmarks.oracle.scene import Books, Scene, Strike


class ServiceFault:
    """A fault that no task and no agent may feel: nothing moves, nothing is charged."""

    number = ""
    name = ""
    demands = "0 tasks moved"
    proxied = False

    def shape(self, tasks: int, short: bool) -> Shape:
        return Shape(tasks)

    def strike(self, scene: Scene) -> Strike:
        raise NotImplementedError

    def judge(self, scene: Scene, strike: Strike, books: Books) -> None:
        """Nothing beyond what the checker demands."""


def killed(scene: Scene, *names: str, away_s: float = 0.0) -> Strike:
    """kill -9 of services; waits until they are ready and a later task has been done.

    Detection is until all have been started again, recovery until the later of both. When they
    are kept away for `away_s`, both count from their return.
    """
    cluster = scene.cluster
    old = {name: cluster.pid(name) for name in names}
    for name in names:
        if away_s:
            cluster.hold(name)
    struck_s = cluster.kill(*names)
    if away_s:
        time.sleep(away_s)
        for name in names:
            cluster.release(name)
    strike = Strike(struck_s, struck_s + away_s)
    for name in names:
        until(lambda n=name: cluster.pid(n) != old[n], f"a new {name}", BACK_WITHIN_S)
    strike.detections_s.append(time.monotonic() - strike.healed_s)
    for name in names:
        until(lambda n=name: cluster.is_ready(n), f"{name}", BACK_WITHIN_S)
    ready_s = time.monotonic() - strike.healed_s
    strike.recoveries_s.append(max(ready_s, scene.first_end_after_s(strike.healed_s)))
    return strike


class StorageKilled(ServiceFault):
    """Fault 5."""

    number = "5"
    name = "kill -9 storage service"
    demands = "callers retry, 0 lost"

    def strike(self, scene: Scene) -> Strike:
        scene.await_moment()
        return killed(scene, "storage")


__all__ = ["Expectation", "ServiceFault", "StorageKilled", "killed"]
