"""The book of alerts: what findings have begun, what still holds, what is over. Pure.

    (a finding) → PENDING → FIRING → RESOLVED → (forgotten)
                     └→ (forgotten: it did not hold for long enough)

An alert holds while one of its holders says so: a monitor that found it, or the leader's events.
When the last one takes it back it is over; when the last one goes away without a word (its
monitor died) the alert stands for CONFIRM_MS more, so that whoever watches the agent next can
continue it. `now_ms` is one clock that never jumps, near unix milliseconds.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable

from muster_monitor.alerting.alerts import MAX_SUMMARY_CHARS, Alert, AlertState
from muster_monitor.findings import Finding

# More than anybody reads; sixteen agents out of seventeen may fail in a cluster of 5,000.
MAX_ALERTS = 5_000
# Monitors of one cluster, and the leader's events.
MAX_HOLDERS = 16
RESOLVED_KEPT_MS = 3_600_000
# Of a resolved alert that a receiver has still to be told of.
UNDELIVERED_KEPT_MS = 24 * 3_600_000
# A monitor that takes over needs some samples before it can say that a rule holds.
CONFIRM_MS = 120_000
# The holder of what the leader's events say: their log is read on from where it was left.
EVENTS = "events"


class AlertBook:
    """`alerts` by fingerprint. `changed` gathers those whose record is to be written soon, and
    `touched` those of which only text or figure is new; both are the caller's to clear."""

    def __init__(self) -> None:
        self.alerts: dict[str, Alert] = {}
        self.changed: set[str] = set()
        self.touched: set[str] = set()
        self.dropped = 0

    def load(self, alerts: Iterable[Alert], now_ms: int) -> None:
        """Begins with what was written before. Monitors have to say anew what holds."""
        self.alerts = {}
        for alert in alerts:
            alert.holders = {h: t for h, t in alert.holders.items() if h == EVENTS}
            if not alert.holders and alert.state is not AlertState.RESOLVED:
                # Counted from now: nobody could confirm it while no monitor ran.
                alert.doubtful_at_ms = now_ms
            self.alerts[alert.fingerprint] = alert

    def post(
        self,
        fingerprint: str,
        finding: Finding,
        holder: str,
        now_ms: int,
        *,
        tenant: str = "",
        lapses_at_ms: int = 0,
    ) -> None:
        """Takes a finding by `holder`; `tenant` "" = it concerns the whole cluster."""
        if not finding.active:
            self.end(fingerprint, holder, now_ms)
            return
        alert = self.alerts.get(fingerprint)
        if alert is None:
            alert = self._begin(fingerprint, finding, now_ms, tenant)
            if alert is None:
                return
        elif alert.state is AlertState.RESOLVED:
            alert.state, alert.started_at_ms = AlertState.PENDING, now_ms
            alert.fired_at_ms = alert.resolved_at_ms = 0
            self.changed.add(fingerprint)
        elif alert.doubtful_at_ms and alert.state is AlertState.PENDING:
            # Whether it held meanwhile nobody knows.
            alert.started_at_ms = now_ms
        if holder not in alert.holders or alert.doubtful_at_ms:
            self.changed.add(fingerprint)
        if holder in alert.holders or len(alert.holders) < MAX_HOLDERS:
            alert.holders[holder] = lapses_at_ms
        alert.doubtful_at_ms = 0
        self._describe(alert, finding)
        self._ripen(alert, now_ms)

    def end(self, fingerprint: str, holder: str, now_ms: int) -> None:
        """The holder says that the condition holds no more."""
        alert = self.alerts.get(fingerprint)
        if alert is None or alert.state is AlertState.RESOLVED:
            return
        if alert.holders.pop(holder, None) is not None:
            self.changed.add(fingerprint)
        if not alert.holders:
            self._resolve(alert, now_ms)

    def lose(self, holder: str, now_ms: int) -> None:
        """The holder is gone without a word."""
        for alert in self.alerts.values():
            if alert.holders.pop(holder, None) is not None:
                self.changed.add(alert.fingerprint)
                if not alert.holders:
                    alert.doubtful_at_ms = now_ms

    def held_by(self, holder: str) -> set[str]:
        """Fingerprints of what stands by this holder's word."""
        return {f for f, alert in self.alerts.items() if holder in alert.holders}

    def tick(self, now_ms: int, owed: Collection[str]) -> None:
        """Lets time pass; `owed` are resolved alerts that a receiver has still to be told of."""
        for alert in list(self.alerts.values()):
            if alert.state is AlertState.RESOLVED:
                kept_ms = UNDELIVERED_KEPT_MS if alert.fingerprint in owed else RESOLVED_KEPT_MS
                if now_ms - alert.resolved_at_ms >= kept_ms:
                    self._forget(alert)
                continue
            lapsed = [h for h, at_ms in alert.holders.items() if at_ms and at_ms <= now_ms]
            for holder in lapsed:
                self.end(alert.fingerprint, holder, now_ms)
            if alert.doubtful_at_ms and now_ms - alert.doubtful_at_ms >= CONFIRM_MS:
                self._resolve(alert, now_ms)
            self._ripen(alert, now_ms)

    def count(self) -> dict[AlertState, int]:
        """How many there are in each state."""
        counts = dict.fromkeys(AlertState, 0)
        for alert in self.alerts.values():
            counts[alert.state] += 1
        return counts

    def _begin(self, fingerprint: str, finding: Finding, now_ms: int, tenant: str) -> Alert | None:
        if len(self.alerts) >= MAX_ALERTS and not self._make_room():
            self.dropped += 1
            return None
        alert = Alert(
            fingerprint=fingerprint,
            rule=finding.rule,
            labels=dict(finding.labels),
            severity=finding.severity,
            summary="",
            value=None,
            for_s=0.0,
            tenant=tenant,
            state=AlertState.PENDING,
            started_at_ms=now_ms,
        )
        self.alerts[fingerprint] = alert
        self.changed.add(fingerprint)
        return alert

    def _make_room(self) -> bool:
        """The one that was resolved first goes."""
        resolved = [a for a in self.alerts.values() if a.state is AlertState.RESOLVED]
        if not resolved:
            return False
        self._forget(min(resolved, key=lambda a: a.resolved_at_ms))
        return True

    def _describe(self, alert: Alert, finding: Finding) -> None:
        value = finding.value if math.isfinite(finding.value) else None
        summary = finding.summary[:MAX_SUMMARY_CHARS]
        for_s = max(0.0, finding.for_s) if math.isfinite(finding.for_s) else 0.0
        before = (alert.summary, alert.value, alert.for_s, alert.severity)
        if before != (summary, value, for_s, finding.severity):
            alert.summary, alert.value, alert.for_s = summary, value, for_s
            alert.severity = finding.severity
            self.touched.add(alert.fingerprint)

    def _ripen(self, alert: Alert, now_ms: int) -> None:
        held_ms = now_ms - alert.started_at_ms
        if (
            alert.state is AlertState.PENDING
            and not alert.doubtful_at_ms
            and held_ms >= alert.for_s * 1000
        ):
            alert.state, alert.fired_at_ms = AlertState.FIRING, now_ms
            self.changed.add(alert.fingerprint)

    def _resolve(self, alert: Alert, now_ms: int) -> None:
        if alert.state is AlertState.PENDING:
            self._forget(alert)
            return
        alert.state, alert.resolved_at_ms = AlertState.RESOLVED, now_ms
        alert.doubtful_at_ms = 0
        alert.holders.clear()
        self.changed.add(alert.fingerprint)

    def _forget(self, alert: Alert) -> None:
        del self.alerts[alert.fingerprint]
        self.changed.add(alert.fingerprint)
        self.touched.discard(alert.fingerprint)
