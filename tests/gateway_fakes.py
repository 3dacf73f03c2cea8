"""A cluster of fakes around a real gateway: real gRPC and HTTP, everything else in memory."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx
from tests.polling import HANG_S, eventually

from muster.api.v1 import (
    agent_pb2,
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
from muster.domain.errors import (
    Conflict,
    InvalidInput,
    NotFound,
    NotLeader,
    PreconditionFailed,
    Unavailable,
)
from muster.rpc.server import RpcServer
from muster_gateway.apikeys import ID_BYTES, SECRET_BYTES, KeyText, make_key
from muster_gateway.config import Config
from muster_gateway.serving import GatewayServer

SECRET = "s" * 32
ENDED = range(task_pb2.TASK_STATE_SUCCEEDED, task_pb2.TASK_STATE_DEAD + 1)


class FakeStorage(storage_pb2_grpc.StorageServiceServicer, storage_pb2_grpc.DataServiceServicer):
    """Enough of storage for the whole REST flow. Event ids are "1", "2", …"""

    def __init__(self) -> None:
        self.tasks: dict[tuple[str, str], task_pb2.Task] = {}
        self.events: list[storage_pb2.Event] = []
        self.trimmed = 0
        self.more = asyncio.Condition()
        self.keys: dict[str, storage_pb2.ApiKey] = {}
        self.reserved: dict[tuple[str, str], tuple[int, bytes]] = {}
        self.values: dict[tuple[str, str], tuple[bytes, str, str]] = {}
        self.blobs: dict[tuple[str, str], bytes] = {}
        self.tails: list[asyncio.Event] = []
        self.etag = 0
        self.calls: list[str] = []
        self.policy, self.policy_version = b"", 0
        # Ids of the keys that were looked up.
        self.looked_up: list[str] = []
        # Ends what was created here at once, as a leader does that finds it.
        self.echo = False
        # Raised by every call while it is set.
        self.broken: Exception | None = None
        # Called with the number of Create calls so far.
        self.on_create: Callable[[int], None] | None = None
        self.creates = 0
        self.reads_per_answer = 10_000

    def _enter(self, name: str) -> None:
        self.calls.append(name)
        if self.broken is not None:
            raise self.broken

    async def emit(self, event: storage_pb2.Event) -> None:
        async with self.more:
            self.events.append(event)
            event.id = str(self.trimmed + len(self.events))
            event.at_ms = 1_700_000_000_000
            self.more.notify_all()

    async def put(self, task: task_pb2.Task) -> None:
        """Writes a task's new state, with its event."""
        known = (task.spec.tenant, task.spec.id) in self.tasks
        self.tasks[task.spec.tenant, task.spec.id] = task
        await self.emit(
            storage_pb2.Event(
                kind=storage_pb2.EVENT_KIND_TASK_CHANGED
                if known
                else storage_pb2.EVENT_KIND_TASK_CREATED,
                tenant=task.spec.tenant,
                task_id=task.spec.id,
                state=task.status.state,
                attempt=task.status.attempt,
                skill=task.spec.skill,
                agent=task.status.agent,
            )
        )

    async def end(
        self,
        ident: str,
        output: bytes = b"null",
        *,
        state: task_pb2.TaskState.ValueType = task_pb2.TASK_STATE_SUCCEEDED,
        tenant: str = "default",
        **outcome: Any,
    ) -> None:
        """Ends a task, as an agent's outcome would."""
        task = task_pb2.Task()
        task.CopyFrom(self.tasks[tenant, ident])
        task.status.state = state
        task.status.attempt = 1
        task.status.agent = "agent-1"
        task.status.ended_at_ms = 1_700_000_001_000
        kind = task_pb2.OUTCOME_KIND_SUCCEEDED
        if state != task_pb2.TASK_STATE_SUCCEEDED:
            kind = task_pb2.OUTCOME_KIND_FAILED
        task.outcome.CopyFrom(task_pb2.Outcome(kind=kind, output_json=output, **outcome))
        await self.put(task)

    def drop_tails(self) -> None:
        """Breaks every Tail stream."""
        for tail in self.tails:
            tail.set()

    async def Reserve(self, request: storage_pb2.ReserveRequest, _: Any) -> Any:
        self._enter("Reserve")
        key = (request.tenant, request.key)
        first = key not in self.reserved
        first_ms, body_hash = self.reserved.setdefault(key, (request.now_ms, request.body_hash))
        return storage_pb2.ReserveResponse(
            first_ms=first_ms, first=first, conflict=body_hash != request.body_hash
        )

    async def Create(self, request: storage_pb2.CreateRequest, _: Any) -> Any:
        self._enter("Create")
        self.creates += 1
        if self.on_create is not None:
            self.on_create(self.creates)
        response = storage_pb2.CreateResponse(results=await self.create(list(request.tasks)))
        if self.echo:
            await self.echo_of([task.spec for task in request.tasks])
        return response

    async def echo_of(self, specs: Iterable[task_pb2.TaskSpec]) -> None:
        """Ends tasks with their inputs, once: the same ones may come twice."""
        for spec in specs:
            if self.tasks[spec.tenant, spec.id].status.state not in ENDED:
                await self.end(spec.id, spec.input_json, tenant=spec.tenant)

    async def create(self, tasks: list[task_pb2.Task]) -> list[storage_pb2.CreateResult]:
        results = []
        for task in tasks:
            known = self.tasks.get((task.spec.tenant, task.spec.id))
            code = storage_pb2.CREATE_CODE_CREATED
            if known is None:
                await self.put(task)
            else:
                code = storage_pb2.CREATE_CODE_EXISTS
            results.append(storage_pb2.CreateResult(code=code, status=(known or task).status))
        return results

    async def GetTasks(self, request: storage_pb2.GetTasksRequest, _: Any) -> Any:
        self._enter("GetTasks")
        response = storage_pb2.GetTasksResponse()
        for ident in request.ids[: self.reads_per_answer]:
            task = response.tasks.add()
            task.CopyFrom(self.tasks.get((request.tenant, ident), task_pb2.Task()))
            if request.without_input:
                task.spec.input_json = b""
                if not task.spec.id:
                    task.ClearField("spec")
        return response

    async def ListTasks(self, request: storage_pb2.ListTasksRequest, _: Any) -> Any:
        self._enter("ListTasks")
        found = sorted(
            (t for (tenant, _), t in self.tasks.items() if tenant == request.tenant),
            key=lambda t: t.spec.id,
            reverse=True,
        )
        chosen = [
            t
            for t in found
            if (not request.state or t.status.state == request.state)
            and (not request.skill or t.spec.skill == request.skill)
            and (not request.agent or t.status.agent == request.agent)
            and all(t.spec.labels.get(k) == v for k, v in request.labels.items())
            and (not request.cursor or t.spec.id < request.cursor)
        ]
        page = chosen[: request.limit]
        following = page[-1].spec.id if len(chosen) > len(page) else ""
        return storage_pb2.ListTasksResponse(tasks=page, next=following)

    async def CountTasks(self, request: storage_pb2.CountTasksRequest, _: Any) -> Any:
        self._enter("CountTasks")
        counts: dict[str, int] = {}
        for (tenant, _ident), task in self.tasks.items():
            if tenant == request.tenant:
                name = task_pb2.TaskState.Name(task.status.state).removeprefix("TASK_STATE_")
                counts[name] = counts.get(name, 0) + 1
        return storage_pb2.CountTasksResponse(by_state=counts)

    async def Tail(self, request: storage_pb2.TailRequest, _: Any) -> AsyncIterator[Any]:
        self._enter("Tail")
        cut = asyncio.Event()
        self.tails.append(cut)
        last = self.trimmed + len(self.events)
        at = last if not request.from_id else int(request.from_id)
        yield storage_pb2.TailResponse(last_id=str(at))
        while not cut.is_set():
            if at < self.trimmed:
                at = self.trimmed
                yield storage_pb2.TailResponse(last_id=str(at), gap=True)
            batch = self.events[at - self.trimmed : at - self.trimmed + 500]
            if batch:
                at = int(batch[-1].id)
                if request.only_ended:
                    batch = [e for e in batch if e.state >= task_pb2.TASK_STATE_SUCCEEDED]
                yield storage_pb2.TailResponse(events=batch, last_id=str(at))
                continue
            async with self.more:
                try:
                    async with asyncio.timeout(0.02):
                        await self.more.wait()
                except TimeoutError:
                    continue
        raise Unavailable("storage", "the tail was cut")

    async def CreateApiKey(self, request: storage_pb2.CreateApiKeyRequest, _: Any) -> Any:
        self._enter("CreateApiKey")
        if request.key.id in self.keys:
            raise Conflict("the id is taken")
        self.keys[request.key.id] = request.key
        return storage_pb2.CreateApiKeyResponse()

    async def GetApiKey(self, request: storage_pb2.GetApiKeyRequest, _: Any) -> Any:
        self._enter("GetApiKey")
        self.looked_up.append(request.id)
        if request.id not in self.keys:
            raise NotFound("key", request.id)
        return storage_pb2.GetApiKeyResponse(key=self.keys[request.id])

    async def ListApiKeys(self, request: storage_pb2.ListApiKeysRequest, _: Any) -> Any:
        self._enter("ListApiKeys")
        keys = [k for k in self.keys.values() if k.tenant == request.tenant]
        return storage_pb2.ListApiKeysResponse(keys=keys)

    async def RevokeApiKey(self, request: storage_pb2.RevokeApiKeyRequest, _: Any) -> Any:
        self._enter("RevokeApiKey")
        key = self.keys.get(request.id)
        if key is None or key.tenant != request.tenant:
            raise NotFound("key", request.id)
        key.revoked_at_ms = request.now_ms
        return storage_pb2.RevokeApiKeyResponse(key=key)

    async def GetPolicy(self, _request: storage_pb2.GetPolicyRequest, _: Any) -> Any:
        self._enter("GetPolicy")
        etag = str(self.policy_version)
        return storage_pb2.GetPolicyResponse(policy_json=self.policy, etag=etag)

    async def PutPolicy(self, request: storage_pb2.PutPolicyRequest, _: Any) -> Any:
        self._enter("PutPolicy")
        etag = str(self.policy_version)
        if request.if_match not in ("", etag):
            raise PreconditionFailed(f"the policy's etag is {etag}, not {request.if_match}")
        self.policy, self.policy_version = request.policy_json, self.policy_version + 1
        return storage_pb2.PutPolicyResponse(etag=str(self.policy_version))

    async def TouchApiKeys(self, request: storage_pb2.TouchApiKeysRequest, _: Any) -> Any:
        self._enter("TouchApiKeys")
        for ident, at_ms in request.last_used_at_ms.items():
            if ident in self.keys:
                self.keys[ident].last_used_at_ms = at_ms
        return storage_pb2.TouchApiKeysResponse()

    async def GetValue(self, request: storage_pb2.GetValueRequest, _: Any) -> Any:
        self._enter("GetValue")
        found = self.values.get((request.tenant, request.key))
        if found is None:
            return storage_pb2.GetValueResponse(found=False)
        value, kind, etag = found
        return storage_pb2.GetValueResponse(found=True, value=value, content_type=kind, etag=etag)

    async def PutValue(self, request: storage_pb2.PutValueRequest, _: Any) -> Any:
        self._enter("PutValue")
        key = (request.tenant, request.key)
        found = self.values.get(key)
        etag = found[2] if found else ""
        if (request.if_none_match and found) or (
            request.if_match and (not found or request.if_match not in ("*", etag))
        ):
            return storage_pb2.PutValueResponse(written=False, etag=etag)
        self.etag += 1
        self.values[key] = (request.value, request.content_type, str(self.etag))
        return storage_pb2.PutValueResponse(
            written=True, etag=str(self.etag), created=found is None
        )

    async def DeleteValue(self, request: storage_pb2.DeleteValueRequest, _: Any) -> Any:
        self._enter("DeleteValue")
        found = self.values.get((request.tenant, request.key))
        if found is None:
            return storage_pb2.DeleteValueResponse(found=False)
        if request.if_match not in ("", "*", found[2]):
            return storage_pb2.DeleteValueResponse(found=True, etag=found[2])
        del self.values[request.tenant, request.key]
        return storage_pb2.DeleteValueResponse(found=True, deleted=True)

    async def ListValues(self, request: storage_pb2.ListValuesRequest, _: Any) -> Any:
        self._enter("ListValues")
        keys = sorted(
            key
            for tenant, key in self.values
            if tenant == request.tenant and key.startswith(request.prefix) and key > request.cursor
        )
        page = keys[: request.limit]
        return storage_pb2.ListValuesResponse(
            keys=page, next=page[-1] if len(keys) > len(page) else ""
        )

    async def PutBlob(self, requests: AsyncIterator[storage_pb2.PutBlobRequest], _: Any) -> Any:
        self._enter("PutBlob")
        header, pieces = storage_pb2.BlobHeader(), []
        async for request in requests:
            if request.HasField("header"):
                header = request.header
            else:
                pieces.append(request.chunk)
        content = b"".join(pieces)
        # A client that breaks off ends the stream, too; its cancellation comes a moment later.
        # Those that are tested with this send much.
        await asyncio.sleep(0.01 if len(content) < 300_000 else 0.5)
        sha256 = hashlib.sha256(content).hexdigest()
        if header.sha256 and header.sha256 != sha256:
            raise InvalidInput("sha256", header.sha256, f"the body's is {sha256}")
        self.blobs[header.tenant, sha256] = content
        return storage_pb2.PutBlobResponse(sha256=sha256, size_bytes=len(content))

    async def GetBlob(self, request: storage_pb2.GetBlobRequest, _: Any) -> AsyncIterator[Any]:
        self._enter("GetBlob")
        content = self.blobs.get((request.tenant, request.sha256))
        if content is None:
            raise NotFound("blob", request.sha256)
        yield storage_pb2.GetBlobResponse(size_bytes=len(content))
        for start in range(0, len(content), 100_000):
            yield storage_pb2.GetBlobResponse(chunk=content[start : start + 100_000])

    async def DeleteBlob(self, request: storage_pb2.DeleteBlobRequest, _: Any) -> Any:
        self._enter("DeleteBlob")
        found = self.blobs.pop((request.tenant, request.sha256), None)
        return storage_pb2.DeleteBlobResponse(found=found is not None)


