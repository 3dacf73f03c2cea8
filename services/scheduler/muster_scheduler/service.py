"""The scheduler's RPCs: the leader answers, a standby names the leader."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import orjson
import structlog

from muster.api.v1 import agent_pb2, scheduler_pb2, scheduler_pb2_grpc
from muster.domain.agent import MAX_DRAIN_MS
from muster.domain.agent_lifecycle import AgentWish
from muster.domain.errors import (
    Conflict,
    InvalidInput,
    NotFound,
    NotLeader,
    StoreRolledBack,
    Unavailable,
)
from muster.domain.ids import TaskId, TenantId, parse_agent_id
from muster.domain.task import MAX_BATCH_TASKS
from muster.domain.task_lifecycle import ENDED_STATES, TaskState
from muster.rpc import conversion
from muster_scheduler import metrics
from muster_scheduler.alarms import Alarms
from muster_scheduler.core import agents, tasks
from muster_scheduler.core.explain import explain
from muster_scheduler.core.foretelling import remaining_s
from muster_scheduler.core.records import AgentEntry
from muster_scheduler.explaining import explained
from muster_scheduler.intake import open_session, take_message
from muster_scheduler.leader import Leader
from muster_scheduler.planning import Planner, predicted_run_s
from muster_scheduler.recovery_keeping import MAX_RECORDS
from muster_scheduler.sessions import Session as OpenSession
from muster_scheduler.store_halt import Halt

_LOG = structlog.get_logger("muster.scheduler")

# A peer that opens a session says hello at once.
HELLO_TIMEOUT_S = 5.0
READY_TIMEOUT_S = 2.0
_WISHES = {
    scheduler_pb2.AGENT_ACTION_CORDON: AgentWish.CORDON,
    scheduler_pb2.AGENT_ACTION_UNCORDON: AgentWish.NONE,
    scheduler_pb2.AGENT_ACTION_DRAIN: AgentWish.DRAIN,
}


class SchedulerService(scheduler_pb2_grpc.SchedulerServiceServicer):
    """`leader` is set while this process leads; `leader_address` is who leads as far as known."""

    def __init__(self, version: str) -> None:
        self.leader: Leader | None = None
        self.leader_address = ""
        self.halt: Halt | None = None
        self.alarms = Alarms()
        self._version = version
        self._planner = Planner()

    async def _leading(self) -> Leader:
        leader = self.leader
        if self.halt is not None:
            raise StoreRolledBack(self.halt.why)
        if leader is None or leader.over:
            raise NotLeader(self.leader_address)
        if not leader.ready.is_set():
            try:
                async with asyncio.timeout(READY_TIMEOUT_S):
                    await leader.ready.wait()
            except TimeoutError:
                raise Unavailable("the leader", "it is still loading open tasks") from None
            if leader.over:
                raise NotLeader(self.leader_address)
        return leader

    async def Submit(
        self, request: scheduler_pb2.SubmitRequest, context: Any
    ) -> scheduler_pb2.SubmitResponse:
        if len(request.tasks) > MAX_BATCH_TASKS:
            raise InvalidInput("tasks", len(request.tasks), f"at most {MAX_BATCH_TASKS} in a batch")
        leader = await self._leading()
        states = await leader.submit(request.tasks)
        return scheduler_pb2.SubmitResponse(
            states=[conversion.TASK_STATE_TO_PROTO[s] for s in states]
        )

    async def Cancel(
        self, request: scheduler_pb2.CancelRequest, context: Any
    ) -> scheduler_pb2.CancelResponse:
        if len(request.ids) > MAX_BATCH_TASKS:
            raise InvalidInput("ids", len(request.ids), f"at most {MAX_BATCH_TASKS} in a batch")
        leader = await self._leading()
        tenant = TenantId(request.tenant)
        idents = [TaskId(i) for i in request.ids]
        # A gateway may have created some of them on its own a moment ago; others have ended.
        unknown = [i for i in idents if i not in leader.state.tasks]
        stored = await leader.loader.find(tenant, unknown) if unknown else {}
        results = [_cancel(leader, tenant, ident, stored.get(ident)) for ident in idents]
        leader.wake()
        # Accepted means durable: the answer waits for the writes that carry the wishes.
        await leader.settled(idents)
        return scheduler_pb2.CancelResponse(results=results)

    async def ListAgentViews(
        self, request: scheduler_pb2.ListAgentViewsRequest, context: Any
    ) -> scheduler_pb2.ListAgentViewsResponse:
        leader = await self._leading()
        return scheduler_pb2.ListAgentViewsResponse(
            agents=[_view(leader, a) for a in leader.state.agents.values()]
        )

    async def ActOnAgent(
        self, request: scheduler_pb2.ActOnAgentRequest, context: Any
    ) -> scheduler_pb2.ActOnAgentResponse:
        leader = await self._leading()
        ident = parse_agent_id(request.agent)
        agent = leader.state.agents.get(ident)
        if agent is None:
            raise NotFound("agent", ident)
        if request.action == scheduler_pb2.AGENT_ACTION_RESTART:
            why = f"restart on request of {request.who or 'an operator'}"
            if not agents.restart(leader.state, ident, why, leader.now()):
                raise Conflict(f"agent {ident} has no supervisor connected that could restart it")
            leader.wake()
        elif request.action in _WISHES:
            wish = _WISHES[request.action]
            if request.deadline_ms and wish is not AgentWish.DRAIN:
                raise InvalidInput("deadline", request.deadline_ms, "only a drain has one")
            if not 0 <= request.deadline_ms <= MAX_DRAIN_MS:
                limit = f"0 to {MAX_DRAIN_MS} ms"
                raise InvalidInput("deadline", request.deadline_ms, limit)
            await leader.set_wish(ident, wish, request.who, request.deadline_ms)
        else:
            raise InvalidInput("action", request.action, "cordon, uncordon, drain or restart")
        return scheduler_pb2.ActOnAgentResponse(agent=_view(leader, agent))

    async def Explain(
        self, request: scheduler_pb2.ExplainRequest, context: Any
    ) -> scheduler_pb2.ExplainResponse:
        leader = await self._leading()
        task = leader.state.tasks.get(TaskId(request.id))
        if task is None or task.spec.tenant != request.tenant:
            return scheduler_pb2.ExplainResponse(found=False)
        now = leader.now()
        found = explain(leader.state, task, now, brief=request.brief)
        left_s = remaining_s(leader.state, task, now)
        summary = found.summary
        if leader.restricted and found.state is TaskState.PENDING:
            summary = f"etcd does not confirm the leader, so nothing new is placed; {summary}"
        response = explained(found, summary, leader.state.policy.strategy)
        if left_s is not None:
            response.expected_end_ms = now.wall_ms + round(1000 * left_s)
        return response

    async def Plan(
        self, request: scheduler_pb2.PlanRequest, context: Any
    ) -> scheduler_pb2.PlanResponse:
        leader = await self._leading()
        state = leader.state
        queued = state.counts()["queued"]
        snapshot = state.table.view()
        response = await self._planner.plan(
            snapshot,
            request,
            state.policy,
            leader.now().clock_ms / 1000,
            # None where the call came over a stream of calls, which ends it by itself.
            None if context is None else context.time_remaining(),
            predicted_run_s(state, snapshot, request),
        )
        response.queued = queued
        return response

    async def GetClusterStatus(
        self, request: scheduler_pb2.GetClusterStatusRequest, context: Any
    ) -> scheduler_pb2.GetClusterStatusResponse:
        if self.halt is not None:
            return scheduler_pb2.GetClusterStatusResponse(
                leader=self.halt.address,
                term=self.halt.term,
                version=self._version,
                halted=self.halt.why,
                alarms=self.alarms.standing,
            )
        leader = await self._leading()
        state = leader.state
        view = state.table.view()
        by_state: dict[str, int] = {}
        for agent in state.agents.values():
            by_state[agent.state.value] = by_state.get(agent.state.value, 0) + 1
        capacity = view.capacity.sum(axis=0).tolist()
        used = view.used.sum(axis=0).tolist()
        counts = state.counts()
        t, u, b = leader.objective.now
        return scheduler_pb2.GetClusterStatusResponse(
            leader=leader.address,
            term=leader.term,
            clock_ms=leader.now().clock_ms,
            agents_by_state=by_state,
            capacity=dict(zip(view.names, capacity, strict=True)),
            used=dict(zip(view.names, used, strict=True)),
            tasks_per_s=leader.tasks_per_s,
            version=self._version,
            strategy=state.policy.strategy,
            policy_etag=leader.policies.etag,
            objective=scheduler_pb2.Objective(t_seconds=t, u_ratio=u, b_ratio=b),
            queued=counts["queued"],
            assigned=counts["assigned"],
            running=counts["running"],
            alarms=self.alarms.standing,
        )

    async def ListRecoveries(
        self, request: scheduler_pb2.ListRecoveriesRequest, context: Any
    ) -> scheduler_pb2.ListRecoveriesResponse:
        leader = await self._leading()
        limit = request.limit or 100
        if not 1 <= limit <= MAX_RECORDS:
            raise InvalidInput("limit", request.limit, f"1 to {MAX_RECORDS}, 0 = 100")
        found = [
            record
            for ident, record in reversed(leader.recoveries.records.items())
            if record["tenant"] == request.tenant
            and request.agent in ("", record["agent"])
            and request.id in ("", ident)
            and (not request.before_id or ident < request.before_id)
        ]
        return scheduler_pb2.ListRecoveriesResponse(
            records_json=[orjson.dumps(record) for record in found[:limit]],
            more=len(found) > limit,
        )

    async def AcceptStore(
        self, request: scheduler_pb2.AcceptStoreRequest, context: Any
    ) -> scheduler_pb2.AcceptStoreResponse:
        if self.halt is None:
            await self._leading()
            raise Conflict("the store was not rolled back: there is nothing to accept")
        halt = self.halt
        await halt.accept(request.who)
        return scheduler_pb2.AcceptStoreResponse(was=halt.why)

    async def Session(
        self, request_iterator: AsyncIterator[scheduler_pb2.SessionRequest], context: Any
    ) -> AsyncIterator[scheduler_pb2.SessionResponse]:
        leader = await self._leading()
        try:
            async with asyncio.timeout(HELLO_TIMEOUT_S):
                first = await anext(aiter(request_iterator))
        except (TimeoutError, StopAsyncIteration):
            raise InvalidInput("session", "", "it begins with a hello") from None
        session = open_session(leader, first)
        reader = asyncio.create_task(
            self._read(leader, session, request_iterator), name=f"session {session.agent}"
        )
        try:
            while (message := await session.next(leader.term)) is not None:
                yield message
            if reader.done():
                reader.result()
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
            _close(leader, session)

    async def _read(
        self,
        leader: Leader,
        session: OpenSession,
        requests: AsyncIterator[scheduler_pb2.SessionRequest],
    ) -> None:
        try:
            async for message in requests:
                metrics.HEARD.inc()
                if session.closed:
                    return
                if message.term > leader.term:
                    raise NotLeader(self.leader_address)
                take_message(leader, session, message)
        finally:
            session.close()
            _close(leader, session)


def _cancel(
    leader: Leader, tenant: TenantId, ident: TaskId, stored: TaskState | None
) -> scheduler_pb2.CancelResult:
    task = leader.state.tasks.get(ident)
    if task is not None and task.spec.tenant == tenant:
        ended = task.status.state in ENDED_STATES
        state = tasks.cancel(leader.state, task, leader.now())
        code = scheduler_pb2.CANCEL_CODE_ENDED if ended else scheduler_pb2.CANCEL_CODE_ACCEPTED
    elif stored is not None:
        state, code = stored, scheduler_pb2.CANCEL_CODE_ENDED
    else:
        return scheduler_pb2.CancelResult(code=scheduler_pb2.CANCEL_CODE_NOT_FOUND)
    return scheduler_pb2.CancelResult(code=code, state=conversion.TASK_STATE_TO_PROTO[state])


def _close(leader: Leader, session: OpenSession) -> None:
    """The newest session of an agent counts; an older one that ends changes nothing."""
    if session.supervisor:
        if leader.supervisors.get(session.agent) is session:
            del leader.supervisors[session.agent]
            agent = leader.state.agents.get(session.agent)
            if agent is not None:
                agent.supervised = False
        return
    if leader.sessions.get(session.agent) is session:
        del leader.sessions[session.agent]
        agents.disconnected(leader.state, session.agent, session.incarnation, leader.now())
        leader.wake()


def _view(leader: Leader, agent: AgentEntry) -> agent_pb2.AgentView:
    table = leader.state.table
    used: dict[str, int] = {}
    if agent.id in table:
        view = table.view()
        row = table.row_of(agent.id)
        used = {n: int(v) for n, v in zip(view.names, view.used[row], strict=True) if v}
    running = sum(1 for t in agent.tasks.values() if t.started)
    record = agent_pb2.AgentRecord(spec=agent_pb2.AgentSpec(id=agent.id))
    if agent.record is not None:
        record = conversion.agent_record_to_proto(agent.record)
    record.incarnation = agent.incarnation
    return agent_pb2.AgentView(
        record=record,
        state=conversion.AGENT_STATE_TO_PROTO[agent.state],
        wish=conversion.AGENT_WISH_TO_PROTO[agent.wish],
        used=used,
        assigned_tasks=len(agent.tasks) - running,
        running_tasks=running,
        health=agent.health,
        phi=agent.phi,
        health_reasons=leader.state.health.reasons(agent.id, leader.now().clock_ms),
        evidence=[
            agent_pb2.AgentEvidence(
                at_ms=e.at_ms,
                state=conversion.AGENT_STATE_TO_PROTO[e.state],
                why=e.why,
                what=e.what,
                who=e.who,
                phi=e.phi,
                silent_ms=e.silent_ms,
                incarnation=e.incarnation,
            )
            for e in agent.evidence
        ],
    )
