"""What stands in for a cluster while a skill runs: shared values, blobs, children, what it said."""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from muster.agent.data_calls import child_spec
from muster.agent.events import AttemptKey, AttemptSpec
from muster.agent.outputs import encode_output
from muster.domain.errors import InvalidInput, NotFound
from muster.domain.ids import DEFAULT_TENANT, parse_task_id, request_prefix, task_id

# Any moment; ids of tasks contain one.
_SUBMITTED_MS: Final = 1_700_000_000_000
_FIRST_TASK: Final = task_id(request_prefix(DEFAULT_TENANT, "sandbox", _SUBMITTED_MS), 0)
# What MUSTER_AGENT_MAX_RESULT is unless set.
MAX_RESULT_BYTES: Final = 64 * 1024 * 1024
_JSON, _BYTES = "application/json", "application/octet-stream"


@dataclass(frozen=True, slots=True)
class LogEntry:
    """What a skill has logged through its context."""

    level: str
    text: str


@dataclass(slots=True)
class ChildTask:
    """A task that a skill has submitted, and how it ended. `depth` is 1 for a first child."""

    id: str
    skill: str
    input: Any
    options: dict[str, Any]
    depth: int
    state: str = ""
    output: Any = None
    error: str = ""


class Sandbox:
    """What stands in for a cluster, and what was seen of the skills that ran in it.

    `skills` answers for children by name: a function marked with @skill is run, another function
    is called with the input, an exception makes the child fail, any other value is the result.
    `kv` holds initial values (bytes as they are, else JSON); it and the blobs are kept from one
    run to the next. `cancel_after`: the attempt is cancelled with so many uses of its context
    and yields. `devices` are by resource those that the task was given.
    """

    def __init__(
        self,
        *,
        skills: Mapping[str, Any] | None = None,
        kv: Mapping[str, Any] | None = None,
        blobs: Iterable[bytes] = (),
        task_id: str = "",
        attempt: int = 1,
        cancelled: bool = False,
        cancel_after: int | None = None,
        max_result_bytes: int = MAX_RESULT_BYTES,
        devices: Mapping[str, Iterable[int]] | None = None,
    ) -> None:
        self.skills = dict(skills or {})
        self.task_id = parse_task_id(task_id) if task_id else _FIRST_TASK
        self.attempt, self.max_result_bytes = attempt, max_result_bytes
        self.devices = {name: tuple(indices) for name, indices in (devices or {}).items()}
        self.cancelled, self.cancel_after = cancelled, cancel_after
        self.progress: list[tuple[float, str]] = []
        self.logs: list[LogEntry] = []
        self.partials: list[Any] = []
        self._lock = threading.RLock()
        self._values: dict[str, tuple[bytes, str, str]] = {}
        self._etag = 0
        self._blobs: dict[str, bytes] = {}
        self._children: dict[str, ChildTask] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        for key, value in (kv or {}).items():
            raw = isinstance(value, bytes)
            content = value if raw else encode_output(value)
            self._kv_put(key, content, _BYTES if raw else _JSON, "", if_absent=False)
        for blob in blobs:
            self.put_blob(blob)

    @property
    def kv(self) -> dict[str, Any]:
        """The shared values as they are now."""
        return {
            key: orjson.loads(value) if kind == _JSON else value
            for key, (value, kind, _) in self._values.items()
        }

    @property
    def blobs(self) -> dict[str, bytes]:
        """The blobs by SHA-256."""
        return dict(self._blobs)

    @property
    def children(self) -> list[ChildTask]:
        """What was submitted, in order; a retry that finds its child again adds nothing."""
        return list(self._children.values())

    def put_blob(self, content: bytes) -> str:
        """Stores a blob and gives its name."""
        name = hashlib.sha256(content).hexdigest()
        self._blobs[name] = content
        return name

    def cancel(self) -> None:
        """Somebody asks for the attempt's end: as on an agent, the skill meets it as an exception.

        A sync skill meets TaskCancelled with its next use of the context or yield (an agent
        raises it anywhere), an async one CancelledError at once. May be called from a thread.
        """
        self.cancelled = True
        with self._lock:
            for task in self._tasks:
                task.get_loop().call_soon_threadsafe(task.cancel)

    # --- what contexts ask for --------------------------------------------------------------

    def _answer(self, op: str, args: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        with self._lock:
            if op == "kv.get":
                value, kind, etag = self._values.get(args["key"], (b"", "", ""))
                return {"found": bool(etag), "value": value, "etag": etag, "content_type": kind}
            if op == "kv.put":
                return self._kv_put(**args)
            if op == "kv.delete":
                return self._kv_delete(**args)
            if op == "blob.put":
                path = Path(args["file"])
                content = path.read_bytes()
                if args["remove"]:
                    path.unlink()
                return {"sha256": self.put_blob(content), "size": len(content)}
            assert op == "blob.get", op
            if args["sha256"] not in self._blobs:
                raise NotFound("blob", args["sha256"])
            return {"file": _file_with(self._blobs[args["sha256"]], folder)}

    def _kv_put(
        self, key: str, value: bytes, content_type: str, if_match: str, *, if_absent: bool
    ) -> dict[str, Any]:
        present = self._values.get(key, (b"", "", ""))[2]
        if (if_absent and present) or (if_match and not _matches(if_match, present)):
            return {"written": False, "etag": present}
        self._etag += 1
        self._values[key] = (value, content_type, str(self._etag))
        return {"written": True, "etag": str(self._etag)}

    def _kv_delete(self, key: str, if_match: str) -> dict[str, Any]:
        present = self._values.get(key, (b"", "", ""))[2]
        deleted = bool(present) and (not if_match or _matches(if_match, present))
        if deleted:
            del self._values[key]
        return {"deleted": deleted, "found": bool(present), "etag": present}

    def _child_of(
        self, parent: AttemptSpec, args: Mapping[str, Any]
    ) -> tuple[ChildTask, AttemptSpec | None]:
        """The child of a call, and what is to be run for it unless it was found again."""
        made = child_spec(parent, args["index"], args["skill"], args["input"], args["options"])
        with self._lock:
            if made.id in self._children:
                return self._children[made.id], None
            if made.skill not in self.skills:
                known = ", ".join(sorted(self.skills)) or "none"
                raise InvalidInput("skill", made.skill, f"the sandbox's skills are: {known}")
            child = self._children[made.id] = ChildTask(
                made.id, made.skill, orjson.loads(made.input_json), args["options"], made.depth
            )
        spec = AttemptSpec(
            key=AttemptKey(made.id, 1),
            tenant=made.tenant,
            skill=made.skill,
            input_json=made.input_json,
            incarnation=1,
            timeout_ms=made.timeout_ms,
            priority=made.priority,
            depth=made.depth,
        )
        return child, spec


def _matches(if_match: str, present: str) -> bool:
    return bool(present) if if_match == "*" else if_match == present


def _file_with(content: bytes, folder: Path) -> str:
    with tempfile.NamedTemporaryFile(dir=folder, prefix="blob-", delete=False) as out:
        out.write(content)
    return out.name
