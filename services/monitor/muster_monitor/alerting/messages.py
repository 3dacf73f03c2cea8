"""The bodies that receivers get: Alertmanager's version 2, and our own of webhooks. Pure."""

from __future__ import annotations

import hashlib
import hmac
import re
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from muster_monitor.alerting.alerts import Alert, AlertState
from muster_monitor.alerting.grouping import MAX_SHOWN, Notification

SIGNATURE_HEADER: Final = "X-Muster-Signature"
KEY_HEADER: Final = "X-Muster-Notification"
_UNFIT: Final = re.compile(r"[^A-Za-z0-9_]")


def alertmanager_body(message: Notification) -> bytes:
    """For POST /api/v2/alerts. What fires has no end: Alertmanager gives it one by its own clock
    (`resolve_timeout`), so clocks need not agree."""
    return msgspec.json.encode(
        [_for_alertmanager(alert) for alert in (*message.resolved, *message.firing)]
    )


def webhook_body(message: Notification, receiver: str, at_ms: int) -> bytes:
    """The JSON document of docs/operating.md."""
    shown = (*message.firing, *message.resolved)[:MAX_SHOWN]
    return msgspec.json.encode(
        {
            "version": 1,
            "key": message.key,
            "receiver": receiver,
            "at": _rfc3339(at_ms),
            "status": FIRING if message.firing else RESOLVED,
            "group": message.labels,
            "firing": len(message.firing),
            "resolved": len(message.resolved),
            "left_out": len(message.firing) + len(message.resolved) - len(shown),
            "alerts": [_for_webhook(alert) for alert in shown],
        }
    )


FIRING: Final = str(AlertState.FIRING)
RESOLVED: Final = str(AlertState.RESOLVED)


def signature(secret: bytes, body: bytes, at_s: int) -> str:
    """`t=<unix seconds>,v1=<hex>`: HMAC-SHA256 of `<unix seconds>.<body>`."""
    digest = hmac.new(secret, b"%d." % at_s + body, hashlib.sha256).hexdigest()
    return f"t={at_s},v1={digest}"


def _for_alertmanager(alert: Alert) -> dict[str, Any]:
    labels = {_label_name(name): text for name, text in alert.labels.items() if text}
    labels |= {"alertname": alert.rule, "severity": str(alert.severity)}
    annotations = {"summary": alert.summary}
    if alert.value is not None:
        annotations["value"] = f"{alert.value:g}"
    shown: dict[str, Any] = {
        "labels": labels,
        "annotations": annotations,
        "startsAt": _rfc3339(alert.fired_at_ms or alert.started_at_ms),
    }
    if alert.state is AlertState.RESOLVED:
        shown["endsAt"] = _rfc3339(alert.resolved_at_ms)
    return shown


def _label_name(name: str) -> str:
    fit = _UNFIT.sub("_", name)
    return f"_{fit}" if fit[0].isdigit() else fit


def _for_webhook(alert: Alert) -> dict[str, Any]:
    return {
        "fingerprint": alert.fingerprint,
        "rule": alert.rule,
        "state": str(alert.state),
        "severity": str(alert.severity),
        "labels": alert.labels,
        "summary": alert.summary,
        "value": alert.value,
        "started_at": _rfc3339(alert.started_at_ms),
        "fired_at": _rfc3339(alert.fired_at_ms),
        "resolved_at": _rfc3339(alert.resolved_at_ms) if alert.resolved_at_ms else None,
    }


def _rfc3339(at_ms: int) -> str:
    whole_s, ms = divmod(at_ms, 1000)
    return f"{datetime.fromtimestamp(whole_s, UTC):%Y-%m-%dT%H:%M:%S}.{ms:03d}Z"
