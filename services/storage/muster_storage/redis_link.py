"""One pipelined connection to Redis, kept up by itself.

Every command of the process goes through one connection in the order of the calls: what is asked
for in one turn of the event loop leaves in one write, and Redis forces it to disk with one fsync.
hiredis packs and parses; there is no layer in between, because this is the hot path.

Nothing is repeated here. While Redis is away a call fails at once with Unavailable, and the caller
of the RPC repeats it: retries live at that one layer.
"""

from __future__ import annotations

import asyncio
import random
import ssl
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast
from urllib.parse import unquote, urlsplit

import hiredis
import structlog

from muster.domain.errors import ConfigurationError, Overloaded, Unavailable
from muster_storage.metrics import REDIS_SECONDS
from muster_storage.redis_errors import RedisRefusedError, error_of
from muster_storage.redis_scripts import Script, scripts

# RESP2: int, bytes, None, an error object, or a list of these.
Reply: TypeAlias = Any
Argument: TypeAlias = str | bytes | int

# Prefix and hash tag of every key.
KEY_PREFIX = "{m}:"

# Of commands sent and not answered: four messages of the largest size that gRPC lets in.
MAX_IN_FLIGHT_BYTES = 64 * 1024 * 1024
# First and longest pause between attempts to connect, drawn uniformly from [0, pause].
_FIRST_PAUSE_S, _LAST_PAUSE_S = 0.05, 1.0
# An idle connection is tried this often, so that readiness is true without traffic.
_PING_AFTER_S = 1.0
_LOST = "the connection broke; whether the write was done is not known"
_LOG = structlog.get_logger("muster.storage")


@dataclass(frozen=True, slots=True)
class RedisAddress:
    host: str
    port: int
    tls: bool
    username: str
    password: str
    database: int

    @classmethod
    def parse(cls, url: str) -> RedisAddress:
        """Of redis://[[user]:password@]host[:port][/database], or rediss:// for TLS."""
        accepted = "redis://[[user]:password@]host[:port][/database], or rediss:// for TLS"
        try:
            parts = urlsplit(url)
            database = int(parts.path.strip("/") or "0")
            port = parts.port or 6379
        except ValueError as error:
            raise ConfigurationError("MUSTER_REDIS_URL", "…", accepted) from error
        if parts.scheme not in ("redis", "rediss") or not parts.hostname or database < 0:
            # The URL may hold a password, so it is not quoted.
            raise ConfigurationError("MUSTER_REDIS_URL", "…", accepted)
        return cls(
            host=parts.hostname,
            port=port,
            tls=parts.scheme == "rediss",
            username=unquote(parts.username or ""),
            password=unquote(parts.password or ""),
            database=database,
        )


class _Group:
    """Commands that were sent together; `future` gets all of their replies."""

    __slots__ = ("future", "left", "replies", "sent_s", "size")

    def __init__(self, future: asyncio.Future[list[Reply]], count: int, size: int) -> None:
        self.future = future
        self.left = count
        self.size = size
        self.replies: list[Reply] = []
        self.sent_s = time.monotonic()


