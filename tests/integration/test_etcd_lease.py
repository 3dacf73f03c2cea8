"""Leases: expiry, renewal over one stream, and what happens when etcd goes away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from tests.polling import HANG_S
from tests.real_servers import EtcdServer
from tests.tcp_proxy import TcpProxy

from muster.domain.errors import NotFound, Unavailable
from muster.etcd.client import EtcdClient
from muster.etcd.lease import LeaseKeeper

# The shortest that etcd grants.
TTL_S = 2


@pytest.fixture
async def client(etcd_server: EtcdServer) -> AsyncIterator[EtcdClient]:
    async with EtcdClient([etcd_server.endpoint], timeout_s=HANG_S) as opened:
        yield opened


async def renewed(keeper: LeaseKeeper, lease: int) -> int:
    """The answer, once there is one: a machine that stalls makes etcd silent for a while."""
    async with asyncio.timeout(HANG_S):
        while True:
            try:
                return await keeper.renew(lease)
            except Unavailable:
                await asyncio.sleep(0.02)


async def one_expires_beside_another(client: EtcdClient, keeper: LeaseKeeper) -> bool:
    """False when this machine has held the renewals up for a whole TTL: that shows nothing."""
    granted_s = sent_s = time.monotonic()
    left, kept = await client.grant(TTL_S), await client.grant(TTL_S)
    try:
        await client.put("left", b"v", left)
        await client.put("kept", b"v", kept)
    except NotFound:
        return False
    while await client.get("left") is not None:
        before_s, sent_s = sent_s, time.monotonic()
        ttl_s = await renewed(keeper, kept)
        # etcd has renewed it at two moments in between.
        if time.monotonic() - before_s >= TTL_S:
            return False
        assert ttl_s == TTL_S
        await asyncio.sleep(0.2)
    assert time.monotonic() - granted_s >= TTL_S
    present = await client.get("kept")
    if time.monotonic() - sent_s >= TTL_S:
        return False
    assert present is not None
    assert await renewed(keeper, left) == 0
    return True


async def test_a_lease_that_nobody_renews_expires_and_one_that_is_renewed_does_not(
    client: EtcdClient,
) -> None:
    async with LeaseKeeper(client) as keeper, asyncio.timeout(HANG_S):
        while not await one_expires_beside_another(client, keeper):
            pass


async def test_renewals_of_a_lease_that_never_was_or_was_revoked_give_zero(
    client: EtcdClient,
) -> None:
    lease = await client.grant(300)
    async with LeaseKeeper(client) as keeper:
        assert await renewed(keeper, 12345) == 0
        assert await renewed(keeper, lease) == 300
        await client.revoke(lease)
        assert await renewed(keeper, lease) == 0


async def test_many_renewals_share_one_connection(
    client: EtcdClient, etcd_server: EtcdServer
) -> None:
    leases = [await client.grant(100 + i % 7) for i in range(100)]
    async with (
        TcpProxy(etcd_server.endpoint) as proxy,
        EtcdClient([proxy.endpoint]) as far,
        # So patient that it leaves no connection of which nothing comes for a while.
        LeaseKeeper(far, answer_within_s=2 * HANG_S) as keeper,
    ):
        await keeper.renew(leases[0])
        before = proxy.connections
        for _ in range(5):
            asked = [*leases, *leases, 999]
            answers = await asyncio.gather(*(keeper.renew(lease) for lease in asked))
            assert answers == [*[100 + i % 7 for i in range(100)] * 2, 0]
        assert proxy.connections == before


async def test_renewals_survive_a_cut_connection_and_a_half_open_one(
    client: EtcdClient, etcd_server: EtcdServer
) -> None:
    lease = await client.grant(300)
    async with (
        TcpProxy(etcd_server.endpoint) as proxy,
        EtcdClient([proxy.endpoint]) as far,
        LeaseKeeper(far) as keeper,
    ):
        assert await renewed(keeper, lease) == 300
        proxy.cut()
        assert await renewed(keeper, lease) == 300
        before = proxy.connections
        assert before >= 2
        proxy.blackhole()
        answers = await asyncio.gather(*(renewed(keeper, lease) for _ in range(10)))
        assert answers == [300] * 10
        assert proxy.connections > before


async def test_a_stopped_etcd_makes_renewals_fail_in_time_and_none_is_mistaken_later(
    client: EtcdClient, etcd_server: EtcdServer
) -> None:
    long, short = await client.grant(600), await client.grant(300)
    async with LeaseKeeper(client, answer_within_s=1.0) as keeper:
        assert await renewed(keeper, long) == 600
        etcd_server.pause()
        # It would never answer.
        async with asyncio.timeout(HANG_S):
            results = await asyncio.gather(
                *(keeper.renew(long) for _ in range(20)), return_exceptions=True
            )
        assert [type(result) for result in results] == [Unavailable] * 20
        etcd_server.resume()
        assert await renewed(keeper, short) == 300
        answers = await asyncio.gather(*(renewed(keeper, lease) for lease in (long, short)))
        assert answers == [600, 300]


async def test_renews_again_after_etcd_restarted(
    client: EtcdClient, etcd_server: EtcdServer
) -> None:
    lease = await client.grant(300)
    await client.put("k", b"v", lease)
    async with LeaseKeeper(client) as keeper:
        assert await renewed(keeper, lease) == 300
        await etcd_server.commit()
        etcd_server.kill()
        with pytest.raises(Unavailable):
            await keeper.renew(lease)
        await asyncio.to_thread(etcd_server.start)
        assert await renewed(keeper, lease) == 300


async def test_closing_ends_waiting_renewals(client: EtcdClient, etcd_server: EtcdServer) -> None:
    lease = await client.grant(300)
    keeper = LeaseKeeper(client, answer_within_s=2 * HANG_S)
    with pytest.raises(Unavailable, match="not open"):
        await keeper.renew(lease)
    await keeper.open()
    assert await keeper.renew(lease) == 300
    etcd_server.pause()
    waiting = asyncio.create_task(keeper.renew(lease))
    await asyncio.sleep(0.05)
    await keeper.close()
    with pytest.raises(Unavailable, match="closed"):
        await waiting
