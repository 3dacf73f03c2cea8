"""taskiq with its redis streams broker; one asyncio client with bounded concurrency."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

import uvloop

from benchmarks.peers.drivers.measuring import (
    CALL_TIMEOUT_S,
    NAPS,
    Ends,
    Job,
    Peer,
    WorkerProcess,
    run,
)

T = TypeVar("T")

# Submissions, and waits for results, that are under way at once; more did not go faster.
_CONCURRENCY = 64
# How often a waiting client asks Redis; taskiq has no notification of results.
_LATENCY_CHECK_S = 0.0005
_BATCH_CHECK_S = 0.01
# The case "short, busy": what else a live system has to do.
_TRAFFIC_EVERY_S = 1.0


class Taskiq(Peer):
    """Acknowledged when the result is saved, which is taskiq's default."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self._kill = job.kind == "kill"
        os.environ["PEER_REDIS_URL"] = job.redis_url
        os.environ["PEER_RECOVERY"] = job.case.partition(",")[0]
        os.environ["PEER_ONE_AT_A_TIME"] = "1" if self._kill else "0"
        self._loop = uvloop.new_event_loop()
        asyncio.set_event_loop(self._loop)
        self._worker: WorkerProcess | None = None
        self._naps: list[Any] = []
        self._done: set[int] = set()
        self._traffic_s = time.monotonic()

    def start(self) -> None:
        from benchmarks.peers.drivers import taskiq_worker  # noqa: PLC0415  reads PEER_*

        self._app = taskiq_worker
        # First, so that the consumer group exists before anything is sent.
        self._wait(self._app.broker.startup())
        self._start_workers()

    def stop(self) -> None:
        if self._worker is not None:
            self._worker.stop()
            self._wait(self._app.broker.shutdown())
        self._loop.close()

    def echo_many(self, count: int) -> Sequence[object]:
        return self._wait(self._echo_many(count))

    def echo(self, number: int) -> object:
        return self._wait(self._echo(number))

    def latencies_s(self, count: int) -> list[float]:
        return self._wait(self._latencies_s(count))

    def begin_naps(self) -> None:
        async def submit() -> list[Any]:
            return [await self._app.nap.kiq(n, str(self.job.journal)) for n in range(NAPS)]

        self._naps = self._wait(submit())

    def ends(self) -> Ends:
        async def look() -> None:
            now_s = time.monotonic()
            if self.job.case.endswith("busy") and now_s - self._traffic_s > _TRAFFIC_EVERY_S:
                self._traffic_s = now_s
                await self._app.same.kiq(0)
            for number, task in enumerate(self._naps):
                if number not in self._done and await task.is_ready():
                    result = await task.get_result()
                    if not result.is_err and result.return_value == number:
                        self._done.add(number)

        self._wait(look())
        return Ends(frozenset(self._done))

    def kill_workers(self) -> str:
        assert self._worker is not None
        return f"the worker command, {self._worker.kill_all()} processes"

    def after_kill(self) -> None:
        self._start_workers()

    async def _echo_many(self, count: int) -> list[object]:
        handles: list[Any] = [None] * count
        answers: list[object] = [None] * count
        submitted = [asyncio.Event() for _ in range(count)]
        to_send, to_await = iter(range(count)), iter(range(count))

        async def send() -> None:
            for number in to_send:
                handles[number] = await self._app.same.kiq(number)
                submitted[number].set()

        async def gather() -> None:
            for number in to_await:
                await submitted[number].wait()
                got = await handles[number].wait_result(_BATCH_CHECK_S, CALL_TIMEOUT_S)
                answers[number] = got.return_value

        await asyncio.gather(*(part() for part in (send, gather) for _ in range(_CONCURRENCY)))
        return answers

    async def _echo(self, number: int) -> object:
        task = await self._app.same.kiq(number)
        got = await task.wait_result(_LATENCY_CHECK_S, CALL_TIMEOUT_S)
        answer: object = got.return_value
        return answer

    async def _latencies_s(self, count: int) -> list[float]:
        taken: list[float] = []
        for number in range(count):
            began = time.perf_counter()
            answer = await self._echo(number)
            taken.append(time.perf_counter() - began)
            if answer != number:
                raise SystemExit(f"task {number} gave {answer!r}")
        return taken

    def _wait(self, awaited: Coroutine[Any, Any, T]) -> T:
        return self._loop.run_until_complete(awaited)

    def _start_workers(self) -> None:
        self._worker = WorkerProcess(
            self.job,
            [
                *(sys.executable, "-m", "taskiq", "worker", "--log-level", "WARNING"),
                *("--workers", str(self.job.workers)),
                *(("--max-async-tasks", "1") if self._kill else ()),
                "benchmarks.peers.drivers.taskiq_worker:broker",
            ],
        )


if __name__ == "__main__":
    run(Taskiq)
