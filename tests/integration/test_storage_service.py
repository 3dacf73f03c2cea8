"""The storage service over gRPC on a real Redis: durability, outages, two services, blobs."""

from __future__ import annotations

import asyncio
import hashlib
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.polling import HANG_S, eventually
from tests.real_servers import RedisServer
from tests.service_process import SECRET, ServiceProcess
from tests.storage_records import NOW_MS, TENANT, ident, progress, status, task, transition
from tests.tcp_proxy import TcpProxy

from muster.api.v1 import agent_pb2, task_pb2
from muster.api.v1 import storage_pb2 as pb
from muster.api.v1.storage_pb2_grpc import DataServiceStub, StorageServiceStub
from muster.domain.errors import (
    Conflict,
    DeadlineExceeded,
    InvalidInput,
    MusterError,
    NotFound,
    Overloaded,
    PreconditionFailed,
    StaleTerm,
    TooLarge,
    Unavailable,
)
from muster.rpc.channels import ServiceChannel
from muster.rpc.status import rpc_errors
from muster_storage.__main__ import serving
from muster_storage.config import Config

CONTENT = b"0123456789" * 100_000
SHA = hashlib.sha256(CONTENT).hexdigest()


class Storage:
    """A client of one storage service."""

    def __init__(self, port: int) -> None:
        self.channel = ServiceChannel([f"127.0.0.1:{port}"], secret=SECRET, what="storage")

    async def __call__(self, method: str, request: Any, timeout_s: float = HANG_S) -> Any:
        of_data = method in (
            *("GetValue", "PutValue", "DeleteValue", "ListValues", "DeleteBlob"),
            *("SetTaskLogs", "GetTaskLogs"),
        )
        stub: type[Any] = DataServiceStub if of_data else StorageServiceStub
        return await self.channel.call(stub, method, request, timeout_s=timeout_s)

    async def ready(self, within_s: float = HANG_S) -> None:
        async with asyncio.timeout(within_s):
            while True:
                try:
                    await self("CountTasks", pb.CountTasksRequest())
                except MusterError:
                    await asyncio.sleep(0.02)
                else:
                    return

    async def create_at_last(self, *tasks: task_pb2.Task, within_s: float = HANG_S) -> list[int]:
        """As a client does it: whatever may have been lost is asked for again."""
        async with asyncio.timeout(within_s):
            while True:
                try:
                    return await self.create(*tasks)
                except (Unavailable, Overloaded, DeadlineExceeded):
                    await asyncio.sleep(0.02)

    async def term(self) -> int:
        answer = await self("AcquireTerm", pb.AcquireTermRequest(candidate="test"))
        return int(answer.term)

    async def create(self, *tasks: task_pb2.Task, term: int = 0) -> list[int]:
        answer = await self("Create", pb.CreateRequest(term=term, tasks=tasks))
        return [result.code for result in answer.results]

    async def apply(self, term: int, *transitions: pb.Transition) -> list[pb.ApplyResult]:
        request = pb.ApplyRequest(term=term, transitions=transitions)
        return list((await self("Apply", request)).results)

    async def states(self, count: int) -> list[int]:
        request = pb.GetTasksRequest(tenant=TENANT, ids=[ident(n) for n in range(count)])
        return [t.status.state for t in (await self("GetTasks", request)).tasks]

    async def tail(self, **request: Any) -> AsyncIterator[pb.TailResponse]:
        call = self.channel.stream(StorageServiceStub, "Tail", pb.TailRequest(**request))
        try:
            with rpc_errors("storage"):
                async for message in call:
                    yield message
        finally:
            call.cancel()

    async def put_blob(self, header: pb.BlobHeader, *chunks: bytes) -> pb.PutBlobResponse:
        async def messages() -> AsyncIterator[pb.PutBlobRequest]:
            yield pb.PutBlobRequest(header=header)
            for chunk in chunks:
                yield pb.PutBlobRequest(chunk=chunk)

        with rpc_errors("storage"):
            answer: pb.PutBlobResponse = await self.channel.stream(
                DataServiceStub, "PutBlob", messages(), timeout_s=HANG_S
            )
            return answer

    async def get_blob(self, sha256: str) -> bytes:
        request = pb.GetBlobRequest(tenant=TENANT, sha256=sha256)
        call = self.channel.stream(DataServiceStub, "GetBlob", request, timeout_s=HANG_S)
        with rpc_errors("storage"):
            return b"".join([message.chunk async for message in call])


# How long Redis may be silent: so long that no stall of this machine counts as an outage, but where
# the silence itself is tested. A write of 8 MB may keep a busy disk for a second.
PATIENT_S, SILENT_S = 50.0, 2.0


