"""Files of blobs: whole or not there, under checked names only."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from muster.domain.errors import InvalidInput, NotFound, TooLarge, Unavailable
from muster_storage import blobs
from muster_storage.blobs import READ_BYTES, WRITE_BYTES, BlobFiles
from muster_storage.memory_store import MemoryStore

CONTENT = b"what an agent made"
SHA = hashlib.sha256(CONTENT).hexdigest()
MAX_BYTES = 3 * WRITE_BYTES


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def files(tmp_path: Path, store: MemoryStore) -> BlobFiles:
    return BlobFiles(tmp_path / "blobs", store.blobs, MAX_BYTES)


async def stream(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def put(files: BlobFiles, *chunks: bytes, sha: str = "", pinned: bool = False) -> str:
    sha256, size = await files.put("default", sha, stream(*chunks), pinned=pinned)
    assert size == sum(map(len, chunks))
    return sha256


async def content(files: BlobFiles, sha256: str, tenant: str = "default") -> bytes:
    chunks = [chunk async for chunk in files.get(tenant, sha256)]
    assert len({size for size, _ in chunks}) == 1
    assert chunks[0][0] == sum(len(chunk) for _, chunk in chunks)
    return b"".join(chunk for _, chunk in chunks)


def all_files(tmp_path: Path) -> list[str]:
    return sorted(
        str(path.relative_to(tmp_path / "blobs"))
        for path in (tmp_path / "blobs").rglob("*")
        if path.is_file()
    )


async def test_a_blob_comes_back_as_it_went(files: BlobFiles, tmp_path: Path) -> None:
    assert await put(files, CONTENT[:5], CONTENT[5:], sha=SHA) == SHA
    assert await content(files, SHA) == CONTENT
    assert all_files(tmp_path) == [f"default/{SHA[:2]}/{SHA}"]


@pytest.mark.parametrize(
    "size", [0, 1, READ_BYTES - 1, READ_BYTES, READ_BYTES + 1, WRITE_BYTES + 7, MAX_BYTES]
)
async def test_every_size_comes_back(files: BlobFiles, size: int) -> None:
    data = os.urandom(size)
    sha256 = await put(files, data[: size // 2], data[size // 2 :])
    assert sha256 == hashlib.sha256(data).hexdigest()
    assert await content(files, sha256) == data


async def test_what_is_not_what_was_said_is_not_kept(files: BlobFiles, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput) as caught:
        await put(files, CONTENT + b"!", sha=SHA)
    assert caught.value.field == "sha256"
    with pytest.raises(InvalidInput):
        await put(files, CONTENT[:-1], sha=SHA)
    assert all_files(tmp_path) == []


async def test_too_much_is_refused_before_it_is_written(files: BlobFiles, tmp_path: Path) -> None:
    with pytest.raises(TooLarge):
        await put(files, *[b"x" * WRITE_BYTES] * 3, b"x")
    assert all_files(tmp_path) == []


async def test_a_stream_that_breaks_off_leaves_nothing(files: BlobFiles, tmp_path: Path) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"x" * (WRITE_BYTES + 1)
        raise ConnectionError

    with pytest.raises(ConnectionError):
        await files.put("default", "", broken(), pinned=False)
    assert all_files(tmp_path) == []


async def test_an_upload_that_is_cancelled_leaves_nothing(files: BlobFiles, tmp_path: Path) -> None:
    started = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        yield b"x" * (WRITE_BYTES + 1)
        started.set()
        await asyncio.Event().wait()

    upload = asyncio.create_task(files.put("default", "", endless(), pinned=False))
    await started.wait()
    assert len(all_files(tmp_path)) == 1
    upload.cancel()
    with pytest.raises(asyncio.CancelledError):
        await upload
    assert all_files(tmp_path) == []


@pytest.mark.parametrize(
    ("tenant", "name"),
    [
        ("default", "../../../../etc/passwd"),
        ("default", "/etc/passwd"),
        ("default", SHA[:-1] + "\0"),
        ("default", SHA.upper()),
        ("default", ""),
        ("..", SHA),
        ("a/b", SHA),
        ("", SHA),
        ("default\0", SHA),
    ],
)
async def test_no_name_leads_out_of_the_folder(files: BlobFiles, tenant: str, name: str) -> None:
    with pytest.raises(InvalidInput):
        await content(files, name, tenant)
    with pytest.raises(InvalidInput):
        await files.delete(tenant, name)
    if name:
        with pytest.raises(InvalidInput):
            await files.put(tenant, name, stream(CONTENT), pinned=False)


async def test_a_link_is_not_followed(files: BlobFiles, tmp_path: Path) -> None:
    await put(files, CONTENT)
    path = tmp_path / "blobs" / "default" / SHA[:2] / SHA
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Unavailable):
        await content(files, SHA)


async def test_blobs_belong_to_their_tenant(files: BlobFiles) -> None:
    await put(files, CONTENT)
    with pytest.raises(NotFound):
        await content(files, SHA, "other")
    assert not await files.delete("other", SHA)


@pytest.mark.parametrize("size", [len(CONTENT), READ_BYTES * 2 + 5])
async def test_a_damaged_file_is_not_passed_off_as_whole(
    files: BlobFiles, tmp_path: Path, size: int
) -> None:
    data = (CONTENT * size)[:size]
    sha256 = await put(files, data)
    path = tmp_path / "blobs" / "default" / sha256[:2] / sha256
    path.write_bytes(data[:-1] + b"?")
    received = []

    async def receive() -> None:
        async for _, chunk in files.get("default", sha256):
            received.append(chunk)

    with pytest.raises(Unavailable, match="damaged"):
        await receive()
    assert sum(map(len, received)) < size


async def test_a_deleted_blob_is_gone(files: BlobFiles, tmp_path: Path) -> None:
    await put(files, CONTENT, pinned=True)
    assert await files.delete("default", SHA)
    assert all_files(tmp_path) == []
    assert not await files.delete("default", SHA)
    with pytest.raises(NotFound):
        await content(files, SHA)
    await put(files, CONTENT)
    assert await content(files, SHA) == CONTENT


async def test_a_referred_blob_outlives_its_deletion(files: BlobFiles, store: MemoryStore) -> None:
    await put(files, CONTENT)
    store.memory.hold("default", SHA, "o:x")
    assert await files.delete("default", SHA)
    assert await content(files, SHA) == CONTENT


async def test_an_upload_waits_for_the_deletion_of_an_older_file(
    files: BlobFiles, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blobs, "_CLAIM_PAUSE_S", 0.001)
    await put(files, CONTENT)
    doomed = await store.blobs.doom_blobs(1, 0, 10)
    assert doomed == [("default", SHA)]
    upload = asyncio.create_task(put(files, CONTENT))
    await asyncio.wait([upload], timeout=0.05)
    assert not upload.done()
    await files.bury(doomed)
    assert await upload == SHA
    assert await content(files, SHA) == CONTENT


async def test_an_upload_does_not_wait_for_ever(
    files: BlobFiles, store: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blobs, "_CLAIM_TIMEOUT_S", 0.01)
    store.memory.dying["default", SHA] = 0
    with pytest.raises(Unavailable):
        await put(files, CONTENT)
    assert all_files(tmp_path) == []


async def test_what_dead_uploads_left_is_discarded(files: BlobFiles, tmp_path: Path) -> None:
    await put(files, CONTENT)
    folder = tmp_path / "blobs" / "default"
    for name in (".part-old", ".part-new"):
        (folder / name).write_bytes(b"x")
    os.utime(folder / ".part-old", (1, 1))
    assert await files.discard_parts(3600) == 1
    assert all_files(tmp_path) == ["default/.part-new", f"default/{SHA[:2]}/{SHA}"]


async def test_a_folder_that_cannot_be_written_is_unavailable(
    tmp_path: Path, store: MemoryStore
) -> None:
    (tmp_path / "file").write_bytes(b"")
    files = BlobFiles(tmp_path / "file" / "blobs", store.blobs)
    with pytest.raises(Unavailable):
        await put(files, CONTENT)
