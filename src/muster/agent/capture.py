"""Where `print` goes inside a process that runs skills.

In a runner of async skills many attempts share the process: a context variable tells whose line
it is. Elsewhere text goes to the process's own descriptor, which the runtime reads.
"""

from __future__ import annotations

import io
import os
from contextvars import ContextVar
from typing import Protocol


class TextSink(Protocol):
    """Takes what one attempt prints."""

    def printed(self, stream: str, text: str) -> None: ...


# The attempt that the running code belongs to; None = the process itself, or a sync attempt.
CURRENT: ContextVar[TextSink | None] = ContextVar("muster_attempt", default=None)


class TaskStream(io.TextIOBase):
    """Stands in for sys.stdout or sys.stderr."""

    def __init__(self, fd: int, stream: str) -> None:
        self._fd = fd
        self._stream = stream
        self._pending = ""
        # Some libraries write bytes to sys.stdout.buffer.
        self.buffer = open(fd, "wb", buffering=0, closefd=False)  # noqa: SIM115  for ever

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Always UTF-8."""
        return "utf-8"

    @property
    def errors(self) -> str:  # type: ignore[override]
        """Lone surrogates are shown, not raised over."""
        return "backslashreplace"

    def write(self, text: str) -> int:
        """Hands on complete lines at once, and the rest at the next one or at `flush`."""
        sink = CURRENT.get()
        if sink is not None:
            sink.printed(self._stream, text)
            return len(text)
        self._pending += text
        if "\n" in text or len(self._pending) > io.DEFAULT_BUFFER_SIZE:
            self.flush()
        return len(text)

    def flush(self) -> None:
        """Writes what is pending; a reader that is gone is no error of the skill."""
        content, self._pending = self._pending.encode("utf-8", "backslashreplace"), ""
        while content:
            try:
                content = content[os.write(self._fd, content) :]
            except BrokenPipeError:
                return

    def fileno(self) -> int:
        """The descriptor that children of the process inherit."""
        return self._fd

    def writable(self) -> bool:
        return True
