"""What a skill asks for through its context: shared keys, blobs, and other tasks."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from muster.agent import wire
from muster.agent.blob_files import BlobFiles
from muster.agent.child_watch import ChildWatch
from muster.agent.events import AttemptKey, AttemptSpec
from muster.agent.peers import Peers
from muster.api.v1 import scheduler_pb2, storage_pb2, task_pb2
from muster.api.v1.scheduler_pb2_grpc import SchedulerServiceStub
from muster.api.v1.storage_pb2_grpc import DataServiceStub, StorageServiceStub
from muster.domain.errors import (
    DeadlineExceeded,
    InvalidInput,
    MusterError,
    TooLarge,
    Unavailable,
)
from muster.domain.ids import TaskId, TenantId, child_key, request_prefix, task_id, task_time_ms
from muster.domain.resources import DEFAULT_TASK_RESOURCES, ResourceVector
from muster.domain.task import (
    DEFAULT_MAX_ATTEMPTS,
    MAX_ATTEMPTS,
    MAX_CHILDREN,
    MAX_DEPTH,
    MAX_INPUT_BYTES,
    MAX_PRIORITY,
    OnDisconnect,
    TaskSpec,
    parse_labels,
)
from muster.rpc.clock import wall_ms
from muster.rpc.conversion import VERSION, spec_to_proto

_CALL_S: Final = 10.0
# The leader answers within this, or the child is given to storage, where leaders find it.
_SUBMIT_S: Final = 3.0
_CREATE_S: Final = 30.0


def child_spec(
    parent: AttemptSpec, index: int, skill: str, content: bytes, options: dict[str, Any]
) -> TaskSpec:
    """The task that `parent` submits with its `index`-th call; raises InvalidInput.

    Its id follows from the parent's id and the index alone, so that a retried parent finds it.
    """
    if parent.depth + 1 > MAX_DEPTH:
        raise InvalidInput("depth", parent.depth + 1, f"tasks nest at most {MAX_DEPTH} deep")
    if not 0 <= index < MAX_CHILDREN:
        raise InvalidInput("children", index + 1, f"a task submits at most {MAX_CHILDREN}")
    if len(content) > MAX_INPUT_BYTES:
        raise TooLarge("input", len(content), f"at most {MAX_INPUT_BYTES} bytes")
    parent_id = parent.key.task_id
    prefix = request_prefix(parent.tenant, child_key(parent_id, index), task_time_ms(parent_id))
    timeout_ms = _whole(options, "timeout_s", 0, 1_000_000_000, scale=1000)
    resources = options.get("resources")
    return TaskSpec(
        id=task_id(prefix, 0),
        skill=skill,
        input_json=content,
        tenant=parent.tenant,
        resources=ResourceVector.parse(resources) if resources else DEFAULT_TASK_RESOURCES,
        labels=parse_labels(options.get("labels") or {}),
        priority=_whole(options, "priority", parent.priority, MAX_PRIORITY),
        timeout_ms=timeout_ms,
        total_deadline_ms=parent.timeout_ms,
        max_attempts=max(1, _whole(options, "max_attempts", DEFAULT_MAX_ATTEMPTS, MAX_ATTEMPTS)),
        on_disconnect=_on_disconnect(options),
        parent=parent_id,
        depth=parent.depth + 1,
        submitted_at_ms=wall_ms(),
    )


def _whole(
    options: dict[str, Any], name: str, default: int, largest: int, *, scale: int = 1
) -> int:
    value = options.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= largest:
        raise InvalidInput(name, value, f"a number from 0 to {largest}")
    return int(value * scale)


def _on_disconnect(options: dict[str, Any]) -> OnDisconnect:
    value = options.get("on_disconnect", OnDisconnect.KEEP)
    try:
        return OnDisconnect(value)
    except ValueError:
        raise InvalidInput("on_disconnect", value, "keep or stop") from None


class DataCalls:
    """Answers the calls of all contexts on this agent."""

    def __init__(self, peers: Peers, blobs: BlobFiles) -> None:
        self._peers, self._blobs = peers, blobs
        self._watch = ChildWatch(peers)
        self._children: dict[AttemptKey, list[TaskId]] = {}
        self._operations: dict[str, Callable[..., Awaitable[dict[str, Any]]]] = {
            "kv.get": self._kv_get,
            "kv.put": self._kv_put,
            "kv.delete": self._kv_delete,
            "blob.put": self._blob_put,
            "blob.get": self._blob_get,
            "submit": self._submit,
            "child.result": self._child_result,
        }

    async def answer(self, spec: AttemptSpec, call: wire.Call, folder: Path) -> wire.Reply:
        """The reply to a call; errors travel as class name and text."""
        operation = self._operations.get(call.op)
        try:
            if operation is None:
                raise InvalidInput("op", call.op, "one of " + ", ".join(self._operations))
            return wire.Reply(call.call, "", await operation(spec, folder, **call.args))
        except MusterError as error:
            return wire.Reply(call.call, type(error).__name__, str(error))
        except (TypeError, KeyError, OSError) as error:
            # Arguments that no Context makes, or a file that is not there.
            return wire.Reply(call.call, "InvalidInput", f"{call.op}: {error}")

    def forget(self, key: AttemptKey) -> tuple[TaskId, ...]:
        """The attempt is over; gives the children that it had submitted."""
        return tuple(self._children.pop(key, ()))

    async def cancel(self, tenant: TenantId, children: Iterable[TaskId]) -> None:
        """A cancelled parent's children are cancelled with it, as far as a leader can be had."""
        request = scheduler_pb2.CancelRequest(tenant=tenant, ids=list(children))
        with suppress(Unavailable, DeadlineExceeded):
            await self._peers.leader().call(
                SchedulerServiceStub, "Cancel", request, timeout_s=_CALL_S
            )

    async def close(self) -> None:
        """Stops waiting for children."""
        await self._watch.close()

    async def _data(self, method: str, request: Any, *, retry: bool) -> Any:
        return await self._peers.storage().call(
            DataServiceStub, method, request, timeout_s=_CALL_S, retry=retry
        )

    async def _kv_get(self, spec: AttemptSpec, _folder: Path, *, key: str) -> dict[str, Any]:
        request = storage_pb2.GetValueRequest(tenant=spec.tenant, key=key)
        found = await self._data("GetValue", request, retry=True)
        return {
            "found": found.found,
            "value": found.value,
            "etag": found.etag,
            "content_type": found.content_type,
        }

    async def _kv_put(
        self,
        spec: AttemptSpec,
        _folder: Path,
        *,
        key: str,
        value: bytes,
        content_type: str,
        if_match: str,
        if_absent: bool,
    ) -> dict[str, Any]:
        request = storage_pb2.PutValueRequest(
            tenant=spec.tenant,
            key=key,
            value=value,
            content_type=content_type,
            if_match=if_match,
            if_none_match=if_absent,
        )
        # A conditional write that was made but not answered would fail when repeated.
        done = await self._data("PutValue", request, retry=not (if_match or if_absent))
        return {"written": done.written, "etag": done.etag}

    async def _kv_delete(
        self, spec: AttemptSpec, _folder: Path, *, key: str, if_match: str
    ) -> dict[str, Any]:
        request = storage_pb2.DeleteValueRequest(tenant=spec.tenant, key=key, if_match=if_match)
        done = await self._data("DeleteValue", request, retry=False)
        return {"deleted": done.deleted, "found": done.found, "etag": done.etag}

    async def _blob_put(
        self, spec: AttemptSpec, _folder: Path, *, file: str, remove: bool
    ) -> dict[str, Any]:
        try:
            sha256, size = await self._blobs.put_file(spec.tenant, file)
        finally:
            if remove:
                with suppress(FileNotFoundError):
                    os.unlink(file)
        return {"sha256": sha256, "size": size}

    async def _blob_get(self, spec: AttemptSpec, folder: Path, *, sha256: str) -> dict[str, Any]:
        return {"file": await self._fetched(spec.tenant, sha256, folder)}

    async def _fetched(self, tenant: TenantId, sha256: str, folder: Path) -> str:
        fd, name = tempfile.mkstemp(dir=folder, prefix="blob-")
        os.close(fd)
        try:
            await self._blobs.get_file(tenant, sha256, Path(name))
        except BaseException:
            os.unlink(name)
            raise
        return name

    async def _submit(
        self,
        spec: AttemptSpec,
        _folder: Path,
        *,
        skill: str,
        input: bytes,  # noqa: A002  the name on the wire
        index: int,
        options: dict[str, Any],
    ) -> dict[str, Any]:
        child = child_spec(spec, index, skill, input, options)
        message = spec_to_proto(child)
        # Before the call: a cancellation must find the child whether or not an answer came.
        self._children.setdefault(spec.key, []).append(child.id)
        try:
            await self._peers.leader().call(
                SchedulerServiceStub,
                "Submit",
                scheduler_pb2.SubmitRequest(tasks=[message]),
                timeout_s=_SUBMIT_S,
            )
        except (Unavailable, DeadlineExceeded):
            await self._create(message)
        return {"id": child.id}

    async def _create(self, message: task_pb2.TaskSpec) -> None:
        """Without a leader: leaders pick up what storage holds. The same id is created once."""
        status = task_pb2.TaskStatus(version=VERSION, state=task_pb2.TASK_STATE_PENDING)
        request = storage_pb2.CreateRequest(tasks=[task_pb2.Task(spec=message, status=status)])
        await self._peers.storage().call(
            StorageServiceStub, "Create", request, timeout_s=_CREATE_S, retry=True
        )

    async def _child_result(self, spec: AttemptSpec, folder: Path, *, id: str) -> dict[str, Any]:  # noqa: A002
        ended = await self._watch.ended(spec.tenant, TaskId(id))
        file = ""
        if ended.output_blob:
            file = await self._fetched(spec.tenant, ended.output_blob, folder)
        return {
            "id": id,
            "state": ended.state.value,
            "error": ended.error,
            "output": ended.output_json or b"null",
            "file": file,
        }