class _Wire(asyncio.Protocol):
    """A connection: commands out, replies in, in the same order."""

    def __init__(self) -> None:
        self._reader = hiredis.Reader()
        self._groups: deque[_Group] = deque()
        self._unsent: list[bytes] = []
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._heard_s = time.monotonic()
        self.closed = asyncio.Event()
        self.in_flight_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transport has all methods of asyncio.Transport and is none.
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._fail_all()
        self.closed.set()

    def data_received(self, data: bytes) -> None:
        now_s = self._heard_s = time.monotonic()
        self._reader.feed(data)
        try:
            while (reply := self._reader.gets()) is not False:
                group = self._groups[0]
                group.replies.append(reply)
                group.left -= 1
                if group.left == 0:
                    self._groups.popleft()
                    self.in_flight_bytes -= group.size
                    REDIS_SECONDS.observe(now_s - group.sent_s)
                    if not group.future.done():
                        group.future.set_result(group.replies)
        except (hiredis.ProtocolError, IndexError):
            # Not Redis, or out of step: no reply can be trusted any more.
            self.abort()

    def send(self, commands: Sequence[Sequence[Argument]]) -> asyncio.Future[list[Reply]]:
        # The stubs know one-tuples only.
        packed = b"".join([hiredis.pack_command(cast("Any", tuple(c))) for c in commands])
        if self.in_flight_bytes and self.in_flight_bytes + len(packed) > MAX_IN_FLIGHT_BYTES:
            raise Overloaded(
                f"storage: {self.in_flight_bytes} bytes wait for Redis already, "
                f"at most {MAX_IN_FLIGHT_BYTES} may"
            )
        future: asyncio.Future[list[Reply]] = self._loop.create_future()
        self._groups.append(_Group(future, len(commands), len(packed)))
        self.in_flight_bytes += len(packed)
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent.append(packed)
        return future

    def silent_s(self, now_s: float) -> float:
        """How long the oldest call has waited without anything being heard; 0 when none waits."""
        if not self._groups:
            return 0.0
        return now_s - max(self._groups[0].sent_s, self._heard_s)

    def idle_s(self, now_s: float) -> float:
        """How long nothing has been asked or heard."""
        return 0.0 if self._groups else now_s - self._heard_s

    def abort(self) -> None:
        """Drops the connection; everybody who waits gets Unavailable."""
        if self._transport is not None:
            self._transport.abort()
        self._fail_all()
        self.closed.set()

    def _flush(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(b"".join(self._unsent))
        self._unsent.clear()

    def _fail_all(self) -> None:
        while self._groups:
            group = self._groups.popleft()
            if not group.future.done():
                group.future.set_exception(Unavailable("redis", _LOST))
                # The caller may have gone away; its error is then nobody's to read.
                group.future.exception()
        self.in_flight_bytes = 0


class RedisLink:
    """`run` keeps it connected; the calls may come from anywhere in the loop.

    `fit` judges a fresh connection: one sentence when it may not be used, else None.
    `timeout_s` is how long Redis may be silent while a call waits.
    """

    def __init__(
        self,
        address: RedisAddress,
        *,
        timeout_s: float,
        name: str,
        fit: Callable[[RedisLink], Awaitable[str | None]] | None = None,
    ) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self._name = name
        self._fit = fit
        self._wire: _Wire | None = None
        self._refusal = ""
        self._why: str | None = "it was not reached yet"
        self.connections = 0

    @property
    def where(self) -> str:
        """host:port"""
        return f"{self._address.host}:{self._address.port}"

    def why_not_ready(self) -> str | None:
        """One sentence while there is no usable connection."""
        return None if self._wire is not None else f"Redis at {self.where}: {self._why}"

    async def call(self, *command: Argument) -> Reply:
        """The reply to one command."""
        return (await self.call_each((command,)))[0]

    async def call_each(self, commands: Sequence[Sequence[Argument]]) -> list[Reply]:
        """The replies to commands that leave together, in order."""
        replies = await self._send(commands)
        for reply in replies:
            if isinstance(reply, hiredis.ReplyError):
                raise self._error(reply)
        return replies

    async def script(self, name: str, *arguments: Argument) -> Reply:
        """The answer of one script."""
        return (await self.script_each(name, (arguments,)))[0]

    async def script_each(
        self, name: str, argument_lists: Sequence[Sequence[Argument]]
    ) -> list[Reply]:
        """The answers of one script to several lists of arguments, run in that order."""
        script = scripts()[name]
        commands = [_evalsha(script, arguments) for arguments in argument_lists]
        replies = await self._send(commands)
        if any(_is_noscript(reply) for reply in replies):
            # Somebody flushed the scripts. Those that found it have run; only the others run now.
            await self.call("SCRIPT", "LOAD", script.text)
            lost = [n for n, reply in enumerate(replies) if _is_noscript(reply)]
            for n, reply in zip(lost, await self._send([commands[n] for n in lost]), strict=True):
                replies[n] = reply
        for reply in replies:
            if isinstance(reply, hiredis.ReplyError):
                raise self._error(reply)
        return replies

    async def run(self) -> None:
        """Connects, watches, connects again; until it is cancelled."""
        failures = 0
        while True:
            wire: _Wire | None = None
            try:
                async with asyncio.timeout(self._timeout_s):
                    wire = await self._connect()
                failures = 0
                self._wire, self._why, self._refusal = wire, None, ""
                self.connections += 1
                _LOG.info("connected to Redis", address=self.where, link=self._name)
                await self._watch(wire)
                self._explain("the connection broke")
            except (OSError, Unavailable, RedisRefusedError) as error:
                self._explain(_sentence(error, self._timeout_s))
            finally:
                self._wire = None
                if wire is not None:
                    wire.abort()
            pause_s = min(_LAST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(failures, 10))
            failures += 1
            await asyncio.sleep(random.uniform(0.0, pause_s))  # noqa: S311  jitter, no secret

    def _explain(self, why: str) -> None:
        if why != self._why:
            _LOG.warning("Redis cannot be used", address=self.where, link=self._name, why=why)
        self._why = why

    def _error(self, reply: hiredis.ReplyError) -> Exception:
        error = error_of(reply)
        # Those that pass show as "Redis cannot be used", or are told by who asked. Of a run of
        # refusals for one reason, the first is told.
        if isinstance(error, RedisRefusedError) and str(reply) != self._refusal:
            self._refusal = str(reply)
            _LOG.error("Redis refused a command", type=type(error).__name__, why=self._refusal)
        return error

    async def _send(self, commands: Sequence[Sequence[Argument]]) -> list[Reply]:
        wire = self._wire
        if wire is None or wire.closed.is_set():
            raise Unavailable("redis", self._why or "the connection broke")
        return await wire.send(commands)

    async def _connect(self) -> _Wire:
        address = self._address
        loop = asyncio.get_running_loop()
        context = ssl.create_default_context() if address.tls else None
        _, wire = await loop.create_connection(_Wire, address.host, address.port, ssl=context)
        # Nobody else's call may use this connection before it is judged.
        handshake = RedisLink(address, timeout_s=self._timeout_s, name=self._name)
        handshake._wire = wire
        try:
            if address.password:
                user = (address.username,) if address.username else ()
                await handshake.call("AUTH", *user, address.password)
            if address.database:
                await handshake.call("SELECT", address.database)
            # Answers LOADING until the data of a restarted Redis is in memory.
            await handshake.call("EXISTS", KEY_PREFIX + "term")
            unfit = await self._fit(handshake) if self._fit is not None else None
            if unfit is not None:
                raise Unavailable("redis", unfit)  # noqa: TRY301  the wire is dropped either way
            await handshake.call_each([("SCRIPT", "LOAD", s.text) for s in scripts().values()])
        except BaseException:
            wire.abort()
            raise
        return wire

    async def _watch(self, wire: _Wire) -> None:
        """Returns when the connection is gone; ends it when Redis is silent for too long."""
        tick_s = min(0.25, self._timeout_s / 4)
        while not wire.closed.is_set():
            try:
                async with asyncio.timeout(tick_s):
                    await wire.closed.wait()
            except TimeoutError:
                now_s = time.monotonic()
                if wire.silent_s(now_s) > self._timeout_s:
                    wire.abort()
                    raise Unavailable("redis", f"silent for {self._timeout_s:g} s") from None
                if wire.idle_s(now_s) > _PING_AFTER_S:
                    wire.send([("PING",)])


def _evalsha(script: Script, arguments: Sequence[Argument]) -> tuple[Argument, ...]:
    return ("EVALSHA", script.sha1, 1, KEY_PREFIX, *arguments)


def _is_noscript(reply: Reply) -> bool:
    return isinstance(reply, hiredis.ReplyError) and str(reply).startswith("NOSCRIPT")


def _sentence(error: Exception, timeout_s: float) -> str:
    if isinstance(error, Unavailable):
        return error.detail
    if isinstance(error, TimeoutError):
        return f"no answer within {timeout_s:g} s"
    return str(error) or type(error).__name__
