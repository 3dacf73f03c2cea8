"""What was learned, kept: a bounded window, leaders that follow each other, rubbish passed over."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import msgspec
import numpy as np
import pytest
from structlog.testing import capture_logs

from muster.api.v1 import storage_pb2 as pb
from muster.domain.errors import NotFound, Unavailable
from muster_scheduler import keeping
from muster_scheduler.keeping import LEARNING_TENANT, MAX_MODELS, Archive
from muster_scheduler.learning.attempts import AgentFeatures, Attempt, TaskFeatures
from muster_scheduler.learning.model import RuntimeModel
from muster_scheduler.learning.records import Record
from muster_scheduler.learning.training import fit_ridge


class Storage:
    """DataService as far as an Archive uses it, in memory."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.blobs: dict[str, bytes] = {}
        self.away = False

    async def call(
        self, stub: Any, method: str, request: Any, *, timeout_s: float, retry: bool
    ) -> Any:
        assert request.tenant == LEARNING_TENANT
        assert timeout_s > 0
        if self.away:
            raise Unavailable("storage", "it is away")
        return getattr(self, method)(request)

    def errors(self, timeout_s: float = 0.0) -> AbstractContextManager[None]:
        return nullcontext()

    def stream(self, stub: Any, method: str, request: Any, *, timeout_s: float) -> Any:
        assert timeout_s > 0
        return self._put(request) if method == "PutBlob" else _Call(self._get(request))

    def GetValue(self, request: pb.GetValueRequest) -> pb.GetValueResponse:
        value = self.values.get(request.key)
        if value is None:
            return pb.GetValueResponse()
        return pb.GetValueResponse(found=True, value=value, etag=_etag(value))

    def PutValue(self, request: pb.PutValueRequest) -> pb.PutValueResponse:
        present = self.values.get(request.key)
        wrong = request.if_match and (present is None or _etag(present) != request.if_match)
        if wrong or (request.if_none_match and present is not None):
            return pb.PutValueResponse(written=False, etag=_etag(present or b""))
        self.values[request.key] = request.value
        return pb.PutValueResponse(written=True, etag=_etag(request.value))

    def DeleteValue(self, request: pb.DeleteValueRequest) -> pb.DeleteValueResponse:
        self.values.pop(request.key, None)
        return pb.DeleteValueResponse()

    def DeleteBlob(self, request: pb.DeleteBlobRequest) -> pb.DeleteBlobResponse:
        self.blobs.pop(request.sha256, None)
        return pb.DeleteBlobResponse()

    def ListValues(self, request: pb.ListValuesRequest) -> pb.ListValuesResponse:
        keys = sorted(k for k in self.values if k.startswith(request.prefix) and k > request.cursor)
        page = keys[:2]
        return pb.ListValuesResponse(keys=page, next=page[-1] if len(keys) > len(page) else "")

    def chunks(self) -> list[str]:
        return sorted(key for key in self.values if key.startswith("attempts/"))

    async def _put(self, parts: AsyncIterator[pb.PutBlobRequest]) -> pb.PutBlobResponse:
        blob, digest = b"", ""
        async for part in parts:
            digest = digest or part.header.sha256
            blob += part.chunk
        assert hashlib.sha256(blob).hexdigest() == digest
        self.blobs[digest] = blob
        return pb.PutBlobResponse(sha256=digest, size_bytes=len(blob))

    async def _get(self, request: pb.GetBlobRequest) -> AsyncIterator[pb.GetBlobResponse]:
        if request.sha256 not in self.blobs:
            raise NotFound("blob", request.sha256)
        yield pb.GetBlobResponse(chunk=self.blobs[request.sha256])


class _Call:
    def __init__(self, parts: AsyncIterator[pb.GetBlobResponse]) -> None:
        self._parts = parts

    def __aiter__(self) -> AsyncIterator[pb.GetBlobResponse]:
        return self._parts

    def cancel(self) -> None:
        pass


def _etag(value: bytes) -> str:
    return hashlib.sha256(value).hexdigest()[:8]


def archive(storage: Storage, term: int) -> Archive:
    return Archive(storage, term)  # type: ignore[arg-type]


def records(first: int, count: int) -> list[Record]:
    task, agent = TaskFeatures("s", 1.0, 10), AgentFeatures("a")
    return [
        Record(f"{n:026d}", "t", 1, "succeeded", n, 2.0, 3.0, task, agent)
        for n in range(first, first + count)
    ]


