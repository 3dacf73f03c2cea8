"""The connection to Redis: order, bounds, errors, and what it refuses to call acknowledged."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import grpc
import psutil
import pytest
from structlog.testing import capture_logs
from tests.polling import eventually
from tests.real_servers import RedisServer
from tests.storage_records import SHA_A, TENANT, creations, ident, task

from muster.domain.errors import Overloaded, Unavailable
from muster.rpc.status import to_status
from muster_storage import redis_link
from muster_storage.redis_errors import RedisRefusedError, RedisUnwillingError
from muster_storage.redis_link import RedisAddress, RedisLink
from muster_storage.redis_store import RedisStore


@asynccontextmanager
async def linked(url: str, timeout_s: float = 50.0) -> AsyncIterator[RedisLink]:
    link = RedisLink(RedisAddress.parse(url), timeout_s=timeout_s, name="test")
    running = asyncio.create_task(link.run())
    try:
        await eventually(lambda: link.why_not_ready() is None)
        yield link
    finally:
        running.cancel()
        await asyncio.wait([running])


@asynccontextmanager
async def stored(url: str) -> AsyncIterator[RedisStore]:
    store = RedisStore(url, timeout_s=50.0)
    running = asyncio.create_task(store.run())
    try:
        await eventually(lambda: store.why_not_ready() is None)
        yield store
    finally:
        running.cancel()
        await asyncio.wait([running])


async def test_every_caller_gets_its_own_reply(redis_server: RedisServer) -> None:
    async with linked(redis_server.url) as link:
        replies = await asyncio.gather(*[link.call("ECHO", n) for n in range(1_000)])
        assert replies == [b"%d" % n for n in range(1_000)]
        groups = await asyncio.gather(
            *[link.call_each([("ECHO", n), ("ECHO", -n)]) for n in range(100)]
        )
        assert groups == [[b"%d" % n, b"%d" % -n] for n in range(100)]
        assert link.connections == 1


async def test_callers_that_go_away_shift_no_reply(redis_server: RedisServer) -> None:
    async with linked(redis_server.url) as link:
        callers = [asyncio.create_task(link.call("ECHO", n)) for n in range(100)]
        await asyncio.sleep(0)
        for caller in callers[::3]:
            caller.cancel()
        replies = await asyncio.gather(*callers, return_exceptions=True)
        for n, reply in enumerate(replies):
            assert isinstance(reply, asyncio.CancelledError) if n % 3 == 0 else reply == b"%d" % n


async def test_what_waits_for_redis_is_bounded(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_link, "MAX_IN_FLIGHT_BYTES", 1_000_000)
    async with linked(redis_server.url) as link:
        redis_server.pause()
        try:
            waiting = [asyncio.create_task(link.call("ECHO", b"x" * 300_000)) for _ in range(10)]
            await eventually(lambda: sum(call.done() for call in waiting) == 7)
            refused = [call for call in waiting if call.done()]
            assert all(isinstance(call.exception(), Overloaded) for call in refused)
        finally:
            redis_server.resume()
        answers = await asyncio.gather(*waiting, return_exceptions=True)
        assert [len(a) for a in answers if isinstance(a, bytes)] == [300_000] * 3
        # One call may be larger than the bound when it is alone.
        assert len(await link.call("ECHO", b"x" * 2_000_000)) == 2_000_000


async def test_silence_ends_the_connection_and_everybody_hears(redis_server: RedisServer) -> None:
    async with linked(redis_server.url, timeout_s=1.0) as link:
        redis_server.pause()
        try:
            answers = await asyncio.gather(
                *[link.call("ECHO", n) for n in range(10)], return_exceptions=True
            )
            assert {type(answer) for answer in answers} == {Unavailable}
            assert link.why_not_ready() is not None
            with pytest.raises(Unavailable):
                await link.call("PING")
        finally:
            redis_server.resume()
        while True:
            await eventually(lambda: link.why_not_ready() is None)
            # A machine that stalls for a second is silent, too.
            with suppress(Unavailable):
                assert await link.call("ECHO", "again") == b"again"
                break


async def test_an_idle_connection_that_died_is_noticed(redis_server: RedisServer) -> None:
    async with linked(redis_server.url, timeout_s=0.2) as link:
        redis_server.pause()
        try:
            await eventually(lambda: link.why_not_ready() is not None)
        finally:
            redis_server.resume()


async def test_a_mistake_of_ours_is_no_outage(redis_server: RedisServer) -> None:
    async with linked(redis_server.url) as link:
        await link.call("SET", "{m}:tenants", "no set")
        with pytest.raises(RedisRefusedError, match="WRONGTYPE"):
            await link.call("SMEMBERS", "{m}:tenants")
        with pytest.raises(RedisRefusedError) as caught:
            await link.script("drop_blob", TENANT)
        assert not isinstance(caught.value, Unavailable)
        with pytest.raises(RedisRefusedError) as caught:
            await link.call("EVAL", "return nil + 1", 0)
        assert not isinstance(caught.value, Unavailable)
        assert await link.call("ECHO", "still") == b"still"
        assert link.connections == 1


async def test_an_error_of_the_store_that_has_no_word_here_is_an_outage_told_once(
    redis_server: RedisServer,
) -> None:
    async with linked(redis_server.url) as link:
        with capture_logs() as lines:
            for why in ("ERR the disk is odd", "ERR the disk is odd", "NOPERM not for you"):
                with pytest.raises(Unavailable, match="redis is not available: it refused") as e:
                    await link.call("EVAL", f"return redis.error_reply('{why}')", 0)
                assert to_status(e.value)[0] is grpc.StatusCode.UNAVAILABLE
                # Who asks for what Redis may not grant still hears of a refusal.
                assert isinstance(e.value, RedisUnwillingError)
                assert isinstance(e.value, RedisRefusedError)
        told = [(line["type"], line["why"].split(" script:")[0]) for line in lines]
        assert told == [
            ("RedisUnwillingError", "ERR the disk is odd"),
            ("RedisUnwillingError", "NOPERM not for you"),
        ]
        assert link.connections == 1


async def test_password_and_database(tmp_path: Path) -> None:
    with RedisServer(tmp_path / "a") as server:
        async with linked(server.url) as admin:
            await admin.call("CONFIG", "SET", "requirepass", "se:cret")
            address = f"127.0.0.1:{server.port}"
            async with linked(f"redis://:se%3Acret@{address}/3") as link:
                await link.call("SET", "k", "v")
                assert "db=3" in (await link.call("CLIENT", "LIST")).decode()
            link = RedisLink(
                RedisAddress.parse(f"redis://:wrong@{address}"), timeout_s=50, name="test"
            )
            running = asyncio.create_task(link.run())
            await eventually(lambda: "WRONGPASS" in (link.why_not_ready() or ""))
            running.cancel()
            await asyncio.wait([running])


async def test_a_full_redis_refuses_and_evicts_nothing(redis_server: RedisServer) -> None:
    async with stored(redis_server.url) as store:
        link = store._link
        await store.tasks.create(0, creations([task(n) for n in range(100)]))
        await link.call("CONFIG", "SET", "maxmemory", 1_000_000)
        last = await store.events.last()
        with pytest.raises(Unavailable, match="OOM"):
            await store.tasks.create(0, creations([task(n) for n in range(100, 110)]))
        with pytest.raises(Unavailable, match="OOM"):
            await store.blobs.claim_blob(TENANT, SHA_A, 1, pinned=False)
        assert await store.events.last() == last
        assert (await store.tasks.count(TENANT))[1] == 100
        assert await store.tasks.get(TENANT, [ident(100)], 10) == [None]
        await link.call("CONFIG", "SET", "maxmemory", 0)
        assert (await store.tasks.create(0, creations([task(100)]))).standing == [b""]


async def test_an_evicting_redis_is_refused(tmp_path: Path) -> None:
    with RedisServer(tmp_path, ("--maxmemory-policy", "allkeys-lru")) as server:
        store = RedisStore(server.url, timeout_s=50.0)
        running = asyncio.create_task(store.run())
        try:
            await eventually(
                lambda: "maxmemory-policy is allkeys-lru" in (store.why_not_ready() or "")
            )
            with pytest.raises(Unavailable, match="noeviction"):
                await store.tasks.count(TENANT)
        finally:
            running.cancel()
            await asyncio.wait([running])


async def test_a_redis_that_does_not_tell_its_version_serves(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        async with linked(server.url) as link:
            rules = ("on", ">secret", "~*", "+@all", "-info", "-config")
            await link.call("ACL", "SETUSER", "muster", *rules)
        address = f"redis://muster:secret@{server.endpoint}/0"
        store = RedisStore(address, timeout_s=50.0, allow_weak=True)
        running = asyncio.create_task(store.run())
        try:
            await eventually(lambda: store.why_not_ready() is None)
        finally:
            running.cancel()
            await asyncio.wait([running])


async def test_no_script_blocks_redis_for_long(redis_server: RedisServer) -> None:
    async with stored(redis_server.url) as store:
        link = store._link
        redis = psutil.Process(redis_server.pid)
        labels = {f"label-{n}": "x" * 20 for n in range(32)}
        for made in (
            creations(task(n, labels=labels) for n in range(2_000)),
            creations(task(n) for n in range(2_000, 12_000)),
        ):
            await link.call("CONFIG", "RESETSTAT")
            before = redis.cpu_times()
            await store.tasks.create(0, made)
            after = redis.cpu_times()
            found = re.search(rb"cmdstat_evalsha:calls=(\d+)", await link.call("INFO", "all"))
            assert found is not None
            scripts = int(found[1])
            assert scripts > 60
            # They are made for 5 ms. Of the processor's time: the clock on the wall would measure
            # what else the machine does.
            used_s = after.user + after.system - before.user - before.system
            assert used_s / scripts < 0.010
