"""Attempts as they are stored: what comes back is what went in, and rubbish is named."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muster_scheduler.learning import records as under_test
from muster_scheduler.learning.attempts import AgentFeatures, TaskFeatures
from muster_scheduler.learning.records import (
    CHUNK_ATTEMPTS,
    LEAST_RUN_S,
    MAGIC,
    MAX_CHUNK_BYTES,
    CorruptChunk,
    Record,
    from_chunk,
    to_chunk,
    to_chunks,
)

amounts = st.floats(0, 1e9)
words = st.text(max_size=20)
tasks = st.builds(
    TaskFeatures,
    words,
    amounts,
    st.integers(0, 1 << 40),
    st.lists(st.tuples(words, st.floats(allow_nan=False, allow_infinity=False)), max_size=8).map(
        tuple
    ),
)
agents = st.builds(
    AgentFeatures,
    words,
    st.lists(st.tuples(words, words), max_size=3).map(tuple),
    st.tuples(amounts, amounts, amounts, amounts),
    amounts,
)
attempts = st.builds(
    Record,
    words,
    words,
    st.integers(1, 100),
    st.sampled_from(("succeeded", "failed", "lost")),
    st.integers(0, 1 << 48),
    amounts,
    amounts,
    tasks,
    agents,
    amounts,
    words,
    st.floats(0, 1),
)


def record(number: int, fields: Sequence[tuple[str, float]] = ()) -> Record:
    task = TaskFeatures("s", 1.0, 10, tuple(fields))
    return Record(f"{number:026d}", "t", 1, "succeeded", number, 2.0, 3.0, task, AgentFeatures("a"))


@given(st.lists(attempts, max_size=20))
def test_a_chunk_comes_back_as_it_was(given_records: list[Record]) -> None:
    assert from_chunk(to_chunk(given_records)) == tuple(given_records)


@given(st.binary(max_size=200))
def test_rubbish_is_no_chunk(rubbish: bytes) -> None:
    assert isinstance(from_chunk(rubbish), CorruptChunk)
    assert isinstance(from_chunk(MAGIC + rubbish), CorruptChunk)
    # Whoever can write chunks can write a digest.
    signed = MAGIC + hashlib.sha256(rubbish).digest() + rubbish
    assert isinstance(from_chunk(signed), CorruptChunk)


@given(st.lists(attempts, min_size=1, max_size=5), st.data())
def test_a_chunk_that_was_changed_or_cut_is_none(items: list[Record], data: st.DataObject) -> None:
    chunk = bytearray(to_chunk(items))
    cut = data.draw(st.integers(0, len(chunk) - 1))
    assert isinstance(from_chunk(bytes(chunk[:cut])), CorruptChunk)
    chunk[cut] ^= data.draw(st.integers(1, 255))
    assert isinstance(from_chunk(bytes(chunk)), CorruptChunk)


def signed(plain: bytes) -> bytes:
    body = zlib.compress(plain)
    return MAGIC + hashlib.sha256(body).digest() + body


@pytest.mark.parametrize(
    "change",
    [
        {"run_s": -1.0},
        {"run_s": float("nan")},
        {"response_s": float("inf")},
        {"predicted_s": 1e12},
        {"propensity": 1.5},
        {"task": TaskFeatures("s", float("nan"))},
        {"task": TaskFeatures("s", 1.0, 1, (("n", float("inf")),))},
        {"agent": AgentFeatures("a", capacity=(1.0, 2.0))},
        {"agent": AgentFeatures("a", capacity=(1.0, 2.0, 3.0, float("nan")))},
        {"agent": AgentFeatures("a", load=float("nan"))},
    ],
)
def test_numbers_that_are_none_are_refused(change: dict[str, object]) -> None:
    bad = msgspec.structs.replace(record(1), **change)
    assert isinstance(from_chunk(signed(msgspec.msgpack.encode([record(0), bad]))), CorruptChunk)
    assert not isinstance(from_chunk(signed(msgspec.msgpack.encode([record(0)]))), CorruptChunk)


def test_what_unpacks_to_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(under_test, "MAX_UNPACKED_BYTES", 1000)
    found = from_chunk(signed(b"0" * 100_000))
    assert isinstance(found, CorruptChunk)
    assert "unpacks to more" in found.why


def test_too_many_attempts_are_refused() -> None:
    many = [record(n) for n in range(CHUNK_ATTEMPTS + 1)]
    assert isinstance(from_chunk(to_chunk(many)), CorruptChunk)
    assert [len(part) for part, _ in to_chunks(many)] == [CHUNK_ATTEMPTS, 1]


def test_chunks_are_within_what_storage_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names that do not compress; nothing is lost, and the order stays."""
    assert MAX_CHUNK_BYTES < 1024 * 1024
    monkeypatch.setattr(under_test, "MAX_CHUNK_BYTES", 20_000)
    names = [hashlib.sha256(str(n).encode()).hexdigest() for n in range(1_500)]
    many = [record(n, [(name, 1.0)]) for n, name in enumerate(names)]
    chunks = to_chunks(many)
    assert len(chunks) > 2
    assert all(len(chunk) <= 20_000 for _, chunk in chunks)
    found: list[Record] = []
    for _, chunk in chunks:
        part = from_chunk(chunk)
        assert not isinstance(part, CorruptChunk)
        found += part
    assert found == many


def test_only_successes_are_lessons() -> None:
    lesson = record(1).lesson()
    assert lesson is not None
    assert lesson.run_s == 2.0
    assert msgspec.structs.replace(record(1), outcome="failed").lesson() is None
    # Agents measure in milliseconds; what takes less still ends.
    short = msgspec.structs.replace(record(1), run_s=0.0).lesson()
    assert short is not None
    assert short.run_s == LEAST_RUN_S
