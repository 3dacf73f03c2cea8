"""Where a watch stands and what its next step is. Pure: answers in, batches and verdicts out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, auto

from muster.etcd.keyvalue import KeyValue, KeyVersion, version_of

# etcd sends answers to manual progress requests under this watch id.
_NO_WATCH_ID = -1


class WatchKind(Enum):
    SNAPSHOT = auto()  # forget what you knew: these are all keys there are
    CHANGES = auto()


class EventKind(Enum):
    PUT = auto()
    DELETE = auto()


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """Of a DELETE, `kv` holds the key and, as `mod_revision`, the revision of the deletion."""

    kind: EventKind
    kv: KeyValue


@dataclass(frozen=True, slots=True)
class WatchBatch:
    """After applying it, a view equals what etcd held at `revision`.

    A SNAPSHOT has PUTs only, in key order; CHANGES are in the order of their revisions.
    """

    kind: WatchKind
    revision: int
    events: tuple[WatchEvent, ...]


@dataclass(frozen=True, slots=True)
class WatchAnswer:
    """One message of etcd's watch stream."""

    watch_id: int
    revision: int
    created: bool = False
    canceled: bool = False
    compact_revision: int = 0
    cancel_reason: str = ""
    events: tuple[WatchEvent, ...] = ()


class WatchEndedError(Exception):
    """etcd cancelled the watch; a new one starts with a new list."""


class WatchCursor:
    """The revision up to which everything was delivered, and the keys that then existed.

    The keys' versions tell whether an etcd met again has the same past: revisions alone cannot,
    for one that was emptied or restored may have grown past the old revision meanwhile.
    """

    def __init__(self) -> None:
        self.revision = 0
        self._versions: dict[str, KeyVersion] = {}

    def snapshot(self, kvs: Iterable[KeyValue], revision: int) -> WatchBatch:
        """Starts over from a list made at `revision`."""
        events = tuple(WatchEvent(EventKind.PUT, kv) for kv in kvs)
        self.revision = revision
        self._versions = {event.kv.key: version_of(event.kv) for event in events}
        return WatchBatch(WatchKind.SNAPSHOT, revision, events)

    def take(self, answer: WatchAnswer) -> WatchBatch | None:
        """The changes that `answer` brings, if any; raises `WatchEndedError`.

        The header's revision is that of the store, not of the events: while a watch catches up
        it runs ahead of them. Only a progress notification of this very watch vouches for it;
        answers to manual requests do not (before etcd 3.5.8 they overtake events).
        """
        if answer.canceled:
            why = answer.cancel_reason
            if answer.compact_revision:
                why = f"revisions before {answer.compact_revision} are compacted away"
            raise WatchEndedError(why or "no reason given")
        fresh = tuple(e for e in answer.events if e.kv.mod_revision > self.revision)
        if fresh:
            for event in fresh:
                self._apply(event)
            self.revision = fresh[-1].kv.mod_revision
            return WatchBatch(WatchKind.CHANGES, self.revision, fresh)
        progress = not answer.events and not answer.created and answer.watch_id != _NO_WATCH_ID
        if progress:
            self.revision = max(self.revision, answer.revision)
        return None

    def continues(self, versions: Mapping[str, KeyVersion] | None) -> bool:
        """Whether an etcd that lists `versions` at this cursor's revision has the same past.

        None stands for a revision that etcd has compacted away or has not reached.
        """
        return versions is not None and versions == self._versions

    def _apply(self, event: WatchEvent) -> None:
        if event.kind is EventKind.PUT:
            self._versions[event.kv.key] = version_of(event.kv)
        else:
            self._versions.pop(event.kv.key, None)


class Step(Enum):
    WAIT = auto()
    PROBE = auto()
    DEAD = auto()


class Liveness:
    """Tells a silent stream from a dead one: after a silence it asks, and then expects an answer.

    Times are seconds of any one monotonic clock.
    """

    def __init__(self, idle_s: float, answer_within_s: float, now_s: float) -> None:
        """The stream has just been asked for its first answer."""
        self._idle_s, self._answer_within_s = idle_s, answer_within_s
        self._asked_at_s: float | None = now_s
        self._heard_at_s = now_s

    def heard(self, now_s: float) -> None:
        self._asked_at_s = None
        self._heard_at_s = now_s

    def asked(self, now_s: float) -> None:
        self._asked_at_s = now_s

    def next_step(self, now_s: float) -> tuple[Step, float]:
        """What to do, and for WAIT for how many seconds at most."""
        if self._asked_at_s is not None:
            left_s = self._asked_at_s + self._answer_within_s - now_s
            return (Step.WAIT, left_s) if left_s > 0 else (Step.DEAD, 0.0)
        left_s = self._heard_at_s + self._idle_s - now_s
        return (Step.WAIT, left_s) if left_s > 0 else (Step.PROBE, 0.0)
