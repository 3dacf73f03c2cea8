"""The monitor as a process, with a real storage service on a real Redis and a registry stand-in."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.polling import HANG_S, eventually
from tests.real_servers import RedisServer
from tests.service_process import SECRET, ServiceProcess

from muster.api.v1 import monitor_pb2 as pb
from muster.api.v1 import (
    monitor_pb2_grpc,
    registry_pb2,
    registry_pb2_grpc,
    storage_pb2,
    storage_pb2_grpc,
    task_pb2,
)
from muster.domain import ids
from muster.domain.errors import (
    InvalidInput,
    MusterError,
    NotFound,
    Unauthenticated,
    Unavailable,
)
from muster.domain.ids import DEFAULT_TENANT
from muster.rpc.channels import ServiceChannel
from muster.rpc.clock import boot_s
from muster.rpc.server import RpcServer
from muster.rpc.status import rpc_errors

STUB = monitor_pb2_grpc.MonitorServiceStub
# An agent that beats twice a second and is silent for less is not suspected.
SILENT_S = 1.5


class FakeRegistry(registry_pb2_grpc.RegistryServiceServicer):
    """Knows the agents `a` and `b`."""

    async def WatchAgents(self, request: Any, context: Any) -> AsyncIterator[Any]:
        message = registry_pb2.WatchAgentsResponse(snapshot=True, revision=1)
        for name in ("a", "b"):
            record = message.agents.add(incarnation=1)
            record.spec.id = name
        yield message
        await asyncio.Event().wait()


class Reporter:
    """An agent's report stream; keeps what is not acknowledged, as an agent does."""

    def __init__(self, channel: ServiceChannel, agent: str, incarnation: int = 1) -> None:
        self.agent, self._incarnation = agent, incarnation
        self._outgoing: asyncio.Queue[pb.ReportRequest | None] = asyncio.Queue()
        self._call = channel.stream(STUB, "Report", self._requests())
        self._tasks = [asyncio.create_task(self._read())]
        self.seq = 0
        self.sent_boot_s = boot_s()
        # The longest that this machine has kept it from saying something while it beat.
        self.widest_s = 0.0
        self.beating = False
        self.acked = -1
        self.error: MusterError | None = None

    async def _requests(self) -> AsyncIterator[pb.ReportRequest]:
        while (request := await self._outgoing.get()) is not None:
            yield request

    async def _read(self) -> None:
        try:
            with rpc_errors("monitor"):
                async for answer in self._call:
                    self.acked = answer.seq
        except MusterError as error:
            self.error = error

    def send(self, **fields: Any) -> int:
        self.seq += 1
        at_ms = time.time_ns() // 1_000_000
        fields = {"agent": self.agent, "incarnation": self._incarnation, "at_ms": at_ms, **fields}
        self._outgoing.put_nowait(pb.ReportRequest(seq=self.seq, **fields))
        return self.seq

    def beat(self, every_s: float = 0.5) -> asyncio.Task[None]:
        async def beating() -> None:
            self.sent_boot_s = boot_s()
            self.beating = True
            try:
                while True:
                    self.widest_s = self.longest_s
                    self.sent_boot_s = boot_s()
                    self.send(metrics={"cpu_ratio": 0.25, "memory_bytes": 1e9, "running_tasks": 2})
                    await asyncio.sleep(every_s)
            finally:
                self.beating = False

        task = asyncio.create_task(beating())
        self._tasks.append(task)
        return task

    @property
    def longest_s(self) -> float:
        """`widest_s`, with the beat that is due now."""
        return max(self.widest_s, boot_s() - self.sent_boot_s if self.beating else 0.0)

    async def acknowledged(self, seq: int) -> None:
        await eventually(lambda: self.acked >= seq)

    async def finish(self) -> None:
        """Half-closes and waits for the monitor's last word."""
        self._outgoing.put_nowait(None)
        await asyncio.wait_for(self._tasks[0], HANG_S)

    async def close(self) -> None:
        self._call.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class World:
    def __init__(
        self, monitor: ServiceProcess, storage_process: ServiceProcess, redis: RedisServer
    ) -> None:
        self.monitor, self.storage_process, self.redis = monitor, storage_process, redis
        self.channel = ServiceChannel([monitor.endpoint], secret=SECRET, what="monitor")
        self.storage = ServiceChannel([storage_process.endpoint], secret=SECRET, what="storage")
        self._reporters: list[Reporter] = []

    def reporter(self, agent: str, incarnation: int = 1) -> Reporter:
        reporter = Reporter(self.channel, agent, incarnation)
        self._reporters.append(reporter)
        return reporter

    async def reachable(self) -> None:
        """Until the monitor answers again."""
        async with asyncio.timeout(HANG_S):
            while True:
                with suppress(Unavailable):
                    await self.channel.call(
                        STUB, "GetMetrics", pb.GetMetricsRequest(), timeout_s=HANG_S
                    )
                    return
                await asyncio.sleep(0.02)

    async def make_task(self, number: int) -> str:
        """A PENDING task in storage; its id."""
        ident = task_ident(number)
        task = task_pb2.Task(
            spec=task_pb2.TaskSpec(
                version=task_pb2.SCHEMA_VERSION_1,
                id=ident,
                tenant="default",
                skill="echo",
                input_json=b"null",
                max_attempts=3,
                on_disconnect=task_pb2.ON_DISCONNECT_KEEP,
                lifetime=task_pb2.LIFETIME_FINITE,
            ),
            status=task_pb2.TaskStatus(
                version=task_pb2.SCHEMA_VERSION_1, state=task_pb2.TASK_STATE_PENDING
            ),
        )
        await self.ask_storage("Create", storage_pb2.CreateRequest(tasks=[task]))
        return ident

    async def cancel_task(self, ident: str) -> None:
        stub = await self.ask_storage(
            "AcquireTerm", storage_pb2.AcquireTermRequest(candidate="test")
        )
        status = task_pb2.TaskStatus(
            version=task_pb2.SCHEMA_VERSION_1,
            state=task_pb2.TASK_STATE_CANCELLED,
            ended_at_ms=time.time_ns() // 1_000_000,
        )
        transition = storage_pb2.Transition(
            tenant="default",
            id=ident,
            expect_state=task_pb2.TASK_STATE_PENDING,
            expect_attempt=0,
            status=status,
            skill="echo",
        )
        answer = await self.ask_storage(
            "Apply", storage_pb2.ApplyRequest(term=stub.term, transitions=[transition])
        )
        assert answer.results[0].code == storage_pb2.APPLY_CODE_OK

    async def ask_storage(self, method: str, request: object, data: bool = False) -> Any:
        stub = storage_pb2_grpc.DataServiceStub if data else storage_pb2_grpc.StorageServiceStub
        return await self.storage.call(stub, method, request, timeout_s=HANG_S, retry=True)

    async def stored_logs(self, ident: str) -> list[Any]:
        request = storage_pb2.GetTaskLogsRequest(tenant="default", task_id=ident)
        return list((await self.ask_storage("GetTaskLogs", request, data=True)).logs)

    def reading(self, ident: str, **fields: Any) -> Any:
        request = pb.ReadLogRequest(tenant="default", task_id=ident, **fields)
        return self.channel.stream(STUB, "ReadLog", request, timeout_s=HANG_S)

    async def read(self, ident: str, **fields: Any) -> list[pb.LogLine]:
        with rpc_errors("monitor"):
            return [line async for m in self.reading(ident, **fields) for line in m.lines]

    async def close(self) -> None:
        for reporter in self._reporters:
            await reporter.close()
        await self.channel.close()
        await self.storage.close()


