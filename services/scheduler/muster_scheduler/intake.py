"""What agents and supervisors say on their sessions, told to the core."""

from __future__ import annotations

import structlog

from muster.api.v1 import scheduler_pb2, storage_pb2
from muster.domain.errors import Conflict, InvalidInput
from muster.domain.ids import AgentId, TaskId, TenantId, parse_agent_id
from muster.domain.task_lifecycle import HELD_STATES
from muster.rpc import conversion
from muster.rpc.clock import wall_ms
from muster_scheduler import metrics
from muster_scheduler.core import agents, tasks
from muster_scheduler.core.records import AttemptRef
from muster_scheduler.leader import Leader
from muster_scheduler.sessions import Session

_LOG = structlog.get_logger("muster.scheduler")


def open_session(leader: Leader, first: scheduler_pb2.SessionRequest) -> Session:
    """Takes the hello; raises Conflict when a newer incarnation is known."""
    if not first.HasField("hello"):
        raise InvalidInput("session", "", "it begins with a hello")
    hello = first.hello
    ident = parse_agent_id(hello.agent)
    now = leader.now()
    supervisor = hello.role == scheduler_pb2.SESSION_ROLE_SUPERVISOR
    session = Session(ident, first.incarnation, supervisor=supervisor)
    if supervisor:
        older = leader.supervisors.get(ident)
        leader.supervisors[ident] = session
        leader.state.entry(ident, now).supervised = True
    else:
        known = leader.state.agents.get(ident)
        if known is not None and first.incarnation < known.incarnation:
            raise Conflict(
                f"agent {ident} has incarnation {known.incarnation};"
                f" incarnation {first.incarnation} must end"
            )
        older = leader.sessions.get(ident)
        leader.sessions[ident] = session
        held = [(_ref(h.ref), h.state == scheduler_pb2.HELD_STATE_ENDED) for h in hello.held]
        session.welcome(now.clock_ms)
        agents.connected(leader.state, ident, first.incarnation, held, now)
    if older is not None:
        older.close()
    if supervisor:
        session.welcome(now.clock_ms)
    take_message(leader, session, first)
    return session


def take_message(leader: Leader, session: Session, message: scheduler_pb2.SessionRequest) -> None:
    """Everything that one message says."""
    now = leader.now()
    state, ident = leader.state, session.agent
    if message.HasField("beat") and leader.confirmed:
        session.answer_beat(message.beat.seq)
    if session.supervisor:
        if message.HasField("runtime_died"):
            died = message.runtime_died
            agents.runtime_died(
                state,
                ident,
                died.incarnation,
                [_ref(r) for r in died.started],
                died.started_known,
                died.why,
                now,
            )
            leader.wake()
        return
    incarnation = session.incarnation
    if message.incarnation != incarnation:
        _LOG.warning("a message for another incarnation is refused", agent=ident)
        return
    agents.heard(state, ident, incarnation, now)
    if message.draining:
        agents.draining(state, ident, incarnation)
    for begun in message.started:
        tasks.started_attempt(state, ident, incarnation, _ref(begun.ref), begun.started_at_ms, now)
    for waits in message.waiting:
        task = state.tasks.get(TaskId(waits.ref.task_id))
        if task is not None and task.status.attempt == waits.ref.attempt:
            state.set_waiting(task, waits.waiting)
    for ended in message.outcomes:
        try:
            outcome = conversion.outcome_from_proto(ended.outcome)
        except InvalidInput as error:
            _LOG.error("an outcome is not understood", agent=ident, why=str(error))
            continue
        if not tasks.outcome(state, ident, incarnation, _ref(ended.ref), outcome, now):
            metrics.STALE_OUTCOMES.inc()
    for progress in message.progress:
        _publish(leader, ident, progress)
    leader.wake()


def _publish(leader: Leader, ident: AgentId, progress: scheduler_pb2.AttemptProgress) -> None:
    task = leader.state.tasks.get(TaskId(progress.ref.task_id))
    if task is None or task.status.attempt != progress.ref.attempt:
        return
    if task.status.state not in HELD_STATES or task.status.agent != ident:
        return
    leader.publisher.add(
        storage_pb2.Event(
            kind=storage_pb2.EVENT_KIND_TASK_PROGRESS,
            tenant=task.spec.tenant,
            at_ms=wall_ms(),
            task_id=task.id,
            attempt=progress.ref.attempt,
            agent=ident,
            skill=task.spec.skill,
            fraction=progress.fraction,
            note=progress.note,
            partial_json=progress.partial_json,
            partial_index=progress.partial_index,
            state=conversion.TASK_STATE_TO_PROTO[task.status.state],
        )
    )


def _ref(ref: scheduler_pb2.AttemptRef) -> AttemptRef:
    return AttemptRef(TaskId(ref.task_id), ref.attempt, TenantId(ref.tenant))
