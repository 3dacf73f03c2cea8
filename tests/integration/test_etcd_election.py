"""Elections against a real etcd that is healthy, killed, stopped and emptied of the key."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest
from tests.polling import HANG_S, eventually
from tests.real_servers import EtcdServer

from muster.etcd.client import EtcdClient
from muster.etcd.election import Deposed, Elected, Election, boottime_s, observe
from muster.etcd.keys import LEADER_KEY

# A lead this short ends by itself when the machine stalls for as long, and is then won again.
TTL_S = 3.0
# One that no stall ends, and no expiry within the time that a test waits for anything.
LONG_TTL_S = 10 * HANG_S


class Candidate:
    """One scheduler's side of the election, with a connection of its own."""

    def __init__(self, server: EtcdServer, name: str, ttl_s: float = TTL_S) -> None:
        self.client = EtcdClient([server.endpoint])
        self.election = Election(self.client, ttl_s=ttl_s, value=name.encode())
        self.reports: list[tuple[float, Elected | Deposed]] = []
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self.client.open()
        self.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.vanish()
        await self.client.close()

    def start(self) -> None:
        self._task = asyncio.create_task(self.election.campaign(self._report))

    async def vanish(self) -> None:
        """Ends as a crash does: without a word to etcd."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    @property
    def leads(self) -> bool:
        return self.election.is_leader()

    @property
    def story(self) -> list[type[Elected | Deposed]]:
        return [type(report) for _, report in self.reports]

    @property
    def running(self) -> bool:
        return self._task is not None and not self._task.done()

    def _report(self, report: Elected | Deposed) -> None:
        if isinstance(report, Elected):
            assert self.election.is_leader() or boottime_s() >= report.lease_valid_until
        else:
            assert not self.election.is_leader()
        assert isinstance(report, Deposed) == (self.story[-1:] == [Elected]), "strictly in turn"
        self.reports.append((time.monotonic(), report))


@pytest.fixture
async def client(etcd_server: EtcdServer) -> AsyncIterator[EtcdClient]:
    async with EtcdClient([etcd_server.endpoint], timeout_s=HANG_S) as opened:
        yield opened


async def test_exactly_one_of_three_leads_and_keeps_leading(
    client: EtcdClient, etcd_server: EtcdServer
) -> None:
    async with AsyncExitStack() as stack:
        candidates = [
            await stack.enter_async_context(Candidate(etcd_server, f"h:{i}")) for i in range(3)
        ]
        # Longer than its lease lasts, which only renewals can bring about.
        leader, since_s = candidates[0], time.monotonic()
        async with asyncio.timeout(HANG_S):
            while time.monotonic() - since_s < TTL_S + 1:
                leading = [c for c in candidates if c.leads]
                assert len(leading) <= 1
                if leading != [leader] or leader.story[-1:] != [Elected]:
                    leader, since_s = (leading or candidates)[0], time.monotonic()
                await asyncio.sleep(0.02)
        others = [c for c in candidates if c is not leader]
        assert all(c.story[-1:] != [Elected] for c in others)
        key = await client.get(LEADER_KEY)
        assert key is not None
        assert key.value == f"h:{candidates.index(leader)}".encode()
        assert leader.election.lease_valid_until - boottime_s() < TTL_S


async def test_another_takes_over_when_the_leader_vanishes(etcd_server: EtcdServer) -> None:
    async with (
        Candidate(etcd_server, "h:1") as first,
        Candidate(etcd_server, "h:2") as second,
    ):
        await eventually(lambda: first.leads or second.leads)
        leader, other = (first, second) if first.leads else (second, first)
        valid_until = leader.election.lease_valid_until
        await leader.vanish()
        assert leader.story[-2:] == [Elected, Deposed]
        await eventually(lambda: other.leads)
        assert boottime_s() > valid_until


async def test_resigning_hands_over_at_once(etcd_server: EtcdServer) -> None:
    # At once: nobody here could wait for the end of such a lease.
    async with (
        Candidate(etcd_server, "h:1", LONG_TTL_S) as first,
        Candidate(etcd_server, "h:2", LONG_TTL_S) as second,
    ):
        await eventually(lambda: first.leads or second.leads)
        leader, other = (first, second) if first.leads else (second, first)
        await leader.election.resign()
        assert leader.story == [Elected, Deposed]
        await eventually(lambda: other.leads)
        assert other.reports[0][0] > leader.reports[-1][0]
        await eventually(lambda: not leader.running)
        leader.start()
        await other.election.resign()
        await eventually(lambda: leader.leads)


async def test_a_candidate_may_resign_too(etcd_server: EtcdServer) -> None:
    async with Candidate(etcd_server, "h:1", LONG_TTL_S) as first:
        await eventually(lambda: first.leads)
        async with Candidate(etcd_server, "h:2", LONG_TTL_S) as second:
            await asyncio.sleep(0.2)
            await second.election.resign()
            await eventually(lambda: not second.running)
            assert second.story == []
            assert first.leads


@pytest.mark.parametrize("outage", ["kill", "pause"])
async def test_a_leader_without_etcd_steps_down_before_its_lease_ends_and_leads_again(
    etcd_server: EtcdServer, outage: str
) -> None:
    async with Candidate(etcd_server, "h:1") as only:
        await eventually(lambda: only.leads)
        await asyncio.sleep(1.3)
        if outage == "kill":
            etcd_server.kill()
        else:
            etcd_server.pause()
        # Nothing can have been renewed after this moment.
        began_s = boottime_s()
        assert only.election.lease_valid_until < began_s + TTL_S
        await eventually(lambda: only.story[-2:] == [Elected, Deposed] and not only.leads)
        await eventually(lambda: boottime_s() > began_s + TTL_S)
        assert only.story[-2:] == [Elected, Deposed]
        assert not only.leads
        leads = only.story.count(Elected)
        if outage == "kill":
            await asyncio.to_thread(etcd_server.start)
        else:
            etcd_server.resume()
        await eventually(lambda: only.leads)
        assert only.story.count(Elected) > leads


async def test_a_short_restart_of_etcd_costs_no_lead(tmp_path: Path) -> None:
    quick = EtcdServer(tmp_path, ("--heartbeat-interval=20", "--election-timeout=200"))
    ttl_s = 12.0
    with quick:
        async with Candidate(quick, "h:1", ttl_s) as only:
            await eventually(lambda: only.leads)
            await quick.commit()
            began = time.monotonic()
            await asyncio.to_thread(quick.restart)
            if time.monotonic() - began > ttl_s / 2:
                pytest.skip("this machine is too busy to restart etcd within half a TTL")
            # Renewed there, and by the lead of before.
            valid_until = only.election.lease_valid_until
            await eventually(lambda: only.election.lease_valid_until > valid_until)
            assert only.leads
            assert only.story == [Elected]


async def test_a_leader_whose_key_is_deleted_steps_down_and_one_leads_again(
    client: EtcdClient, etcd_server: EtcdServer
) -> None:
    async with Candidate(etcd_server, "h:1", LONG_TTL_S) as only:
        await eventually(lambda: only.leads)
        await client.delete(LEADER_KEY)
        await eventually(lambda: only.story == [Elected, Deposed, Elected])
        assert only.leads


async def test_a_blocked_event_loop_does_not_prolong_the_lead(etcd_server: EtcdServer) -> None:
    async with Candidate(etcd_server, "h:1") as only:
        await eventually(lambda: only.leads)
        time.sleep(TTL_S)  # noqa: ASYNC251 -- the loop is meant to be blocked
        assert not only.leads
        await eventually(lambda: only.story[:2] == [Elected, Deposed])


async def test_observers_see_every_change_of_leader(
    client: EtcdClient, etcd_server: EtcdServer
) -> None:
    seen: list[bytes | None] = []

    async def watch() -> None:
        async for value in observe(client):
            seen.append(value)  # noqa: PERF401 -- it is read while it grows

    task = asyncio.create_task(watch())
    await eventually(lambda: seen == [None], task)
    async with Candidate(etcd_server, "h:1", LONG_TTL_S) as first:
        await eventually(lambda: seen == [None, b"h:1"], task)
        await first.election.resign()
        await eventually(lambda: seen == [None, b"h:1", None], task)
    async with Candidate(etcd_server, "h:2", LONG_TTL_S):
        await eventually(lambda: seen[3:] == [b"h:2"], task)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