class FakeScheduler(scheduler_pb2_grpc.SchedulerServiceServicer):
    """A leader, or what it is told to be; writes to the fake storage."""

    def __init__(self, storage: FakeStorage) -> None:
        self.storage = storage
        # Raised by every call while it is set.
        self.broken: Exception | None = None
        self.submits: list[int] = []
        # How often it was asked to submit, in vain or not.
        self.asked_to_submit = 0
        self.agents: dict[str, agent_pb2.AgentView] = {}
        self.acts: list[tuple[str, int, str]] = []
        self.deadlines: list[int] = []
        self.excluded: Mapping[str, int] = {}
        self.plans: list[scheduler_pb2.PlanRequest] = []
        # As a leader keeps them, the oldest first; ids ascend.
        self.recoveries: list[dict[str, Any]] = []

    def _enter(self) -> None:
        if self.broken is not None:
            raise self.broken

    @property
    def echo(self) -> bool:
        """Whether every task ends as soon as it is there, with its input as output."""
        return self.storage.echo

    @echo.setter
    def echo(self, echo: bool) -> None:
        # A gateway that a busy machine keeps from the leader writes to storage by itself.
        self.storage.echo = echo

    async def Submit(self, request: scheduler_pb2.SubmitRequest, _: Any) -> Any:
        self.asked_to_submit += 1
        self._enter()
        self.submits.append(len(request.tasks))
        status = task_pb2.TaskStatus(
            version=task_pb2.SCHEMA_VERSION_1, state=task_pb2.TASK_STATE_PENDING
        )
        tasks = [task_pb2.Task(spec=spec, status=status) for spec in request.tasks]
        results = await self.storage.create(tasks)
        if self.echo:
            await self.storage.echo_of(request.tasks)
        return scheduler_pb2.SubmitResponse(states=[r.status.state for r in results])

    async def Cancel(self, request: scheduler_pb2.CancelRequest, _: Any) -> Any:
        self._enter()
        response = scheduler_pb2.CancelResponse()
        for ident in request.ids:
            task = self.storage.tasks.get((request.tenant, ident))
            if task is None:
                response.results.add(code=scheduler_pb2.CANCEL_CODE_NOT_FOUND)
            elif task.status.state in ENDED:
                response.results.add(code=scheduler_pb2.CANCEL_CODE_ENDED, state=task.status.state)
            else:
                await self.storage.end(
                    ident, b"", state=task_pb2.TASK_STATE_CANCELLED, tenant=request.tenant
                )
                response.results.add(
                    code=scheduler_pb2.CANCEL_CODE_ACCEPTED, state=task_pb2.TASK_STATE_CANCELLED
                )
        return response

    async def Plan(self, request: scheduler_pb2.PlanRequest, _: Any) -> Any:
        """The first task goes to `a`; no other has a place."""
        self._enter()
        self.plans.append(request)
        left = len(request.shape_of) - 1
        point = scheduler_pb2.PlanPoint(places=[1] + [0] * left)
        return scheduler_pb2.PlanResponse(
            agents=["a"],
            places=[1] + [0] * left,
            reasons=[scheduler_pb2.PlanReason(text="full", excluded={"full": 1}, agents=1)],
            reason_of=[0] + [1] * left,
            devices=[scheduler_pb2.PlanDevices(task=0, resource="gpu", indices=[1])],
            score=scheduler_pb2.PlanScore(t=1.0, u=0.5, b=0.25, j=0.125, unplaced=left),
            strategy="worst_fit",
            elapsed_s=0.5,
            front=[point] if request.front else [],
            queued=3,
            seed=request.seed,
            budget_s=5.0,
            objective="J",
        )

    async def ListAgentViews(self, _request: Any, _: Any) -> Any:
        self._enter()
        return scheduler_pb2.ListAgentViewsResponse(agents=self.agents.values())

    async def ActOnAgent(self, request: scheduler_pb2.ActOnAgentRequest, _: Any) -> Any:
        self._enter()
        if request.agent not in self.agents:
            raise NotFound("agent", request.agent)
        self.acts.append((request.agent, request.action, request.who))
        self.deadlines.append(request.deadline_ms)
        view = self.agents[request.agent]
        wishes = {
            scheduler_pb2.AGENT_ACTION_CORDON: agent_pb2.AGENT_WISH_CORDON,
            scheduler_pb2.AGENT_ACTION_UNCORDON: agent_pb2.AGENT_WISH_NONE,
            scheduler_pb2.AGENT_ACTION_DRAIN: agent_pb2.AGENT_WISH_DRAIN,
        }
        view.wish = wishes.get(request.action, view.wish)
        return scheduler_pb2.ActOnAgentResponse(agent=view)

    async def Explain(self, request: scheduler_pb2.ExplainRequest, _: Any) -> Any:
        self._enter()
        task = self.storage.tasks.get((request.tenant, request.id))
        if task is None:
            return scheduler_pb2.ExplainResponse(found=False)
        return scheduler_pb2.ExplainResponse(
            found=True,
            state=task.status.state,
            summary=f"no agent offers the skill {task.spec.skill}",
            queue_position=1,
            queue_length=1,
            agents=len(self.agents),
            excluded=self.excluded,
        )

    async def GetClusterStatus(self, _request: Any, _: Any) -> Any:
        self._enter()
        return scheduler_pb2.GetClusterStatusResponse(
            leader="127.0.0.1:1", term=3, queued=1, capacity={"cpu": 4000}, used={"cpu": 100}
        )

    async def ListRecoveries(self, request: scheduler_pb2.ListRecoveriesRequest, _: Any) -> Any:
        self._enter()
        found = [
            record
            for record in reversed(self.recoveries)
            if record["tenant"] == request.tenant
            and request.agent in ("", record["agent"])
            and request.id in ("", record["id"])
            and (not request.before_id or record["id"] < request.before_id)
        ]
        return scheduler_pb2.ListRecoveriesResponse(
            records_json=[json.dumps(record).encode() for record in found[: request.limit]],
            more=len(found) > request.limit,
        )

    async def AcceptStore(self, _request: Any, _: Any) -> Any:
        self._enter()
        raise Conflict("this scheduler is not halted")


