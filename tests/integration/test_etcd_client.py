"""Unary calls against a real etcd, healthy, stopped and absent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import pytest
from tests.polling import HANG_S
from tests.real_servers import EtcdServer, free_port
from tests.tcp_proxy import TcpProxy

from muster.domain.errors import NotFound, Unavailable
from muster.etcd import client as client_module
from muster.etcd import wire
from muster.etcd.client import EtcdClient, KeyValue

T = TypeVar("T")


@pytest.fixture
async def client(etcd_server: EtcdServer) -> AsyncIterator[EtcdClient]:
    """Patient: a disk that is busy for a second is no outage."""
    async with EtcdClient([f"http://{etcd_server.endpoint}"], timeout_s=HANG_S) as opened:
        yield opened


async def at_last(call: Callable[[], Awaitable[T]]) -> T:
    """What the call gives once etcd is there: until then Unavailable is sound."""
    async with asyncio.timeout(HANG_S):
        while True:
            try:
                return await call()
            except Unavailable:
                await asyncio.sleep(0.02)


async def test_puts_gets_lists_and_deletes(client: EtcdClient) -> None:
    assert await client.get("a/1") is None
    first = await client.put("a/1", b"one")
    second = await client.put("a/1", b"\x00\xff")
    assert second == first + 1
    assert await client.get("a/1") == KeyValue("a/1", b"\x00\xff", second, first, 0)
    third = await client.put("a/2", b"")
    await client.put("b", b"other")
    kvs, revision = await client.list("a/")
    assert [kv.key for kv in kvs] == ["a/1", "a/2"]
    assert revision == third + 1
    assert await client.delete("a/1")
    assert not await client.delete("a/1")
    assert await client.get("a/1") is None


async def test_lists_many_pages_as_of_one_revision(
    client: EtcdClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "PAGE_KEYS", 3)
    for i in range(10):
        await client.put(f"p/{i}", b"old")
    one_page = wire.range_request
    pages = 0

    def counted(*args: bytes, **options: Any) -> object:
        nonlocal pages
        pages += 1
        return one_page(*args, **options)

    monkeypatch.setattr(wire, "range_request", counted)
    kvs, revision = await client.list("p/")
    assert [kv.key for kv in kvs] == [f"p/{i}" for i in range(10)]
    assert pages == 4
    await client.put("p/5", b"new")
    await client.delete("p/6")
    past = await client.list_versions(b"p/", b"p0", revision)
    assert past is not None
    assert {key: v.mod_revision for key, v in past.items()} == {
        kv.key: kv.mod_revision for kv in kvs
    }
    assert await client.list_versions(b"p/", b"p0", revision + 1000) is None


async def test_compare_and_set(client: EtcdClient) -> None:
    lease = await client.grant(5)
    won, written = await client.put_if_absent("k", b"mine", lease)
    assert won
    assert written == await client.get("k")
    assert written is not None
    assert written.lease_id == lease
    other = await client.grant(5)
    assert await client.put_if_absent("k", b"theirs", other) == (False, written)
    assert await client.put_if_absent("k", b"mine", lease) == (True, written)
    assert not await client.compare_and_put("k", b"theirs", written.mod_revision + 1, other)
    assert await client.compare_and_put("k", b"theirs", written.mod_revision, other)
    assert await client.compare_and_put("k", b"theirs", written.mod_revision, other)
    assert not await client.compare_and_delete("k", written.mod_revision)
    present = await client.get("k")
    assert present is not None
    assert present.lease_id == other
    assert await client.compare_and_delete("k", present.mod_revision)
    assert await client.get("k") is None
    assert await client.compare_and_put("k", b"new", 0)


async def test_revoking_a_lease_deletes_its_keys(client: EtcdClient) -> None:
    lease = await client.grant(30)
    await client.put("k", b"v", lease)
    assert await client.revoke(lease)
    assert await client.get("k") is None
    assert not await client.revoke(lease)
    with pytest.raises(NotFound, match=f"{lease:x}"):
        await client.put("k", b"v", lease)
    with pytest.raises(NotFound):
        await client.put_if_absent("k", b"v", lease)


async def test_status_names_version_and_leader(client: EtcdClient) -> None:
    status = await client.status()
    assert status.version.startswith("3.")
    assert status.leader != 0
    assert status.errors == ()


async def test_a_stopped_etcd_is_unavailable_by_the_deadline(
    etcd_server: EtcdServer,
) -> None:
    async with EtcdClient([etcd_server.endpoint], timeout_s=1.0) as client:
        await at_last(lambda: client.put("k", b"v"))
        etcd_server.pause()
        # It would never answer.
        async with asyncio.timeout(HANG_S):
            results = await asyncio.gather(
                client.get("k"), client.put("k", b"w"), client.status(), return_exceptions=True
            )
        assert [type(result) for result in results] == [Unavailable] * 3
        etcd_server.resume()
        assert await at_last(lambda: client.get("k")) is not None


async def test_an_absent_etcd_is_unavailable_at_once_and_found_when_it_is_back(
    etcd_server: EtcdServer,
) -> None:
    # With a deadline that this test would not live to see.
    async with EtcdClient([etcd_server.endpoint], timeout_s=10 * HANG_S) as client:
        await client.get("k")
        etcd_server.kill()
        async with asyncio.timeout(HANG_S):
            with pytest.raises(Unavailable, match="etcd is not available"):
                await client.get("k")
        await asyncio.to_thread(etcd_server.start)
        await at_last(lambda: client.get("k"))


async def test_a_dead_endpoint_costs_no_call(etcd_server: EtcdServer) -> None:
    dead = f"127.0.0.1:{free_port()}"
    async with EtcdClient([dead, etcd_server.endpoint], timeout_s=HANG_S) as client:
        for i in range(20):
            await client.put(f"k{i}", b"v")
        kvs, _ = await client.list("k")
        assert len(kvs) == 20


async def test_a_half_open_connection_hangs_one_call_not_the_next(etcd_server: EtcdServer) -> None:
    async with (
        TcpProxy(etcd_server.endpoint) as proxy,
        EtcdClient([proxy.endpoint], timeout_s=1.0) as client,
    ):
        await at_last(lambda: client.put("k", b"v"))
        before = proxy.connections
        proxy.blackhole()
        with pytest.raises(Unavailable):
            await client.get("k")
        # The old connection stays hung, so this is another one.
        assert await at_last(lambda: client.get("k")) is not None
        assert proxy.connections > before


async def test_closing_ends_calls_under_way_with_an_error_of_ours(etcd_server: EtcdServer) -> None:
    client = EtcdClient([etcd_server.endpoint], timeout_s=10 * HANG_S)
    await client.open()
    await client.put("k", b"v")
    etcd_server.pause()
    call = asyncio.create_task(client.get("k"))
    await asyncio.sleep(0.1)
    await client.close()
    with pytest.raises(Unavailable):
        await call
