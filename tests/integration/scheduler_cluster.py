"""Real etcd, Redis, storage and schedulers for tests, with a registry and agents by script."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import IO, Any

from tests.polling import HANG_S
from tests.real_servers import (
    _DIE_WITH_PARENT,
    EtcdServer,
    RealServer,
    RedisServer,
    free_port,
)

from muster.api.v1 import (
    agent_pb2,
    registry_pb2,
    registry_pb2_grpc,
    scheduler_pb2,
    scheduler_pb2_grpc,
    storage_pb2,
    storage_pb2_grpc,
    task_pb2,
)
from muster.domain.errors import MusterError, Unavailable
from muster.domain.ids import TaskId, request_prefix, task_id
from muster.rpc.channels import ServiceChannel
from muster.rpc.clock import boot_ms, boot_s, wall_ms
from muster.rpc.server import RpcServer
from muster.rpc.status import rpc_errors

SECRET = "a secret of the tests' own"
TENANT = "default"
SUCCEEDED = task_pb2.Outcome(
    kind=task_pb2.OUTCOME_KIND_SUCCEEDED, output_json=b'"done"', output_bytes=6
)

_Scheduler = scheduler_pb2_grpc.SchedulerServiceStub
_Store = storage_pb2_grpc.StorageServiceStub
_counter = iter(range(1, 1 << 40))


class PythonService(RealServer):
    """`python -m MODULE` with an environment of its own."""

    def __init__(self, folder: Path, module: str, env: Mapping[str, str]) -> None:
        self.name = module
        super().__init__(folder)
        self._env = env
        self.metrics_port = 0

    def readiness(self) -> tuple[int, str]:
        """Status and text of /readyz."""
        return self._get("/readyz")

    def metrics(self) -> str:
        return self._get("/metrics")[1]

    def _get(self, path: str) -> tuple[int, str]:
        url = f"http://127.0.0.1:{self.metrics_port}{path}"
        try:
            with urllib.request.urlopen(url, timeout=20.0) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)

    def _choose_ports(self) -> None:
        self.port, self.metrics_port = free_port(), free_port()

    def _command(self) -> list[str]:
        return [sys.executable, "-m", self.name]

    def _answers(self) -> bool:
        return self._get("/healthz")[0] == 200

    def _spawn(self, log: IO[bytes]) -> subprocess.Popen[bytes]:
        trampoline = (sys.executable, "-S", "-E", "-c", _DIE_WITH_PARENT, str(os.getpid()))
        env = {
            **{k: v for k, v in os.environ.items() if not k.startswith("MUSTER_")},
            **self._env,
            "MUSTER_LISTEN": self.endpoint,
            "MUSTER_METRICS_LISTEN": f"127.0.0.1:{self.metrics_port}",
            "MUSTER_JOIN_SECRET": SECRET,
        }
        return subprocess.Popen(
            [*trampoline, *self._command()],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=self.folder,
            env=env,
        )

    def log_text(self) -> str:
        return self.log_path.read_text(errors="replace")


class Servers:
    """The processes; they outlive a test's event loop. `registry_port` is where its registry
    will be.

    By default no stall of the machine costs a leader its lead, or storage its Redis, and nothing
    is learned.
    """

    def __init__(
        self,
        folder: Path,
        schedulers: int = 2,
        *,
        leader_ttl_s: int = 60,
        redis_timeout_s: int = 50,
        learn_every_s: int = 0,
        strategy: str = "worst_fit",
    ) -> None:
        self.etcd = EtcdServer(folder / "etcd")
        self.redis = RedisServer(folder / "redis")
        self.registry_port = free_port()
        for server in (self.etcd, self.redis):
            server.start()
        self.storage = PythonService(
            folder / "storage",
            "muster_storage",
            {
                "MUSTER_REDIS_URL": self.redis.url,
                "MUSTER_STATE_DIR": str(folder / "storage"),
                "MUSTER_REDIS_TIMEOUT_S": str(redis_timeout_s),
            },
        )
        self.storage.start()
        env = {
            "MUSTER_ETCD_ENDPOINTS": self.etcd.endpoint,
            "MUSTER_ETCD_EMBEDDED": "1",
            "MUSTER_STORAGE": self.storage.endpoint,
            "MUSTER_REGISTRY": f"127.0.0.1:{self.registry_port}",
            "MUSTER_LEADER_TTL_S": str(leader_ttl_s),
            "MUSTER_LEARN_EVERY_S": str(learn_every_s),
            "MUSTER_STRATEGY": strategy,
        }
        self.schedulers = [
            PythonService(folder / f"scheduler{n}", "muster_scheduler", env)
            for n in range(schedulers)
        ]
        for scheduler in self.schedulers:
            scheduler.start()

    def stop(self) -> None:
        for server in (*self.schedulers, self.storage, self.redis, self.etcd):
            server.kill()


class FakeRegistry(registry_pb2_grpc.RegistryServiceServicer):
    """Shows what it is told to show."""

    def __init__(self) -> None:
        self.shown: dict[str, agent_pb2.AgentRecord] = {}
        self._watchers: list[asyncio.Queue[registry_pb2.WatchAgentsResponse | None]] = []

    async def Register(self, request: Any, context: Any) -> Any:
        raise NotImplementedError

    async def Deregister(self, request: Any, context: Any) -> Any:
        raise NotImplementedError

    async def ListAgents(self, request: Any, context: Any) -> Any:
        raise NotImplementedError

    async def Heartbeat(self, request: Any, context: Any) -> AsyncIterator[Any]:
        raise NotImplementedError
        yield

    async def WatchAgents(
        self, request: Any, context: Any
    ) -> AsyncIterator[registry_pb2.WatchAgentsResponse]:
        queue: asyncio.Queue[registry_pb2.WatchAgentsResponse | None] = asyncio.Queue()
        self._watchers.append(queue)
        yield registry_pb2.WatchAgentsResponse(snapshot=True, agents=list(self.shown.values()))
        while (message := await queue.get()) is not None:
            yield message

    def show(
        self,
        agent: str,
        incarnation: int = 1,
        *,
        slots: int = 8,
        cpu: int = 8_000,
        skills: Iterable[str] = ("echo",),
    ) -> None:
        record = agent_pb2.AgentRecord(
            spec=agent_pb2.AgentSpec(
                id=agent,
                tenant=TENANT,
                capacity={"cpu": cpu, "memory": 1 << 30, "slots": slots},
                skills=[agent_pb2.SkillOffer(name=s) for s in skills],
            ),
            incarnation=incarnation,
        )
        self.shown[agent] = record
        self._tell(registry_pb2.WatchAgentsResponse(agents=[record]))

    def hide(self, agent: str) -> None:
        self.shown.pop(agent, None)
        self._tell(registry_pb2.WatchAgentsResponse(removed=[agent]))

    def close(self) -> None:
        self._tell(None)

    def _tell(self, message: registry_pb2.WatchAgentsResponse | None) -> None:
        for queue in self._watchers:
            queue.put_nowait(message)


_LAST_BEAT = 10**9


class FakeAgent:
    """One session of an agent, by hand; beats go by themselves."""

    def __init__(
        self,
        name: str,
        incarnation: int,
        address: str,
        *,
        held: Sequence[tuple[str, int, int]] = (),
        term: int = 0,
        supervisor: bool = False,
        beats: bool = True,
    ) -> None:
        self.name = name
        self.incarnation = incarnation
        self.term = term
        self.assigned: dict[tuple[str, int], scheduler_pb2.Assignment] = {}
        self.messages: list[scheduler_pb2.SessionResponse] = []
        self.acks: dict[tuple[str, int], int] = {}
        self.cancels: list[tuple[str, int, int]] = []
        self.drops: list[tuple[str, int]] = []
        self.restarts: list[int] = []
        self.answered = 0
        self.drained = False
        self.error: MusterError | None = None
        self._channel = ServiceChannel([address], secret=SECRET, what="the leader")
        self._out: asyncio.Queue[scheduler_pb2.SessionRequest | None] = asyncio.Queue()
        role = "SUPERVISOR" if supervisor else "RUNTIME"
        self.say(
            hello=scheduler_pb2.SessionHello(
                version=task_pb2.SCHEMA_VERSION_1,
                agent=name,
                role=scheduler_pb2.SessionRole.Value(f"SESSION_ROLE_{role}"),
                held=[
                    scheduler_pb2.HeldAttempt(
                        ref=scheduler_pb2.AttemptRef(task_id=t, attempt=a, tenant=TENANT),
                        state=scheduler_pb2.HeldState.ValueType(state),
                    )
                    for t, a, state in held
                ],
            )
        )
        self._work = [asyncio.create_task(self._read(), name=f"agent {name}")]
        if beats:
            self._work.append(asyncio.create_task(self._beat(), name=f"beats {name}"))

    def say(self, **fields: Any) -> None:
        self._out.put_nowait(
            scheduler_pb2.SessionRequest(incarnation=self.incarnation, term=self.term, **fields)
        )

    def start(self, ident: str, attempt: int = 1) -> None:
        self.say(
            started=[
                scheduler_pb2.AttemptStarted(ref=_ref(ident, attempt), started_at_ms=wall_ms())
            ]
        )

    def end(self, ident: str, attempt: int = 1, outcome: task_pb2.Outcome = SUCCEEDED) -> None:
        self.say(outcomes=[scheduler_pb2.AttemptOutcome(ref=_ref(ident, attempt), outcome=outcome)])

    @property
    def over(self) -> bool:
        return self._work[0].done()

    async def ends(self) -> None:
        """Returns once the leader has ended the session."""
        await soon(lambda: self.over)

    async def leave(self) -> None:
        """As when it is ended on purpose: to a leader that tests share it must not look as if
        all of their agents had failed together."""
        with suppress(TimeoutError):
            async with asyncio.timeout(2.0):
                self.say(draining=True, beat=scheduler_pb2.SessionBeat(seq=_LAST_BEAT))
                await soon(lambda: self.answered >= _LAST_BEAT or self.over)
        await self.close()

    async def close(self) -> None:
        """As when the process is killed."""
        for task in self._work:
            task.cancel()
        await asyncio.gather(*self._work, return_exceptions=True)
        await self._channel.close()

    async def _requests(self) -> AsyncIterator[scheduler_pb2.SessionRequest]:
        while (message := await self._out.get()) is not None:
            yield message

    async def _beat(self) -> None:
        seq = 0
        while True:
            seq += 1
            self.say(beat=scheduler_pb2.SessionBeat(seq=seq, sent_boot_ms=boot_ms()))
            await asyncio.sleep(0.3)

    async def _read(self) -> None:
        call = self._channel.stream(_Scheduler, "Session", self._requests())
        try:
            with rpc_errors("the leader"):
                async for message in call:
                    self._take(message)
        except MusterError as error:
            self.error = error
        finally:
            call.cancel()

    def _take(self, message: scheduler_pb2.SessionResponse) -> None:
        self.messages.append(message)
        self.term = max(self.term, message.term)
        self.answered = max(self.answered, message.beat_ack.seq)
        for given in message.assign:
            self.assigned[given.spec.id, given.attempt] = given
        for ack in message.outcome_acks:
            self.acks[ack.ref.task_id, ack.ref.attempt] = ack.code
        for cancel in message.cancel:
            self.cancels.append((cancel.ref.task_id, cancel.ref.attempt, cancel.wish))
        self.drops += [(ref.task_id, ref.attempt) for ref in message.drop]
        if message.HasField("restart"):
            self.restarts.append(message.restart.incarnation)
        self.drained = self.drained or message.drain


def _ref(ident: str, attempt: int) -> scheduler_pb2.AttemptRef:
    return scheduler_pb2.AttemptRef(task_id=ident, attempt=attempt, tenant=TENANT)


class Cluster:
    """One test's view: its registry, its channels, its agents."""

    def __init__(self, servers: Servers, registry: FakeRegistry) -> None:
        self.servers = servers
        self.registry = registry
        self.storage = ServiceChannel([servers.storage.endpoint], secret=SECRET, what="storage")
        self.channels = {
            s.endpoint: ServiceChannel([s.endpoint], secret=SECRET, what="the scheduler")
            for s in servers.schedulers
        }
        self._agents: list[FakeAgent] = []

    async def close(self) -> None:
        for agent in self._agents:
            await agent.leave()
        for channel in (self.storage, *self.channels.values()):
            await channel.close()

    # ------------------------------------------------------------------ schedulers

    async def status(self) -> scheduler_pb2.GetClusterStatusResponse | None:
        for channel in self.channels.values():
            try:
                answer: scheduler_pb2.GetClusterStatusResponse = await channel.call(
                    _Scheduler,
                    "GetClusterStatus",
                    scheduler_pb2.GetClusterStatusRequest(),
                    timeout_s=2.0,
                )
            except MusterError:
                continue
            return answer
        return None

    async def standing(self) -> scheduler_pb2.GetClusterStatusResponse:
        """What the leader says of the cluster, once there is one that answers."""
        found: list[scheduler_pb2.GetClusterStatusResponse] = []

        async def told() -> bool:
            status = await self.status()
            if status is not None:
                found.append(status)
            return bool(found)

        await until(told)
        return found[0]

    async def leader(self, *, but: str = "") -> str:
        """The address of whoever leads; `but` is who must not."""
        found: list[str] = []

        async def leads() -> bool:
            status = await self.status()
            if status is not None and status.leader != but:
                found.append(status.leader)
            return bool(found)

        await until(leads)
        return found[0]

    def process(self, address: str) -> PythonService:
        return next(s for s in self.servers.schedulers if s.endpoint == address)

    async def call(self, method: str, request: object) -> Any:
        """To the leader; repeated while it is unavailable, as clients do."""
        async with asyncio.timeout(HANG_S):
            while True:
                try:
                    return await self.call_once(method, request, HANG_S)
                except Unavailable:
                    await asyncio.sleep(0.02)

    async def call_once(self, method: str, request: object, timeout_s: float = 5.0) -> Any:
        address = await self.leader()
        return await self.channels[address].call(_Scheduler, method, request, timeout_s=timeout_s)

    async def store(self, method: str, request: object) -> Any:
        return await self.storage.call(_Store, method, request, timeout_s=HANG_S, retry=True)

    # ------------------------------------------------------------------ agents

    async def agent(
        self, name: str, incarnation: int = 1, *, address: str = "", **options: Any
    ) -> FakeAgent:
        """Opens a session with the leader and waits for its welcome, or for its refusal."""
        async with asyncio.timeout(HANG_S):
            while True:
                made = FakeAgent(name, incarnation, address or await self.leader(), **options)
                self._agents.append(made)
                await soon(lambda: bool(made.messages) or made.over)  # noqa: B023  awaited here
                # On a machine that stalls a connection may fail.
                if made.messages or type(made.error) is not Unavailable:
                    return made

    async def join(self, name: str, incarnation: int = 1, **offer: Any) -> FakeAgent:
        """Registered, connected and ready."""
        self.registry.show(name, incarnation, **offer)
        made = await self.agent(name, incarnation)
        await self.sees(name, agent_pb2.AGENT_STATE_READY)
        return made

    async def view(self, name: str) -> agent_pb2.AgentView | None:
        answer = await self.call("ListAgentViews", scheduler_pb2.ListAgentViewsRequest())
        return next((a for a in answer.agents if a.record.spec.id == name), None)

    async def sees(self, name: str, state: int) -> None:
        async def as_told() -> bool:
            view = await self.view(name)
            return view is not None and view.state == state

        await until(as_told)

    # ------------------------------------------------------------------- tasks

    async def submit(self, count: int = 1, **fields: Any) -> list[TaskId]:
        specs = self.specs(count, **fields)
        await self.call("Submit", scheduler_pb2.SubmitRequest(tasks=specs))
        return [TaskId(s.id) for s in specs]

    def specs(self, count: int = 1, **fields: Any) -> list[task_pb2.TaskSpec]:
        key = f"{os.getpid()}-{next(_counter)}"
        prefix = request_prefix(TENANT, key, wall_ms())  # type: ignore[arg-type]
        given: dict[str, Any] = {
            "version": task_pb2.SCHEMA_VERSION_1,
            "tenant": TENANT,
            "skill": "echo",
            "input_json": b"1",
            "priority": 50,
            "max_attempts": 3,
            "on_disconnect": task_pb2.ON_DISCONNECT_KEEP,
            "lifetime": task_pb2.LIFETIME_FINITE,
            **fields,
        }
        return [task_pb2.TaskSpec(id=task_id(prefix, n), **given) for n in range(count)]

    async def create_as_gateway(self, count: int = 1, **fields: Any) -> list[TaskId]:
        """Written to storage without any leader."""
        specs = self.specs(count, **fields)
        pending = task_pb2.TaskStatus(
            version=task_pb2.SCHEMA_VERSION_1, state=task_pb2.TASK_STATE_PENDING
        )
        tasks = [task_pb2.Task(spec=s, status=pending) for s in specs]
        await self.store("Create", storage_pb2.CreateRequest(tasks=tasks))
        return [TaskId(s.id) for s in specs]

    async def task(self, ident: str) -> task_pb2.Task:
        answer = await self.store(
            "GetTasks", storage_pb2.GetTasksRequest(tenant=TENANT, ids=[ident])
        )
        found: task_pb2.Task = answer.tasks[0]
        return found

    async def stored(self, ident: str, state: int) -> task_pb2.Task:
        """The task once storage holds it in `state`."""
        found: list[task_pb2.Task] = []

        async def as_told() -> bool:
            task = await self.task(ident)
            if task.status.state == state:
                found.append(task)
            return bool(found)

        await until(as_told)
        return found[0]

    async def cancel(self, *idents: str) -> list[scheduler_pb2.CancelResult]:
        answer = await self.call("Cancel", scheduler_pb2.CancelRequest(tenant=TENANT, ids=idents))
        return list(answer.results)

    async def explain(self, ident: str) -> str:
        request = scheduler_pb2.ExplainRequest(tenant=TENANT, id=ident)
        summary: str = (await self.call("Explain", request)).summary
        return summary


async def _now(value: bool) -> bool:
    return value


async def until(check: Callable[[], Awaitable[bool]]) -> float:
    """Seconds until `check()` was true; fails the test when that seems never to come."""
    began_s = boot_s()
    while not await check():
        assert boot_s() - began_s < HANG_S, f"it did not come true within {HANG_S:g} s"
        await asyncio.sleep(0.02)
    return boot_s() - began_s


async def soon(check: Callable[[], bool]) -> float:
    """The same for something that is known at once."""
    return await until(lambda: _now(check()))


@asynccontextmanager
async def cluster_of(servers: Servers) -> AsyncIterator[Cluster]:
    """A registry at the agreed port, and a leader."""
    registry = FakeRegistry()
    server = RpcServer(f"127.0.0.1:{servers.registry_port}", secret=SECRET, service="registry")
    server.add(registry_pb2_grpc.add_RegistryServiceServicer_to_server, registry)
    await server.start()
    cluster = Cluster(servers, registry)
    try:
        await cluster.leader()
        yield cluster
    finally:
        await cluster.close()
        registry.close()
        await server.stop(0.5)
