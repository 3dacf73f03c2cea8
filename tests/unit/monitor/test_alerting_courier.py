"""A courier and a receiver that is unwell, in virtual time: only its sleeping lets time pass."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest

from muster.outbound.exchange import Limits, Outbound
from muster.outbound.requests import OutboundRequest
from muster_monitor.alerting import sending
from muster_monitor.alerting.alerts import Alert, AlertState, fingerprint_of
from muster_monitor.alerting.grouping import FIRING, Notification, ReceiverLedger
from muster_monitor.alerting.sending import MAX_RETRIES_PER_HOUR, Courier
from muster_monitor.alerting.settings import Receiver, parse
from muster_monitor.findings import Severity

START_MS = 1_000_000
HOUR_MS = 3_600_000
# What RetryBudget gives: a tenth at once, then an hour's worth; and the first try, which is none.
MOST_RETRIES_IN_AN_HOUR = MAX_RETRIES_PER_HOUR // 10 + MAX_RETRIES_PER_HOUR
MOST_TRIES_IN_AN_HOUR = MOST_RETRIES_IN_AN_HOUR + 1


class _TimeIsUp(Exception):
    """The end of a test's virtual time."""


def receiver() -> Receiver:
    way = {"name": "pager", "webhook": {"url": "http://127.0.0.1:9"}}
    settings = parse(json.dumps({"allow": ["127.0.0.1"], "receivers": [way]}), "test")
    return settings.receivers[0]


class Street:
    """A clock, a receiver behind it that answers as `status_at` says, and its courier.

    `tries` has the time of each request and what it was answered; `news` what was said of the
    receiver as failing. Times are milliseconds since START_MS.
    """

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, status_at: Callable[[int], int], until_ms: int
    ) -> None:
        self.now_ms = START_MS
        self.tries: list[tuple[int, int]] = []
        self.sent: list[dict[str, Any]] = []
        self.news: list[str] = []
        self.ledger = ReceiverLedger("pager")
        self._status_at, self._until_ms = status_at, until_ms
        labels = {"agent": "a"}
        self._alert = Alert(
            fingerprint=fingerprint_of("cpu_high", labels),
            rule="cpu_high",
            labels=labels,
            severity=Severity.WARNING,
            summary="hot",
            value=1.0,
            for_s=0.0,
            tenant="default",
            state=AlertState.FIRING,
            started_at_ms=START_MS,
            fired_at_ms=START_MS,
            resolved_at_ms=0,
        )
        monkeypatch.setattr(sending, "asyncio", SimpleNamespace(sleep=self._sleep))
        # The least that jitter leaves of a pause: as many tries as there can be.
        monkeypatch.setattr(sending, "random", SimpleNamespace(random=lambda: 0.0))

    @property
    def failed(self) -> list[int]:
        """When it was tried in vain."""
        return [at for at, status in self.tries if status != 200]

    async def run(self, due: Callable[[Receiver], Any] | None = None) -> None:
        """Until the time is up."""
        courier = Courier(
            receiver(),
            cast(Outbound, self),
            due=due or self.owed,
            keep=self._keep,
            failing=lambda _name, why: self.news.append(why),
            now_ms=lambda: self.now_ms,
            wall_ms=lambda: self.now_ms,
        )
        with pytest.raises(_TimeIsUp):
            await courier.run()

    def owed(self, to: Receiver) -> tuple[ReceiverLedger, Notification] | None:
        """One alert that fires for ever, as its group is due."""
        found = self.ledger.due([self._alert], to.rhythm, lambda _: False, self.now_ms)
        return (self.ledger, found[0]) if found else None

    def always(self, to: Receiver) -> tuple[ReceiverLedger, Notification]:
        """Something new at once after what was delivered."""
        self.ledger.groups.clear()
        now_ms = self.now_ms + to.rhythm.wait_ms
        self.ledger.due([self._alert], to.rhythm, lambda _: False, self.now_ms)
        (message,) = self.ledger.due([self._alert], to.rhythm, lambda _: False, now_ms)
        return self.ledger, message

    @asynccontextmanager
    async def open(self, request: OutboundRequest, _: Limits) -> AsyncIterator[Any]:
        """As `Outbound.open`: what the receiver answers."""
        status = self._status_at(self.now_ms - START_MS)
        self.tries.append((self.now_ms - START_MS, status))
        self.sent.append(json.loads(request.body))
        assert len(self.tries) < 20 * MOST_TRIES_IN_AN_HOUR, "it does not wait"
        yield SimpleNamespace(status=status, header=lambda _name: "")

    async def _sleep(self, delay_s: float) -> None:
        # At least a tick, for time that stands still would never be up.
        self.now_ms += max(1, round(delay_s * 1000))
        if self.now_ms - START_MS >= self._until_ms:
            raise _TimeIsUp
        await asyncio.sleep(0)

    async def _keep(self, _: ReceiverLedger) -> None:
        await asyncio.sleep(0)


# As they are; and as if pauses did not grow, when the budget alone is what bounds the tries.
@pytest.mark.parametrize("last_pause_s", [sending.LAST_PAUSE_S, sending.FIRST_PAUSE_S])
async def test_a_receiver_that_answers_500_for_an_hour_is_told_when_it_is_well(
    monkeypatch: pytest.MonkeyPatch, last_pause_s: float
) -> None:
    monkeypatch.setattr(sending, "LAST_PAUSE_S", last_pause_s)
    street = Street(monkeypatch, lambda at_ms: 500 if at_ms < HOUR_MS else 200, 2 * HOUR_MS)
    await street.run()
    assert all(at < HOUR_MS for at in street.failed)
    # It is not given up either: it is tried to the end of the hour.
    assert MOST_TRIES_IN_AN_HOUR // 2 < len(street.failed) <= MOST_TRIES_IN_AN_HOUR
    # Once, at the next try: nothing has queued up behind the failures.
    delivered = [at for at, status in street.tries if status == 200]
    assert len(delivered) == 1
    assert delivered[0] - HOUR_MS <= sending.LAST_PAUSE_S * 1000 + HOUR_MS / MAX_RETRIES_PER_HOUR
    (group,) = street.ledger.groups.values()
    assert list(group.told.values()) == [FIRING]
    # Every try was of the same message, so that a receiver can tell a repetition.
    assert len({body["key"] for body in street.sent}) == 1
    assert "it answered 500" in street.news[0]
    assert street.news[-1] == ""


async def test_one_that_takes_every_second_message_costs_no_more_tries_than_the_budget(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Each success sets the pause back to its least, so that only the budget holds the tries.
    street = Street(monkeypatch, lambda _: 200 if len(street.tries) % 2 else 500, HOUR_MS)
    await street.run(street.always)
    assert 0 < len(street.failed) <= MOST_TRIES_IN_AN_HOUR
    assert len(street.tries) <= 2 * MOST_TRIES_IN_AN_HOUR
    # And it is used up: what is there for a receiver that is unwell for a moment is not withheld.
    assert len(street.failed) >= MAX_RETRIES_PER_HOUR