class FakeRegistry(registry_pb2_grpc.RegistryServiceServicer):
    """Agents with skills, pushed to whoever watches."""

    def __init__(self) -> None:
        self.agents: list[agent_pb2.AgentRecord] = []
        self.changed = asyncio.Event()
        self.told = asyncio.Event()

    async def WatchAgents(self, _request: Any, _: Any) -> AsyncIterator[Any]:
        while True:
            self.changed.clear()
            yield registry_pb2.WatchAgentsResponse(snapshot=True, agents=self.agents)
            self.told.set()
            await self.changed.wait()


class FakeMonitor(monitor_pb2_grpc.MonitorServiceServicer):
    """Log lines and figures."""

    def __init__(self) -> None:
        self.lines: list[monitor_pb2.LogLine] = []
        self.samples: list[monitor_pb2.AgentSamples] = []
        self.follow_until = asyncio.Event()
        self.more = asyncio.Event()
        self.alerts: list[monitor_pb2.Alert] = []
        self.speaking = True
        self.alert_requests: list[monitor_pb2.ListAlertsRequest] = []
        self.silences: dict[str, monitor_pb2.Silence] = {}

    async def ListAlerts(self, request: monitor_pb2.ListAlertsRequest, _: Any) -> Any:
        self.alert_requests.append(request)
        return monitor_pb2.ListAlertsResponse(alerts=self.alerts, speaking=self.speaking)

    async def CreateSilence(self, request: monitor_pb2.CreateSilenceRequest, _: Any) -> Any:
        ident = str(len(self.silences) + 1)
        self.silences[ident] = request.silence
        request.silence.id = ident
        return monitor_pb2.CreateSilenceResponse(silence=request.silence)

    async def ListSilences(self, request: monitor_pb2.ListSilencesRequest, _: Any) -> Any:
        found = [s for s in self.silences.values() if s.tenant == request.tenant]
        return monitor_pb2.ListSilencesResponse(silences=found)

    async def EndSilence(self, request: monitor_pb2.EndSilenceRequest, _: Any) -> Any:
        found = self.silences.get(request.id)
        if found is None or found.tenant != request.tenant:
            raise NotFound("silence", request.id)
        found.ends_at_ms = 1
        return monitor_pb2.EndSilenceResponse(silence=found)

    async def ReadLog(self, request: monitor_pb2.ReadLogRequest, _: Any) -> AsyncIterator[Any]:
        sent = 0
        while True:
            lines = [
                line
                for line in self.lines[sent:]
                if line.task_id == request.task_id
                and line.tenant == request.tenant
                and request.attempt in (0, line.attempt)
            ]
            sent = len(self.lines)
            if lines:
                yield monitor_pb2.ReadLogResponse(lines=lines)
            if not request.follow or self.follow_until.is_set():
                return
            self.more.clear()
            await self.more.wait()

    async def GetMetrics(self, request: monitor_pb2.GetMetricsRequest, _: Any) -> Any:
        found = [s for s in self.samples if request.agent in ("", s.agent)]
        return monitor_pb2.GetMetricsResponse(agents=found)


