"""Leader election on one etcd key: the holder's lease is kept alive here, and given up in time."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass

import structlog

from muster.domain.errors import InvalidInput, NotFound, Unavailable
from muster.etcd.client import EtcdClient
from muster.etcd.election_core import RENEWALS_PER_TTL, LeaderView, Tenure
from muster.etcd.keys import LEADER_KEY
from muster.etcd.lease import LeaseKeeper
from muster.etcd.retry import Backoff
from muster.etcd.watch import watch_key

__all__ = ["Deposed", "Elected", "Election", "boottime_s", "observe"]

_log = structlog.get_logger(__name__)

# etcd raises shorter ones to this by itself, which would surprise whoever asked for less.
MIN_TTL_S = 2.0

# Attempts that fail are repeated quickly at first: a cluster without leader does nothing new.
_BACKOFF = Backoff(first_s=0.1, max_s=1.0)
# A refused renewal must not become a busy loop within the TTL.
_RENEWAL_PAUSE_S = 0.05


def boottime_s() -> float:
    """Seconds since boot, the time asleep included: a suspended leader has lost its lease."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True, slots=True)
class Elected:
    """The lead is held, for now until `lease_valid_until` (seconds of the election's clock);
    `Election.lease_valid_until` moves on with every renewal."""

    lease_valid_until: float


@dataclass(frozen=True, slots=True)
class Deposed:
    """The lead is over, and was so before anyone else can have been elected by its expiry."""

    reason: str


Report = Callable[[Elected | Deposed], None]


class Election:
    """A candidate for one key; `value` is what others see there, the leader's host:port."""

    def __init__(
        self,
        client: EtcdClient,
        key: str = LEADER_KEY,
        ttl_s: float = 3.0,
        *,
        value: bytes,
        clock: Callable[[], float] = boottime_s,
        chance: Callable[[], float] = random.random,
    ) -> None:
        if ttl_s < MIN_TTL_S or ttl_s != int(ttl_s):
            raise InvalidInput("ttl_s", ttl_s, f"it must be whole seconds, at least {MIN_TTL_S:g}")
        self._client, self._key, self._ttl_s, self._value = client, key, ttl_s, value
        self._clock, self._chance = clock, chance
        self._view = LeaderView()
        self._tenure: Tenure | None = None
        # Under which the key may be ours, also after the lead is over or an answer was lost.
        self._lease_id = 0
        self._changed = asyncio.Event()
        self._resigning = False
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def lease_valid_until(self) -> float:
        """By the election's clock; 0 without the lead."""
        return self._tenure.valid_until_s if self._tenure else 0.0

    def is_leader(self) -> bool:
        """True only while no one else can lead, also when the event loop was held up."""
        return self._clock() < self.lease_valid_until

    async def campaign(self, report: Report) -> None:
        """Runs until cancelled or until `resign`, winning and losing the lead any number of times.

        `report` is called in this task, strictly Elected, Deposed, Elected, ...; it must return
        at once. A cancelled leader reports Deposed but leaves its key to expire.
        """
        if not self._idle.is_set():
            raise RuntimeError("this candidate is campaigning already")
        self._idle.clear()
        self._resigning = False
        self._view = LeaderView()
        try:
            async with asyncio.TaskGroup() as tasks:
                following = tasks.create_task(self._follow())
                keeper = LeaseKeeper(self._client, answer_within_s=self._ttl_s / RENEWALS_PER_TTL)
                async with keeper:
                    while (tenure := await self._win()) is not None:
                        await self._lead(tenure, keeper, report)
                following.cancel()
        finally:
            self._idle.set()

    async def resign(self) -> None:
        """Ends the campaign; a leader reports Deposed first and then deletes its key.

        `Unavailable` when etcd could not be told: the key then expires with its lease.
        """
        self._resigning = True
        self._changed.set()
        await self._idle.wait()
        await self._drop_lease()

    async def _follow(self) -> None:
        async with aclosing(watch_key(self._client, self._key, chance=self._chance)) as batches:
            async for batch in batches:
                self._view = self._view.after(batch)
                self._changed.set()

    async def _win(self) -> Tenure | None:
        """Waits for the lead; None when resigning."""
        failures = 0
        while not self._resigning:
            try:
                await self._drop_lease()
                if self._view.vacant:
                    if (tenure := await self._attempt()) is not None:
                        return tenure
                    continue
                failures = 0
            except Unavailable as exc:
                failures += 1
                _log.warning("election_attempt_failed", reason=str(exc))
                await asyncio.sleep(_BACKOFF.delay_s(failures, self._chance()))
                continue
            while not (self._view.vacant or self._resigning):
                self._changed.clear()
                await self._changed.wait()
        return None

    async def _attempt(self) -> Tenure | None:
        sent_at_s = self._clock()
        self._lease_id = await self._client.grant(self._ttl_s)
        try:
            won, found = await self._client.put_if_absent(self._key, self._value, self._lease_id)
        except NotFound:
            return None
        assert found is not None
        if won:
            return Tenure(self._lease_id, found.mod_revision, self._ttl_s, sent_at_s)
        self._view = self._view.found(found)
        return None

    async def _drop_lease(self) -> None:
        """Ends what an earlier lead or attempt may have left, so that nobody waits for its end."""
        if self._lease_id:
            await self._client.revoke(self._lease_id)
            self._lease_id = 0

    async def _lead(self, tenure: Tenure, keeper: LeaseKeeper, report: Report) -> None:
        self._tenure = tenure
        reason = "the campaign was cancelled"
        renewing = asyncio.create_task(self._renew(keeper))
        try:
            report(Elected(tenure.valid_until_s))
            _log.info("election_won", key=self._key, revision=tenure.mod_revision)
            reason = await self._until_deposed(renewing)
        except Exception as exc:
            reason = f"the leader failed: {exc}"
            raise
        finally:
            self._tenure = None
            renewing.cancel()
            report(Deposed(reason))
            _log.warning("election_lost", key=self._key, reason=reason)
            await asyncio.gather(renewing, return_exceptions=True)

    async def _until_deposed(self, renewing: asyncio.Task[None]) -> str:
        while True:
            assert self._tenure is not None
            if self._resigning:
                return "it resigned"
            now_s = self._clock()
            reason = self._tenure.ended_because(now_s, self._view)
            if reason is not None:
                return reason
            if renewing.done():
                renewing.result()
            self._changed.clear()
            try:
                async with asyncio.timeout(self._tenure.valid_until_s - now_s):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def _renew(self, keeper: LeaseKeeper) -> None:
        """Keeps the tenure's lease alive until it turns out to be gone."""
        try:
            while (tenure := self._tenure) is not None and not tenure.gone:
                await asyncio.sleep(max(_RENEWAL_PAUSE_S, tenure.renew_at_s - self._clock()))
                sent_at_s = self._clock()
                try:
                    granted_ttl_s = await keeper.renew(tenure.lease_id)
                except Unavailable as exc:
                    _log.warning("election_renewal_failed", reason=str(exc))
                    continue
                self._tenure = tenure.renewed(sent_at_s, granted_ttl_s)
        finally:
            self._changed.set()


async def observe(client: EtcdClient, key: str = LEADER_KEY) -> AsyncGenerator[bytes | None, None]:
    """The present leader's value, then every new one; None while there is none. While etcd is
    away nothing comes, and the last value may be outdated."""
    view, shown = LeaderView(), False
    last: bytes | None = None
    async with aclosing(watch_key(client, key)) as batches:
        async for batch in batches:
            view = view.after(batch)
            value = view.holder.value if view.holder else None
            if not shown or value != last:
                shown, last = True, value
                yield value