def model(version: int) -> RuntimeModel:
    rng = np.random.default_rng(version)
    window = [
        Attempt(TaskFeatures("s", 0.0, 1, (("n", n),)), AgentFeatures("a"), n)
        for n in rng.uniform(1, 9, 40).tolist()
    ]
    return fit_ridge(window[:30], window[30:], version)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of ten, five of them."""
    monkeypatch.setattr(keeping, "CHUNK_ATTEMPTS", 10)
    monkeypatch.setattr("muster_scheduler.learning.records.CHUNK_ATTEMPTS", 10)
    monkeypatch.setattr(keeping, "MAX_CHUNKS", 5)


@pytest.mark.usefixtures("small")
async def test_the_window_is_bounded_and_in_order() -> None:
    storage = Storage()
    first = archive(storage, 1)
    assert await first.load_attempts(100) == []
    given = records(0, 87)
    for start in range(0, 87, 7):
        await first.add(given[start : start + 7])
        assert len(storage.chunks()) <= 5
    assert await archive(storage, 2).load_attempts(100) == given[40:]
    # Fewer where fewer are wanted, the newest.
    assert await archive(storage, 2).load_attempts(12) == given[70:]


@pytest.mark.usefixtures("small")
async def test_the_next_leader_goes_on_with_the_open_chunk() -> None:
    """Else many short terms would fill the window with chunks of a few."""
    storage = Storage()
    given = records(0, 40)
    for term in range(1, 9):
        leader = archive(storage, term)
        assert await leader.load_attempts(100) == given[: 5 * (term - 1)]
        await leader.add(given[5 * (term - 1) : 5 * term])
    assert len(storage.chunks()) == 4
    assert await archive(storage, 9).load_attempts(100) == given


@pytest.mark.usefixtures("small")
async def test_two_leaders_that_overlap_lose_nothing() -> None:
    storage = Storage()
    old, new = archive(storage, 1), archive(storage, 2)
    await old.load_attempts(100)
    await old.add(records(0, 3))
    await new.load_attempts(100)
    await new.add(records(3, 3))
    await old.add(records(6, 2))
    found = await archive(storage, 3).load_attempts(100)
    assert {r.task_id for r in found} == {r.task_id for r in records(0, 8)}
    assert len(found) == 8


@pytest.mark.usefixtures("small")
async def test_what_could_not_be_written_is_written_once_later() -> None:
    storage = Storage()
    leader = archive(storage, 1)
    await leader.add(records(0, 4))
    storage.away = True
    with pytest.raises(Unavailable):
        await leader.add(records(4, 20))
    storage.away = False
    await leader.add(records(4, 20))
    assert await archive(storage, 2).load_attempts(100) == records(0, 24)


@pytest.mark.usefixtures("small")
async def test_a_chunk_that_cannot_be_read_is_passed_over() -> None:
    storage = Storage()
    await archive(storage, 1).add(records(0, 25))
    storage.values[storage.chunks()[1]] = b"rubbish"
    with capture_logs() as said:
        found = await archive(storage, 2).load_attempts(100)
    assert found == [*records(0, 10), *records(20, 5)]
    assert [line["log_level"] for line in said] == ["error"]
    assert said[0]["do"]


async def test_a_corrupt_model_falls_back_to_the_one_before() -> None:
    storage = Storage()
    leader = archive(storage, 1)
    assert await leader.load_model() is None
    for version in range(1, MAX_MODELS + 3):
        assert await leader.save_model(model(version), version)
    assert len(storage.blobs) == MAX_MODELS
    newest = await archive(storage, 2).load_model()
    assert newest is not None
    assert newest.version == MAX_MODELS + 2

    listed = msgspec.json.decode(storage.values["models"])
    storage.blobs[listed[0]["sha256"]] = b"rubbish"
    del storage.blobs[listed[1]["sha256"]]
    third = archive(storage, 3)
    with capture_logs() as said:
        sound = await third.load_model()
    assert sound is not None
    assert sound.version == MAX_MODELS
    assert [line["log_level"] for line in said] == ["error", "error"]
    assert all("declared estimates" in line["do"] for line in said)
    # The next one stands before those that are sound; the others are forgotten.
    assert await third.save_model(model(9), 9)
    assert [m["version"] for m in msgspec.json.decode(storage.values["models"])] == [9, MAX_MODELS]


@pytest.mark.parametrize("rubbish", [b"", b"{", b"[1]", b'[{"version":1}]', b"[" * 100_000])
async def test_a_corrupt_list_of_models_is_said_so(rubbish: bytes) -> None:
    storage = Storage()
    storage.values["models"] = rubbish
    leader = archive(storage, 1)
    with capture_logs() as said:
        assert await leader.load_model() is None
    assert [line["log_level"] for line in said] == ["error"]
    assert await leader.save_model(model(1), 1)
    assert await archive(storage, 2).load_model() is not None


async def test_a_leader_that_was_overtaken_replaces_no_model() -> None:
    storage = Storage()
    old, new = archive(storage, 1), archive(storage, 2)
    for leader in (old, new):
        await leader.load_model()
    assert await new.save_model(model(1), 1)
    assert not await old.save_model(model(2), 2)
    found = await archive(storage, 3).load_model()
    assert found is not None
    assert found.version == 1
