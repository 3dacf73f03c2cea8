"""Improving strategies in a process of their own, one plan at a time, beside a leader that places.

`python -m muster_scheduler.improving` reads jobs and writes replies, each with its length before
it, until its input ends. It is started when a policy first needs it, and ended with that policy.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable
from typing import BinaryIO

import msgspec
import numpy as np
import structlog
from numpy.typing import NDArray

from muster.domain.policy import Policy
from muster.domain.resources import ResourceVector
from muster.domain.task import Constraint
from muster.rpc.channels import full_jitter
from muster_scheduler import metrics
from muster_scheduler.core.improving import SEEDS, Wave, next_wave, propose
from muster_scheduler.core.records import Now
from muster_scheduler.core.state import ClusterState
from muster_scheduler.elsewhere import answer_pipe
from muster_scheduler.placement import strategy as strategies
from muster_scheduler.placement.classes import ClassTable, Spread, TaskBatch, TaskClass
from muster_scheduler.placement.snapshot import Snapshot
from muster_scheduler.placement.snapshot_bytes import from_bytes, to_bytes

_LOG = structlog.get_logger("muster.scheduler")

_LOOK_S = 0.1
# Beside the budget: starting, and compiling the strategy's loops the first time.
_GRACE_S = 120.0
_LAST_RETRY_S = 30.0
# 512 tasks on 10,000 agents with their times; as large as any job becomes.
_MAX_FRAME_BYTES = 256 * 1024 * 1024
_LENGTH_BYTES = 8
_NICENESS = 10
_NO_LIMIT = 2**62
_FEW = 2


class _Class(msgspec.Struct, array_like=True):
    skill: str
    demand: dict[str, int]
    constraints: list[tuple[str, str, tuple[str, ...]]]
    avoid: list[str]
    spread: list[tuple[tuple[str, str, str], int]]


class _Job(msgspec.Struct):
    snapshot: bytes
    classes: list[_Class]
    class_of: bytes
    priority: bytes
    estimate_s: bytes
    response_s: bytes
    policy: Policy
    now_s: float
    seed: int


class Improver:
    """Has what waits planned while the policy's strategy is one that improves."""

    def __init__(
        self,
        state: ClusterState,
        now: Callable[[], Now],
        wake: Callable[[], None],
        may_place: Callable[[], bool],
    ) -> None:
        self._state, self._now, self._wake, self._may_place = state, now, wake, may_place
        self._process: asyncio.subprocess.Process | None = None
        self._counted = (0, 0)

    async def run(self) -> None:
        """Until cancelled; then the process is gone."""
        failures = 0
        try:
            while True:
                await asyncio.sleep(_LOOK_S)
                self._count()
                if self._state.policy.strategy not in SEEDS:
                    await self._end()
                    continue
                if self._state.proposal is not None or not self._may_place():
                    continue
                wave = next_wave(self._state, self._now())
                if wave is None:
                    continue
                try:
                    assignment = await self._improve_for(wave)
                except (OSError, EOFError, TimeoutError, ValueError) as error:
                    await self._end()
                    failures += 1
                    metrics.IMPROVEMENTS.labels("failed").inc()
                    why = str(error) or type(error).__name__
                    _LOG.warning("what waits could not be planned", reason=why)
                    await asyncio.sleep(full_jitter(failures, last_s=_LAST_RETRY_S))
                    continue
                failures = 0
                if assignment is None:
                    continue
                metrics.IMPROVEMENTS.labels("made").inc()
                propose(self._state, wave, assignment, self._now())
                self._wake()
        finally:
            await self._end()

    def _count(self) -> None:
        state = self._state
        counted = state.followed_proposals, state.stale_proposals
        metrics.IMPROVED_TASKS.labels("placed").inc(counted[0] - self._counted[0])
        metrics.IMPROVED_TASKS.labels("stale").inc(counted[1] - self._counted[1])
        self._counted = counted

    async def _improve_for(self, wave: Wave) -> NDArray[np.int32] | None:
        """As `_improve`; None, and the process is ended, once the policy is another one: its budget
        may be an hour."""
        work = asyncio.create_task(self._improve(wave), name="improve")
        try:
            while not work.done():
                if self._state.policy != wave.policy:
                    return None
                await asyncio.wait({work}, timeout=_LOOK_S)
            return work.result()
        finally:
            if not work.done():
                work.cancel()
                await asyncio.gather(work, return_exceptions=True)
                await self._end()

    async def _improve(self, wave: Wave) -> NDArray[np.int32]:
        """int32 [N]. Raises OSError, EOFError, TimeoutError, ValueError when the process fails."""
        seed = int(self._state.rng.integers(2**31))
        job = msgspec.msgpack.encode(_job_of(wave, self._now().clock_ms / 1000, seed))
        if self._process is None:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "muster_scheduler.improving",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )
        to, answers = self._process.stdin, self._process.stdout
        assert to is not None, "it is a pipe"
        assert answers is not None, "it is a pipe"
        async with asyncio.timeout(wave.policy.budget_s + _GRACE_S):
            to.write(len(job).to_bytes(_LENGTH_BYTES) + job)
            await to.drain()
            length = int.from_bytes(await answers.readexactly(_LENGTH_BYTES))
            if length != 4 * len(wave.tasks):
                raise ValueError(f"a plan of {len(wave.tasks)} tasks has {length} bytes")
            return np.frombuffer(await answers.readexactly(length), np.int32)

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            if process.returncode is None:
                process.kill()
            await process.wait()


