"""Calls to another service: its addresses, the secret, deadlines, and retries at this one layer."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import grpc

from muster.domain.errors import DeadlineExceeded, MusterError, Unavailable
from muster.rpc.call_stream import CallStream
from muster.rpc.clock import boot_s
from muster.rpc.status import from_rpc_error, rpc_errors
from muster.rpc.turning import Turning

SECRET_KEY = "x-muster-secret"  # noqa: S105  the name of a metadata key
# A batch of 500 tasks with inputs of 16 KiB fits twice.
MAX_MESSAGE_BYTES = 16 * 1024 * 1024
# First pause before a repeat; doubled each time, each drawn uniformly from [0, pause].
_FIRST_PAUSE_S = 0.02
_LAST_PAUSE_S = 1.0

# gRPC sizes its windows by pinging the peer at bursts of data. A window that holds a whole batch
# needs no probing. (Two of three pairs of runs on a busy machine were faster without, one slower.)
WINDOW_OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 4 * 1024 * 1024),
)
CHANNEL_OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    *WINDOW_OPTIONS,
    # A half-open connection is noticed within 10 + 5 s even when nothing is being called.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # A restarted peer is met again at once, not after gRPC's default of 20 s.
    ("grpc.initial_reconnect_backoff_ms", 50),
    # Also how long the first attempt to connect may take (never less than 100 ms): a peer that
    # stalls for a moment is not absent. One that refuses is told at once all the same.
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.enable_retries", 0),
    # Channels to the same address must not share a connection that one of them has given up.
    ("grpc.use_local_subchannel_pool", 1),
)

# Where there is another address to turn to: a peer that is stopped, or cut off, is given up 1 + 2 s
# after its last word while a call is open. The peer's transport answers the pings: a service whose
# own work takes long is not taken for dead.
_BRISK = {
    "grpc.keepalive_time_ms": 1_000,
    "grpc.keepalive_timeout_ms": 2_000,
    "grpc.keepalive_permit_without_calls": 0,
}
BRISK_OPTIONS: tuple[tuple[str, Any], ...] = tuple((dict(CHANNEL_OPTIONS) | _BRISK).items())
# Of a call that may be repeated elsewhere, no try gets less than this, however little is left.
_LEAST_TRY_S = 1.0

S = TypeVar("S")


def _is_absence(failure: Unavailable | DeadlineExceeded) -> bool:
    """False for an answer that says more than that, such as NotLeader."""
    return type(failure) in (Unavailable, DeadlineExceeded)


def full_jitter(
    attempt: int, first_s: float = _FIRST_PAUSE_S, last_s: float = _LAST_PAUSE_S
) -> float:
    """Seconds to wait before repeat number `attempt` (0-based): uniform in [0, first·2^attempt]."""
    return random.uniform(0.0, min(last_s, first_s * 2.0 ** min(attempt, 30)))  # noqa: S311


class ServiceChannel:
    """One service at one or more addresses; speaks to one of them until it fails.

    `brisk`: a silent peer is given up within 3 s; by default where there is more than one address.
    """

    def __init__(
        self, addresses: Sequence[str], *, secret: str, what: str, brisk: bool | None = None
    ) -> None:
        assert addresses, f"no address of {what}"
        self.addresses = tuple(addresses)
        self.what = what
        self._options = CHANNEL_OPTIONS
        if len(self.addresses) > 1 if brisk is None else brisk:
            self._options = BRISK_OPTIONS
        self._metadata = ((SECRET_KEY, secret),)
        self._index = 0
        self._turning = Turning()
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._stubs: dict[tuple[str, type[Any]], Any] = {}
        self._call_streams: dict[str, CallStream] = {}
        self._streamed_stubs: dict[tuple[str, type[Any]], Any] = {}

    @property
    def address(self) -> str:
        """The address in use."""
        return self.addresses[self._index]

    def rotate(self) -> None:
        """Turns to the next address."""
        self._index = (self._index + 1) % len(self.addresses)

    def turn_from(self, address: str, why: MusterError | None = None) -> None:
        """Turns from an address that failed with `why` (None: it went away), unless another call
        that failed there has done so; never, when it was only slow, to one that failed lately."""
        slow = isinstance(why, DeadlineExceeded)
        turned_to = self._turning.after_failure(self.addresses, address, boot_s(), slow=slow)
        if self.address == address:
            self._index = self.addresses.index(turned_to)

    @contextmanager
    def errors(self, timeout_s: float = 0.0) -> Iterator[None]:
        """Around the use of a `stream`: its errors as MusterErrors; turns away from an address
        that is not available or too slow."""
        address = self.address
        try:
            with rpc_errors(self.what, timeout_s):
                yield
        except (Unavailable, DeadlineExceeded) as failure:
            if _is_absence(failure):
                self.turn_from(address, failure)
            raise

    def prefer(self, address: str) -> None:
        """Turns to this address, adding it when it is new."""
        if address not in self.addresses:
            self.addresses = (*self.addresses, address)
        self._index = self.addresses.index(address)

    def stub(self, stub_class: Callable[[grpc.aio.Channel], S]) -> S:
        """A stub at the present address."""
        key = (self.address, cast("type[Any]", stub_class))
        found = self._stubs.get(key)
        if found is None:
            found = self._stubs[key] = stub_class(self._channel())
        return cast("S", found)

    def _channel(self) -> grpc.aio.Channel:
        channel = self._channels.get(self.address)
        if channel is None:
            channel = grpc.aio.insecure_channel(self.address, options=self._options)
            self._channels[self.address] = channel
        return channel

    def _streamed(self, stub_class: Callable[[Any], Any]) -> Any:
        """A stub whose unary methods take the one stream to the present address."""
        key = (self.address, cast("type[Any]", stub_class))
        found = self._streamed_stubs.get(key)
        if found is None:
            stream = self._call_streams.get(self.address)
            if stream is None:
                stream = CallStream(self._channel(), self._metadata, self.what)
                self._call_streams[self.address] = stream
            found = self._streamed_stubs[key] = stub_class(stream)
        return found

    async def call(
        self,
        stub_class: Callable[[grpc.aio.Channel], Any],
        method: str,
        request: object,
        *,
        timeout_s: float,
        retry: bool = False,
        streamed: bool = False,
    ) -> Any:
        """One unary call with its deadline; raises MusterErrors.

        After Unavailable and DeadlineExceeded the next call goes to the next address (but see
        `turn_from`). With `retry` (only for calls that may be repeated) this one does too, with
        full jitter, all within `timeout_s`; where there are several addresses, a try gets half of
        what is left. `streamed` calls go over one stream, at half the cost (ADR 0014): for the
        calls on the way of every task. They should be alike in size, because a message waits for
        those before it.
        """
        now_s = boot_s()
        deadline_s = now_s + timeout_s
        attempt = 0
        while True:
            address = self.address
            try_s = left_s = max(deadline_s - now_s, 0.001)
            if retry and len(self.addresses) > 1:
                try_s = min(left_s, max(left_s / 2, _LEAST_TRY_S))
            try:
                answer = await self._once(stub_class, method, request, try_s, streamed)
            except (Unavailable, DeadlineExceeded) as failure:
                if not _is_absence(failure):
                    raise
                self.turn_from(address, failure)
                pause_s = full_jitter(attempt)
                if not retry or pause_s >= deadline_s - boot_s():
                    raise
            else:
                self._turning.answered(address, now_s)
                return answer
            attempt += 1
            await asyncio.sleep(pause_s)
            now_s = boot_s()

    async def _once(
        self,
        stub_class: Callable[[grpc.aio.Channel], Any],
        method: str,
        request: object,
        timeout_s: float,
        streamed: bool,
    ) -> Any:
        if streamed:
            return await getattr(self._streamed(stub_class), method)(request, timeout_s=timeout_s)
        try:
            return await getattr(self.stub(stub_class), method)(
                request, timeout=timeout_s, metadata=self._metadata
            )
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, self.what, timeout_s) from error

    def stream(
        self,
        stub_class: Callable[[grpc.aio.Channel], Any],
        method: str,
        request: object | AsyncIterator[object] | None = None,
        *,
        timeout_s: float | None = None,
    ) -> Any:
        """A streaming call at the present address, as grpc.aio gives it.

        Wrap its use in `errors(...)`. The caller sees to liveness by messages of its own.
        """
        bound = getattr(self.stub(stub_class), method)
        if request is None:
            return bound(timeout=timeout_s, metadata=self._metadata)
        return bound(request, timeout=timeout_s, metadata=self._metadata)

    async def close(self) -> None:
        """Closes all connections."""
        streams, self._call_streams, self._streamed_stubs = self._call_streams, {}, {}
        for stream in streams.values():
            await stream.close()
        channels, self._channels, self._stubs = self._channels, {}, {}
        for channel in channels.values():
            await channel.close()
