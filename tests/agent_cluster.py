"""A leader, registry, storage and monitor for one agent under test, in the test's own process."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import sys
import textwrap
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from tests.evidence import is_witness
from tests.polling import HANG_S
from tests.real_servers import free_port

from muster.api.v1 import (
    monitor_pb2,
    monitor_pb2_grpc,
    registry_pb2,
    registry_pb2_grpc,
    scheduler_pb2,
    scheduler_pb2_grpc,
    storage_pb2,
    storage_pb2_grpc,
    task_pb2,
)
from muster.domain.errors import Conflict, NotFound, NotLeader
from muster.domain.ids import DEFAULT_TENANT, request_prefix, task_id
from muster.rpc.clock import boot_ms, wall_ms
from muster.rpc.server import RpcServer

SECRET = "a-secret-of-the-tests"
Key = tuple[str, int]
S = scheduler_pb2
T = task_pb2


async def until(
    condition: Callable[[], Any], what: str = "the condition", timeout_s: float = HANG_S
) -> Any:
    """Waits until the condition is truthy and gives its value."""
    end = boot_ms() + timeout_s * 1000
    while not (value := condition()):
        if boot_ms() > end:
            raise AssertionError(f"{what} did not come true within {timeout_s:g} s")
        await asyncio.sleep(0.01)
    return value


def alive(pid: int) -> bool:
    """Whether the process runs (a zombie does not)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def processes_with(marker: str) -> dict[int, str]:
    """Living processes in whose environment `marker` stands: all descendants of an agent."""
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                environ = Path(f"/proc/{entry}/environ").read_bytes()
                command = Path(f"/proc/{entry}/cmdline").read_bytes()
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
            if marker.encode() in environ and alive(int(entry)):
                found[int(entry)] = command.replace(b"\0", b" ").decode(errors="replace")
    return found


