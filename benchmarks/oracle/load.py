"""The load on a cluster while it is disturbed: a burst, then a trickle until all is over."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.oracle.books import (
    ENDED_STATES,
    LABEL,
    SUCCEEDED,
    Acknowledged,
    Journal,
    SideFile,
)
from benchmarks.oracle.cluster import Cluster
from benchmarks.oracle.rest import Attempts, Refused

SHORTEST_MS, LONGEST_MS = 20.0, 200.0
BATCH_TASKS = 100
# Frequent enough that the longest gap between accepted submissions says something.
TRICKLE_PAUSE_S = 0.1
# Of a hundred tasks, so many start a child process, and so many may never overlap.
BROODING, STOPPING = 2, 20
# The highest priority.
FIRST = 100
_JOIN_S = 200.0


@dataclass(frozen=True, slots=True)
class Shape:
    """What the load is made of. `stop`: a share of tasks must not overlap."""

    tasks: int
    shortest_ms: float = SHORTEST_MS
    longest_ms: float = LONGEST_MS
    stop: bool = True
    batch: int = BATCH_TASKS
    trickle: bool = True
    trickle_pause_s: float = TRICKLE_PAUSE_S


class Load:
    """Two threads that submit; every acknowledgement goes into the journal."""

    def __init__(self, cluster: Cluster, folder: Path, run: str, seed: int, shape: Shape) -> None:
        self.cluster, self.run, self.shape = cluster, run, shape
        self.journal = Journal(folder / f"{run}.journal")
        self.side = SideFile(folder / f"{run}.marks")
        self.burst, self.trickle = Attempts(), Attempts()
        # Set when a burst's request is about to be sent; faults aim at it.
        self.sending = threading.Event()
        self.burst_done = threading.Event()
        self._random = random.Random(seed)
        self._trickle_random = random.Random(seed + 1)
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._threads = [threading.Thread(target=self._guarded, args=(self._burst,))]
        if shape.trickle:
            self._threads.append(threading.Thread(target=self._guarded, args=(self._drip,)))
        self._numbers = iter(range(10_000_000))
        self._lock = threading.Lock()

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def finish(self) -> None:
        """Ends the trickle, waits until the burst has been accepted; raises what went wrong."""
        for thread in self._threads[:1]:
            thread.join(_JOIN_S)
        self._stop.set()
        for thread in self._threads:
            thread.join(_JOIN_S)
        if self._failure is not None:
            raise self._failure
        if any(thread.is_alive() for thread in self._threads):
            raise TimeoutError("submissions are still not accepted")

    def abandon(self) -> None:
        """Ends it as it is; what went wrong is not told."""
        self._stop.set()
        for thread in self._threads:
            thread.join(_JOIN_S)

    def task(self, skill: str, ms: float, *, stop: bool = False, **more: Any) -> dict[str, Any]:
        """A task of this run."""
        with self._lock:
            number = next(self._numbers)
        return {
            "skill": skill,
            "input": {"n": number, "ms": round(ms, 1), "side": str(self.side.path)},
            "labels": {LABEL: self.run},
            **({"on_disconnect": "stop"} if stop else {}),
            **more,
        }

    def submit(
        self,
        tasks: Sequence[dict[str, Any]],
        *,
        attempts: Attempts | None = None,
        expected: tuple[str, ...] = (SUCCEEDED,),
        stop: bool = False,
    ) -> list[str]:
        """Submits with a key of their own until it is acknowledged; gives the ids."""
        rest = self.cluster.rest()
        key = f"{self.run}-{tasks[0]['input']['n']}"
        try:
            answer = rest.submit(list(tasks), key, attempts or self.burst, self._stop)
        finally:
            rest.close()
        if answer is None:
            raise TimeoutError("a submission was never accepted")
        ids, sent_s = answer
        self.journal.note(Acknowledged(key, tuple(ids), sent_s, time.monotonic(), expected, stop))
        return ids

    def await_ends(self, within_s: float) -> list[str]:
        """Waits for all acknowledged tasks; gives those that are still open."""
        rest = self.cluster.rest()
        left = self.journal.ids()
        give_up_s = time.monotonic() + within_s
        while left and time.monotonic() < give_up_s:
            body = json.dumps({"ids": left[:10_000], "wait": "5s"}).encode()
            try:
                lines = rest.persist("POST", "/v1/results", body, wait_s=10.0).splitlines()
                ended = [item for item in map(json.loads, lines) if "open" not in item]
            except (Refused, ValueError):
                time.sleep(0.2)
                continue
            gone = {i["id"] for i in ended if i["state"] is None or i["state"] in ENDED_STATES}
            left = [ident for ident in left if ident not in gone]
        rest.close()
        return left

    def _guarded(self, work: Any) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 -- told by `finish` in the main thread
            self._failure = self._failure or error

    def _burst(self) -> None:
        left = self.shape.tasks
        while left > 0:
            count = min(left, self.shape.batch)
            left -= count
            # One submission cannot mix both: its entry says which must not overlap.
            stop = self.shape.stop and self._random.randrange(100) < STOPPING
            tasks = [self._random_task(self._random, stop=stop) for _ in range(count)]
            self.sending.set()
            self.submit(tasks, stop=stop)
            self.sending.clear()
        self.burst_done.set()

    def _drip(self) -> None:
        rest = self.cluster.rest(timeout_s=8.0)
        while not self._stop.wait(self.shape.trickle_pause_s):
            # Ahead of the burst, so that they tell when work goes on and not how much waits.
            tasks = [
                self._random_task(self._trickle_random, stop=False, priority=FIRST)
                for _ in range(2)
            ]
            key = f"{self.run}-{tasks[0]['input']['n']}"
            answer = rest.submit(tasks, key, self.trickle, self._stop)
            if answer is None:
                raise TimeoutError("a submission was never accepted")
            ids, sent_s = answer
            self.journal.note(Acknowledged(key, tuple(ids), sent_s, time.monotonic()))
        rest.close()

    def _random_task(self, chance: random.Random, *, stop: bool, **more: Any) -> dict[str, Any]:
        ms = chance.uniform(self.shape.shortest_ms, self.shape.longest_ms)
        skill = "brood" if chance.randrange(100) < BROODING else chance.choice(["work", "wait"])
        return self.task(skill, ms, stop=stop, **more)
