"""The alert desk of one monitor: findings in, the book kept, receivers told while it speaks.

Of several monitors one speaks (`claim`): it keeps the book and tells receivers. The others put
what they find into storage, where it is read each second. While storage is away the one that
speaks goes on from memory, and one that never reached it begins to after ALONE_MS: in doubt an
alert is told twice rather than not at all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Final

import structlog

from muster.domain.errors import MusterError
from muster.domain.ids import DEFAULT_TENANT, AgentId
from muster_monitor.alerting import metrics
from muster_monitor.alerting.alerts import Alert, fingerprint_of
from muster_monitor.alerting.book import EVENTS, AlertBook
from muster_monitor.alerting.claim import RENEW_MS, SURE_MS, ClaimWatch
from muster_monitor.alerting.grouping import Notification, ReceiverLedger
from muster_monitor.alerting.happenings import Happening
from muster_monitor.alerting.keeping import AlertArchive, Claim, Outdated, Stored
from muster_monitor.alerting.settings import Receiver
from muster_monitor.alerting.silences import SilenceCover
from muster_monitor.findings import Finding, Severity
from muster_monitor.state import MonitorState

_LOG = structlog.get_logger("muster.monitor")

LOOK_EVERY_S: Final = 1.0
# New texts and figures of known alerts are written so often at most; their states at once.
_TEXTS_EVERY_MS: Final = 30_000
_WORD_EVERY_MS: Final = 5_000
# A monitor that has put down no word for so long is gone.
WORD_STALE_MS: Final = 30_000
ALONE_MS: Final = 30_000
_STORAGE_AWAY_FOR_S: Final = 15.0
# Between two pauses for the rest of the loop while silences are matched.
_MATCHED_AT_ONCE: Final = 200


class AlertDesk:
    """`is_speaking` says whether this monitor tells receivers."""

    def __init__(
        self,
        state: MonitorState,
        archive: AlertArchive,
        name: str,
        boot_ms: Callable[[], int],
        wall_ms: Callable[[], int],
    ) -> None:
        self._state, self.archive, self.name = state, archive, name
        self._boot_ms, self._wall_ms = boot_ms, wall_ms
        self._offset_ms = wall_ms() - boot_ms()
        self.book = AlertBook()
        self.cover = SilenceCover()
        self.ledgers: dict[str, ReceiverLedger] = {}
        self.position = ""
        self.is_speaking = False
        # Set while this monitor speaks from what storage holds.
        self.speaks = asyncio.Event()
        self._saved_position = ""
        self._watch = ClaimWatch(name)
        self._claim = Claim("", 0)
        self._confirmed_ms = boot_ms()
        self._reached_ms = boot_ms()
        self._is_away = False
        self._texts_ms = self._word_ms = self._renewed_ms = 0
        self._silences_known = False
        # By monitor: the beat of its word, and since when it has been this one.
        self._words: dict[str, tuple[int, int]] = {}
        self._word: tuple[int, frozenset[str]] = (0, frozenset())
        self._wanted: tuple[str, ...] = ()
        self._was_away = False
        self.writing = asyncio.Lock()
        self._told_dropped = {"inbox": 0, "book": 0}

    def now_ms(self) -> int:
        """Unix milliseconds at this process's start, moved on by the boot clock: never jumps."""
        return self._boot_ms() + self._offset_ms

    # ------------------------------------------------------------------ looks

    async def run(self) -> None:
        """One look a second until cancelled; then others need not wait for the claim."""
        try:
            while True:
                await self.look()
                await asyncio.sleep(LOOK_EVERY_S)
        finally:
            await self._hand_over()

    async def look(self) -> None:
        """Takes findings, keeps the claim, lets time pass, and writes what has changed."""
        try:
            async with self.writing:
                if self.is_speaking:
                    await self._renew()
                else:
                    await self._try_to_speak()
                await self._read_silences()
                await self._read_ledgers()
            self._reached_ms, self._is_away = self._boot_ms(), False
        except Outdated:
            self._yield()
        except MusterError as error:
            self._without_storage(error)
        self._storage_finding()
        if self.is_speaking:
            self._take_findings()
            await self._match_silences()
            self.book.tick(self.now_ms(), self._owed())
            await self.keep()
        else:
            self._state.findings.take()
        self._show()

    def _take_findings(self) -> None:
        now_ms = self.now_ms()
        for fingerprint, finding in self._state.findings.take():
            self.book.post(fingerprint, finding, self.name, now_ms, tenant=self._tenant_of(finding))

    def take_happenings(self, happenings: Iterable[Happening]) -> None:
        """What the leader's events say; of what lapsed long ago nobody is told."""
        now_ms = self.now_ms()
        for happening in happenings:
            finding = happening.finding
            if happening.is_past(now_ms):
                continue
            tenant = self._tenant_of(finding) if happening.tenant is None else happening.tenant
            self.book.post(
                fingerprint_of(finding.rule, finding.labels),
                finding,
                EVENTS,
                now_ms,
                tenant=tenant,
                lapses_at_ms=now_ms + happening.hold_ms if happening.hold_ms else 0,
            )

    def _tenant_of(self, finding: Finding) -> str:
        """Whose agent it is about; "" = the whole cluster's."""
        if "tenant" in finding.labels:
            return finding.labels["tenant"]
        agent = finding.labels.get("agent")
        if agent is None:
            return ""
        return self._state.tenants.get(AgentId(agent), DEFAULT_TENANT)

    def _storage_finding(self) -> None:
        """Storage that does not answer is itself something to tell."""
        away_ms = self._boot_ms() - self._reached_ms if self._is_away else 0
        if not self._is_away and not self._was_away:
            return
        self._was_away = self._is_away
        text = f"storage has not answered this monitor for {away_ms / 1000:.0f} s"
        finding = Finding(
            "storage_unreachable",
            {"service": "storage"},
            Severity.CRITICAL,
            self._is_away,
            text if self._is_away else "storage answers",
            self._wall_ms(),
            for_s=_STORAGE_AWAY_FOR_S,
        )
        self._state.findings.post([finding])

    async def _match_silences(self) -> None:
        new = [a for a in self.book.alerts.values() if not self.cover.knows(a.fingerprint)]
        for number, alert in enumerate(new, 1):
            self.cover.hiding(alert, 0)
            if number % _MATCHED_AT_ONCE == 0:
                await asyncio.sleep(0)

    def _owed(self) -> set[str]:
        alerts = list(self.book.alerts.values())
        return {f for ledger in self.ledgers.values() for f in ledger.owed(alerts)}

    def _show(self) -> None:
        for state, count in self.book.count().items():
            metrics.ALERTS.labels(str(state)).set(count if self.is_speaking else 0)
        metrics.SPEAKING.set(int(self.is_speaking))
        active = [s for s in self.cover.silences.values() if s.is_active(self._wall_ms())]
        metrics.SILENCES.set(len(active))
        for reason, count in (("inbox", self._state.findings.dropped), ("book", self.book.dropped)):
            metrics.DROPPED.labels(reason).inc(max(0, count - self._told_dropped[reason]))
            self._told_dropped[reason] = count

    # ------------------------------------------------------------------ claim

    async def _try_to_speak(self) -> None:
        claim, etag = await self.archive.claim()
        if not self._watch.may_take(claim.holder, etag, self._boot_ms()):
            await self._put_word()
            return
        self._claim = Claim(self.name, claim.beat + 1)
        await self.archive.put_claim(self._claim)
        self._confirmed_ms = self._boot_ms()
        stored = await self.archive.load(self._wanted)
        self._begin(stored)
        await self.archive.drop_word(self.name)

    def _begin(self, stored: Stored) -> None:
        now_ms = self.now_ms()
        self.book = AlertBook()
        self._told_dropped["book"] = 0
        self.book.load(stored.alerts, now_ms)
        self.ledgers = {}
        for name, groups in stored.ledgers.items():
            self.ledgers[name] = ReceiverLedger(name, groups)
        self.position = self._saved_position = stored.position
        self._words.clear()
        self._state.findings.take()
        for fingerprint, finding in self._state.findings.standing.items():
            tenant = self._tenant_of(finding)
            self.book.post(fingerprint, finding, self.name, now_ms, tenant=tenant)
        self.is_speaking = True
        self.speaks.set()
        _LOG.info("this monitor tells of alerts", alerts=len(self.book.alerts))

    async def _renew(self) -> None:
        now_ms = self._boot_ms()
        if now_ms - self._renewed_ms < RENEW_MS:
            return
        if not self.speaks.is_set():
            # Storage was away from the start: what it holds comes first.
            await self._try_to_speak()
            self._renewed_ms = now_ms
            if not self.speaks.is_set():
                self._yield()
            return
        self._claim = Claim(self.name, self._claim.beat + 1)
        await self.archive.put_claim(self._claim)
        self._renewed_ms, self._confirmed_ms = now_ms, self._boot_ms()
        await self._hear_others()

    async def _hear_others(self) -> None:
        now_ms, boot_ms = self.now_ms(), self._boot_ms()
        words = await self.archive.words()
        words.pop(self.name, None)
        for monitor, (beat, findings) in words.items():
            before, since_ms = self._words.get(monitor, (-1, boot_ms))
            self._words[monitor] = (beat, boot_ms if before != beat else since_ms)
            if boot_ms - self._words[monitor][1] >= WORD_STALE_MS:
                self.book.lose(monitor, now_ms)
                await self.archive.drop_word(monitor)
                continue
            fingerprints = set()
            for finding in findings:
                fingerprint = fingerprint_of(finding.rule, finding.labels)
                fingerprints.add(fingerprint)
                tenant = self._tenant_of(finding)
                self.book.post(fingerprint, finding, monitor, now_ms, tenant=tenant)
            for fingerprint in self.book.held_by(monitor) - fingerprints:
                self.book.end(fingerprint, monitor, now_ms)
        for monitor in set(self._words) - set(words):
            self.book.lose(monitor, now_ms)
            del self._words[monitor]

    async def _put_word(self) -> None:
        """At once when a condition begins or ends, else as a sign of life."""
        standing = self._state.findings.standing
        beat, told = self._word
        is_time = self._boot_ms() - self._word_ms >= _WORD_EVERY_MS
        if is_time or told != standing.keys():
            self._word_ms = self._boot_ms()
            self._word = (beat + 1, frozenset(standing))
            await self.archive.put_word(self.name, beat + 1, list(standing.values()))

    def _yield(self) -> None:
        if self.is_speaking:
            _LOG.warning("another monitor tells of alerts now")
        self.is_speaking = False
        self.speaks.clear()
        self.book = AlertBook()
        self._told_dropped["book"] = 0
        self._watch.lost(self._boot_ms())

    def _without_storage(self, error: MusterError) -> None:
        if not self._is_away:
            _LOG.warning("storage does not keep alerts", reason=str(error))
            self._is_away = True
        if not self.is_speaking and self._boot_ms() - self._reached_ms >= ALONE_MS:
            _LOG.warning("this monitor tells of alerts from memory: storage does not answer")
            self.is_speaking = True
            self.ledgers = {name: ReceiverLedger(name) for name in self._wanted}
            for fingerprint, finding in self._state.findings.standing.items():
                tenant = self._tenant_of(finding)
                self.book.post(fingerprint, finding, self.name, self.now_ms(), tenant=tenant)

    async def _hand_over(self) -> None:
        if not self.is_speaking:
            return
        try:
            async with asyncio.timeout(1.0):
                await self.keep()
                await self.archive.put_claim(Claim("", self._claim.beat + 1))
        except (MusterError, Outdated, TimeoutError) as error:
            _LOG.info("the alert desk was not handed over", reason=str(error))

    # ---------------------------------------------------------------- keeping

    async def keep(self) -> None:
        """Writes what has changed since the last time; what cannot be written waits."""
        if not self.speaks.is_set() or self._is_away:
            return
        now_ms = self._boot_ms()
        book, position = self.book, self.position
        changed = set(book.changed)
        if now_ms - self._texts_ms >= _TEXTS_EVERY_MS:
            changed |= book.touched
            self._texts_ms = now_ms
        try:
            async with self.writing:
                if changed:
                    book.changed -= changed
                    book.touched -= changed
                    self.cover.forget(changed)
                    try:
                        await self.archive.save_alerts(book.alerts, changed)
                    except BaseException:
                        book.changed |= changed
                        raise
                if position != self._saved_position:
                    await self.archive.save_position(position)
                    self._saved_position = position
                for ledger in self.ledgers.values():
                    await self._write_ledger(ledger)
        except Outdated:
            self._yield()
        except MusterError as error:
            self._without_storage(error)

    async def keep_ledger(self, ledger: ReceiverLedger) -> None:
        """As `keep`, of one ledger only."""
        if not self.speaks.is_set() or self._is_away:
            return
        try:
            async with self.writing:
                await self._write_ledger(ledger)
        except Outdated:
            self._yield()
        except MusterError as error:
            self._without_storage(error)

    async def _write_ledger(self, ledger: ReceiverLedger) -> None:
        if not ledger.is_changed:
            return
        ledger.is_changed = False
        try:
            await self.archive.save_ledger(ledger)
        except BaseException:
            ledger.is_changed = True
            raise

    async def _read_silences(self) -> None:
        silences = await self.archive.silences()
        if not self._silences_known or list(self.cover.silences.values()) != silences:
            self.cover.replace(silences)
            self._silences_known = True

    # -------------------------------------------------------------- receivers

    def set_receivers(self, names: Iterable[str]) -> None:
        """Who is to be told from now on; what others were told is forgotten."""
        self._wanted = tuple(names)
        self.ledgers = {name: led for name, led in self.ledgers.items() if name in self._wanted}

    async def _read_ledgers(self) -> None:
        """Of receivers that came while this monitor speaks."""
        for name in self._wanted:
            if self.speaks.is_set() and name not in self.ledgers:
                self.ledgers[name] = ReceiverLedger(name, await self.archive.ledger(name))

    def due(self, receiver: Receiver) -> tuple[ReceiverLedger, Notification] | None:
        """What this receiver is owed first; nothing while another monitor may be speaking."""
        ledger = self.ledgers.get(receiver.name)
        if ledger is None or not self._may_speak():
            return None
        wall_ms = self._wall_ms()
        owed = ledger.due(
            self.book.alerts.values(),
            receiver.rhythm,
            lambda alert: bool(self.cover.hiding(alert, wall_ms)),
            self.now_ms(),
        )
        return (ledger, owed[0]) if owed else None

    def _may_speak(self) -> bool:
        sure = self._is_away or self._boot_ms() - self._confirmed_ms < SURE_MS
        return self.is_speaking and sure

    def receiver_failing(self, receiver: str, why: str) -> None:
        """A receiver that is down is told of by the others."""
        text = f"receiver {receiver} does not take alerts: {why}" if why else f"{receiver} does"
        finding = Finding(
            "receiver_failing",
            {"receiver": receiver},
            Severity.WARNING,
            bool(why),
            text,
            self._wall_ms(),
            for_s=60.0,
        )
        self._state.findings.post([finding])

    async def listed(self) -> list[Alert]:
        """All alerts: from memory when this monitor speaks, else as they were last written."""
        if self.is_speaking:
            return list(self.book.alerts.values())
        async with self.writing:
            return await self.archive.alerts()