def config_for(redis_url: str, tmp_path: Path, redis_timeout_s: float = PATIENT_S) -> Config:
    return Config(
        listen="127.0.0.1:0",
        metrics_listen="127.0.0.1:0",
        secret=SECRET,
        redis_url=redis_url,
        blob_dir=tmp_path / "blobs",
        redis_timeout_s=redis_timeout_s,
    )


@asynccontextmanager
async def client_of(config: Config) -> AsyncIterator[Storage]:
    """A client of a ready service in this process."""
    async with serving(config) as ports:
        storage = Storage(ports.rpc)
        try:
            await storage.ready()
            yield storage
        finally:
            await storage.channel.close()


@pytest.fixture(scope="module")
def shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """For tests that leave their Redis alive."""
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def emptied_redis(shared_redis: RedisServer) -> RedisServer:
    with socket.create_connection(("127.0.0.1", shared_redis.port)) as link:
        link.sendall(b"FLUSHALL\r\n")
        assert link.recv(5) == b"+OK\r\n"
    return shared_redis


@pytest.fixture
async def storage(emptied_redis: RedisServer, tmp_path: Path) -> AsyncIterator[Storage]:
    async with client_of(config_for(emptied_redis.url, tmp_path)) as client:
        yield client


@pytest.fixture
async def pair(
    emptied_redis: RedisServer, tmp_path: Path
) -> AsyncIterator[tuple[Storage, Storage]]:
    """Two services on one Redis and one blob folder."""
    config = config_for(emptied_redis.url, tmp_path)
    async with client_of(config) as first, client_of(config) as second:
        yield first, second


@pytest.fixture
async def fragile(redis_server: RedisServer, tmp_path: Path) -> AsyncIterator[Storage]:
    """On a Redis of its own, `redis_server`, to be killed."""
    async with client_of(config_for(redis_server.url, tmp_path)) as client:
        yield client


@pytest.fixture
async def attentive(redis_server: RedisServer, tmp_path: Path) -> AsyncIterator[Storage]:
    """The same, which soon takes a silent Redis for a dead one."""
    async with client_of(config_for(redis_server.url, tmp_path, SILENT_S)) as client:
        yield client


# --- tasks ----------------------------------------------------------------------------------


async def test_a_task_travels_through_the_contract(storage: Storage) -> None:
    term = await storage.term()
    assert await storage.create(task(0), task(1)) == [pb.CREATE_CODE_CREATED] * 2
    again = await storage("Create", pb.CreateRequest(tasks=[task(0)]))
    assert (again.results[0].code, again.results[0].status) == (pb.CREATE_CODE_EXISTS, status())
    done = task_pb2.Outcome(kind=task_pb2.OUTCOME_KIND_SUCCEEDED, output_json=b"[1]")
    results = await storage.apply(
        term,
        transition(0, (1, 0), status(2, 1, "agent-1")),
        transition(0, (2, 1), status(4, 1, "agent-1"), outcome=done),
        transition(1, (2, 1), status(4, 1), outcome=done),
        transition(7, (1, 0), status(2, 1, "agent-1")),
    )
    assert [result.code for result in results] == [
        *(pb.APPLY_CODE_OK, pb.APPLY_CODE_OK, pb.APPLY_CODE_STALE, pb.APPLY_CODE_NOT_FOUND),
    ]
    assert results[2].status == status()
    request = pb.GetTasksRequest(tenant=TENANT, ids=[ident(7), ident(0)])
    unknown, found = (await storage("GetTasks", request)).tasks
    assert not unknown.HasField("spec")
    assert (found.spec, found.outcome) == (task(0).spec, done)
    counts = (await storage("CountTasks", pb.CountTasksRequest(tenant=TENANT))).by_state
    assert (counts["PENDING"], counts["SUCCEEDED"], len(counts)) == (1, 1, 8)


async def test_inputs_and_outputs_can_be_left_out(storage: Storage) -> None:
    term = await storage.term()
    await storage.create(task(0, input_json=b"[1]"))
    done = task_pb2.Outcome(kind=task_pb2.OUTCOME_KIND_SUCCEEDED, output_json=b"[2]")
    await storage.apply(term, transition(0, (1, 0), status(4), outcome=done))
    request = pb.GetTasksRequest(
        tenant=TENANT, ids=[ident(0), ident(1)], without_input=True, without_output=True
    )
    found, unknown = (await storage("GetTasks", request)).tasks
    assert (found.spec.input_json, found.outcome.output_json) == (b"", b"")
    assert found.outcome.kind == task_pb2.OUTCOME_KIND_SUCCEEDED
    assert not unknown.HasField("spec")
    assert not unknown.HasField("outcome")
    (whole,) = (await storage("ListTasks", pb.ListTasksRequest(tenant=TENANT))).tasks
    assert (whole.spec.input_json, whole.outcome.output_json) == (b"[1]", b"[2]")
    lean = pb.ListTasksRequest(tenant=TENANT, without_input=True)
    (listed,) = (await storage("ListTasks", lean)).tasks
    assert (listed.spec.input_json, listed.outcome.output_json) == (b"", b"[2]")
    lean.without_output = True
    assert list((await storage("ListTasks", lean)).tasks) == [found]


