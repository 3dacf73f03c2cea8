"""What was learned, in storage: chunks of attempts, run-time models, the choices of strategies.

All of it lies under a tenant of its own, LEARNING_TENANT:

    value attempts/<term>-<number>   a chunk (`learning.records`); the newest one grows
    value models                     JSON, the newest model first: version, sha256, evaluation, ...
    value choices                    JSON of `auto`'s bandit
    blobs                            the models (`learning.blob`), pinned

A leader writes chunks under its own term, so that two that overlap spoil nothing of each other's.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence

import msgspec
import structlog

from muster.api.v1 import storage_pb2, storage_pb2_grpc
from muster.domain.errors import MusterError, TooLarge
from muster.domain.ids import TenantId
from muster.rpc.channels import ServiceChannel
from muster.rpc.tenant_values import TenantValues
from muster_scheduler.learning.blob import MAX_BLOB_BYTES, CorruptModel, from_blob, to_blob
from muster_scheduler.learning.evaluation import Evaluation
from muster_scheduler.learning.model import RuntimeModel
from muster_scheduler.learning.records import (
    CHUNK_ATTEMPTS,
    MAX_CHUNKS,
    CorruptChunk,
    Record,
    from_chunk,
    to_chunks,
)

_LOG = structlog.get_logger("muster.scheduler")
_Data = storage_pb2_grpc.DataServiceStub

# No client's: keys are made for the tenant of their maker.
LEARNING_TENANT = TenantId("muster-learning")
_ATTEMPTS, _MODELS, _CHOICES = "attempts/", "models", "choices"
_CALL_TIMEOUT_S = 10.0
_BLOB_TIMEOUT_S = 60.0
_PART_BYTES = 256 * 1024
# The newest, and those to fall back on.
MAX_MODELS = 3
# Of one listing. There are MAX_CHUNKS, and those that leaders left behind that died meanwhile.
_WHAT_TO_DO = (
    "nothing is lost but predictions: the model before it or the declared estimates serve until "
    "the next training; if it comes again, check the disk of the storage service"
)


class StoredModel(msgspec.Struct, frozen=True):
    """What the list of models says of one."""

    version: int
    sha256: str
    size_bytes: int
    trained_at_ms: int
    term: int
    kind: str
    attempts: int
    evaluation: Evaluation


class Archive:
    """One leader's access. Methods raise MusterErrors while storage is away."""

    def __init__(self, storage: ServiceChannel, term: int) -> None:
        self._storage = storage
        self._values = TenantValues(storage, LEARNING_TENANT, _CALL_TIMEOUT_S)
        self._term = term
        self._number = 0
        # The newest chunk's attempts, while there is room in it.
        self._open: list[Record] = []
        # Keys of all chunks but that one, oldest first.
        self._keys: list[str] = []
        # Of an older leader's, whose attempts are in `_open`.
        self._taken_over = ""
        self._models: list[StoredModel] = []
        self._models_etag = ""

    # --------------------------------------------------------------- attempts

    async def load_attempts(self, most: int) -> list[Record]:
        """The newest attempts, oldest first: at least `most` where there are so many.

        A chunk that cannot be read is passed over, and said so.
        """
        self._keys = await self._values.keys(_ATTEMPTS)
        self._open, self._taken_over = [], ""
        newest_first: list[tuple[Record, ...]] = []
        count = 0
        for position, key in enumerate(reversed(list(self._keys))):
            if count >= most:
                break
            chunk = from_chunk((await self._values.get(key)).value)
            if isinstance(chunk, CorruptChunk):
                _LOG.error("stored attempts cannot be read", key=key, why=chunk.why, do=_WHAT_TO_DO)
                continue
            if position == 0 and len(chunk) < CHUNK_ATTEMPTS:
                # It is continued as a chunk of this term; the older leader's goes once that is
                # written.
                self._open, self._taken_over = list(chunk), self._keys.pop()
            newest_first.append(chunk)
            count += len(chunk)
        # One that was continued and not deleted holds the same attempts.
        known = {r.key: r for chunk in reversed(newest_first) for r in chunk}
        return list(known.values())

    async def add(self, records: Sequence[Record]) -> None:
        """Keeps them. After an error it is not known whether they are: add them again."""
        before = list(self._open)
        chunks = to_chunks([*before, *records])
        for place, (_, chunk) in enumerate(chunks):
            key = f"{_ATTEMPTS}{self._term:016d}-{self._number + place:08d}"
            await self._values.put(key, chunk, "application/vnd.muster.attempts")
        for _ in chunks[:-1]:
            self._keys.append(f"{_ATTEMPTS}{self._term:016d}-{self._number:08d}")
            self._number += 1
        self._open = list(chunks[-1][0])
        if self._taken_over:
            await self._values.delete(self._taken_over)
            self._taken_over = ""
        while len(self._keys) >= MAX_CHUNKS:
            await self._values.delete(self._keys[0])
            del self._keys[0]

    # ----------------------------------------------------------------- models

    async def load_model(self) -> RuntimeModel | None:
        """The newest model that is sound; of each that is not the log says why."""
        answer = await self._values.get(_MODELS)
        self._models, self._models_etag = [], answer.etag
        if not answer.found:
            return None
        try:
            self._models = msgspec.json.decode(answer.value, type=list[StoredModel])[:MAX_MODELS]
        except (msgspec.DecodeError, RecursionError) as error:
            _LOG.error("the list of run-time models is corrupt", why=str(error), do=_WHAT_TO_DO)
            return None
        for stored in list(self._models):
            model = await self._sound_model(stored)
            if not isinstance(model, CorruptModel):
                return model
            _LOG.error(
                "a stored run-time model is corrupt",
                version=stored.version,
                blob=stored.sha256,
                why=model.why,
                do=_WHAT_TO_DO,
            )
            self._models.remove(stored)
        return None

    async def save_model(self, model: RuntimeModel, at_ms: int) -> bool:
        """Puts it before the others; False when another leader has written meanwhile."""
        blob = to_blob(model)
        digest = hashlib.sha256(blob).hexdigest()
        stored = StoredModel(
            model.version,
            digest,
            len(blob),
            at_ms,
            self._term,
            model.kind,
            model.trained,
            model.evaluation,
        )
        models = [stored, *self._models]
        with self._storage.errors(_BLOB_TIMEOUT_S):
            await self._storage.stream(
                _Data, "PutBlob", _parts(digest, blob), timeout_s=_BLOB_TIMEOUT_S
            )
        answer = await self._values.put(
            _MODELS,
            msgspec.json.encode(models[:MAX_MODELS]),
            "application/json",
            if_match=self._models_etag,
            only_new=not self._models_etag,
        )
        self._models_etag = answer.etag
        if not answer.written:
            return False
        self._models = models[:MAX_MODELS]
        kept = {m.sha256 for m in self._models}
        for old in models[MAX_MODELS:]:
            if old.sha256 not in kept:
                request = storage_pb2.DeleteBlobRequest(tenant=LEARNING_TENANT, sha256=old.sha256)
                await self._values.call("DeleteBlob", request)
        return True

    async def _sound_model(self, stored: StoredModel) -> RuntimeModel | CorruptModel:
        request = storage_pb2.GetBlobRequest(tenant=LEARNING_TENANT, sha256=stored.sha256)
        blob = bytearray()
        try:
            call = self._storage.stream(_Data, "GetBlob", request, timeout_s=_BLOB_TIMEOUT_S)
            with self._storage.errors(_BLOB_TIMEOUT_S):
                async for part in call:
                    blob += part.chunk
                    if len(blob) > MAX_BLOB_BYTES:
                        call.cancel()
                        raise TooLarge("model", len(blob), f"at most {MAX_BLOB_BYTES} bytes")
        except MusterError as error:
            # A damaged file is told as Unavailable: as after any failure, the next one is tried.
            return CorruptModel(str(error))
        return await asyncio.to_thread(from_blob, bytes(blob))

    # ---------------------------------------------------------------- choices

    async def load_choices(self) -> bytes:
        """As `save_choices` got it; empty where there are none."""
        return (await self._values.get(_CHOICES)).value

    async def save_choices(self, choices: bytes) -> None:
        await self._values.put(_CHOICES, choices, "application/json")


async def _parts(digest: str, blob: bytes) -> AsyncIterator[storage_pb2.PutBlobRequest]:
    yield storage_pb2.PutBlobRequest(
        header=storage_pb2.BlobHeader(tenant=LEARNING_TENANT, sha256=digest, pinned=True)
    )
    for start in range(0, len(blob), _PART_BYTES):
        yield storage_pb2.PutBlobRequest(chunk=blob[start : start + _PART_BYTES])
