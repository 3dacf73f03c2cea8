"""Fault 30: each task is cancelled at about the time when it is done."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from benchmarks.oracle.books import SUCCEEDED
from benchmarks.oracle.load import Shape
from benchmarks.oracle.rest import Refused, Rest
from benchmarks.oracle.scene import Books, Ground, Limits, Scene, Strike

# For each task of other faults' loads.
RACES_PER_TASK = 5
BATCH_TASKS = 200
# A batch runs for about as long as its cancellations are spread.
LONGEST_MS = 400.0
SPREAD_S = 0.3
CANCELLERS = 4
# Of each batch, so many run for far longer: an accepted cancellation must end them.
LONG_TASKS, LONG_MS = 5, 30_000.0
CANCELLED = "CANCELLED"


class CancelRace(Ground):
    """One end for each task, whoever wins."""

    number = "30"
    name = "cancel against completion"
    limits = Limits(also="one terminal state each")

    def __init__(self) -> None:
        self._races = 0

    def shape(self, tasks: int, short: bool) -> Shape:  # noqa: ARG002 -- others take it
        self._races = tasks * RACES_PER_TASK
        return Shape(0, trickle=False)

    def strike(self, scene: Scene) -> Strike:
        strike = Strike(time.monotonic())
        local = threading.local()
        refused = 0

        def cancel(at_s: float, ident: str) -> bool:
            """False when it had ended."""
            if not hasattr(local, "rest"):
                local.rest = scene.cluster.rest()
            rest: Rest = local.rest
            time.sleep(max(0.0, at_s - time.monotonic()))
            try:
                rest.persist("POST", f"/v1/tasks/{ident}/cancel", b"{}")
            except Refused as answer:
                if answer.status != 409:
                    raise
                return False
            return True

        with ThreadPoolExecutor(CANCELLERS) as pool:
            left = self._races
            while left > 0:
                count = min(left, BATCH_TASKS)
                left -= count
                ids = self._submit(scene, count, LONGEST_MS, (SUCCEEDED, CANCELLED))
                ids += self._submit(scene, LONG_TASKS, LONG_MS, (CANCELLED,), LONG_MS)
                now_s = time.monotonic()
                moments = sorted(scene.chance.uniform(0.0, SPREAD_S) for _ in ids)
                racing = [
                    pool.submit(cancel, now_s + at_s, ident)
                    for at_s, ident in zip(moments, ids, strict=True)
                ]
                refused += sum(not race.result() for race in racing)
        strike.healed_s = time.monotonic()
        strike.notes["came_too_late"] = refused
        return strike

    def _submit(
        self,
        scene: Scene,
        count: int,
        longest_ms: float,
        expected: tuple[str, ...],
        shortest_ms: float = 0.0,
    ) -> list[str]:
        chance: random.Random = scene.chance
        tasks = [
            scene.load.task(
                chance.choice(["work", "wait"]),
                chance.uniform(shortest_ms, longest_ms),
                resources={"cpu": "20m"},
            )
            for _ in range(count)
        ]
        return scene.load.submit(tasks, expected=expected)

    def judge(self, scene: Scene, strike: Strike, books: Books) -> None:  # noqa: ARG002
        for state in (SUCCEEDED, CANCELLED):
            count = sum(record.state == state for record in books.records.values())
            strike.notes[state.lower()] = count
            # Else nothing raced.
            strike.demand(count > 0, f"no task was {state}")
