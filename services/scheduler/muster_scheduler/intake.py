"""What agents and supervisors say on their sessions, told to the core."""

from __future__ import annotations

import re

import structlog
from msgspec.structs import replace

from muster.api.v1 import scheduler_pb2, storage_pb2
from muster.domain.errors import Conflict, InvalidInput, NotLeader, Unavailable
from muster.domain.ids import AgentId, TaskId, TenantId, parse_agent_id
from muster.domain.task import (
    MAX_ERROR_CHARS,
    MAX_INLINE_RESULT_BYTES,
    Outcome,
    OutcomeKind,
)
from muster.domain.task_lifecycle import HELD_STATES
from muster.rpc import conversion
from muster.rpc.clock import wall_ms
from muster_scheduler import metrics
from muster_scheduler.core import agents, tasks
from muster_scheduler.core.progress import told
from muster_scheduler.core.records import AttemptRef
from muster_scheduler.leader import Leader
from muster_scheduler.sessions import Session

_LOG = structlog.get_logger("muster.scheduler")

# What storage takes of one progress event.
MAX_PARTIAL_BYTES = 64 * 1024
MAX_NOTE_CHARS = 1024
_ROLES = (scheduler_pb2.SESSION_ROLE_RUNTIME, scheduler_pb2.SESSION_ROLE_SUPERVISOR)
_SHA256_HEX = re.compile("[0-9a-f]{64}")


def open_session(leader: Leader, first: scheduler_pb2.SessionRequest) -> Session:
    """Takes the hello; raises Conflict when a newer incarnation is known, NotLeader when the
    agent has obeyed a newer leader or this one is over, Unavailable while another may lead."""
    if not first.HasField("hello"):
        raise InvalidInput("session", "", "it begins with a hello")
    if leader.over or first.term > leader.term:
        raise NotLeader
    hello = first.hello
    ident = parse_agent_id(hello.agent)
    now = leader.now()
    if hello.role not in _ROLES:
        raise InvalidInput("hello.role", hello.role, "RUNTIME or SUPERVISOR")
    supervisor = hello.role == scheduler_pb2.SESSION_ROLE_SUPERVISOR
    if not supervisor and first.incarnation < 1:
        raise InvalidInput("incarnation", first.incarnation, "at least 1, given by the registry")
    if not supervisor and not leader.may_answer:
        # A runtime takes `stop` tasks on the strength of its hello, as of an answered beat.
        raise Unavailable("the leader", "storage has not confirmed its term lately", 0.2)
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
        for item in hello.held:
            # Its own word of this may have been lost with an earlier session or leader.
            if item.state == scheduler_pb2.HELD_STATE_RUNNING:
                ref = _ref(item.ref)
                tasks.started_attempt(leader.state, ident, first.incarnation, ref, 0, now)
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
    if message.HasField("beat") and leader.may_answer:
        session.answer_beat(message.beat.seq)
    if session.supervisor:
        agents.supervisor_heard(state, ident, now)
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
        tasks.waiting_attempt(state, ident, incarnation, _ref(waits.ref), waits.waiting)
    for ended in message.outcomes:
        outcome = _outcome(ident, ended)
        if not tasks.outcome(state, ident, incarnation, _ref(ended.ref), outcome, now):
            metrics.STALE_OUTCOMES.inc()
    for progress in message.progress:
        _publish(leader, ident, progress)
    leader.wake()


def _outcome(ident: AgentId, ended: scheduler_pb2.AttemptOutcome) -> Outcome:
    """The outcome; a failure in its place when it breaks a rule, for the attempt has ended, and
    storage would refuse it together with everybody else's."""
    try:
        outcome = conversion.outcome_from_proto(ended.outcome)
        size = len(outcome.output_json)
        if size > MAX_INLINE_RESULT_BYTES:
            limit = f"at most {MAX_INLINE_RESULT_BYTES} bytes, larger ones go to the blob store"
            raise InvalidInput("outcome.output_json", f"{size} bytes", limit)  # noqa: TRY301
        if outcome.output_blob and not _SHA256_HEX.fullmatch(outcome.output_blob):
            limit = "the SHA-256 of a blob in hexadecimal"
            raise InvalidInput("outcome.output_blob", outcome.output_blob, limit)  # noqa: TRY301
    except InvalidInput as error:
        _LOG.error("an outcome is refused", agent=ident, task=ended.ref.task_id, why=str(error))
        return Outcome(OutcomeKind.FAILED, error=str(error), error_kind="bad_outcome")
    if len(outcome.error) > MAX_ERROR_CHARS:
        return replace(outcome, error=outcome.error[:MAX_ERROR_CHARS])
    return outcome


def _publish(leader: Leader, ident: AgentId, progress: scheduler_pb2.AttemptProgress) -> None:
    task = leader.state.tasks.get(TaskId(progress.ref.task_id))
    if task is None or task.status.attempt != progress.ref.attempt:
        return
    if task.status.state not in HELD_STATES or task.status.agent != ident:
        return
    if task.spec.progress_timeout_ms:
        told(task, leader.now())
    if len(progress.partial_json) > MAX_PARTIAL_BYTES:
        _LOG.warning("a partial output is too large to be shown", agent=ident, task=task.id)
        metrics.EVENTS_DROPPED.inc()
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
            note=progress.note[:MAX_NOTE_CHARS],
            partial_json=progress.partial_json,
            partial_index=progress.partial_index,
            state=conversion.TASK_STATE_TO_PROTO[task.status.state],
        )
    )


def _ref(ref: scheduler_pb2.AttemptRef) -> AttemptRef:
    return AttemptRef(TaskId(ref.task_id), ref.attempt, TenantId(ref.tenant))
