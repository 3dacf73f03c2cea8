"""What runtime, zygote and runners say to each other: length-prefixed msgpack, no pickle.

A frame is four bytes of length (little endian) and a msgpack array of messages, so that one
system call carries whatever has gathered.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

# The largest input (1 MiB) fits many times; anything larger is a broken peer.
MAX_FRAME_BYTES: Final = 16 * 1024 * 1024
_PREFIX_BYTES: Final = 4


class _Message(msgspec.Struct, array_like=True, gc=False):
    pass


# --- runtime → zygote ---------------------------------------------------------------------------


class SpawnRunner(_Message, tag=1):
    """Fork a runner. `mode` is "sync" or "async"; `folder` becomes its working directory.

    `devices` are what it is given, by resource; `visible` is what CUDA calls them.
    """

    ident: int
    mode: str
    folder: str
    devices: dict[str, tuple[int, ...]] = {}
    visible: str = ""


class SpawnCommand(_Message, tag=2):
    """Fork and execute a program; its three standard streams come back as descriptors."""

    ident: int
    program: str
    argv: list[str]
    env: dict[str, str]
    folder: str


class KillProcess(_Message, tag=3):
    """Send a signal to the process group; SIGKILL goes to all descendants too."""

    ident: int
    signum: int


ToZygote = SpawnRunner | SpawnCommand | KillProcess


# --- zygote → runtime ---------------------------------------------------------------------------


class SkillFound(_Message, tag=1):
    """One skill that the imported modules hold."""

    name: str
    description: str
    mode: str
    input_schema: bytes
    output_schema: bytes


class ZygoteReady(_Message, tag=2):
    """All modules are imported; a non-empty `error` says why not."""

    error: str = ""
    warning: str = ""


class Forked(_Message, tag=3):
    """The process runs. Descriptors follow in order: (socket, stdout, stderr) of a runner,

    (stdin, stdout, stderr) of a command.
    """

    ident: int
    pid: int


class SpawnFailed(_Message, tag=4):
    """The process could not be made."""

    ident: int
    error: str


class Exited(_Message, tag=5):
    """The process and its group are gone. `code` is negative for a signal.

    `board` is the number of the attempt that was executing when a runner ended, 0 = none.
    """

    ident: int
    code: int
    board: int = 0


FromZygote = SkillFound | ZygoteReady | Forked | SpawnFailed | Exited


# --- runtime → runner ---------------------------------------------------------------------------


class RunAttempt(_Message, tag=1):
    """Execute a skill. `slot` (≥ 1) names the attempt on this connection."""

    slot: int
    task_id: str
    attempt: int
    skill: str
    input_json: bytes


class CancelRun(_Message, tag=2):
    """Cancel the attempt's asyncio task."""

    slot: int


class Reply(_Message, tag=3):
    """Answer to a Call: `error` is empty, or the class name of the error that `value` describes."""

    call: int
    error: str = ""
    value: Any = None


ToRunner = RunAttempt | CancelRun | Reply


# --- runner → runtime ---------------------------------------------------------------------------


class RunDone(_Message, tag=1):
    """The skill returned. `file` names the output in the runner's folder when it is large."""

    slot: int
    output_json: bytes = b""
    file: str = ""
    size: int = 0


class RunFailed(_Message, tag=2):
    """The skill failed; kinds are in `error_kinds`."""

    slot: int
    kind: str
    error: str


class RunStopped(_Message, tag=3):
    """The attempt ended because it was cancelled."""

    slot: int


class ProgressMade(_Message, tag=4):
    """How far the attempt is: 0 to 1, negative = unknown."""

    slot: int
    fraction: float
    note: str


class PartialOutput(_Message, tag=5):
    """The `index`-th value that a generator yielded."""

    slot: int
    index: int
    output_json: bytes


class LogWritten(_Message, tag=6):
    """Text for the task's log; `stream` is "stdout", "stderr" or "log"."""

    slot: int
    stream: str
    level: str
    text: str


class Call(_Message, tag=7):
    """A request of the skill's context."""

    slot: int
    call: int
    op: str
    args: dict[str, Any]


class Leaving(_Message, tag=8):
    """The runner ends after this: what it leaves behind must not meet another attempt."""


FromRunner = (
    RunDone | RunFailed | RunStopped | ProgressMade | PartialOutput | LogWritten | Call | Leaving
)

_encoder = msgspec.msgpack.Encoder()
to_zygote = msgspec.msgpack.Decoder(list[ToZygote])
from_zygote = msgspec.msgpack.Decoder(list[FromZygote])
to_runner = msgspec.msgpack.Decoder(list[ToRunner])
from_runner = msgspec.msgpack.Decoder(list[FromRunner])


class BrokenPeer(Exception):
    """The other process does not keep to the protocol."""


def frame(messages: Sequence[Any]) -> bytes:
    """The messages as one frame, or as several when one would become too large."""
    body = _encoder.encode(messages)
    if len(body) > MAX_FRAME_BYTES and len(messages) > 1:
        half = len(messages) // 2
        return frame(messages[:half]) + frame(messages[half:])
    return len(body).to_bytes(_PREFIX_BYTES, "little") + body


class FrameBuffer:
    """Cuts a byte stream into the bodies of its frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, chunk: bytes) -> list[bytes]:
        """Bodies that are complete now; raises BrokenPeer on an impossible length."""
        buffer = self._buffer
        buffer += chunk
        bodies: list[bytes] = []
        start = 0
        while len(buffer) - start >= _PREFIX_BYTES:
            size = int.from_bytes(buffer[start : start + _PREFIX_BYTES], "little")
            if size > MAX_FRAME_BYTES:
                raise BrokenPeer(f"a frame of {size} bytes")
            end = start + _PREFIX_BYTES + size
            if len(buffer) < end:
                break
            bodies.append(bytes(buffer[start + _PREFIX_BYTES : end]))
            start = end
        if start:
            del buffer[:start]
        return bodies
