"""What a resumed listener is told when storage falls silent before all of the past has come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from muster.api.v1 import storage_pb2
from muster_gateway import tail
from muster_gateway.tail import Missed, TailFeed


class _Feed(TailFeed):
    """A feed whose storage sends what it is given, then says nothing."""

    def __init__(self, responses: list[storage_pb2.TailResponse]) -> None:
        self._responses = responses

    async def _tail(self, from_id: str, *, only_ended: bool | None = None) -> AsyncIterator[Any]:  # type: ignore[override]
        for response in self._responses:
            yield response
        await asyncio.Event().wait()


async def _told(feed: _Feed) -> list[str]:
    subscription = cast("Any", SimpleNamespace(joined_at="9", accepts=lambda _: True))
    past = [part async for part in feed.history("3", subscription)]
    return ["missed" if isinstance(part, Missed) else part.id for part in past]


async def test_silence_before_the_end_of_the_past_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail, "_HISTORY_QUIET_S", 0.01)
    events = [storage_pb2.Event(id=str(n)) for n in (4, 5)]
    feed = _Feed([storage_pb2.TailResponse(events=events, last_id="5")])
    assert await _told(feed) == ["4", "5", "missed"]


async def test_a_past_that_came_whole_is_no_gap() -> None:
    events = [storage_pb2.Event(id=str(n)) for n in range(4, 10)]
    feed = _Feed([storage_pb2.TailResponse(events=events, last_id="9")])
    assert await _told(feed) == [str(n) for n in range(4, 10)]
