"""Training in a process of its own: the same model, and failures that are errors."""

from __future__ import annotations

import asyncio
import sys

import numpy as np
import pytest

from muster.domain.errors import DeadlineExceeded, Unavailable
from muster_scheduler import trainer
from muster_scheduler.learning.attempts import AgentFeatures, Attempt, TaskFeatures
from muster_scheduler.learning.blob import to_blob
from muster_scheduler.learning.training import train


def window(count: int) -> tuple[Attempt, ...]:
    rng = np.random.default_rng(1)
    agent = AgentFeatures("a", (("zone", "x"),), (1.0, 2.0, 3.0, 4.0), 0.5)
    return tuple(
        Attempt(TaskFeatures("s", work, 9, (("n", work),)), agent, work * 2)
        for work in rng.uniform(1, 9, count).tolist()
    )


async def test_the_process_gives_what_training_here_gives() -> None:
    """And the loop goes on meanwhile."""
    turns = 0

    async def turn() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0.01)

    turning = asyncio.create_task(turn())
    there = await trainer.train_elsewhere(window(60), None, 1)
    turning.cancel()
    here = train(window(60), None, 1)
    assert there.model is not None
    assert here.model is not None
    assert to_blob(there.model) == to_blob(here.model)
    assert (there.why, there.candidate) == (here.why, here.candidate)
    assert turns > 5


async def test_what_fails_there_is_an_error_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(Unavailable, match="exit code 1"):
        await trainer.train_elsewhere(window(20), None, 1)


async def test_a_training_has_a_deadline() -> None:
    with pytest.raises(DeadlineExceeded, match=r"within 0\.001 s"):
        await trainer.train_elsewhere(window(20), None, 1, timeout_s=0.001)