class Registry(registry_pb2_grpc.RegistryServiceServicer):
    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.incarnation = 0
        self.registrations: list[registry_pb2.RegisterRequest] = []
        self.deregistered: list[int] = []
        self.beats = 0
        self.registered = True
        self.superseded = False

    async def Register(self, request: Any, context: Any) -> Any:
        for earlier in self.registrations:
            if earlier.spec.id == request.spec.id and earlier.instance_key != request.instance_key:
                raise Conflict(f"agent {request.spec.id} lives and has another key")
        self.registrations.append(request)
        self.registered = True
        if not request.incarnation:
            self.incarnation += 1
        return registry_pb2.RegisterResponse(
            incarnation=request.incarnation or self.incarnation,
            lease_id=1,
            lease_ttl_ms=10_000,
            heartbeat_interval_ms=300,
            endpoints=self.cluster.endpoints(),
        )

    async def Heartbeat(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:
        async for request in request_iterator:
            self.beats += 1
            yield registry_pb2.HeartbeatResponse(
                seq=request.seq,
                registered=self.registered,
                superseded=self.superseded,
                heartbeat_interval_ms=300,
                endpoints=self.cluster.endpoints(),
            )

    async def Deregister(self, request: Any, context: Any) -> Any:
        self.deregistered.append(request.incarnation)
        return registry_pb2.DeregisterResponse()


class Leader(scheduler_pb2_grpc.SchedulerServiceServicer):
    """Records what it hears; acknowledges and answers beats unless told otherwise."""

    def __init__(self, cluster: Cluster, term: int) -> None:
        self.cluster, self.term = cluster, term
        self.leading = True
        self.acknowledges = True
        self.answers_beats = True
        self.takes_submissions = True
        self.hellos: list[Any] = []
        self.supervisor_hellos: list[Any] = []
        self.deaths: list[Any] = []
        self.outcomes: dict[Key, T.Outcome] = {}
        self.outcome_count: defaultdict[Key, int] = defaultdict(int)
        self.started: list[Key] = []
        self.progress: defaultdict[Key, list[Any]] = defaultdict(list)
        self.waiting: list[tuple[Key, bool]] = []
        self.beats = 0
        self.supervisor_beats = 0
        # When the last beat of the runtime came that was answered.
        self.answered_boot_ms = 0
        self.draining = False
        self.submitted: list[Any] = []
        self.cancelled: list[str] = []
        self._runtime: asyncio.Queue[Any] | None = None
        self._supervisor: asyncio.Queue[Any] | None = None
        self._ends: set[asyncio.Queue[Any]] = set()

    def push(self, **fields: Any) -> None:
        assert self._runtime is not None
        self._runtime.put_nowait(S.SessionResponse(term=self.term, **fields))

    def push_supervisor(self, **fields: Any) -> None:
        assert self._supervisor is not None
        self._supervisor.put_nowait(S.SessionResponse(term=self.term, **fields))

    def depose(self) -> None:
        """Ends all sessions and takes no more."""
        self.leading = False
        self.cut()

    def cut(self) -> None:
        """Ends all sessions."""
        for queue in self._ends:
            queue.put_nowait(None)

    async def Session(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:
        if not self.leading:
            raise NotLeader(self.cluster.leader_address)
        first = await anext(aiter(request_iterator))
        supervisor = first.hello.role == S.SESSION_ROLE_SUPERVISOR
        (self.supervisor_hellos if supervisor else self.hellos).append(first)
        queue: asyncio.Queue[Any] = asyncio.Queue()
        if supervisor:
            self._supervisor = queue
        else:
            self._runtime = queue
        self._ends.add(queue)
        queue.put_nowait(S.SessionResponse(term=self.term, welcome=S.SessionWelcome(clock_ms=1)))
        reader = asyncio.create_task(self._read(request_iterator, queue))
        try:
            while (message := await queue.get()) is not None:
                yield message
        finally:
            self._ends.discard(queue)
            if self._runtime is queue:
                self._runtime = None
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    async def _read(self, requests: Any, queue: asyncio.Queue[Any]) -> None:
        async for message in requests:
            answer = S.SessionResponse(term=self.term)
            if message.HasField("beat"):
                self.beats += 1
                self.supervisor_beats += queue is self._supervisor
                if self.answers_beats:
                    answer.beat_ack.seq = message.beat.seq
                    if queue is self._runtime:
                        self.answered_boot_ms = boot_ms()
            if message.HasField("runtime_died"):
                self.deaths.append(message.runtime_died)
            self.draining |= message.draining
            self.started += [_key(s.ref) for s in message.started]
            self.waiting += [(_key(w.ref), w.waiting) for w in message.waiting]
            for item in message.progress:
                self.progress[_key(item.ref)].append(item)
            for item in message.outcomes:
                self.outcomes[_key(item.ref)] = item.outcome
                self.outcome_count[_key(item.ref)] += 1
                self._record(item)
                if self.acknowledges:
                    answer.outcome_acks.add(ref=item.ref, code=S.ACK_CODE_RECORDED)
            if answer.ByteSize() > 4:
                queue.put_nowait(answer)
        queue.put_nowait(None)

    def _record(self, item: Any) -> None:
        storage = self.cluster.storage
        if item.outcome.kind != T.OUTCOME_KIND_RETURNED:
            storage.ended(item.ref.task_id, item.outcome)
        elif item.ref.task_id in storage.tasks:
            # A child came before its parent's slot was free.
            spec, attempt = storage.tasks[item.ref.task_id].spec, item.ref.attempt + 1
            asyncio.get_running_loop().call_later(0.05, self.assign_spec, spec, attempt)

    async def Submit(self, request: Any, context: Any) -> Any:
        if not self.takes_submissions:
            raise NotLeader
        self.submitted += request.tasks
        for spec in request.tasks:
            if self.cluster.storage.create(spec):
                self.assign_spec(spec, 1)
        return S.SubmitResponse(states=[T.TASK_STATE_ASSIGNED] * len(request.tasks))

    async def Cancel(self, request: Any, context: Any) -> Any:
        self.cancelled += request.ids
        return S.CancelResponse()

    # --- what tests do ----------------------------------------------------------------------

    def assign(self, *specs: T.TaskSpec, attempt: int = 1, timeout_ms: int = 0) -> list[Key]:
        self.push(
            assign=[
                S.Assignment(
                    spec=spec,
                    attempt=attempt,
                    incarnation=self.cluster.registry.incarnation,
                    timeout_ms=timeout_ms,
                )
                for spec in specs
            ]
        )
        return [(spec.id, attempt) for spec in specs]

    def assign_spec(self, spec: T.TaskSpec, attempt: int) -> None:
        self.assign(spec, attempt=attempt)

    def give(self, skill: str, task_input: Any = None, *, attempt: int = 1, **fields: Any) -> Key:
        """Assigns one new task and gives its key."""
        return self.assign(
            self.cluster.task(skill, task_input, **fields),
            attempt=attempt,
            timeout_ms=fields.get("timeout_ms", 0),
        )[0]

    async def outcome(self, key: Key, timeout_s: float = HANG_S) -> T.Outcome:
        await until(lambda: key in self.outcomes, f"the outcome of {key}", timeout_s)
        return self.outcomes[key]

    async def result(self, skill: str, task_input: Any = None, **fields: Any) -> Any:
        """Runs one task and gives its output; fails when it does."""
        outcome = await self.outcome(self.give(skill, task_input, **fields))
        assert outcome.kind == T.OUTCOME_KIND_SUCCEEDED, outcome
        return orjson.loads(outcome.output_json)

    def cancel(self, key: Key, wish: int = T.TASK_WISH_CANCEL) -> None:
        self.push(cancel=[S.CancelAttempt(ref=_ref(key), wish=wish)])  # type: ignore[arg-type]


def _key(ref: Any) -> Key:
    return (ref.task_id, ref.attempt)


def _ref(key: Key) -> Any:
    return S.AttemptRef(task_id=key[0], attempt=key[1], tenant=DEFAULT_TENANT)


class Storage(storage_pb2_grpc.DataServiceServicer, storage_pb2_grpc.StorageServiceServicer):
    def __init__(self) -> None:
        self.values: dict[str, tuple[bytes, str, str]] = {}
        self.blobs: dict[str, bytes] = {}
        self.tasks: dict[str, Any] = {}
        self.available = True

    def create(self, spec: Any) -> bool:
        if spec.id in self.tasks:
            return False
        status = T.TaskStatus(state=T.TASK_STATE_ASSIGNED, attempt=1)
        self.tasks[spec.id] = T.Task(spec=spec, status=status)
        return True

    def ended(self, ident: str, outcome: Any) -> None:
        task = self.tasks.get(ident)
        if task is not None:
            done = outcome.kind == T.OUTCOME_KIND_SUCCEEDED
            task.status.state = T.TASK_STATE_SUCCEEDED if done else T.TASK_STATE_FAILED
            task.outcome.CopyFrom(outcome)

    async def Create(self, request: Any, context: Any) -> Any:
        for task in request.tasks:
            self.tasks.setdefault(task.spec.id, task)
        return storage_pb2.CreateResponse()

    async def GetTasks(self, request: Any, context: Any) -> Any:
        found = [self.tasks.get(i, T.Task()) for i in request.ids]
        return storage_pb2.GetTasksResponse(tasks=found)

    async def GetValue(self, request: Any, context: Any) -> Any:
        value, etag, kind = self.values.get(request.key, (b"", "", ""))
        return storage_pb2.GetValueResponse(
            found=bool(etag), value=value, etag=etag, content_type=kind
        )

    async def PutValue(self, request: Any, context: Any) -> Any:
        present = self.values.get(request.key)
        etag = present[1] if present else ""
        if (request.if_none_match and present) or (request.if_match and request.if_match != etag):
            return storage_pb2.PutValueResponse(written=False, etag=etag)
        new = hashlib.sha256(request.value + etag.encode()).hexdigest()[:8]
        self.values[request.key] = (request.value, new, request.content_type)
        return storage_pb2.PutValueResponse(written=True, etag=new)

    async def DeleteValue(self, request: Any, context: Any) -> Any:
        gone = self.values.pop(request.key, None)
        return storage_pb2.DeleteValueResponse(deleted=bool(gone), found=bool(gone))

    async def PutBlob(self, request_iterator: Any, context: Any) -> Any:
        content = b""
        async for part in request_iterator:
            content += part.chunk
        await until(lambda: self.available, "storage")
        sha256 = hashlib.sha256(content).hexdigest()
        self.blobs[sha256] = content
        return storage_pb2.PutBlobResponse(sha256=sha256, size_bytes=len(content))

    async def GetBlob(self, request: Any, context: Any) -> AsyncIterator[Any]:
        content = self.blobs.get(request.sha256)
        if content is None:
            raise NotFound("blob", request.sha256)
        for start in range(0, len(content), 65_536):
            yield storage_pb2.GetBlobResponse(chunk=content[start : start + 65_536])


class Monitor(monitor_pb2_grpc.MonitorServiceServicer):
    def __init__(self) -> None:
        self.reports = 0
        self.metrics: dict[str, float] = {}
        self.lines: dict[tuple[str, int], Any] = {}
        self.ends: list[str] = []
        self.leaving = False
        self.confirms = True

    async def Report(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:
        async for report in request_iterator:
            self.reports += 1
            self.metrics.update(report.metrics)
            for line in report.lines:
                self.lines[line.task_id, line.index] = line
            self.ends += [e.task_id for e in report.ends]
            self.leaving |= report.leaving
            if self.confirms:
                yield monitor_pb2.ReportResponse(seq=report.seq)

    def text(self, task: str, stream: int | None = None) -> list[str]:
        lines = sorted((i, v) for (t, i), v in self.lines.items() if t == task)
        return [v.text for _, v in lines if stream is None or v.stream == stream]


@dataclass
class Cluster:
    """Everything that an agent speaks with."""

    folder: Path
    servers: list[RpcServer] = field(default_factory=list)
    address: str = ""
    leader_address: str = ""
    agents: list[Agent] = field(default_factory=list)
    next_task: int = 0

    def __post_init__(self) -> None:
        self.registry = Registry(self)  # type: ignore[abstract]
        self.storage = Storage()  # type: ignore[abstract]
        self.monitor = Monitor()  # type: ignore[abstract]
        self.leader = Leader(self, 1)  # type: ignore[abstract]

    def endpoints(self) -> Any:
        return registry_pb2.Endpoints(
            leader=self.leader_address, storage=[self.address], monitors=[self.address]
        )

    async def start(self) -> None:
        # One that nobody takes while the server is away.
        await self.serve_again(f"127.0.0.1:{free_port()}")
        await self._serve_leader()

    async def serve_again(self, listen: str) -> None:
        """Registry, storage and monitor at this address."""
        server = RpcServer(listen, secret=SECRET, service="test")
        server.add(registry_pb2_grpc.add_RegistryServiceServicer_to_server, self.registry)
        server.add(storage_pb2_grpc.add_DataServiceServicer_to_server, self.storage)
        server.add(storage_pb2_grpc.add_StorageServiceServicer_to_server, self.storage)
        server.add(monitor_pb2_grpc.add_MonitorServiceServicer_to_server, self.monitor)
        self.address = f"127.0.0.1:{await server.start()}"
        self.servers.append(server)

    async def _serve_leader(self) -> None:
        server = RpcServer("127.0.0.1:0", secret=SECRET, service="leader")
        server.add(scheduler_pb2_grpc.add_SchedulerServiceServicer_to_server, self.leader)
        self.leader_address = f"127.0.0.1:{await server.start()}"
        self.servers.append(server)

    async def change_leader(self) -> Leader:
        """The old leader stands down, another one takes over."""
        old = self.leader
        self.leader = Leader(self, old.term + 1)  # type: ignore[abstract]
        await self._serve_leader()
        old.depose()
        return self.leader

    async def stop(self) -> None:
        try:
            # The latest first: an earlier one may have run in the same folder.
            for agent in reversed(self.agents):
                await agent.end()
        finally:
            for server in self.servers:
                await server.stop(0)

    def task(self, skill: str, task_input: Any = None, **fields: Any) -> T.TaskSpec:
        self.next_task += 1
        prefix = request_prefix(DEFAULT_TENANT, f"test-{self.next_task}", wall_ms())
        return T.TaskSpec(
            version=T.SCHEMA_VERSION_1,
            id=task_id(prefix, 0),
            tenant=DEFAULT_TENANT,
            skill=skill,
            input_json=orjson.dumps(task_input),
            lifetime=T.LIFETIME_FINITE,
            **{"on_disconnect": T.ON_DISCONNECT_KEEP, **fields},
        )

    async def agent(self, skills: str = "", *, ready: bool = True, **env: str) -> Agent:
        """Starts an agent with these skills (source text) and waits for its session."""
        agent = Agent(self, self.folder / f"agent-{len(self.agents)}")
        self.agents.append(agent)
        await agent.start(skills, env)
        if ready:
            hellos = len(self.leader.hellos)
            await until(lambda: len(self.leader.hellos) > hellos - 1 + (hellos == 0), "a session")
            await until(lambda: self.leader.beats, "a beat")
        return agent


class Agent:
    """One agent as a real process tree."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder
        self.marker = f"MUSTER_TEST_MARK={folder}"
        self.process: asyncio.subprocess.Process | None = None
        self.stderr = b""
        self._drain: asyncio.Task[None] | None = None
        is_witness(self)

    def testimony(self) -> tuple[str, str]:
        return f"{self.folder} (stderr)", self.stderr.decode(errors="replace")

    async def start(self, skills: str, env: dict[str, str]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        environ = {
            **{k: v for k, v in os.environ.items() if not k.startswith("MUSTER_")},
            "MUSTER_REGISTRY": self.cluster.address,
            "MUSTER_JOIN_SECRET": SECRET,
            "MUSTER_STATE_DIR": str(self.folder / "state"),
            "MUSTER_AGENT_ID": self.folder.name,
            "MUSTER_AGENT_PASS_ENV": "MUSTER_TEST_MARK",
            "MUSTER_TEST_MARK": str(self.folder),
            "MUSTER_AGENT_DRAIN_S": "5",
            **env,
        }
        if skills:
            path = self.folder / "bots.py"
            path.write_text(textwrap.dedent(skills))
            environ["MUSTER_SKILLS"] = str(path)
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "muster.agent", env=environ, stderr=asyncio.subprocess.PIPE
        )
        self._drain = asyncio.create_task(self._read_stderr())

    async def _read_stderr(self) -> None:
        assert self.process is not None
        assert self.process.stderr is not None
        while chunk := await self.process.stderr.read(65_536):
            self.stderr += chunk

    def processes(self) -> dict[int, str]:
        return processes_with(self.marker)

    def pid_of(self, module: str) -> int:
        """The process that runs a module of the agent."""
        found = [p for p, c in self.processes().items() if f"-m muster.agent.{module}" in c]
        if module == "zygote":  # runners are forks of it, with the same command line
            return min(found)
        assert len(found) == 1, (module, self.processes())
        return found[0]

    async def exit(self, timeout_s: float = HANG_S) -> int:
        """Waits for the end and gives the exit code."""
        assert self.process is not None
        async with asyncio.timeout(timeout_s):
            code = await self.process.wait()
            assert self._drain is not None
            await self._drain
        return code

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    async def end(self) -> None:
        """Ends what still runs, and insists that nothing is left."""
        assert self.process is not None
        if self.process.returncode is None:
            self.signal(signal.SIGKILL)
            await self.process.wait()
        await until(lambda: not self.processes(), f"the end of {self.processes()}")
        if self._drain is not None:
            await self._drain
