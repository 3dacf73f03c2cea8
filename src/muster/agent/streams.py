"""Reads the pipes of skills and commands line by line on the runtime's loop."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable
from typing import Final

_READ_BYTES: Final = 64 * 1024
# A line without an end is passed on in pieces of this size.
_MAX_PARTIAL_BYTES: Final = 64 * 1024
# One wake-up reads at most this much, so that one chatty task does not hold up the others.
_READS_PER_WAKE: Final = 4


class PipeReader:
    """Owns a read end. `on_lines` gets text without its last newline; `on_raw` every chunk."""

    def __init__(
        self,
        fd: int,
        on_lines: Callable[[str], None],
        *,
        on_raw: Callable[[bytes], None] | None = None,
        on_end: Callable[[], None] | None = None,
    ) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._on_lines, self._on_raw, self._on_end = on_lines, on_raw, on_end
        self._rest = b""
        self._loop = asyncio.get_running_loop()
        self.closed = False
        self._loop.add_reader(fd, self._readable)

    def _readable(self) -> None:
        for _ in range(_READS_PER_WAKE):
            if not self._read_once():
                return

    def drain(self) -> None:
        """Takes all that is in the pipe now, and passes on an unfinished line too."""
        while not self.closed and self._read_once():
            pass
        self.flush()

    def flush(self) -> None:
        """Passes on an unfinished line."""
        rest, self._rest = self._rest, b""
        if rest:
            self._on_lines(rest.decode("utf-8", "replace"))

    def _read_once(self) -> bool:
        """Whether there may be more to read."""
        if self.closed:
            return False
        try:
            chunk = os.read(self._fd, _READ_BYTES)
        except BlockingIOError:
            return False
        if not chunk:
            self.close()
            if self._on_end is not None:
                self._on_end()
            return False
        if self._on_raw is not None:
            self._on_raw(chunk)
        lines, newline, rest = chunk.rpartition(b"\n")
        if newline:
            complete, self._rest = self._rest + lines, rest
            self._on_lines(complete.decode("utf-8", "replace"))
        else:
            self._rest += rest
        if len(self._rest) > _MAX_PARTIAL_BYTES:
            self.flush()
        return True

    def close(self) -> None:
        """Stops reading and closes the descriptor."""
        if not self.closed:
            self.closed = True
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self.flush()


class PipeWriter:
    """Owns a write end; writes the content and closes it. A reader that goes early is fine."""

    def __init__(self, fd: int, content: bytes) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._content = memoryview(content)
        self._loop = asyncio.get_running_loop()
        self._closed = False
        self._loop.add_writer(fd, self._writable)
        self._writable()

    def _writable(self) -> None:
        try:
            while self._content:
                self._content = self._content[os.write(self._fd, self._content) :]
        except BlockingIOError:
            return
        except BrokenPipeError:
            self._content = memoryview(b"")
        self.close()

    def close(self) -> None:
        """Gives up what is not written."""
        if not self._closed:
            self._closed = True
            self._loop.remove_writer(self._fd)
            os.close(self._fd)


class CappedBytes:
    """Keeps the first `limit` bytes of a stream, and counts the rest."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept = bytearray()
        self._cut = 0

    def add(self, chunk: bytes) -> None:
        """Takes the next bytes."""
        room = self._limit - len(self._kept)
        self._kept += chunk[:room]
        self._cut += max(0, len(chunk) - room)

    def text(self) -> str:
        """What was kept, as text, and how much was not."""
        text = self._kept.decode("utf-8", "replace")
        return f"{text}\n[cut: {self._cut} bytes more]" if self._cut else text


class LastLines:
    """Keeps the last few lines."""

    def __init__(self, count: int) -> None:
        self._lines: deque[str] = deque(maxlen=count)

    def add(self, text: str) -> None:
        """Takes lines."""
        self._lines.extend(line for line in text.split("\n") if line.strip())

    def text(self) -> str:
        """The last lines, oldest first."""
        return "\n".join(self._lines)
