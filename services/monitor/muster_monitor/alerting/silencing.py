"""Silences taken, ended and listed: at any monitor, in one value of storage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from muster.domain.errors import NotFound, Overloaded
from muster_monitor.alerting.desk import AlertDesk
from muster_monitor.alerting.keeping import Outdated
from muster_monitor.alerting.silences import Silence, check_silence, with_silence

_SILENCE_TRIES: Final = 5


class Silencing:
    """Methods raise Unavailable while storage is away: what is acknowledged is stored."""

    def __init__(self, desk: AlertDesk, wall_ms: Callable[[], int]) -> None:
        self._desk, self._wall_ms = desk, wall_ms

    async def silence(self, silence: Silence) -> None:
        """Takes a silence, once it is stored; raises InvalidInput, Overloaded, Unavailable."""
        check_silence(silence, self._wall_ms())
        await self._change_silences(lambda known: with_silence(known, silence, self._wall_ms()))

    async def end_silence(self, ident: str, tenant: str) -> Silence:
        """Ends it now; raises NotFound when the tenant has none of that id."""
        wall_ms = self._wall_ms()
        ended: list[Silence] = []

        def end(known: Sequence[Silence]) -> list[Silence]:
            ended.clear()
            changed = []
            for silence in known:
                if (silence.id, silence.tenant) == (ident, tenant):
                    ends_at_ms = min(silence.ends_at_ms, wall_ms)
                    ended.append(msgspec.structs.replace(silence, ends_at_ms=ends_at_ms))
                    changed.append(ended[0])
                else:
                    changed.append(silence)
            if not ended:
                raise NotFound("silence", ident)
            return changed

        await self._change_silences(end)
        return ended[0]

    async def silences_of(self, tenant: str) -> list[Silence]:
        """The tenant's, as they are stored."""
        async with self._desk.writing:
            return [s for s in await self._desk.archive.silences() if s.tenant == tenant]

    async def _change_silences(self, change: Callable[[Sequence[Silence]], list[Silence]]) -> None:
        for _ in range(_SILENCE_TRIES):
            async with self._desk.writing:
                silences = change(await self._desk.archive.silences())
                try:
                    await self._desk.archive.save_silences(silences)
                except Outdated:
                    continue
                self._desk.cover.replace(silences)
                return
        raise Overloaded("silences are being changed by many at once")
