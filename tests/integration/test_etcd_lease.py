"""Leases: expiry, renewal over one stream, and what happens when etcd goes away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from tests.real_servers import EtcdServer
from tests.tcp_proxy import TcpProxy

from muster.domain.errors import Unavailable
from muster.etcd.client import EtcdClient
from muster.etcd.lease import LeaseKeeper


@pytest.fixture
async def client(etcd_server: EtcdServer) -> AsyncIterator[EtcdClient]:
    async with EtcdClient([etcd_server.endpoint]) as opened:
        yield opened


async def test_a_lease_that_nobody_renews_expires_and_one_that_is_renewed_does_not(
    client: EtcdClient,
) -> None:
    left, kept = await client.grant(2), await client.grant(2)
    await client.put("left", b"v", left)
    await client.put("kept", b"v", kept)
    async with LeaseKeeper(client) as keeper:
        started = time.monotonic()
        while await client.get("left") is not None:
            assert time.monotonic() - started < 6.0
            assert await keeper.renew(kept) == 2
            await asyncio.sleep(0.2)
        assert time.monotonic() - started > 1.0
        assert await client.get("kept") is not None
        assert await keeper.renew(left) == 0
        assert await keeper.renew(kept) == 2


async def test_renewals_of_a_lease_that_never_was_or_was_revoked_give_zero(
    client: EtcdClient,
) -> None:
    lease = await client.grant(30)
    async with LeaseKeeper(client) as keeper:
        assert await keeper.renew(12345) == 0
        assert await keeper.renew(lease) == 30
        await client.revoke(lease)
        assert await keeper.renew(lease) == 0


async def test_many_renewals_share_one_connection(
    client: EtcdClient, etcd_server: EtcdServer
) -> None:
    leases = [await client.grant(10 + i % 7) for i in range(100)]
    async with (
        TcpProxy(etcd_server.endpoint) as proxy,
        EtcdClient([proxy.endpoint]) as far,
        LeaseKeeper(far) as keeper,
    ):
        for _ in range(5):
            asked = [*leases, *leases, 999]
            answers = await asyncio.gather(*(keeper.renew(lease) for lease in asked))
            assert answers == [*[10 + i % 7 for i in range(100)] * 2, 0]
        assert proxy.connections == 1


async def test_renewals_survive_a_cut_connection_and_a_half_open_one(
    client: EtcdClient, etcd_server: EtcdServer
) -> None:
    lease = await client.grant(30)
    async with (
        TcpProxy(etcd_server.endpoint) as proxy,
        EtcdClient([proxy.endpoint]) as far,
        LeaseKeeper(far) as keeper,
    ):
        assert await keeper.renew(lease) == 30
        proxy.cut()
        assert await keeper.renew(lease) == 30
        proxy.blackhole()
        answers = await asyncio.gather(*(keeper.renew(lease) for _ in range(10)))
        assert answers == [30] * 10
        assert proxy.connections == 3


async def test_a_stopped_etcd_makes_renewals_fail_in_time_and_none_is_mistaken_later(
    client: EtcdClient, etcd_server: EtcdServer
) -> None:
    long, short = await client.grant(60), await client.grant(30)
    async with LeaseKeeper(client, answer_within_s=1.0) as keeper:
        assert await keeper.renew(long) == 60
        etcd_server.pause()
        started = time.monotonic()
        results = await asyncio.gather(
            *(keeper.renew(long) for _ in range(20)), return_exceptions=True
        )
        assert [type(result) for result in results] == [Unavailable] * 20
        assert 0.9 < time.monotonic() - started < 1.5
        etcd_server.resume()
        async with asyncio.timeout(5):
            while True:
                try:
                    assert await keeper.renew(short) == 30
                    break
                except Unavailable:
                    continue
        answers = await asyncio.gather(*(keeper.renew(lease) for lease in (long, short)))
        assert answers == [60, 30]


async def test_renews_again_after_etcd_restarted(
    client: EtcdClient, etcd_server: EtcdServer
) -> None:
    lease = await client.grant(30)
    await client.put("k", b"v", lease)
    async with LeaseKeeper(client) as keeper:
        assert await keeper.renew(lease) == 30
        # The bundled etcd 3.5.1 may forget the writes of its last 100 ms when it crashes.
        await asyncio.sleep(0.5)
        etcd_server.kill()
        with pytest.raises(Unavailable):
            await keeper.renew(lease)
        await asyncio.to_thread(etcd_server.start)
        async with asyncio.timeout(5):
            while True:
                try:
                    assert await keeper.renew(lease) == 30
                    break
                except Unavailable:
                    continue


async def test_closing_ends_waiting_renewals(client: EtcdClient, etcd_server: EtcdServer) -> None:
    lease = await client.grant(30)
    keeper = LeaseKeeper(client)
    with pytest.raises(Unavailable, match="not open"):
        await keeper.renew(lease)
    await keeper.open()
    assert await keeper.renew(lease) == 30
    etcd_server.pause()
    waiting = asyncio.create_task(keeper.renew(lease))
    await asyncio.sleep(0.05)
    await keeper.close()
    with pytest.raises(Unavailable, match="closed"):
        await waiting