@asynccontextmanager
async def registry_stand_in() -> AsyncIterator[str]:
    server = RpcServer("127.0.0.1:0", secret=SECRET, service="registry")
    server.add(registry_pb2_grpc.add_RegistryServiceServicer_to_server, FakeRegistry())  # type: ignore[abstract]
    port = await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


@pytest.fixture
async def world(tmp_path: Path, redis_server: RedisServer) -> AsyncIterator[World]:
    env = {"MUSTER_REDIS_URL": redis_server.url, "MUSTER_BLOB_DIR": str(tmp_path / "blobs")}
    async with registry_stand_in() as registry:
        storage = ServiceProcess("storage", tmp_path / "storage", env)
        monitor = ServiceProcess("monitor", tmp_path / "monitor", {"MUSTER_REGISTRY": registry})
        try:
            await asyncio.to_thread(storage.start)
            monitor._env["MUSTER_STORAGE"] = storage.endpoint
            await asyncio.to_thread(monitor.start)
            world = World(monitor, storage, redis_server)
            try:
                yield world
            finally:
                await world.close()
        finally:
            monitor.stop()
            storage.stop()


def lines(ident: str, first: int, last: int, attempt: int = 1) -> list[pb.LogLine]:
    return [
        pb.LogLine(
            tenant="default",
            task_id=ident,
            attempt=attempt,
            at_ms=1_700_000_000_000 + index,
            stream=pb.LOG_STREAM_STDOUT,
            text=f"line {index}",
            index=index,
        )
        for index in range(first, last)
    ]


