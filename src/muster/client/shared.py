"""Shared values and blobs: what their methods ask and how the answers are read."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Final

import msgspec

from muster.client.calls import pages, segment
from muster.client.errors import NotFound, Unreadable
from muster.client.exchange import Op, Reply, Request, Settings, decoded, exchange
from muster.client.task_bodies import json_of
from muster.domain.errors import InvalidInput
from muster.skill import KvEntry

_JSON, _BYTES = "application/json", "application/octet-stream"
# A transfer may be large, but not silent.
_TRANSFER_QUIET_S: Final = 60.0
# To write a gigabyte to disk, as the last step, takes a while.
_TRANSFER_DUE_S: Final = 15.0


class _Stored(msgspec.Struct):
    sha256: str


def _kv_path(key: str) -> str:
    return f"/v1/kv/{segment(key)}"


def kv_get(settings: Settings, key: str, timeout_s: float) -> Op[KvEntry | None]:
    """The entry, None when there is none."""
    deadline = settings.deadline(f"reading key {key}", timeout_s)
    try:
        reply = yield from exchange(settings, Request("GET", _kv_path(key)), deadline)
    except NotFound:
        return None
    value: Any = reply.body
    if reply.headers.get("content-type", "").partition(";")[0] == _JSON:
        value = _json(reply)
    return KvEntry(value, _tag(reply))


def kv_put(
    settings: Settings, key: str, value: Any, if_match: str, if_absent: bool, timeout_s: float
) -> Op[str]:
    """The new etag."""
    if if_match and if_absent:
        raise InvalidInput("if_match", if_match, "not together with if_absent")
    headers = {"Content-Type": _BYTES if isinstance(value, bytes) else _JSON}
    if if_match:
        headers["If-Match"] = f'"{if_match}"'
    if if_absent:
        headers["If-None-Match"] = "*"
    content = value if isinstance(value, bytes) else json_of(value, "value")
    # A conditional write that was made but not answered would fail when repeated.
    request = Request(
        "PUT", _kv_path(key), {}, headers, content, repeatable=not (if_match or if_absent)
    )
    reply = yield from exchange(
        settings, request, settings.deadline(f"writing key {key}", timeout_s)
    )
    return _tag(reply)


def kv_delete(settings: Settings, key: str, if_match: str, timeout_s: float) -> Op[bool]:
    """Whether there was such a key."""
    headers = {"If-Match": f'"{if_match}"'} if if_match else {}
    request = Request("DELETE", _kv_path(key), {}, headers, repeatable=False)
    deadline = settings.deadline(f"deleting key {key}", timeout_s)
    try:
        yield from exchange(settings, request, deadline)
    except NotFound:
        return False
    return True


def kv_keys(settings: Settings, prefix: str, timeout_s: float) -> Op[None]:
    """Emits names, in order."""
    yield from pages(settings, "/v1/kv", {"prefix": prefix} if prefix else {}, str, timeout_s)


def _json(reply: Reply) -> Any:
    try:
        return msgspec.json.decode(reply.body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Unreadable(f"a value that should be JSON cannot be read: {error}") from error


def _tag(reply: Reply) -> str:
    return reply.headers.get("etag", "").removeprefix("W/").strip('"')


def blob_put(settings: Settings, content: bytes | Path, timeout_s: float) -> Op[str]:
    """The name, once the blob is durable."""
    params = {"sha256": _sha256(content)}
    headers = {"Content-Type": _BYTES}
    request = Request("POST", "/v1/blobs", params, headers, content)
    deadline = settings.deadline("storing a blob", timeout_s)
    reply = yield from exchange(
        settings, request, deadline, quiet_s=_TRANSFER_QUIET_S, due_s=_TRANSFER_DUE_S
    )
    return decoded(reply, _Stored).sha256


def _sha256(content: bytes | Path) -> str:
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    with content.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def blob_get(settings: Settings, sha256: str, timeout_s: float) -> Op[bytes]:
    """The content, checked against its name. What breaks off is fetched anew."""
    deadline = settings.deadline(f"fetching blob {sha256}", timeout_s)
    request = Request("GET", f"/v1/blobs/{segment(sha256)}")
    reply = yield from exchange(
        settings, request, deadline, quiet_s=_TRANSFER_QUIET_S, due_s=_TRANSFER_DUE_S
    )
    if hashlib.sha256(reply.body).hexdigest() != sha256:
        raise Unreadable(f"what came as blob {sha256} has another SHA-256")
    return reply.body


def blob_delete(settings: Settings, sha256: str, timeout_s: float) -> Op[bool]:
    """Whether there was such a blob that the tenant keeps."""
    request = Request("DELETE", f"/v1/blobs/{segment(sha256)}", repeatable=False)
    deadline = settings.deadline(f"deleting blob {sha256}", timeout_s)
    try:
        yield from exchange(settings, request, deadline)
    except NotFound:
        return False
    return True
