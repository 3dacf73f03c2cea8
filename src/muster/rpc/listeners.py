"""Wakes everybody who waits for one kind of news."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class Signal:
    """Each listener has an event of its own to clear; so no news falls between two waits."""

    def __init__(self) -> None:
        self._listeners: set[asyncio.Event] = set()

    def __len__(self) -> int:
        return len(self._listeners)

    @contextmanager
    def listening(self) -> Iterator[asyncio.Event]:
        event = asyncio.Event()
        self._listeners.add(event)
        try:
            yield event
        finally:
            self._listeners.discard(event)

    def fire(self) -> None:
        for event in self._listeners:
            event.set()


async def wait_for(event: asyncio.Event, timeout_s: float) -> bool:
    """Waits at most `timeout_s` and clears the event; whether it had been set."""
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return False
    event.clear()
    return True