def end(ident: str, attempt: int = 1) -> list[pb.LogEnd]:
    return [pb.LogEnd(tenant="default", task_id=ident, attempt=attempt)]


class Failures:
    """A watcher of failures."""

    def __init__(self, channel: ServiceChannel) -> None:
        self._call = channel.stream(STUB, "WatchFailures", pb.WatchFailuresRequest())
        self._task = asyncio.create_task(self._read())
        self.messages: list[pb.WatchFailuresResponse] = []

    async def _read(self) -> None:
        with rpc_errors("monitor"):
            async for message in self._call:
                self.messages.append(message)

    @property
    def heard(self) -> list[tuple[str, bool]]:
        return [(s.agent, s.suspected) for m in self.messages for s in m.suspicions]

    def of(self, agent: str) -> list[bool]:
        return [suspected for name, suspected in self.heard if name == agent]

    def wronged(self, *living: Reporter) -> bool:
        """Whether an agent is suspected that this machine has let speak all the while."""
        return any(True in self.of(r.agent) and r.longest_s < SILENT_S for r in living)

    async def close(self) -> None:
        self._call.cancel()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


async def test_silence_is_suspected_and_a_departure_is_not(world: World) -> None:
    watcher = Failures(world.channel)
    dying, leaving, living = (world.reporter(name) for name in ("a", "b", "c"))
    beats = dying.beat(), leaving.beat(), living.beat()
    await asyncio.sleep(2)
    beats[0].cancel()
    beats[1].cancel()
    leaving.send(leaving=True)
    await eventually(lambda: watcher.of("a")[-1:] == [True])
    assert max(boot_s() - dying.sent_boot_s, dying.widest_s) > SILENT_S
    assert watcher.messages[0].snapshot
    (suspicion, *_) = [
        s for m in watcher.messages for s in m.suspicions if s.agent == "a" and s.suspected
    ]
    assert suspicion.phi >= 8
    assert "silent" in suspicion.why
    late = Failures(world.channel)
    await eventually(lambda: late.of("a")[-1:] == [True])

    dying.beat()
    await eventually(lambda: watcher.of("a")[-2:] == [True, False])
    assert not watcher.wronged(leaving, living)
    # Who reports here is told at once, and who has left for good or for another monitor.
    assert watcher.of("c")[:1] == [False]
    gone = [s.unheard for m in watcher.messages for s in m.suspicions if s.agent == "b"]
    assert (gone[:1], gone[-1:]) == ([False], [True])
    assert [name for name, _ in late.heard if name == "b"] == []
    await watcher.close()
    await late.close()


async def test_a_paused_monitor_suspects_nobody(world: World) -> None:
    watcher = Failures(world.channel)
    reporters = [world.reporter(name) for name in ("a", "b")]
    for reporter in reporters:
        reporter.beat()
    await asyncio.sleep(1.5)
    world.monitor.pause()
    # Longer than the silence that would be suspected.
    await asyncio.sleep(4.5)
    world.monitor.resume()
    await asyncio.sleep(1.5)
    assert not watcher.wronged(*reporters)
    await watcher.close()


async def test_lines_are_acknowledged_when_storage_holds_them(world: World) -> None:
    ident = await world.make_task(1)
    reporter = world.reporter("a")
    first = reporter.send()
    await reporter.acknowledged(first)
    with_lines = reporter.send(lines=lines(ident, 0, 100))
    reporter.send()
    await asyncio.sleep(0.5)
    assert reporter.acked == first
    assert await world.stored_logs(ident) == []
    # Readable before it is stored.
    assert [line.index for line in await world.read(ident)] == list(range(100))
    # Repeated and continued: each line once.
    last = reporter.send(lines=lines(ident, 50, 120), ends=end(ident))
    await reporter.acknowledged(last)
    assert last > with_lines
    (ref,) = await world.stored_logs(ident)
    assert ref.complete
    found = await world.read(ident)
    assert [line.index for line in found] == list(range(120))
    assert found[7].text == "line 7"
    assert found[7].stream == pb.LOG_STREAM_STDOUT


