"""The runtime's end of the zygote: starts it, speaks with it, hands on what it reports."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final

import msgspec

from muster import grpc_poller
from muster.agent import wire
from muster.agent.zygote_settings import ZygoteSettings
from muster.domain.errors import SkillImportError

_READ_BYTES: Final = 256 * 1024
_MAX_FDS: Final = 64
_FDS_PER_PROCESS: Final = 3

OnMessage = Callable[[Any, tuple[int, ...]], None]


_OUR_GRPC = (grpc_poller.VARIABLE, grpc_poller.OURS)


class ZygoteLink:
    """`on_message(message, descriptors)` is called on the loop; `on_lost` once, at the end."""

    def __init__(self, settings: ZygoteSettings, environ: Mapping[str, str]) -> None:
        self._socket, theirs = socket.socketpair()
        arguments = [
            sys.executable,
            # Nothing of the working directory may stand in for a module of Muster.
            "-P",
            "-m",
            "muster.agent.zygote",
            str(theirs.fileno()),
            str(os.getpid()),
            msgspec.json.encode(settings).decode(),
        ]
        self._process = subprocess.Popen(  # noqa: S603  our own module
            arguments,
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            # What skills do with gRPC is theirs to choose.
            env={name: value for name, value in environ.items() if (name, value) != _OUR_GRPC},
        )
        theirs.close()
        self._frames = wire.FrameBuffer()
        self._fds: deque[int] = deque()
        self._unsent = bytearray()
        self._on_message: OnMessage | None = None
        self._on_lost: Callable[[str], None] | None = None
        self._skills: dict[str, wire.SkillFound] = {}
        self._ready: asyncio.Future[wire.ZygoteReady] | None = None
        self._closed = False

    @property
    def pid(self) -> int:
        """The zygote's process id."""
        return self._process.pid

    async def open(self) -> tuple[dict[str, wire.SkillFound], str]:
        """Waits until the modules are imported; gives the skills and a warning or "".

        Raises SkillImportError with the zygote's sentence.
        """
        loop = asyncio.get_running_loop()
        self._ready = loop.create_future()
        self._socket.setblocking(False)
        loop.add_reader(self._socket, self._readable)
        answer = await self._ready
        if answer.error:
            raise SkillImportError(answer.error)
        return self._skills, answer.warning

    def listen(self, on_message: OnMessage, on_lost: Callable[[str], None]) -> None:
        """From now on messages go to `on_message`."""
        self._on_message, self._on_lost = on_message, on_lost

    def send(self, *messages: Any) -> None:
        """Sends now, or as soon as the zygote reads."""
        if self._closed:
            return
        content = wire.frame(messages)
        if not self._unsent:
            try:
                content = content[self._socket.send(content) :]
            except BlockingIOError:
                pass
            except OSError as error:
                self._lost(f"the zygote cannot be reached: {error}")
                return
            if content:
                asyncio.get_running_loop().add_writer(self._socket, self._writable)
        self._unsent += content

    def _writable(self) -> None:
        try:
            del self._unsent[: self._socket.send(self._unsent)]
        except BlockingIOError:
            return
        except OSError as error:
            self._lost(f"the zygote cannot be reached: {error}")
            return
        if not self._unsent:
            asyncio.get_running_loop().remove_writer(self._socket)

    def _readable(self) -> None:
        try:
            chunk, fds, _, _ = socket.recv_fds(
                self._socket, _READ_BYTES, _MAX_FDS, socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return
        except OSError as error:
            self._lost(f"the zygote cannot be reached: {error}")
            return
        self._fds.extend(fds)
        if not chunk:
            self._lost("the zygote has ended")
            return
        for body in self._frames.feed(chunk):
            for message in wire.from_zygote.decode(body):
                self._take(message)

    def _take(self, message: Any) -> None:
        if isinstance(message, wire.SkillFound):
            self._skills[message.name] = message
        elif isinstance(message, wire.ZygoteReady):
            if self._ready is not None and not self._ready.done():
                self._ready.set_result(message)
        elif self._on_message is not None:
            # Descriptors arrive in the order of the messages that they belong to.
            count = _FDS_PER_PROCESS if isinstance(message, wire.Forked) else 0
            self._on_message(message, tuple(self._fds.popleft() for _ in range(count)))

    def _disconnect(self) -> None:
        if self._closed:
            return
        self._closed = True
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._socket)
        loop.remove_writer(self._socket)
        self._socket.close()

    def _lost(self, why: str) -> None:
        self._disconnect()
        if self._ready is not None and not self._ready.done():
            code = self._process.wait()
            how = f"it was killed by signal {-code}" if code < 0 else f"it exited with code {code}"
            self._ready.set_exception(
                SkillImportError(f"the process that imports the skills ended: {how}")
            )
        on_lost, self._on_lost = self._on_lost, None
        if on_lost is not None:
            on_lost(why)

    async def close(self) -> None:
        """Ends the zygote and all that it has forked; returns when they are gone."""
        self._on_lost = None
        self._disconnect()
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(None, self._process.wait, 5.0)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGKILL)
            await loop.run_in_executor(None, self._process.wait)
