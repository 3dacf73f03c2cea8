"""Content-addressed files in one folder that all storage services share.

A blob is `<folder>/<tenant>/<first two digits>/<sha256>`; both names are checked against what they
may be, so no name leads out of the folder. A file appears under its name only whole, checked and
forced to disk, folder included. All file work is done in threads.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Sequence
from pathlib import Path
from secrets import token_hex
from typing import BinaryIO, ParamSpec, TypeVar

from muster.domain.errors import InvalidInput, NotFound, TooLarge, Unavailable
from muster.domain.ids import parse_tenant_id
from muster_storage.intake import check_sha256
from muster_storage.metrics import BLOB_BYTES
from muster_storage.records import Drop
from muster_storage.task_store import BlobIndex

P = ParamSpec("P")
T = TypeVar("T")

MAX_BLOB_BYTES = 1024**3
# Written and read in one go: large enough that the change of threads costs little.
WRITE_BYTES = 1024 * 1024
READ_BYTES = 256 * 1024
# How long an upload waits for the deletion of an older file of its name.
_CLAIM_TIMEOUT_S = 5.0
_CLAIM_PAUSE_S = 0.05
_PART = ".part-"


class BlobFiles:
    """The files; `index` knows who refers to them. `max_bytes` bounds one blob."""

    def __init__(self, folder: Path, index: BlobIndex, max_bytes: int = MAX_BLOB_BYTES) -> None:
        self._folder = folder
        self._index = index
        self._max_bytes = max_bytes

    async def put(
        self, tenant: str, expected_sha256: str, chunks: AsyncIterable[bytes], *, pinned: bool
    ) -> tuple[str, int]:
        """SHA-256 and size of what came, once it is on disk.

        `expected_sha256` "" = unknown. Raises InvalidInput when something else came, TooLarge when
        too much did; nothing is kept then.
        """
        parse_tenant_id(tenant)
        if expected_sha256:
            check_sha256("sha256", expected_sha256)
        part = _Part(self._folder / tenant / f"{_PART}{token_hex(16)}")
        try:
            await _in_thread(part.open)
            async for chunk in chunks:
                if part.size + len(chunk) > self._max_bytes:
                    raise TooLarge(
                        "blob", part.size + len(chunk), f"at most {self._max_bytes} bytes"
                    )
                if part.take(chunk):
                    await _in_thread(part.flush)
            await _in_thread(part.finish)
            sha256 = part.sha256
            if expected_sha256 not in ("", sha256):
                raise InvalidInput(
                    "sha256", expected_sha256, f"what came has {sha256}; it was not kept"
                )
            await self._claim(tenant, sha256, part.size, pinned=pinned)
            await _in_thread(part.move, self._path(tenant, sha256))
        finally:
            # Also when the caller has gone away: the file must not stay behind.
            await asyncio.shield(_in_thread(part.discard))
        BLOB_BYTES.labels("in").inc(part.size)
        return sha256, part.size

    async def get(self, tenant: str, sha256: str) -> AsyncGenerator[tuple[int, bytes], None]:
        """(size of the whole, chunk)...; at least one.

        Raises NotFound, and Unavailable when the file is damaged.
        """
        path = self._path(parse_tenant_id(tenant), check_sha256("sha256", sha256))
        try:
            file = await _in_thread(_open_blob, path)
        except FileNotFoundError:
            raise NotFound("blob", sha256) from None
        digest = hashlib.sha256()
        try:
            size = os.fstat(file.fileno()).st_size
            sent = 0
            while True:
                chunk = await _in_thread(file.read, READ_BYTES)
                digest.update(chunk)
                sent += len(chunk)
                if sent >= size or not chunk:
                    break
                yield size, chunk
            # The end is held back until the whole is known to be sound.
            if digest.hexdigest() != sha256:
                raise Unavailable(f"blob {sha256}", "its file is damaged")
            yield size, chunk
        finally:
            file.close()
        BLOB_BYTES.labels("out").inc(size)

    async def delete(self, tenant: str, sha256: str) -> bool:
        """Unpins it, and deletes it unless something refers to it; False when there is none."""
        parse_tenant_id(tenant)
        check_sha256("sha256", sha256)
        drop = await self._index.drop_blob(tenant, sha256)
        if drop is Drop.DOOMED:
            await self.bury([(tenant, sha256)])
        return drop is not Drop.UNKNOWN

    async def bury(self, blobs: Sequence[tuple[str, str]]) -> None:
        """Deletes the files of blobs that the index gave to us to delete."""
        for tenant, sha256 in blobs:
            await _in_thread(self._path(tenant, sha256).unlink, missing_ok=True)
        await self._index.buried(blobs)

    async def discard_parts(self, older_than_s: float) -> int:
        """Deletes what uploads of processes that died have left; how many."""
        return await _in_thread(self._discard_parts, time.time() - older_than_s)

    def _path(self, tenant: str, sha256: str) -> Path:
        return self._folder / tenant / sha256[:2] / sha256

    async def _claim(self, tenant: str, sha256: str, size: int, *, pinned: bool) -> None:
        try:
            async with asyncio.timeout(_CLAIM_TIMEOUT_S):
                while not await self._index.claim_blob(  # noqa: ASYNC110  others delete
                    tenant, sha256, size, pinned=pinned
                ):
                    await asyncio.sleep(_CLAIM_PAUSE_S)
        except TimeoutError:
            raise Unavailable(f"blob {sha256}", "an older file is being deleted") from None

    def _discard_parts(self, before_s: float) -> int:
        old = [
            part
            for part in self._folder.glob(f"*/{_PART}*")
            if not part.is_symlink() and part.stat().st_mtime < before_s
        ]
        for part in old:
            part.unlink(missing_ok=True)
        return len(old)


class _Part:
    """A file under way. All methods but `take` touch the disk."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._digest = hashlib.sha256()
        self._buffer: list[bytes] = []
        self._buffered = 0
        self._moved = False
        self.size = 0

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def take(self, chunk: bytes) -> bool:
        """Whether enough has come for a `flush`."""
        self._buffer.append(chunk)
        self._buffered += len(chunk)
        self.size += len(chunk)
        return self._buffered >= WRITE_BYTES

    def open(self) -> None:
        _make_folder(self._path.parent)
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW
        self._file = os.fdopen(os.open(self._path, flags, 0o600), "wb", buffering=0)

    def flush(self) -> None:
        assert self._file is not None
        content = memoryview(b"".join(self._buffer))
        self._buffer.clear()
        self._buffered = 0
        self._digest.update(content)
        while content:
            content = content[self._file.write(content) :]

    def finish(self) -> None:
        assert self._file is not None
        self.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def move(self, path: Path) -> None:
        _make_folder(path.parent)
        self._path.rename(path)
        self._moved = True
        _fsync_folder(path.parent)

    def discard(self) -> None:
        if self._file is not None:
            self._file.close()
            if not self._moved:
                self._path.unlink(missing_ok=True)


def _make_folder(folder: Path) -> None:
    """Makes it with its parents, each forced to disk in the folder above it."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)
    _fsync_folder(folder.parent)


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _open_blob(path: Path) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb", buffering=0)


async def _in_thread(work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """`asyncio.to_thread` with the disk's errors as Unavailable, so that a caller comes back."""
    try:
        return await asyncio.to_thread(work, *args, **kwargs)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Unavailable("the blob store", error.strerror or type(error).__name__) from error