async def test_an_answer_that_would_be_too_large_is_refused(storage: Storage) -> None:
    for n in range(17):
        await storage.create(task(n, input_json=b"1" * 1_000_000))
    request = pb.GetTasksRequest(tenant=TENANT, ids=[ident(n) for n in range(17)])
    with pytest.raises(TooLarge):
        await storage("GetTasks", request)
    request.without_input = True
    assert len((await storage("GetTasks", request)).tasks) == 17
    page = await storage("ListTasks", pb.ListTasksRequest(tenant=TENANT, oldest_first=True))
    assert 8 <= len(page.tasks) <= 9
    assert page.next == page.tasks[-1].spec.id


async def test_ten_thousand_tasks_in_one_call(storage: Storage) -> None:
    codes = await storage.create(*[task(n) for n in range(10_000)])
    assert codes == [pb.CREATE_CODE_CREATED] * 10_000
    assert await storage.states(10_000) == [1] * 10_000
    with pytest.raises(TooLarge):
        await storage.create(*[task(n) for n in range(10_001)])


@pytest.mark.parametrize(
    ("method", "request_", "field"),
    [
        ("Reserve", pb.ReserveRequest(tenant=TENANT, key="k", now_ms=1), "body_hash"),
        (
            "Reserve",
            pb.ReserveRequest(tenant=TENANT, key="", body_hash=b"h" * 32, now_ms=1),
            "Idempotency-Key",
        ),
        ("Reserve", pb.ReserveRequest(tenant=TENANT, key="k", body_hash=b"h" * 32), "now_ms"),
        ("GetTasks", pb.GetTasksRequest(tenant=TENANT, ids=["x"]), "id"),
        ("GetTasks", pb.GetTasksRequest(tenant="", ids=[ident(1)]), "tenant"),
        ("ListTasks", pb.ListTasksRequest(tenant=TENANT, limit=1_001), "limit"),
        ("ListTasks", pb.ListTasksRequest(tenant=TENANT, limit=-1), "limit"),
        ("ListTasks", pb.ListTasksRequest(tenant=TENANT, cursor="x"), "id"),
        ("ListTasks", pb.ListTasksRequest(tenant=TENANT, state=99), "state"),  # type: ignore[arg-type]
        ("ConfirmTerm", pb.ConfirmTermRequest(term=1, advance_ms=-1), "advance_ms"),
        ("NextIncarnation", pb.NextIncarnationRequest(agent="A"), "agent"),
        ("PutPolicy", pb.PutPolicyRequest(policy_json=b"x" * 1_048_577), "policy_json"),
        ("SetAgentWish", pb.SetAgentWishRequest(agent="a"), "wish"),
        ("SetAgentWish", pb.SetAgentWishRequest(agent="a", wish=2, who="\n"), "who"),  # type: ignore[arg-type]
        ("CreateApiKey", pb.CreateApiKeyRequest(key=pb.ApiKey(id="a b")), "id"),
        ("PutValue", pb.PutValueRequest(tenant=TENANT, key=""), "key"),
        ("PutValue", pb.PutValueRequest(tenant=TENANT, key="a\n"), "key"),
        ("PutValue", pb.PutValueRequest(tenant=TENANT, key="k" * 513), "key"),
        ("PutValue", pb.PutValueRequest(tenant="a:b", key="k"), "tenant"),
        ("PutValue", pb.PutValueRequest(tenant=TENANT, key="k", value=b"x" * 1_048_577), "value"),
        (
            "PutValue",
            pb.PutValueRequest(tenant=TENANT, key="k", content_type="a\r\nb"),
            "content_type",
        ),
        ("ListValues", pb.ListValuesRequest(tenant=TENANT, limit=1_001), "limit"),
        ("DeleteBlob", pb.DeleteBlobRequest(tenant=TENANT, sha256="../x"), "sha256"),
        (
            "SetTaskLogs",
            pb.SetTaskLogsRequest(
                logs=[pb.TaskLogRef(tenant=TENANT, task_id=ident(1), sha256="../x")]
            ),
            "logs.sha256",
        ),
    ],
)
async def test_bad_input_is_named(storage: Storage, method: str, request_: Any, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        await storage(method, request_)
    assert caught.value.field == field


async def test_a_new_leader_loads_all_open_tasks(storage: Storage) -> None:
    old = await storage.term()
    await storage.create(*[task(n) for n in range(1_200)], task(1_200, tenant="other"))
    await storage.apply(
        old,
        *[transition(n, (1, 0), status(2, 1, "a")) for n in range(600)],
        *[transition(n, (1, 0), status(4)) for n in range(600, 700)],
    )
    await storage.apply(old, *[transition(n, (2, 1), status(3, 1, "a")) for n in range(10)])
    term = await storage.term()

    async def load(given: int) -> list[pb.LoadOpenResponse]:
        request = pb.LoadOpenRequest(term=given)
        call = storage.channel.stream(StorageServiceStub, "LoadOpen", request, timeout_s=HANG_S)
        with rpc_errors("storage"):
            return [message async for message in call]

    messages = await load(term)
    loaded = [(t.spec.id, t.status.state) for message in messages for t in message.tasks]
    expected = [(ident(n), 3 if n < 10 else 2 if n < 600 else 1) for n in range(1_201)]
    assert sorted(loaded) == expected[:600] + expected[700:]
    assert max(len(message.tasks) for message in messages) == 500
    assert len({message.tail_from for message in messages}) == 1
    with pytest.raises(StaleTerm):
        await load(old)
    await storage.create(task(2_000))
    async for message in storage.tail(from_id=messages[0].tail_from, only_term_zero=True):
        if message.events:
            assert [event.task_id for event in message.events] == [ident(2_000)]
            break


# --- several services, kills, outages -------------------------------------------------------


async def test_two_services_share_everything(pair: tuple[Storage, Storage]) -> None:
    first, second = pair
    old = await first.term()
    tail = second.tail()
    await anext(tail)
    # Both create the same tasks at the same time: each is created by exactly one of them.
    created = await asyncio.gather(
        *[storage.create(*[task(n) for n in range(300)]) for storage in (first, second)]
    )
    for codes in zip(*created, strict=True):
        assert sorted(codes) == [pb.CREATE_CODE_CREATED, pb.CREATE_CODE_EXISTS]
    # Both assign them: each is assigned once.
    applied = await asyncio.gather(
        *[
            storage.apply(old, *[transition(n, (1, 0), status(2, 1, agent)) for n in range(300)])
            for storage, agent in ((first, "a"), (second, "b"))
        ]
    )
    for results in zip(*applied, strict=True):
        assert sorted(r.code for r in results) == [pb.APPLY_CODE_OK, pb.APPLY_CODE_STALE]
    seen: list[tuple[int, str]] = []
    async for message in tail:
        seen += [(event.state, event.task_id) for event in message.events]
        if len(seen) == 600:
            break
    assert sorted(seen) == [(state, ident(n)) for state in (1, 2) for n in range(300)]
    # A term taken at one of them fences what comes through the other.
    term = await second.term()
    assert term == old + 1
    with pytest.raises(StaleTerm) as caught:
        await first.apply(old, transition(0, (2, 1), status(4, 1)))
    assert (caught.value.given, caught.value.current) == (old, term)
    assert await second.states(1) == [2]


async def test_killing_redis_loses_nothing_acknowledged(
    fragile: Storage, redis_server: RedisServer
) -> None:
    term = await fragile.term()
    acknowledged: dict[int, int] = {}
    stopping = asyncio.Event()
    next_index = iter(range(10_000_000))

    async def client() -> None:
        while not stopping.is_set():
            batch = [next(next_index) for _ in range(20)]
            try:
                for n, code in zip(batch, await fragile.create(*map(task, batch)), strict=True):
                    assert code == pb.CREATE_CODE_CREATED
                    acknowledged[n] = 1
                changes = [transition(n, (1, 0), status(2, 1, "a")) for n in batch]
                for n, result in zip(batch, await fragile.apply(term, *changes), strict=True):
                    assert result.code == pb.APPLY_CODE_OK
                    acknowledged[n] = 2
            except (Unavailable, DeadlineExceeded):
                await asyncio.sleep(0.01)

    clients = [asyncio.create_task(client()) for _ in range(4)]
    for _ in range(3):
        count = len(acknowledged)
        await eventually(lambda c=count: len(acknowledged) > c + 500)  # type: ignore[misc]
        await asyncio.to_thread(redis_server.restart)
    await fragile.ready()
    stopping.set()
    await asyncio.gather(*clients)
    known = sorted(acknowledged)
    standing: list[int] = []
    for lo in range(0, len(known), 5_000):
        ids = [ident(n) for n in known[lo : lo + 5_000]]
        answer = await fragile("GetTasks", pb.GetTasksRequest(tenant=TENANT, ids=ids))
        standing += [t.status.state for t in answer.tasks]
    lost = [n for n, state in zip(known, standing, strict=True) if state < acknowledged[n]]
    assert lost == []
    counts = (await fragile("CountTasks", pb.CountTasksRequest())).by_state
    assert counts["PENDING"] + counts["ASSIGNED"] >= len(known) > 1_500


async def test_tail_sees_every_event_once_across_a_restart_of_redis(
    fragile: Storage, redis_server: RedisServer
) -> None:
    seen: list[tuple[int, str]] = []
    started = asyncio.Event()
    gaps = 0

    async def follow() -> None:
        nonlocal gaps
        async for message in fragile.tail():
            started.set()
            gaps += message.gap
            seen.extend((int(event.id), event.task_id) for event in message.events)

    following = asyncio.create_task(follow(), name="the follower")
    await eventually(started.is_set, following)
    # A stream that still reads the log when Redis goes away ends, for its client to take up again;
    # with the first event heard it lives on what the service's one reader hands out.
    await fragile.create(task(9_001))
    created = [ident(9_001)]
    await eventually(lambda: bool(seen), following)
    for round_ in range(3):
        for n in range(round_ * 1_000, round_ * 1_000 + 100, 10):
            await fragile.create(*[task(i) for i in range(n, n + 10)])
            created += [ident(i) for i in range(n, n + 10)]
        await asyncio.to_thread(redis_server.restart)
        await fragile.ready()
    await fragile.create(task(9_000))
    created.append(ident(9_000))
    await eventually(lambda: len(seen) >= len(created), following)
    following.cancel()
    await asyncio.wait([following])
    assert seen == [(n, i) for n, i in enumerate(created, 1)]
    assert gaps == 0


async def test_a_dead_redis_is_unavailable_at_once_and_comes_back(
    fragile: Storage, redis_server: RedisServer
) -> None:
    await fragile.create(task(0))
    redis_server.kill()
    with pytest.raises(Unavailable):
        await fragile.create(task(1))
    # Nobody waits for the silence that would be too long: twenty of these would take minutes.
    async with asyncio.timeout(HANG_S):
        for n in range(20):
            with pytest.raises(Unavailable) as caught:
                await fragile.create(task(n + 2))
            assert "redis" in str(caught.value)
    await asyncio.to_thread(redis_server.start)
    await fragile.ready()
    assert await fragile.create(task(0), task(100)) == [pb.CREATE_CODE_EXISTS, 1]


async def test_a_stopped_redis_is_noticed(attentive: Storage, redis_server: RedisServer) -> None:
    redis_server.pause()
    try:
        large = [task(n, input_json=b"1" * 1_000_000) for n in range(8)]
        results = await asyncio.gather(
            *[attentive.create(*large) for _ in range(20)], return_exceptions=True
        )
        # By the silence, that is, and not by the deadline of a call.
        assert {type(result).__name__ for result in results} <= {"Unavailable", "Overloaded"}
        # From now on it is known, and nobody waits for the silence again.
        async with asyncio.timeout(HANG_S):
            for _ in range(40):
                with pytest.raises(Unavailable):
                    await attentive.create(task(1))
    finally:
        redis_server.resume()
    # What had been sent before the stop is written first, and may take its time.
    assert await attentive.create_at_last(task(50)) in (
        [pb.CREATE_CODE_CREATED],
        [pb.CREATE_CODE_EXISTS],
    )


async def test_a_half_open_connection_is_given_up(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    async with TcpProxy(redis_server.endpoint) as proxy:
        through = config_for(f"redis://{proxy.endpoint}/0", tmp_path, SILENT_S)
        async with client_of(through) as storage:
            proxy.blackhole()
            with pytest.raises(Unavailable):
                await storage.create(task(1))
            # A machine that stalls may make it leave the next connection, too.
            assert await storage.create_at_last(task(2)) in (
                [pb.CREATE_CODE_CREATED],
                [pb.CREATE_CODE_EXISTS],
            )


async def test_flushed_scripts_are_loaded_again(
    fragile: Storage, redis_server: RedisServer
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", redis_server.port)
    writer.write(b"SCRIPT FLUSH\r\n")
    assert await reader.readline() == b"+OK\r\n"
    assert await fragile.create(*[task(n) for n in range(1_000)]) == [1] * 1_000
    assert await fragile.states(1_000) == [1] * 1_000
    writer.close()


# --- processes ------------------------------------------------------------------------------


@pytest.fixture
def process(redis_server: RedisServer, tmp_path: Path) -> Iterator[ServiceProcess]:
    env = {"MUSTER_REDIS_URL": redis_server.url, "MUSTER_BLOB_DIR": str(tmp_path / "blobs")}
    service = ServiceProcess("storage", tmp_path / "storage", env)
    try:
        yield service
    finally:
        service.stop()


async def test_a_killed_service_loses_nothing_and_needs_no_order_of_starting(
    process: ServiceProcess, redis_server: RedisServer
) -> None:
    redis_server.kill()
    await asyncio.to_thread(process.start)
    code, why = await asyncio.to_thread(process.get, "/readyz")
    assert code == 503
    assert redis_server.endpoint in why
    await asyncio.to_thread(redis_server.start)
    storage = Storage(process.port)
    await storage.ready()
    assert await storage.create(*[task(n) for n in range(500)]) == [1] * 500
    await asyncio.to_thread(process.restart)
    await storage.ready()
    assert await storage.states(500) == [1] * 500
    code, why = await asyncio.to_thread(process.get, "/readyz")
    assert (code, why) == (200, "ready\n")
    await storage.term()
    with pytest.raises(StaleTerm):
        await storage.apply(99, transition(1, (1, 0), status(4)))
    _, metrics = await asyncio.to_thread(process.get, "/metrics")
    assert 'muster_storage_refused_writes_total{why="fenced"} 1.0' in metrics
    assert "muster_storage_redis_seconds_bucket" in metrics
    await storage.channel.close()


async def test_a_redis_that_may_lose_tasks_is_refused_unless_allowed(
    process: ServiceProcess, tmp_path: Path
) -> None:
    with RedisServer(tmp_path / "weak", ("--appendfsync", "everysec")) as weak:
        process._env["MUSTER_REDIS_URL"] = weak.url
        await asyncio.to_thread(process.start)
        storage = Storage(process.port)

        def refused() -> bool:
            code, why = process.get("/readyz")
            return code == 503 and "appendfsync is everysec and must be always" in why

        await eventually(refused)
        with pytest.raises(Unavailable):
            await storage.create(task(1))
        process.stop()
        process._env["MUSTER_ALLOW_WEAK_REDIS"] = "1"
        await asyncio.to_thread(process.start)
        await storage.ready()
        assert await storage.create(task(1)) == [pb.CREATE_CODE_CREATED]
        await storage.channel.close()


# --- events ---------------------------------------------------------------------------------


async def test_the_leader_hears_of_what_others_write(storage: Storage) -> None:
    term = await storage.term()
    leader = storage.tail(only_term_zero=True)
    first = await anext(leader)
    assert (len(first.events), first.gap) == (0, False)
    await storage.create(task(1, state=2, attempt=1, agent="a"), term=term)
    await storage.create(task(2))
    await storage("SetAgentWish", pb.SetAgentWishRequest(agent="a", wish=3, who="op"))  # type: ignore[arg-type]
    await storage("PutPolicy", pb.PutPolicyRequest(policy_json=b"{}"))
    heard: list[pb.Event] = []
    async for message in leader:
        heard += message.events
        if len(heard) == 3:
            break
    assert [event.kind for event in heard] == [
        pb.EVENT_KIND_TASK_CREATED,
        pb.EVENT_KIND_AGENT_WISH_CHANGED,
        pb.EVENT_KIND_POLICY_CHANGED,
    ]
    assert heard[0].task_id == ident(2)
    assert (heard[1].agent, heard[1].note, heard[1].why) == ("a", "DRAIN", "op")
    wishes = (await storage("ListAgentWishes", pb.ListAgentWishesRequest())).wishes
    assert dict(wishes) == {"a": agent_pb2.AGENT_WISH_DRAIN}


async def test_a_tail_is_resumed_where_it_ended(storage: Storage) -> None:
    await storage.create(*[task(n) for n in range(20)])
    seen: list[str] = []
    last = "0"
    while len(seen) < 20:
        async for message in storage.tail(from_id=last, tenant=TENANT):
            last = message.last_id
            if message.events:
                seen += [event.task_id for event in message.events[:7]]
                last = message.events[:7][-1].id
                break
    assert seen == [ident(n) for n in range(20)]
    with pytest.raises(InvalidInput):
        await anext(storage.tail(from_id="1-0"))


async def test_an_event_reaches_its_subscriber_as_fast_as_the_writer_its_answer(
    storage: Storage,
) -> None:
    tail = storage.tail()
    await anext(tail)
    in_time = 0
    for n in range(50):
        reading = asyncio.ensure_future(anext(tail))
        await storage.create(task(n))
        # By the time of the answer to the next question, which is asked afterwards.
        await storage("CountTasks", pb.CountTasksRequest())
        in_time += reading.done()
        message = await reading
        assert message.events[0].task_id == ident(n)
    # Most: what else the machine does may hold up one of both ways.
    assert in_time > 25


async def test_progress_is_published_for_the_attempt_under_way(storage: Storage) -> None:
    term = await storage.term()
    await storage.create(task(0, state=2, attempt=1, agent="a"), term=term)
    tail = storage.tail(kinds=[pb.EVENT_KIND_TASK_PROGRESS])
    await anext(tail)
    events = [progress(0, 2, 0.9, term=term), progress(0, 1, 0.5, term=term)]
    await storage("Publish", pb.PublishRequest(events=events))
    message = await anext(tail)
    assert [event.fraction for event in message.events] == [0.5]
    found = await storage("GetTasks", pb.GetTasksRequest(tenant=TENANT, ids=[ident(0)]))
    assert found.tasks[0].progress.fraction == 0.5
    with pytest.raises(StaleTerm):
        await storage("Publish", pb.PublishRequest(events=[progress(0, 1, 0.6, term=term + 1)]))


# --- the cluster's own records --------------------------------------------------------------


async def test_the_clock_moves_with_the_term_by_bounded_steps(storage: Storage) -> None:
    old, term = await storage.term(), await storage.term()
    steps = [(term, 500), (old, 500), (term, 60_000)]
    answers = [
        await storage("ConfirmTerm", pb.ConfirmTermRequest(term=t, advance_ms=ms))
        for t, ms in steps
    ]
    assert [(a.current, a.clock_ms) for a in answers] == [(True, 500), (False, 500), (True, 10_500)]


async def test_a_request_keeps_its_first_time(storage: Storage) -> None:
    request = pb.ReserveRequest(tenant=TENANT, key="k", body_hash=b"h" * 32, now_ms=NOW_MS)
    first = await storage("Reserve", request)
    request.now_ms += 5
    again = await storage("Reserve", request)
    request.body_hash = b"g" * 32
    other = await storage("Reserve", request)
    assert [(a.first_ms, a.first, a.conflict) for a in (first, again, other)] == [
        *((NOW_MS, True, False), (NOW_MS, False, False), (NOW_MS, False, True)),
    ]


async def test_the_policy_is_compared_and_set(storage: Storage) -> None:
    put = await storage("PutPolicy", pb.PutPolicyRequest(policy_json=b"{}"))
    with pytest.raises(PreconditionFailed):
        await storage("PutPolicy", pb.PutPolicyRequest(policy_json=b"[]", if_match="0"))
    got = await storage("GetPolicy", pb.GetPolicyRequest())
    assert (got.policy_json, got.etag) == (b"{}", put.etag)


async def test_api_keys_keep_their_record(storage: Storage) -> None:
    key = pb.ApiKey(
        id="k1",
        tenant=TENANT,
        role="admin",
        name="first",
        secret_sha256=b"s" * 32,
        created_at_ms=5,
        revoked_at_ms=1,
    )
    await storage("CreateApiKey", pb.CreateApiKeyRequest(key=key))
    with pytest.raises(Conflict):
        await storage("CreateApiKey", pb.CreateApiKeyRequest(key=key))
    with pytest.raises(NotFound):
        await storage("GetApiKey", pb.GetApiKeyRequest(id="k2"))
    with pytest.raises(NotFound):
        await storage("RevokeApiKey", pb.RevokeApiKeyRequest(id="k1", tenant="other", now_ms=9))
    await storage("TouchApiKeys", pb.TouchApiKeysRequest(last_used_at_ms={"k1": 7}))
    revoked = await storage(
        "RevokeApiKey", pb.RevokeApiKeyRequest(id="k1", tenant=TENANT, now_ms=9)
    )
    key.revoked_at_ms, key.last_used_at_ms = 9, 7
    assert revoked.key == key
    assert (await storage("GetApiKey", pb.GetApiKeyRequest(id="k1"))).key == key
    for tenant, count in ((TENANT, 1), ("other", 0), ("", 1)):
        answer = await storage("ListApiKeys", pb.ListApiKeysRequest(tenant=tenant))
        assert len(answer.keys) == count
    secret = pb.ApiKey(id="k3", tenant=TENANT, role="admin", secret_sha256=b"mst_secret")
    with pytest.raises(InvalidInput) as caught:
        await storage("CreateApiKey", pb.CreateApiKeyRequest(key=secret))
    assert "mst_secret" not in str(caught.value)


async def test_incarnations(pair: tuple[Storage, Storage]) -> None:
    request = pb.NextIncarnationRequest(agent="a")
    found = [(await storage("NextIncarnation", request)).incarnation for storage in pair * 2]
    assert found == [1, 2, 3, 4]


# --- values, blobs, logs --------------------------------------------------------------------


async def test_one_of_many_writers_wins_each_compare_and_set(
    pair: tuple[Storage, Storage],
) -> None:
    counter = pb.PutValueRequest(tenant=TENANT, key="counter", value=b"0", if_none_match=True)
    made = await asyncio.gather(*[storage("PutValue", counter) for storage in pair])
    assert sorted(answer.written for answer in made) == [False, True]

    async def add(storage: Storage, times: int) -> None:
        while times:
            got = await storage("GetValue", pb.GetValueRequest(tenant=TENANT, key="counter"))
            request = pb.PutValueRequest(
                tenant=TENANT, key="counter", value=b"%d" % (int(got.value) + 1), if_match=got.etag
            )
            times -= (await storage("PutValue", request)).written

    await asyncio.gather(*[add(storage, 10) for storage in pair * 2])
    got = await pair[0]("GetValue", pb.GetValueRequest(tenant=TENANT, key="counter"))
    assert (got.found, got.value) == (True, b"40")
    deleted = await pair[1]("DeleteValue", pb.DeleteValueRequest(tenant=TENANT, key="counter"))
    assert (deleted.deleted, deleted.found, deleted.etag) == (True, True, got.etag)
    gone = await pair[0]("GetValue", pb.GetValueRequest(tenant=TENANT, key="counter"))
    assert not gone.found
    listed = await pair[0]("ListValues", pb.ListValuesRequest(tenant=TENANT))
    assert list(listed.keys) == []


async def test_a_blob_put_at_one_service_is_got_at_the_other(
    pair: tuple[Storage, Storage],
) -> None:
    first, second = pair
    chunks = [CONTENT[at : at + 100_000] for at in range(0, len(CONTENT), 100_000)]
    put = await first.put_blob(pb.BlobHeader(tenant=TENANT, sha256=SHA), *chunks)
    assert (put.sha256, put.size_bytes) == (SHA, len(CONTENT))
    assert await second.get_blob(SHA) == CONTENT
    assert (await second("DeleteBlob", pb.DeleteBlobRequest(tenant=TENANT, sha256=SHA))).found
    with pytest.raises(NotFound):
        await first.get_blob(SHA)


async def test_a_blob_that_is_not_what_was_said_is_refused(storage: Storage) -> None:
    with pytest.raises(InvalidInput):
        await storage.put_blob(pb.BlobHeader(tenant=TENANT, sha256=SHA), CONTENT[:-1])
    with pytest.raises(NotFound):
        await storage.get_blob(SHA)
    with pytest.raises(InvalidInput):
        await storage.put_blob(pb.BlobHeader(tenant="../..", sha256=SHA), CONTENT)


async def test_the_first_message_of_a_blob_is_its_header(storage: Storage) -> None:
    async def headless() -> AsyncIterator[pb.PutBlobRequest]:
        yield pb.PutBlobRequest(chunk=b"x")

    call = storage.channel.stream(DataServiceStub, "PutBlob", headless(), timeout_s=HANG_S)
    with pytest.raises(InvalidInput), rpc_errors("storage"):
        await call


async def test_an_upload_that_breaks_off_leaves_nothing(storage: Storage, tmp_path: Path) -> None:
    sending = asyncio.Event()

    async def endless() -> AsyncIterator[pb.PutBlobRequest]:
        yield pb.PutBlobRequest(header=pb.BlobHeader(tenant=TENANT))
        yield pb.PutBlobRequest(chunk=CONTENT)
        yield pb.PutBlobRequest(chunk=CONTENT)
        sending.set()
        await asyncio.Event().wait()

    def files() -> list[Path]:
        return [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()]

    call = storage.channel.stream(DataServiceStub, "PutBlob", endless(), timeout_s=HANG_S)
    uploading = asyncio.ensure_future(call)
    await sending.wait()
    await eventually(lambda: len(files()) == 1)
    call.cancel()
    await asyncio.wait([uploading])
    await eventually(lambda: files() == [])


async def test_logs_of_a_task(storage: Storage) -> None:
    await storage.create(task(0))
    logs = [
        pb.TaskLogRef(tenant=TENANT, task_id=ident(0), attempt=n, sha256=SHA, size_bytes=n)
        for n in (1, 2)
    ]
    await storage("SetTaskLogs", pb.SetTaskLogsRequest(logs=logs[::-1]))
    got = await storage("GetTaskLogs", pb.GetTaskLogsRequest(tenant=TENANT, task_id=ident(0)))
    assert list(got.logs) == logs