def skill_agent(ident: str, skill: str, schema: bytes = b"") -> agent_pb2.AgentRecord:
    """An agent that offers one skill."""
    offer = agent_pb2.SkillOffer(name=skill, input_schema_json=schema, schema_hash="0" * 16)
    spec = agent_pb2.AgentSpec(id=ident, tenant="default", skills=[offer])
    return agent_pb2.AgentRecord(spec=spec, incarnation=1)


@dataclass
class Cluster:
    """The fakes, and clients of the gateway in front of them."""

    storage: FakeStorage
    scheduler: FakeScheduler
    registry: FakeRegistry
    monitor: FakeMonitor
    gateway: GatewayServer
    url: str
    servers: dict[str, RpcServer]
    addresses: dict[str, str]
    clients: list[httpx.AsyncClient] = field(default_factory=list)
    made: int = 0

    def new_key(self, role: str, tenant: str = "default", *, expires_at_ms: int = 0) -> KeyText:
        """A key, written into storage."""
        self.made += 1
        key = make_key(self.made.to_bytes(ID_BYTES) + bytes([self.made % 256]) * SECRET_BYTES)
        self.storage.keys[key.id] = storage_pb2.ApiKey(
            id=key.id,
            tenant=tenant,
            role=role,
            secret_sha256=key.digest,
            expires_at_ms=expires_at_ms,
        )
        return key

    def client(self, role: str = "admin", tenant: str = "default") -> httpx.AsyncClient:
        return self.client_with(self.new_key(role, tenant).text)

    def client_with(self, key: str | None) -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        client = httpx.AsyncClient(base_url=self.url, headers=headers, timeout=HANG_S)
        self.clients.append(client)
        return client