async def test_a_killed_monitor_loses_nothing_that_its_agents_hold(world: World) -> None:
    stored, held, quiet = [await world.make_task(number) for number in (1, 2, 3)]
    reporter = world.reporter("a")
    reporter.send(lines=[*lines(stored, 0, 10), *lines(quiet, 0, 3)])
    await eventually(lambda: reporter.acked >= 0)
    # An orderly stop stores the first part; then kill -9 takes what was only in memory.
    await asyncio.to_thread(world.monitor.restart_orderly)
    await world.reachable()
    reporter = world.reporter("a")
    unacknowledged = [*lines(stored, 10, 20), *lines(held, 0, 5)]
    reporter.send(lines=unacknowledged)
    await eventually(lambda: reporter.acked >= 0)
    assert reporter.acked == 0
    await asyncio.to_thread(world.monitor.restart)
    await world.reachable()

    reporter = world.reporter("a")
    reporter.send(lines=unacknowledged)
    last = reporter.send(lines=lines(stored, 20, 25), ends=[*end(stored), *end(held), *end(quiet)])
    await reporter.acknowledged(last)
    # Its lines were stored by the first monitor; the last one only heard of its end.
    assert [(ref.attempt, ref.complete) for ref in await world.stored_logs(quiet)] == [(1, True)]
    assert [line.index for line in await world.read(quiet)] == [0, 1, 2]
    assert [line.index for line in await world.read(stored)] == list(range(25))
    assert [line.index for line in await world.read(held)] == list(range(5))


async def test_the_last_report_is_answered_after_storing(world: World) -> None:
    ident = await world.make_task(1)
    reporter = world.reporter("a")
    last = reporter.send(lines=lines(ident, 0, 3), ends=end(ident), leaving=True)
    await reporter.finish()
    assert reporter.error is None
    assert reporter.acked == last


async def test_a_follower_reads_to_the_end_of_the_task(world: World) -> None:
    ident = await world.make_task(1)
    reporter = world.reporter("a")
    reporter.send(lines=lines(ident, 0, 2))
    seen: list[int] = []

    async def follow() -> None:
        with rpc_errors("monitor"):
            async for message in world.reading(ident, follow=True):
                seen.extend(line.index for line in message.lines)

    following = asyncio.create_task(follow(), name="the follower")
    await eventually(lambda: seen == [0, 1], following)
    reporter.send(lines=lines(ident, 2, 4))
    await eventually(lambda: seen == [0, 1, 2, 3], following)
    await world.cancel_task(ident)
    reporter.send(lines=lines(ident, 4, 5), ends=end(ident))
    await asyncio.wait_for(following, HANG_S)
    assert seen == [0, 1, 2, 3, 4]


async def test_a_follower_of_one_attempt_ends_with_its_log(world: World) -> None:
    ident = await world.make_task(1)
    reporter = world.reporter("a")
    reporter.send(lines=[*lines(ident, 0, 2), *lines(ident, 0, 3, attempt=2)], ends=end(ident))
    one = await asyncio.wait_for(world.read(ident, follow=True, attempt=1), HANG_S)
    assert [(line.attempt, line.index) for line in one] == [(1, 0), (1, 1)]
    both = await world.read(ident)
    assert [(line.attempt, line.index) for line in both] == [
        (1, 0),
        (1, 1),
        (2, 0),
        (2, 1),
        (2, 2),
    ]


async def test_following_a_task_that_ended_without_lines_ends(world: World) -> None:
    ident = await world.make_task(1)
    await world.cancel_task(ident)
    assert await asyncio.wait_for(world.read(ident, follow=True), HANG_S) == []


