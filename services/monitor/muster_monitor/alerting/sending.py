"""One receiver being told: one message at a time, each with its deadline, pauses after failures.

A courier owns a receiver. It asks what is owed, so nothing queues up behind a receiver that hangs,
and no courier waits for another. Retries grow apart with jitter and have a budget by the hour.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from muster.domain.errors import MusterError, Unavailable
from muster.outbound.exchange import Limits, Outbound
from muster.outbound.requests import OutboundRequest
from muster_monitor.alerting import metrics
from muster_monitor.alerting.grouping import Notification, ReceiverLedger
from muster_monitor.alerting.messages import (
    KEY_HEADER,
    SIGNATURE_HEADER,
    alertmanager_body,
    signature,
    webhook_body,
)
from muster_monitor.alerting.settings import MAX_SECRET_BYTES, Receiver

_LOG = structlog.get_logger("muster.monitor")

# Of an answer; only its status matters.
MAX_ANSWER_BYTES: Final = 64 * 1024
FIRST_PAUSE_S: Final = 1.0
LAST_PAUSE_S: Final = 60.0
# Tries after a failure; what a receiver that is down for long costs both sides.
MAX_RETRIES_PER_HOUR: Final = 120
_LOOK_EVERY_S: Final = 1.0
_SHOWN_CHARS: Final = 200


@dataclass(slots=True)
class RetryBudget:
    """Tokens that come back with time; the first MAX_RETRIES_PER_HOUR / 10 are there at once."""

    tokens: float = MAX_RETRIES_PER_HOUR / 10
    at_ms: int = 0

    def wait_s(self, now_ms: int) -> float:
        """Takes a token; seconds until it is there."""
        rate = MAX_RETRIES_PER_HOUR / 3_600_000
        since_ms = max(0, now_ms - self.at_ms) if self.at_ms else 0
        self.tokens = min(MAX_RETRIES_PER_HOUR / 10, self.tokens + since_ms * rate)
        self.at_ms = now_ms
        self.tokens -= 1
        return max(0.0, -self.tokens / rate / 1000)


def pause_s(failures: int, chance: float) -> float:
    """After so many failures in a row (1 or more); `chance` in [0, 1)."""
    most = min(LAST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(failures - 1, 30))
    return most * (0.5 + chance / 2)


class Courier:
    """`due` says what is owed by which ledger, `keep` writes it; `failing` hears why the receiver
    cannot be told, and "" when it can again."""

    def __init__(
        self,
        receiver: Receiver,
        outbound: Outbound,
        *,
        due: Callable[[Receiver], tuple[ReceiverLedger, Notification] | None],
        keep: Callable[[ReceiverLedger], Awaitable[None]],
        failing: Callable[[str, str], None],
        now_ms: Callable[[], int],
        wall_ms: Callable[[], int],
    ) -> None:
        self.receiver = receiver
        self._outbound = outbound
        self._due, self._keep, self._failing = due, keep, failing
        self._now_ms, self._wall_ms = now_ms, wall_ms
        self._failures = 0
        self._budget = RetryBudget()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            owed = self._due(self.receiver)
            if owed is None:
                await asyncio.sleep(_LOOK_EVERY_S)
                continue
            await self._deliver(*owed)
            if self._failures:
                wait_s = pause_s(self._failures, random.random())  # noqa: S311  jitter
                await asyncio.sleep(max(wait_s, self._budget.wait_s(self._now_ms())))

    async def _deliver(self, ledger: ReceiverLedger, message: Notification) -> None:
        ledger.tried(message, self._now_ms())
        # Before it is sent: whoever takes over has to know that an end is owed.
        await self._keep(ledger)
        try:
            await self._send(message)
        except MusterError as error:
            self._failed(str(error))
            return
        ledger.delivered(message, self._now_ms())
        await self._keep(ledger)
        metrics.NOTIFICATIONS.labels(self.receiver.name, "sent").inc()
        if self._failures:
            _LOG.info("a receiver takes alerts again", receiver=self.receiver.name)
            self._failures = 0
            self._failing(self.receiver.name, "")

    def _failed(self, why: str) -> None:
        metrics.NOTIFICATIONS.labels(self.receiver.name, "failed").inc()
        if not self._failures:
            _LOG.warning("a receiver does not take alerts", receiver=self.receiver.name, why=why)
        self._failures += 1
        self._failing(self.receiver.name, why)

    async def _send(self, message: Notification) -> None:
        """Raises a MusterError unless the receiver answered with 2xx."""
        receiver = self.receiver
        headers = [("Content-Type", "application/json"), *receiver.headers]
        if receiver.kind == "alertmanager":
            body = alertmanager_body(message)
        else:
            body = webhook_body(message, receiver.name, self._wall_ms())
            headers.append((KEY_HEADER, message.key))
            if receiver.secret_file:
                secret = read_secret(receiver.secret_file)
                at_s = self._wall_ms() // 1000
                headers.append((SIGNATURE_HEADER, signature(secret, body, at_s)))
        request = OutboundRequest("POST", receiver.target, tuple(headers), body)
        # Redirects are not followed: the address that was configured is the one that is told.
        limits = Limits(receiver.timeout_s, MAX_ANSWER_BYTES, redirects=0)
        async with self._outbound.open(request, limits) as answer:
            if not 200 <= answer.status < 300:
                detail = f"it answered {answer.status}"
                if 300 <= answer.status < 400:
                    to = answer.header("location")[:_SHOWN_CHARS]
                    detail += f" (to {to!r}); redirects are not followed"
                raise Unavailable(receiver.target.host, detail)


def read_secret(path: str) -> bytes:
    """The file without white space around; raises Unavailable."""
    try:
        with Path(path).open("rb") as file:
            secret = file.read(MAX_SECRET_BYTES + 1).strip()
    except OSError as error:
        raise Unavailable(path, error.strerror or str(error)) from None
    if not 0 < len(secret) <= MAX_SECRET_BYTES:
        raise Unavailable(path, f"a secret has 1 to {MAX_SECRET_BYTES} bytes")
    return secret