async def until(condition: Callable[[], object], *work: asyncio.Task[Any]) -> None:
    """`eventually`, of conditions of any type."""
    await eventually(lambda: bool(condition()), *work)


# What a gateway waits for others before it goes on without them. Here all of them are one process,
# which may be held up as a whole; then nobody is late.
_PATIENCE = (
    "reasons._TIMEOUT_S",
    "routes_agents._METRICS_TIMEOUT_S",
    "submitting._SUBMIT_TIMEOUT_S",
    "tail._HISTORY_QUIET_S",
    "tail._PRESENT_TIMEOUT_S",
)


@asynccontextmanager
async def running_cluster(
    *, bootstrap_key_file: Path | None = None, standbys: int = 0, start_storage: bool = True
) -> AsyncIterator[Cluster]:
    """Fakes and a gateway that is ready; all in this event loop."""
    # What the gateway never calls is left out of the fakes.
    storage = FakeStorage()  # type: ignore[abstract]
    registry = FakeRegistry()  # type: ignore[abstract]
    monitor = FakeMonitor()  # type: ignore[abstract]
    scheduler = FakeScheduler(storage)  # type: ignore[abstract]
    servers = {
        name: RpcServer("127.0.0.1:0", secret=SECRET, service=name)
        for name in ("storage", "scheduler", "registry", "monitor")
    }
    storage_adders = (
        storage_pb2_grpc.add_StorageServiceServicer_to_server,
        storage_pb2_grpc.add_DataServiceServicer_to_server,
    )
    for adder in storage_adders:
        servers["storage"].add(adder, storage)
    servers["scheduler"].add(scheduler_pb2_grpc.add_SchedulerServiceServicer_to_server, scheduler)
    servers["registry"].add(registry_pb2_grpc.add_RegistryServiceServicer_to_server, registry)
    servers["monitor"].add(monitor_pb2_grpc.add_MonitorServiceServicer_to_server, monitor)
    addresses: dict[str, str] = {}
    for name, server in servers.items():
        addresses[name] = f"127.0.0.1:{await server.start()}"
    if not start_storage:
        await servers["storage"].stop(0)
    schedulers = [addresses["scheduler"]]
    for number in range(standbys):
        standby = FakeScheduler(storage)  # type: ignore[abstract]
        standby.broken = NotLeader(addresses["scheduler"])
        server = servers[f"standby-{number}"] = RpcServer(
            "127.0.0.1:0", secret=SECRET, service="scheduler"
        )
        server.add(scheduler_pb2_grpc.add_SchedulerServiceServicer_to_server, standby)
        schedulers.insert(0, f"127.0.0.1:{await server.start()}")
    config = Config(
        http_listen="127.0.0.1:0",
        metrics_listen="",
        join_secret=SECRET,
        storage=(addresses["storage"],),
        schedulers=tuple(schedulers),
        registry=(addresses["registry"],),
        monitors=(addresses["monitor"],),
        bootstrap_key_file=bootstrap_key_file,
    )
    gateway = GatewayServer(config)
    stop = asyncio.Event()
    started: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(gateway.serve(stop, started))
    serving.add_done_callback(lambda done: started.done() or started.cancel())
    await asyncio.wait((started,))
    if started.cancelled():
        await serving
    url = f"http://127.0.0.1:{started.result()}"
    cluster = Cluster(storage, scheduler, registry, monitor, gateway, url, servers, addresses)
    try:
        if start_storage:
            await until(
                lambda: gateway.gateway.readiness.why_not is None and gateway.gateway.feed.live
            )
        with ExitStack() as patient:
            for name in _PATIENCE:
                patient.enter_context(patch(f"muster_gateway.{name}", HANG_S))
            yield cluster
    finally:
        for client in cluster.clients:
            await client.aclose()
        stop.set()
        await serving
        for server in servers.values():
            await server.stop(0)
