"""Attempts as they are stored: what was known, what was predicted, what came of it; in chunks.

    b"muster-attempts 1\\n"
    sha256 of the rest      32 bytes
    zlib of MessagePack     a list of records

A chunk is small enough for a value under a key; reading one runs nothing and is bounded.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from muster_scheduler.learning.attempts import AgentFeatures, Attempt, TaskFeatures

MAGIC = b"muster-attempts 1\n"
# Attempts of one chunk, and its bytes: storage takes values of 1 MiB.
CHUNK_ATTEMPTS = 1000
MAX_CHUNK_BYTES = 768 * 1024
# What a chunk may unpack to.
MAX_UNPACKED_BYTES = 32 * 1024 * 1024
# The window that is kept: 50,000 attempts.
MAX_CHUNKS = 50
# Agents measure in milliseconds: shorter runs are not told apart.
LEAST_RUN_S = 0.001
SUCCEEDED = "succeeded"
_DIGEST = hashlib.sha256().digest_size


class Record(msgspec.Struct, frozen=True):
    """One attempt that ended.

    outcome      succeeded, failed, cancelled, timed_out, returned or lost
    ended_at_ms  unix time, its agent's clock
    run_s        start to end, ≥ 0; 0 where it did not start
    response_s   the task's creation to the attempt's end
    predicted_s  median that the model in use when it ended gives for it; 0 = it knew nothing of it
    arm, propensity   what `auto` chose for it and how probable that was; "" = it did not choose,
                      or this attempt is not one of those that its choice is judged by
    """

    task_id: str
    tenant: str
    attempt: int
    outcome: str
    ended_at_ms: int
    run_s: float
    response_s: float
    task: TaskFeatures
    agent: AgentFeatures
    predicted_s: float = 0.0
    arm: str = ""
    propensity: float = 0.0

    @property
    def key(self) -> tuple[str, int]:
        return self.task_id, self.attempt

    def lesson(self) -> Attempt | None:
        """What a model learns of it: only how long those took that succeeded."""
        if self.outcome != SUCCEEDED:
            return None
        return Attempt(self.task, self.agent, max(LEAST_RUN_S, self.run_s), self.predicted_s)


@dataclass(frozen=True, slots=True)
class CorruptChunk:
    """The bytes are no chunk. `why` is a sentence for the log; the caller does without it."""

    why: str


def to_chunk(records: Sequence[Record]) -> bytes:
    body = zlib.compress(msgspec.msgpack.encode(records), 1)
    return MAGIC + hashlib.sha256(body).digest() + body


def to_chunks(records: Sequence[Record]) -> list[tuple[Sequence[Record], bytes]]:
    """In order, each within CHUNK_ATTEMPTS and MAX_CHUNK_BYTES."""
    found = []
    for start in range(0, len(records), CHUNK_ATTEMPTS):
        found += _fitting(records[start : start + CHUNK_ATTEMPTS])
    return found


def _fitting(records: Sequence[Record]) -> list[tuple[Sequence[Record], bytes]]:
    chunk = to_chunk(records)
    if len(chunk) <= MAX_CHUNK_BYTES or len(records) == 1:
        return [(records, chunk)]
    half = len(records) // 2
    return _fitting(records[:half]) + _fitting(records[half:])


def from_chunk(chunk: bytes) -> tuple[Record, ...] | CorruptChunk:
    """Never raises: what is wrong with the bytes is the answer."""
    if not chunk.startswith(MAGIC):
        return CorruptChunk("it does not begin like attempts of this version's format")
    digest, body = chunk[len(MAGIC) :][:_DIGEST], chunk[len(MAGIC) + _DIGEST :]
    if hashlib.sha256(body).digest() != digest:
        return CorruptChunk("its digest does not match: it was cut or changed")
    unpacker = zlib.decompressobj()
    try:
        plain = unpacker.decompress(body, MAX_UNPACKED_BYTES)
    except zlib.error as error:
        return CorruptChunk(f"it cannot be unpacked: {error}")
    if not unpacker.eof:
        return CorruptChunk(f"it is cut, or unpacks to more than {MAX_UNPACKED_BYTES} bytes")
    try:
        records = msgspec.msgpack.decode(plain, type=tuple[Record, ...])
    except (msgspec.DecodeError, RecursionError) as error:
        return CorruptChunk(f"its attempts are not understood: {error}")
    if len(records) > CHUNK_ATTEMPTS:
        return CorruptChunk(f"it has {len(records)} attempts, more than {CHUNK_ATTEMPTS}")
    why = next((why for record in records if (why := _problem(record)) is not None), None)
    return records if why is None else CorruptChunk(why)


def _problem(record: Record) -> str | None:
    """Whoever can write chunks can write a digest, too: numbers must be ones."""
    amounts = (record.run_s, record.response_s, record.task.declared_s, record.predicted_s)
    if not all(0.0 <= amount < _TOO_LONG_S for amount in amounts):
        return "it holds a time that is none"
    if len(record.agent.capacity) != 4 or not all(
        0.0 <= amount < _TOO_MUCH for amount in record.agent.capacity
    ):
        return "it holds a capacity that is none"
    if not (0.0 <= record.agent.load < _TOO_MUCH and 0.0 <= record.propensity <= 1.0):
        return "it holds a share that is none"
    if not all(abs(value) < float("inf") for _, value in record.task.fields):
        return "it holds a field that is no finite number"
    return None


# A thousand years, and more than any machine has: what is beyond was not measured.
_TOO_LONG_S = 3.2e10
_TOO_MUCH = 1e300
