"""Stands between the services and their stores, names each call by its site, and answers some of
them with errors."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Protocol

import grpc
from etcd3aio import _protobuf as pb

from benchmarks.oracle.threaded_server import ThreadedServer
from muster_storage.redis_scripts import scripts

_READ_BYTES = 65_536
_START_S = 10.0
_WITHOUT_KEY = frozenset({"AUTH", "PING", "SELECT", "CONFIG"})
_STREAMS = frozenset({"Watch", "LeaseKeepAlive"})
# Each open stream keeps one; two schedulers and a registry have about ten.
_THREADS = 64


class Injector:
    """Which sites were met, and which are to fail. Used by several threads.

    Kinds of errors: `later` (a refusal that passes), `never` (one that says nothing of the kind),
    `lost` (the call is carried out and its answer is lost).
    """

    def __init__(self) -> None:
        self.met: Counter[str] = Counter()
        self.struck: Counter[str] = Counter()
        self._armed: dict[str, list[str]] = {}
        self._lock = threading.Lock()

    def arm(self, site: str, kinds: list[str]) -> None:
        """The next calls of the site fail, in these ways."""
        with self._lock:
            self._armed[site] = list(kinds)

    def disarm(self) -> None:
        with self._lock:
            self._armed.clear()

    def left(self, site: str) -> int:
        """How many calls of the site are still to fail."""
        with self._lock:
            return len(self._armed.get(site, ()))

    def next(self, site: str) -> str:
        """How the call fails that is being made now; empty: it does not."""
        with self._lock:
            self.met[site] += 1
            waiting = self._armed.get(site)
            if not waiting:
                return ""
            self.struck[site] += 1
            return waiting.pop(0)


class Tap(Protocol):
    """A store that can be told to fail."""

    address: str
    target: str
    injector: Injector

    def start(self) -> None: ...
    def stop(self) -> None: ...


class RedisTap(ThreadedServer):
    """Speaks Redis' protocol. An error is Redis' own: the command is replaced by one that fails, so
    that replies keep their order."""

    def __init__(self) -> None:
        super().__init__("tap of Redis")
        self.injector = Injector()
        self._names = {script.sha1: name for name, script in scripts().items()}

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = self.target.rpartition(":")
        try:
            far_reader, far_writer = await asyncio.open_connection(host or "127.0.0.1", int(port))
        except (OSError, ValueError):
            writer.transport.abort()
            return
        writers = (writer, far_writer)
        for pump in (self._commands(reader, writers), self._replies(far_reader, writers)):
            self._spawn(pump)

    async def _commands(
        self,
        source: asyncio.StreamReader,
        writers: tuple[asyncio.StreamWriter, asyncio.StreamWriter],
    ) -> None:
        try:
            while True:
                raw, words = await _command(source)
                kind = self.injector.next(self._site(words))
                if kind in ("later", "never"):
                    writers[1].write(_failing(kind))
                else:
                    writers[1].write(raw)
                await writers[1].drain()
                if kind == "lost":
                    # Redis has it; whoever asked hears of a broken connection.
                    writers[0].transport.abort()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            for writer in writers:
                writer.close()

    async def _replies(
        self,
        source: asyncio.StreamReader,
        writers: tuple[asyncio.StreamWriter, asyncio.StreamWriter],
    ) -> None:
        with suppress(OSError):
            while chunk := await source.read(_READ_BYTES):
                writers[0].write(chunk)
                await writers[0].drain()
        for writer in writers:
            writer.close()

    def _site(self, words: list[bytes]) -> str:
        word = words[0].decode(errors="replace").upper()
        if word == "EVALSHA":
            return f"script {self._names.get(words[1].decode(), '?')}"
        if word == "SCRIPT":
            return "SCRIPT LOAD"
        # Which key a plain command is about tells the callers apart.
        if word in _WITHOUT_KEY or len(words) < 2:
            return word
        # Ids in it do not: what is left is the kind of key.
        parts = words[1].decode(errors="replace").split(":")
        shown = (part if part.isalpha() or part == "{m}" else "*" for part in parts)
        return f"{word} {':'.join(shown)}"


async def _command(source: asyncio.StreamReader) -> tuple[bytes, list[bytes]]:
    """One command, as it came and in words."""
    head = await source.readuntil(b"\r\n")
    raw, words = [head], []
    for _ in range(int(head[1:-2])):
        size = await source.readuntil(b"\r\n")
        word = await source.readexactly(int(size[1:-2]) + 2)
        raw += (size, word)
        words.append(word[:-2])
    return b"".join(raw), words


def _failing(kind: str) -> bytes:
    """A command that Redis answers with an error."""
    text = "LOADING injected by the oracle" if kind == "later" else "ERR injected by the oracle"
    words = (b"EVAL", f"return redis.error_reply('{text}')".encode(), b"0")
    return b"*3\r\n" + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)


class EtcdTap(grpc.GenericRpcHandler):
    """Hands calls and streams on as bytes."""

    def __init__(self) -> None:
        self.address = ""
        self.injector = Injector()
        # Untyped: it carries bytes.
        self._channel: Any = None
        self._target = ""
        self._server = grpc.server(ThreadPoolExecutor(_THREADS, "etcd tap"), handlers=[self])

    @property
    def target(self) -> str:
        return self._target

    @target.setter
    def target(self, target: str) -> None:
        if target != self._target:
            self._target = target
            options = (
                ("grpc.max_receive_message_length", -1),
                ("grpc.max_reconnect_backoff_ms", 1_000),
                ("grpc.use_local_subchannel_pool", 1),
            )
            self._channel = grpc.insecure_channel(target, options)

    def start(self) -> None:
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def stop(self) -> None:
        self._server.stop(0).wait(_START_S)
        if self._channel is not None:
            self._channel.close()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        path = handler_call_details.method
        name = path.rpartition("/")[2]
        if name in _STREAMS:
            return grpc.stream_stream_rpc_method_handler(
                lambda requests, context: self._stream(path, name, requests, context)
            )
        return grpc.unary_unary_rpc_method_handler(
            lambda request, context: self._call(path, name, request, context)
        )

    def _call(self, path: str, name: str, request: bytes, context: Any) -> bytes:
        kind = self.injector.next(_etcd_site(name, request))
        if kind in ("later", "never"):
            context.abort(*_STATUS[kind])
        try:
            answer: bytes = self._channel.unary_unary(path)(
                request, timeout=context.time_remaining(), metadata=_passed_on(context)
            )
        except grpc.RpcError as error:
            context.abort(error.code(), error.details())
        if kind == "lost":
            context.abort(grpc.StatusCode.UNAVAILABLE, "the answer was lost by the oracle")
        return answer

    def _stream(
        self, path: str, name: str, requests: Iterator[bytes], context: Any
    ) -> Iterator[bytes]:
        failed = threading.Event()

        def passed() -> Iterator[bytes]:
            with suppress(grpc.RpcError):
                for request in requests:
                    if self.injector.next(_etcd_site(name, request)):
                        failed.set()
                        call.cancel()
                        return
                    yield request

        call = self._channel.stream_stream(path)(passed(), metadata=_passed_on(context))
        context.add_callback(call.cancel)
        try:
            yield from call
        except grpc.RpcError as error:
            if failed.is_set():
                context.abort(*_STATUS["later"])
            if context.is_active():
                context.abort(error.code(), error.details())


_STATUS = {
    "later": (grpc.StatusCode.UNAVAILABLE, "injected by the oracle"),
    "never": (grpc.StatusCode.INTERNAL, "injected by the oracle"),
}


def _passed_on(context: Any) -> list[tuple[str, str]]:
    return [(k, v) for k, v in context.invocation_metadata() if k == "hasleader"]


def _etcd_site(name: str, request: bytes) -> str:
    key = b""
    if name == "Range":
        key = pb.RangeRequest.FromString(request).key
    elif name == "Put":
        key = pb.PutRequest.FromString(request).key
    elif name == "DeleteRange":
        key = pb.DeleteRangeRequest.FromString(request).key
    elif name == "Txn":
        compared = pb.TxnRequest.FromString(request).compare
        key = compared[0].key if compared else b""
    elif name == "Watch":
        message = pb.WatchRequest.FromString(request)
        if not message.HasField("create_request"):
            return "Watch progress"
        key = message.create_request.key
    # Of an agent's own key the folder is enough.
    return f"etcd {name} {'/'.join(key.decode(errors='replace').split('/')[:2])}".strip()
