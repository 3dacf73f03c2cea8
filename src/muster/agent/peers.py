"""Where the other services are, as the registry tells it, and the channels to them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from muster.domain.errors import Unavailable
from muster.rpc.channels import ServiceChannel


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Addresses as host:port; `leader` is empty while there is none."""

    leader: str = ""
    storage: tuple[str, ...] = ()
    monitors: tuple[str, ...] = ()


class Peers:
    """Channels that follow the registry's word."""

    def __init__(self, secret: str) -> None:
        self._secret = secret
        self.endpoints = Endpoints()
        self.changed = asyncio.Event()
        self._channels: dict[str, ServiceChannel] = {}
        self._closing: set[asyncio.Task[Any]] = set()

    def update(self, endpoints: Endpoints) -> None:
        """Takes what the registry says now; `changed` is set when it differs."""
        if endpoints == self.endpoints:
            return
        self.endpoints = endpoints
        self.changed.set()

    def storage(self) -> ServiceChannel:
        """Raises Unavailable while no storage service is known."""
        return self._channel("storage", self.endpoints.storage)

    def leader(self) -> ServiceChannel:
        """Raises Unavailable while there is no leader."""
        leader = self.endpoints.leader
        return self._channel("the scheduler", (leader,) if leader else ())

    def _channel(self, what: str, addresses: tuple[str, ...]) -> ServiceChannel:
        if not addresses:
            raise Unavailable(what, "the registry names none")
        channel = self._channels.get(what)
        if channel is None or set(channel.addresses) != set(addresses):
            if channel is not None:
                closing = asyncio.ensure_future(channel.close())
                self._closing.add(closing)
                closing.add_done_callback(self._closing.discard)
            channel = ServiceChannel(addresses, secret=self._secret, what=what)
            self._channels[what] = channel
        return channel

    async def close(self) -> None:
        """Closes all channels."""
        channels, self._channels = self._channels, {}
        for channel in channels.values():
            await channel.close()
        await asyncio.gather(*self._closing, return_exceptions=True)
