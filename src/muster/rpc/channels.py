"""Calls to another service: its addresses, the secret, deadlines, and retries at this one layer."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, TypeVar, cast

import grpc

from muster.domain.errors import MusterError, Unavailable
from muster.rpc.clock import boot_s
from muster.rpc.status import from_rpc_error

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
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.enable_retries", 0),
    # Channels to the same address must not share a connection that one of them has given up.
    ("grpc.use_local_subchannel_pool", 1),
)

S = TypeVar("S")


def full_jitter(
    attempt: int, first_s: float = _FIRST_PAUSE_S, last_s: float = _LAST_PAUSE_S
) -> float:
    """Seconds to wait before repeat number `attempt` (0-based): uniform in [0, first·2^attempt]."""
    return random.uniform(0.0, min(last_s, first_s * 2.0 ** min(attempt, 30)))  # noqa: S311


class ServiceChannel:
    """One service at one or more addresses; speaks to one of them until it fails."""

    def __init__(self, addresses: Sequence[str], *, secret: str, what: str) -> None:
        assert addresses, f"no address of {what}"
        self.addresses = tuple(addresses)
        self.what = what
        self._metadata = ((SECRET_KEY, secret),)
        self._index = 0
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._stubs: dict[tuple[str, type[Any]], Any] = {}

    @property
    def address(self) -> str:
        """The address in use."""
        return self.addresses[self._index]

    def rotate(self) -> None:
        """Turns to the next address."""
        self._index = (self._index + 1) % len(self.addresses)

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
            channel = self._channels.get(self.address)
            if channel is None:
                channel = grpc.aio.insecure_channel(self.address, options=CHANNEL_OPTIONS)
                self._channels[self.address] = channel
            found = self._stubs[key] = stub_class(channel)
        return cast("S", found)

    async def call(
        self,
        stub_class: Callable[[grpc.aio.Channel], Any],
        method: str,
        request: object,
        *,
        timeout_s: float,
        retry: bool = False,
    ) -> Any:
        """One unary call with its deadline; raises MusterErrors.

        With `retry` (only for calls that may be repeated) Unavailable is met by turning to the
        next address and repeating with full jitter, all within `timeout_s`.
        """
        deadline_s = boot_s() + timeout_s
        attempt = 0
        while True:
            left_s = deadline_s - boot_s()
            try:
                return await getattr(self.stub(stub_class), method)(
                    request, timeout=max(left_s, 0.001), metadata=self._metadata
                )
            except grpc.aio.AioRpcError as error:
                failure: MusterError = from_rpc_error(error, self.what, timeout_s)
                if not retry or type(failure) is not Unavailable:
                    raise failure from error
                pause_s = full_jitter(attempt)
                if pause_s >= deadline_s - boot_s():
                    raise failure from error
            self.rotate()
            attempt += 1
            await asyncio.sleep(pause_s)

    def stream(
        self,
        stub_class: Callable[[grpc.aio.Channel], Any],
        method: str,
        request: object | AsyncIterator[object] | None = None,
        *,
        timeout_s: float | None = None,
    ) -> Any:
        """A streaming call at the present address, as grpc.aio gives it.

        Wrap its use in `rpc_errors(...)`. The caller sees to liveness by messages of its own.
        """
        bound = getattr(self.stub(stub_class), method)
        if request is None:
            return bound(timeout=timeout_s, metadata=self._metadata)
        return bound(request, timeout=timeout_s, metadata=self._metadata)

    async def close(self) -> None:
        """Closes all connections."""
        channels, self._channels, self._stubs = self._channels, {}, {}
        for channel in channels.values():
            await channel.close()
