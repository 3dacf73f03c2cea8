"""Silences: who is not to be told of what, until when. Pure.

A silence hides its maker's tenant's alerts; alerts of the whole cluster are hidden by an
administrator's silence alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from muster.domain.errors import InvalidInput, Overloaded
from muster_monitor.alerting.alerts import Alert
from muster_monitor.alerting.matching import Matcher, all_hold, labels_of

MAX_SILENCES: Final = 200
MAX_COMMENT_CHARS: Final = 500
MAX_SILENCE_MS: Final = 366 * 86_400_000
# So long a silence that is over can still be looked up.
ENDED_KEPT_MS: Final = 24 * 3_600_000


class Silence(msgspec.Struct, frozen=True):
    """Hides alerts of `tenant` that all matchers match, from `starts_at_ms` to before
    `ends_at_ms` (unix milliseconds); with `cluster` also those of no tenant."""

    id: str
    tenant: str
    cluster: bool
    matchers: tuple[Matcher, ...]
    starts_at_ms: int
    ends_at_ms: int
    author: str
    comment: str
    created_at_ms: int

    def covers(self, alert: Alert) -> bool:
        """Whether it is for this alert, at whatever time."""
        mine = alert.tenant == self.tenant or (not alert.tenant and self.cluster)
        return mine and all_hold(self.matchers, labels_of(alert))

    def is_active(self, wall_ms: int) -> bool:
        """Whether it hides what it covers at this time."""
        return self.starts_at_ms <= wall_ms < self.ends_at_ms


def check_silence(silence: Silence, wall_ms: int) -> None:
    """Raises InvalidInput on times and texts that make no sense."""
    length_ms = silence.ends_at_ms - silence.starts_at_ms
    if not 0 < length_ms <= MAX_SILENCE_MS:
        raise InvalidInput("ends_at", silence.ends_at_ms, "after its start, by 366 days at most")
    if silence.ends_at_ms <= wall_ms:
        raise InvalidInput("ends_at", silence.ends_at_ms, "a time to come")
    if len(silence.comment) > MAX_COMMENT_CHARS or not silence.comment.isprintable():
        limit = f"at most {MAX_COMMENT_CHARS} printable characters"
        raise InvalidInput("comment", silence.comment, limit)
    if all(matcher.holds({}) for matcher in silence.matchers):
        limit = "at least one that an empty text does not match, or all would be silenced"
        raise InvalidInput("matchers", " ".join(map(str, silence.matchers)), limit)


def with_silence(known: Sequence[Silence], new: Silence, wall_ms: int) -> list[Silence]:
    """All that are still of interest, and the new one; raises Overloaded when they are too many."""
    kept = [s for s in known if wall_ms - s.ends_at_ms < ENDED_KEPT_MS and s.id != new.id]
    if len(kept) >= MAX_SILENCES:
        kept = [s for s in kept if s.ends_at_ms > wall_ms]
    if len(kept) >= MAX_SILENCES:
        raise Overloaded(f"there are {MAX_SILENCES} silences already; end one of them first")
    return [*kept, new]


class SilenceCover:
    """Which silences cover which alerts; looked up once per alert and set of silences."""

    def __init__(self) -> None:
        self.silences: dict[str, Silence] = {}
        self._covers: dict[str, tuple[str, ...]] = {}

    def replace(self, silences: Iterable[Silence]) -> None:
        """Takes a new set."""
        self.silences = {silence.id: silence for silence in silences}
        self._covers.clear()

    def hiding(self, alert: Alert, wall_ms: int) -> list[str]:
        """Ids of the active silences that hide the alert."""
        if not self.silences:
            return []
        found = self._covers.get(alert.fingerprint)
        if found is None:
            found = tuple(s.id for s in self.silences.values() if s.covers(alert))
            # Severity is the one thing about an alert that matchers see and that may change.
            self._covers[alert.fingerprint] = found
        return [i for i in found if self.silences[i].is_active(wall_ms)]

    def knows(self, fingerprint: str) -> bool:
        """Whether asking for this alert costs nothing."""
        return not self.silences or fingerprint in self._covers

    def forget(self, fingerprints: Iterable[str]) -> None:
        """Of alerts that are gone, or changed."""
        for fingerprint in fingerprints:
            self._covers.pop(fingerprint, None)
