"""What a receiver is owed: groups of alerts, and when each is to be told. Pure.

As users of Alertmanager know it: alerts that agree in the labels of `group_by` are told together;
a new group waits `group_wait` for company, a change of it `group_interval`, and what still fires
unchanged is told again after `repeat_interval`. There is no queue of messages: what is owed
follows from the alerts and from what was delivered, so a receiver that was away for long is told
how things stand, once, and of every end of what it had been told of.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from muster_monitor.alerting.alerts import Alert, AlertState
from muster_monitor.alerting.matching import Matcher, all_hold, labels_of

# It stands for all labels: each alert is told by itself.
EACH: Final = "..."
# The receiver was tried with an alert and may or may not have taken it.
TRIED, FIRING, RESOLVED = "tried", "firing", "resolved"
# Of one message; what is left out is counted in it.
MAX_SHOWN: Final = 100
# Of one message to a receiver that keeps alerts by itself and so has to get every one.
MAX_PART: Final = 200


@dataclass(frozen=True, slots=True)
class Rhythm:
    """How a receiver is told. With `parts` (Alertmanager) there is one group, only what is new or
    due again is sent, in as many messages as it takes."""

    group_by: tuple[str, ...] = ("rule",)
    wait_ms: int = 10_000
    interval_ms: int = 60_000
    repeat_ms: int = 4 * 3_600_000
    match: tuple[Matcher, ...] = ()
    parts: bool = False


class GroupLedger(msgspec.Struct):
    """What one receiver was told of one group. `told` maps fingerprints to TRIED, FIRING or
    RESOLVED; `sent_at_ms` is of the last delivery (0 = none), `count` numbers them."""

    labels: dict[str, str]
    born_at_ms: int
    sent_at_ms: int = 0
    tried_at_ms: int = 0
    count: int = 0
    told: dict[str, str] = {}


@dataclass(frozen=True, slots=True)
class Notification:
    """One message to one receiver. `key` is the same when it is tried again, so that a receiver
    that got it before its answer was lost can tell."""

    group: str
    key: str
    labels: dict[str, str]
    firing: tuple[Alert, ...]
    resolved: tuple[Alert, ...]

    @property
    def fingerprints(self) -> list[str]:
        return [alert.fingerprint for alert in (*self.firing, *self.resolved)]


class ReceiverLedger:
    """What one receiver was told; `groups` by their keys. `is_changed` = to be written."""

    def __init__(self, receiver: str, groups: dict[str, GroupLedger] | None = None) -> None:
        self.receiver = receiver
        self.groups: dict[str, GroupLedger] = {} if groups is None else groups
        self.is_changed = False
        # Only of receivers told in parts; not written: after a restart all is sent once more,
        # which is nothing new to a receiver that keeps alerts.
        self._told_at_ms: dict[str, int] = {}

    def due(
        self,
        alerts: Iterable[Alert],
        rhythm: Rhythm,
        muted: Callable[[Alert], bool],
        now_ms: int,
    ) -> list[Notification]:
        """What is to be sent now; who waits longest since it was tried comes first."""
        members = self._members(alerts, rhythm, now_ms)
        found: list[tuple[int, Notification]] = []
        for key, group in list(self.groups.items()):
            inside = members.get(key, [])
            firing = [a for a in inside if a.state is AlertState.FIRING and not muted(a)]
            resolved = [
                a
                for a in inside
                if a.state is AlertState.RESOLVED
                and group.told.get(a.fingerprint) in (FIRING, TRIED)
            ]
            self._prune(key, group, inside)
            if rhythm.parts:
                parts = self._parts(key, group, rhythm, [*resolved, *firing], now_ms)
                found += [(group.tried_at_ms, part) for part in parts]
            elif self._is_due(group, rhythm, firing, resolved, now_ms):
                name = f"{key}-{group.count}"
                message = Notification(key, name, group.labels, tuple(firing), tuple(resolved))
                found.append((group.tried_at_ms, message))
        return [message for _, message in sorted(found, key=lambda pair: pair[0])]

    def tried(self, message: Notification, now_ms: int) -> None:
        """It is about to be sent: from now on the receiver may know of it."""
        group = self.groups[message.group]
        group.tried_at_ms = now_ms
        for alert in message.firing:
            if group.told.setdefault(alert.fingerprint, TRIED) == RESOLVED:
                group.told[alert.fingerprint] = TRIED
        self.is_changed = True

    def delivered(self, message: Notification, now_ms: int) -> None:
        """The receiver has taken it."""
        group = self.groups.get(message.group)
        if group is None:
            return
        group.sent_at_ms, group.count = now_ms, group.count + 1
        for alert in message.firing:
            group.told[alert.fingerprint] = FIRING
            self._told_at_ms[alert.fingerprint] = now_ms
        for alert in message.resolved:
            group.told[alert.fingerprint] = RESOLVED
        self.is_changed = True

    def owed(self, alerts: Iterable[Alert]) -> set[str]:
        """Fingerprints of resolved alerts that the receiver does not know to be so."""
        waiting = {
            fingerprint
            for group in self.groups.values()
            for fingerprint, told in group.told.items()
            if told != RESOLVED
        }
        if not waiting:
            return waiting
        return {
            a.fingerprint
            for a in alerts
            if a.state is AlertState.RESOLVED and a.fingerprint in waiting
        }

    def _members(
        self, alerts: Iterable[Alert], rhythm: Rhythm, now_ms: int
    ) -> dict[str, list[Alert]]:
        members: dict[str, list[Alert]] = {}
        for alert in alerts:
            if alert.state is AlertState.PENDING:
                continue
            labels = labels_of(alert)
            if rhythm.match and not all_hold(rhythm.match, labels):
                continue
            names = sorted(labels) if EACH in rhythm.group_by else rhythm.group_by
            chosen = {name: labels.get(name, "") for name in names}
            key = hashlib.sha256(msgspec.json.encode(sorted(chosen.items()))).hexdigest()[:16]
            if key not in self.groups:
                if alert.state is AlertState.RESOLVED:
                    continue
                self.groups[key] = GroupLedger(chosen, born_at_ms=now_ms)
                self.is_changed = True
            members.setdefault(key, []).append(alert)
        return members

    def _prune(self, key: str, group: GroupLedger, inside: Sequence[Alert]) -> None:
        there = {alert.fingerprint for alert in inside}
        gone = [f for f in group.told if f not in there]
        for fingerprint in gone:
            del group.told[fingerprint]
            self._told_at_ms.pop(fingerprint, None)
            self.is_changed = True
        if not inside:
            del self.groups[key]
            self.is_changed = True

    @staticmethod
    def _is_due(
        group: GroupLedger,
        rhythm: Rhythm,
        firing: Sequence[Alert],
        resolved: Sequence[Alert],
        now_ms: int,
    ) -> bool:
        if not firing and not resolved:
            return False
        news = bool(resolved) or any(group.told.get(a.fingerprint) != FIRING for a in firing)
        if not group.sent_at_ms:
            return now_ms - group.born_at_ms >= rhythm.wait_ms
        since_ms = now_ms - group.sent_at_ms
        if since_ms < 0:
            # The clock of the monitor before this one was ahead.
            return news
        return since_ms >= (rhythm.interval_ms if news else rhythm.repeat_ms)

    def _parts(
        self,
        key: str,
        group: GroupLedger,
        rhythm: Rhythm,
        alerts: Sequence[Alert],
        now_ms: int,
    ) -> Iterable[Notification]:
        """Of the resolved and firing alerts, which come in this order, those that are due."""
        due = [
            a
            for a in alerts
            if a.state is AlertState.RESOLVED
            or group.told.get(a.fingerprint) != FIRING
            or not 0 <= now_ms - self._told_at_ms.get(a.fingerprint, 0) < rhythm.repeat_ms
        ]
        for start in range(0, len(due), MAX_PART):
            part = due[start : start + MAX_PART]
            yield Notification(
                key,
                f"{key}-{group.count}-{start}",
                group.labels,
                tuple(a for a in part if a.state is AlertState.FIRING),
                tuple(a for a in part if a.state is AlertState.RESOLVED),
            )
