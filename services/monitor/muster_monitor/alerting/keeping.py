"""The book of alerts in storage: read by the monitor that takes over, written in batches.

Values of a tenant of the system's own, which no key of a client belongs to:

    claim                who speaks, and a counter that it advances
    alerts/NN            the book in SHARDS parts, by fingerprint
    ledgers/<receiver>   what a receiver was told
    position             up to where the leader's events are in the book
    silences             all silences
    words/<monitor>      what a monitor that does not speak finds

Each write names the version that it follows, so that a monitor which has lost the claim without
noticing writes nothing over its successor's.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

import msgspec
import structlog

from muster.domain.errors import TooLarge
from muster.domain.ids import TenantId
from muster.rpc.channels import ServiceChannel
from muster.rpc.tenant_values import TenantValues
from muster_monitor.alerting.alerts import Alert, AlertState
from muster_monitor.alerting.grouping import GroupLedger, ReceiverLedger
from muster_monitor.alerting.silences import Silence
from muster_monitor.findings import Finding, Severity

_LOG = structlog.get_logger("muster.monitor")

MONITOR_TENANT: Final = TenantId("muster-monitor")
# A full book of alerts with the longest labels fits into so many values of 1 MiB.
SHARDS: Final = 32
# Of other monitors, in one round.
MAX_WORDS: Final = 16
MAX_VALUE_BYTES: Final = 1024 * 1024
_CALL_TIMEOUT_S: Final = 3.0
_AT_ONCE: Final = 8
_WHAT_TO_DO: Final = (
    "the rest is read; alerts that were in it are raised anew if their conditions still hold"
)
T = TypeVar("T")


class Outdated(Exception):
    """Another monitor has written: this one does not speak any more."""


class Claim(msgspec.Struct, frozen=True):
    """Who speaks; `beat` grows with each renewal."""

    holder: str
    beat: int


class Word(msgspec.Struct, frozen=True):
    """One finding by a monitor that does not speak."""

    rule: str
    labels: dict[str, str]
    severity: Severity
    summary: str
    at_ms: int
    for_s: float
    value: float | None

    @classmethod
    def of(cls, finding: Finding) -> Word:
        value = finding.value if abs(finding.value) < float("inf") else None
        return cls(
            finding.rule,
            dict(finding.labels),
            finding.severity,
            finding.summary,
            finding.at_ms,
            finding.for_s,
            value,
        )

    def finding(self) -> Finding:
        value = float("nan") if self.value is None else self.value
        return Finding(
            self.rule,
            self.labels,
            self.severity,
            True,
            self.summary,
            self.at_ms,
            self.for_s,
            value,
        )


class Words(msgspec.Struct, frozen=True):
    """All that one monitor finds; `beat` grows with each time it says so."""

    beat: int
    found: list[Word]


@dataclass(slots=True)
class Stored:
    """What a monitor that takes over reads."""

    alerts: list[Alert] = field(default_factory=list)
    ledgers: dict[str, dict[str, GroupLedger]] = field(default_factory=dict)
    position: str = ""


class AlertArchive:
    """One monitor's access. Methods raise MusterErrors while storage is away; writes raise
    Outdated when another monitor has written since this one read."""

    def __init__(self, storage: ServiceChannel) -> None:
        self._values = TenantValues(storage, MONITOR_TENANT, _CALL_TIMEOUT_S)
        self._etags: dict[str, str] = {}

    # ------------------------------------------------------------------ claim

    async def claim(self) -> tuple[Claim, str]:
        """The claim as it stands and its version; "" = there is none yet."""
        value, etag = await self._get("claim")
        return _decoded("claim", value, Claim, Claim("", 0)), etag

    async def put_claim(self, claim: Claim) -> str:
        """Writes over the version that was last read or written; its new version."""
        return await self._put("claim", claim)

    # ------------------------------------------------------------------- book

    async def load(self, receivers: Collection[str]) -> Stored:
        """All of it; what cannot be read is passed over, and said so."""
        alerts = await self.alerts()
        ledgers = {receiver: await self.ledger(receiver) for receiver in receivers}
        position, _ = await self._get("position")
        return Stored(alerts, ledgers, _decoded("position", position, str, ""))

    async def alerts(self) -> list[Alert]:
        """The book as it was last written."""
        keys = [_shard_key(number) for number in range(SHARDS)]
        found: list[Alert] = []
        for start in range(0, SHARDS, _AT_ONCE):
            part = keys[start : start + _AT_ONCE]
            for key, (value, _) in zip(part, await self._get_all(part), strict=True):
                found += _decoded(key, value, list[Alert], [])
        return found

    async def save_alerts(self, alerts: Mapping[str, Alert], changed: Collection[str]) -> None:
        """Writes the shards in which something has changed."""
        shards = {_shard(fingerprint) for fingerprint in changed}
        inside: defaultdict[int, list[Alert]] = defaultdict(list)
        for fingerprint, alert in alerts.items():
            if (shard := _shard(fingerprint)) in shards:
                inside[shard].append(alert)
        for shard in sorted(shards):
            await self._put_alerts(shard, inside[shard])

    async def ledger(self, receiver: str) -> dict[str, GroupLedger]:
        """What a receiver was told."""
        key = f"ledgers/{receiver}"
        value, _ = await self._get(key)
        return _decoded(key, value, dict[str, GroupLedger], {})

    async def save_ledger(self, ledger: ReceiverLedger) -> None:
        await self._put(f"ledgers/{ledger.receiver}", ledger.groups)

    async def save_position(self, position: str) -> None:
        await self._put("position", position)

    async def _put_alerts(self, shard: int, alerts: list[Alert]) -> None:
        try:
            await self._put(_shard_key(shard), alerts)
        except TooLarge:
            kept = [a for a in alerts if a.state is AlertState.FIRING]
            _LOG.warning("too many alerts to keep all", kept=len(kept), alerts=len(alerts))
            await self._put(_shard_key(shard), kept[: len(alerts) // 2])

    # --------------------------------------------------------------- silences

    async def silences(self) -> list[Silence]:
        value, _ = await self._get("silences")
        return _decoded("silences", value, list[Silence], [])

    async def save_silences(self, silences: Sequence[Silence]) -> None:
        """Over those that `silences` gave; raises Outdated when they have changed since."""
        await self._put("silences", list(silences))

    # ------------------------------------------------------------------ words

    async def put_word(self, monitor: str, beat: int, findings: Sequence[Finding]) -> None:
        """What this monitor finds, for the one that speaks."""
        words = Words(beat, [Word.of(finding) for finding in findings])
        while len(value := msgspec.json.encode(words)) > MAX_VALUE_BYTES:
            words = Words(beat, words.found[: len(words.found) // 2])
        await self._values.put(f"words/{monitor}", value)

    async def words(self) -> dict[str, tuple[int, list[Finding]]]:
        """By monitor: its beat and what it finds."""
        found: dict[str, tuple[int, list[Finding]]] = {}
        for key in (await self._values.keys("words/"))[:MAX_WORDS]:
            value, _ = await self._get(key)
            words = _decoded(key, value, Words, Words(0, []))
            found[key.removeprefix("words/")] = (
                words.beat,
                [word.finding() for word in words.found],
            )
        return found

    async def drop_word(self, monitor: str) -> None:
        key = f"words/{monitor}"
        self._etags.pop(key, None)
        await self._values.delete(key)

    # ------------------------------------------------------------------ calls

    async def _get_all(self, keys: Sequence[str]) -> list[tuple[bytes, str]]:
        return await asyncio.gather(*(self._get(key) for key in keys))

    async def _get(self, key: str) -> tuple[bytes, str]:
        answer = await self._values.get(key)
        self._etags[key] = answer.etag if answer.found else ""
        return (answer.value, answer.etag) if answer.found else (b"", "")

    async def _put(self, key: str, what: object) -> str:
        value = msgspec.json.encode(what)
        if len(value) > MAX_VALUE_BYTES:
            raise TooLarge(key, len(value), f"at most {MAX_VALUE_BYTES} bytes")
        before = self._etags.get(key, "")
        answer = await self._values.put(key, value, if_match=before, only_new=not before)
        if not answer.written:
            # A repeated call may have met what it had written itself.
            stands, _ = await self._get(key)
            if stands != value:
                raise Outdated(key)
            return self._etags[key]
        self._etags[key] = answer.etag
        return answer.etag


def _shard(fingerprint: str) -> int:
    return int(fingerprint[:4], 16) % SHARDS


def _shard_key(number: int) -> str:
    return f"alerts/{number:02d}"


def _decoded(key: str, value: bytes, kind: type[T], otherwise: T) -> T:
    if not value:
        return otherwise
    try:
        return msgspec.json.decode(value, type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        _LOG.error("stored alerts cannot be read", key=key, why=str(error), do=_WHAT_TO_DO)
        return otherwise
