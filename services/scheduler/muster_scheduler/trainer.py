"""Trains run-time models in a process of its own, so that no placement waits for a training.

`train_elsewhere` starts `python -m muster_scheduler.trainer`, which reads one request from its
input, writes one reply to its output, and ends. Both are MessagePack of the types below; models
travel as their blobs.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence

import msgspec

from muster.domain.errors import Unavailable
from muster_scheduler.elsewhere import answer_pipe, ask_elsewhere
from muster_scheduler.learning.attempts import Attempt
from muster_scheduler.learning.blob import CorruptModel, from_blob, to_blob
from muster_scheduler.learning.evaluation import Evaluation
from muster_scheduler.learning.model import RuntimeModel
from muster_scheduler.learning.training import Training, train

# A full window takes seconds; a machine that is busy with its tasks may need much longer.
TRAINING_TIMEOUT_S = 300.0
# The tasks of the machine go first.
_NICENESS = 15


class _Request(msgspec.Struct):
    window: tuple[Attempt, ...]
    predecessor: bytes
    seed: int


class _Reply(msgspec.Struct):
    blob: bytes
    why: str
    candidate: Evaluation | None
    predecessor: Evaluation | None


async def train_elsewhere(
    window: Sequence[Attempt],
    predecessor: RuntimeModel | None,
    seed: int,
    timeout_s: float = TRAINING_TIMEOUT_S,
) -> Training:
    """As `train`. Raises Unavailable when the process fails, DeadlineExceeded after `timeout_s`."""
    before = b"" if predecessor is None else to_blob(predecessor)
    request = msgspec.msgpack.encode(_Request(tuple(window), before, seed))
    out = await ask_elsewhere(
        "muster_scheduler.trainer", request, timeout_s=timeout_s, what="training"
    )
    reply = msgspec.msgpack.decode(out, type=_Reply)
    if not reply.blob:
        return Training(None, reply.why, reply.candidate, reply.predecessor)
    model = await asyncio.to_thread(from_blob, reply.blob)
    if isinstance(model, CorruptModel):
        raise Unavailable("training", f"it gave a model that is none: {model.why}")
    return Training(model, reply.why, reply.candidate, reply.predecessor)


def main() -> None:
    """The process: one request, one reply."""
    os.nice(_NICENESS)
    answers = answer_pipe()
    request = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=_Request)
    found = from_blob(request.predecessor) if request.predecessor else None
    predecessor = None if isinstance(found, CorruptModel) else found
    training = train(request.window, predecessor, request.seed)
    blob = b"" if training.model is None else to_blob(training.model)
    reply = _Reply(blob, training.why, training.candidate, training.predecessor)
    with answers:
        answers.write(msgspec.msgpack.encode(reply))


if __name__ == "__main__":
    main()