def _job_of(wave: Wave, now_s: float, seed: int) -> _Job:
    batch = wave.batch
    ids, class_of = np.unique(batch.class_id, return_inverse=True)
    times = batch.response_s
    return _Job(
        to_bytes(wave.snapshot),
        [_packed(batch.classes[class_id]) for class_id in ids.tolist()],
        class_of.astype(np.int32).tobytes(),
        batch.priority.tobytes(),
        batch.estimate_s.tobytes(),
        b"" if times is None else np.ascontiguousarray(times, np.float64).tobytes(),
        wave.policy,
        now_s,
        seed,
    )


def _packed(task_class: TaskClass) -> _Class:
    return _Class(
        task_class.skill,
        dict(task_class.demand.items()),
        [(c.key, c.op, c.values) for c in task_class.constraints],
        sorted(task_class.avoid),
        [(s.group, s.most) for s in task_class.spread],
    )


# ------------------------------------------------------------------------- in the other process


def main() -> None:
    """The process: jobs and replies until the input ends."""
    parent = os.getppid()
    os.nice(_NICENESS)
    source, sink = sys.stdin.buffer, answer_pipe()
    warmed: set[str] = set()
    while (frame := _frame(source)) is not None:
        job = msgspec.msgpack.decode(frame, type=_Job)
        reply = _planned(job, warmed, lambda: os.getppid() != parent).tobytes()
        sink.write(len(reply).to_bytes(_LENGTH_BYTES) + reply)
        sink.flush()


def _frame(source: BinaryIO) -> bytes | None:
    head = source.read(_LENGTH_BYTES)
    if len(head) < _LENGTH_BYTES:
        return None
    length = int.from_bytes(head)
    if length > _MAX_FRAME_BYTES:
        raise ValueError(f"a job has at most {_MAX_FRAME_BYTES} bytes, not {length}")
    frame = source.read(length)
    return frame if len(frame) == length else None


def _planned(job: _Job, warmed: set[str], is_orphan: Callable[[], bool]) -> NDArray[np.int32]:
    snapshot, policy = from_bytes(job.snapshot), job.policy
    batch = _batch_of(job, snapshot)
    strategy = strategies.get(policy.strategy)
    rng = np.random.default_rng(job.seed)
    if policy.strategy not in warmed:
        # Loading and compiling is no part of the budget.
        strategy.plan(snapshot, _first(batch), policy, job.now_s, rng, lambda: False, 1)
        warmed.add(policy.strategy)
    end_s = time.monotonic() + policy.budget_s

    def stop() -> bool:
        return time.monotonic() >= end_s or is_orphan()

    plan = strategy.plan(snapshot, batch, policy, job.now_s, rng, stop, _NO_LIMIT)
    return plan.assignment.astype(np.int32)


def _batch_of(job: _Job, snapshot: Snapshot) -> TaskBatch:
    classes = ClassTable()
    ids = [
        classes.id_of(
            one.skill,
            ResourceVector.of(one.demand),
            tuple(Constraint(key, op, values) for key, op, values in one.constraints),
            frozenset(one.avoid),
            tuple(Spread(group, most) for group, most in one.spread),
        )
        for one in job.classes
    ]
    class_of = np.frombuffer(job.class_of, np.int32)
    times = None
    if job.response_s:
        times = np.frombuffer(job.response_s, np.float64).reshape(-1, snapshot.row_count)
    return TaskBatch(
        classes,
        np.array(ids, np.int32)[class_of],
        np.frombuffer(job.priority, np.int32),
        np.frombuffer(job.estimate_s, np.float64),
        times,
    )


def _first(batch: TaskBatch) -> TaskBatch:
    times = batch.response_s
    return TaskBatch(
        batch.classes,
        batch.class_id[:_FEW],
        batch.priority[:_FEW],
        batch.estimate_s[:_FEW],
        None if times is None else times[:_FEW],
    )


if __name__ == "__main__":
    main()