async def test_metrics_of_agents_are_kept_and_exported(world: World) -> None:
    reporter = world.reporter("a")
    reporter.beat()
    reporter.send(metrics={"nan": float("nan")})
    await eventually(lambda: reporter.acked >= 2)
    # It has heard from the registry, too.
    await eventually(lambda: world.monitor.get("/readyz")[0] == 200)

    async def samples() -> int:
        request = pb.GetMetricsRequest(agent="a")
        one = await world.channel.call(STUB, "GetMetrics", request, timeout_s=HANG_S)
        return len(one.agents[0].samples)

    async with asyncio.timeout(HANG_S):
        while await samples() < 2:  # noqa: ASYNC110  another process takes them
            await asyncio.sleep(0.05)
    all_agents = await world.channel.call(
        STUB, "GetMetrics", pb.GetMetricsRequest(), timeout_s=HANG_S
    )
    (agent,) = all_agents.agents
    assert agent.agent == "a"
    assert agent.samples[0].values["cpu_ratio"] == 0.25
    with pytest.raises(NotFound):
        await world.channel.call(
            STUB, "GetMetrics", pb.GetMetricsRequest(agent="x"), timeout_s=HANG_S
        )
    _, text = await asyncio.to_thread(world.monitor.get, "/metrics")
    assert 'muster_agent_cpu_ratio{agent="a"} 0.25' in text
    assert 'muster_agent_up{agent="a"} 1.0' in text
    # Registered, and never heard here.
    assert 'muster_agent_up{agent="b"} 0.0' in text
    assert 'muster_agent_memory_bytes{agent="a"} 1e+09' in text
    assert 'muster_monitor_metrics_dropped_total{reason="not_finite"} 1.0' in text


async def test_an_agents_own_lines_can_be_read(world: World) -> None:
    reporter = world.reporter("a")
    own = [
        pb.LogLine(stream=pb.LOG_STREAM_AGENT, level="info", text=f"agent line {n}")
        for n in range(1200)
    ]
    # Not stored, so acknowledged at once.
    await reporter.acknowledged(reporter.send(lines=own))
    found = await world.read("agent/a")
    assert [line.text for line in found] == [f"agent line {n}" for n in range(200, 1200)]


async def test_storage_away_delays_acknowledgements_and_nothing_else(world: World) -> None:
    ident = await world.make_task(1)
    watcher = Failures(world.channel)
    reporter = world.reporter("a")
    reporter.beat()
    await eventually(lambda: reporter.acked >= 1)
    world.storage_process.kill()
    with_lines = reporter.send(lines=lines(ident, 0, 10), ends=end(ident))
    await asyncio.sleep(1.5)
    assert reporter.acked < with_lines
    assert not watcher.wronged(reporter)
    assert [line.index for line in await world.read(ident)] == list(range(10))
    await asyncio.to_thread(world.storage_process.start)
    await reporter.acknowledged(with_lines)
    assert (await world.stored_logs(ident))[0].complete
    await watcher.close()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"agent": "Not An Id"}, "agent"),
        ({"agent": "a", "incarnation": 0}, "incarnation"),
    ],
)
async def test_a_stream_of_nobody_is_refused(
    world: World, fields: dict[str, Any], message: str
) -> None:
    reporter = world.reporter("a")
    reporter.send(**fields)
    await eventually(lambda: reporter.error is not None)
    assert isinstance(reporter.error, InvalidInput)
    assert message in str(reporter.error)


async def test_unknown_tasks_and_strangers_are_told_so(world: World) -> None:
    with pytest.raises(NotFound):
        await world.read(task_ident(999))
    with pytest.raises(InvalidInput):
        await world.read("not-an-id")
    stranger = ServiceChannel([world.monitor.endpoint], secret="x" * 20, what="monitor")
    with pytest.raises(Unauthenticated):
        await stranger.call(STUB, "GetMetrics", pb.GetMetricsRequest(), timeout_s=HANG_S)
    await stranger.close()


def task_ident(number: int) -> str:
    return ids.task_id(ids.request_prefix(DEFAULT_TENANT, "test", 1_700_000_000_000), number)


async def test_a_monitor_starts_before_everything_else(tmp_path: Path) -> None:
    env = {"MUSTER_STORAGE": "127.0.0.1:1", "MUSTER_REGISTRY": "127.0.0.1:1"}
    monitor = ServiceProcess("monitor", tmp_path, env)
    try:
        await asyncio.to_thread(monitor.start)
        code, text = await asyncio.to_thread(monitor.get, "/readyz")
        assert (code, text) == (503, "the registry has not answered yet\n")
        channel = grpc.aio.insecure_channel(monitor.endpoint)
        await channel.channel_ready()
        await channel.close()
    finally:
        monitor.stop()
