"""Requests about tasks and events, checked and taken apart into what a store takes.

Only what a store compares, indexes or builds key names from is checked here; a specification's
own limits are the gateway's to check.
"""

from __future__ import annotations

from collections.abc import Callable

from muster.api.v1 import storage_pb2 as pb
from muster.api.v1 import task_pb2
from muster.domain.errors import InvalidInput, TooLarge
from muster.domain.ids import parse_agent_id, parse_skill_name, parse_task_id, parse_tenant_id
from muster.domain.task import MAX_BATCH_TASKS, MAX_LABEL_CHARS, MAX_LABELS
from muster_storage.records import (
    ASSIGNED,
    FIRST_ENDED,
    LAST_STATE,
    PENDING,
    Change,
    Creation,
    Notice,
    event_head,
)
from muster_storage.wire import bytes_field

# The newest version of stored records that this code writes; N-1 is read too.
NEWEST_VERSION = task_pb2.SCHEMA_VERSION_1
# Of one event: the log keeps its newest 200,000 in memory.
MAX_PARTIAL_BYTES = 64 * 1024
MAX_NOTE_CHARS = 1024
# An outcome up to this size travels in the event of its task's end; larger ones are read.
MAX_EVENT_OUTCOME_BYTES = 1024
MAX_EVENTS = 10_000
_EVENT_TASK_ID = pb.Event.TASK_ID_FIELD_NUMBER
_EVENT_WHY = pb.Event.WHY_FIELD_NUMBER
_EVENT_OUTCOME = pb.Event.OUTCOME_FIELD_NUMBER
_OF_TASKS = (
    pb.EVENT_KIND_TASK_PROGRESS,
    pb.EVENT_KIND_TASK_STRAGGLER,
    pb.EVENT_KIND_TASK_STUCK,
)
_OF_AGENTS = (pb.EVENT_KIND_AGENT_CHANGED, pb.EVENT_KIND_AGENT_RECOVERY)
_PUBLISHED = (*_OF_TASKS, *_OF_AGENTS, pb.EVENT_KIND_CLUSTER_ALARM)


class _TaskEvents:
    """Serialized events about the tasks of one call. What tasks have in common is serialized once:
    fields of a message may stand in any order, so each task's own are appended."""

    def __init__(self, kind: pb.EventKind.ValueType, term: int, at_ms: int) -> None:
        self._kind, self._term, self._at_ms = kind, term, at_ms
        self._known: dict[tuple[str, str, int, int, str, int], bytes] = {}
        self._heads: dict[tuple[str, bool], str] = {}

    def event(
        self,
        ident: str,
        tenant: str,
        skill: str,
        status: task_pb2.TaskStatus,
        outcome: bytes = b"",
    ) -> bytes:
        state, attempt, agent = status.state, status.attempt, status.agent
        incarnation = status.incarnation
        key = (tenant, skill, state, attempt, agent, incarnation)
        common = self._known.get(key)
        if common is None:
            common = self._known[key] = pb.Event(
                kind=self._kind,
                tenant=tenant,
                at_ms=self._at_ms,
                state=state,
                attempt=attempt,
                agent=agent,
                skill=skill,
                term=self._term,
                incarnation=incarnation,
            ).SerializeToString()
        parts = [common, bytes_field(_EVENT_TASK_ID, ident.encode())]
        why = status.why
        if why:
            parts.append(bytes_field(_EVENT_WHY, why.encode()))
        if outcome:
            parts.append(bytes_field(_EVENT_OUTCOME, outcome))
        return b"".join(parts)

    def head(self, tenant: str, *, ended: bool = False) -> str:
        found = self._heads.get((tenant, ended))
        if found is None:
            found = event_head(self._kind, tenant, self._term, ended=ended)
            self._heads[(tenant, ended)] = found
        return found


class _Names:
    """Checks names of one call, each distinct one once."""

    def __init__(self) -> None:
        self._known: set[tuple[Callable[[str], str], str]] = set()

    def check(self, parse: Callable[[str], str], name: str) -> None:
        key = (parse, name)
        if key not in self._known:
            parse(name)
            self._known.add(key)


def creations(request: pb.CreateRequest, now_ms: int) -> list[Creation]:
    """New tasks; raises InvalidInput naming the field."""
    term = request.term
    _at_most("tasks", len(request.tasks), MAX_BATCH_TASKS)
    names = _Names()
    events = _TaskEvents(pb.EVENT_KIND_TASK_CREATED, term, now_ms)
    out = []
    for task in request.tasks:
        spec, status = task.spec, task.status
        tenant, ident, skill = spec.tenant, spec.id, spec.skill
        state, agent, attempt = status.state, status.agent, status.attempt
        names.check(parse_tenant_id, tenant)
        parse_task_id(ident)
        names.check(parse_skill_name, skill)
        _check_versions(spec.version, status.version)
        if state == ASSIGNED:
            if not term:
                raise InvalidInput("term", term, "only a scheduler's term creates ASSIGNED tasks")
            names.check(parse_agent_id, agent)
        elif state != PENDING:
            raise InvalidInput("status.state", state, "a task is created PENDING or ASSIGNED")
        elif agent:
            raise InvalidInput("status.agent", agent, "a PENDING task has no agent")
        out.append(
            Creation(
                tenant,
                ident,
                skill,
                state,
                attempt,
                agent,
                spec.SerializeToString(),
                status.SerializeToString(),
                0 if status.created_clock_ms else 1,
                events.head(tenant),
                events.event(ident, tenant, skill, status),
                labels_of(spec),
            )
        )
    return out


def changes(request: pb.ApplyRequest, now_ms: int) -> list[Change]:
    """Compare-and-sets; raises InvalidInput naming the field."""
    term = request.term
    if term <= 0:
        raise InvalidInput("term", term, "a state is only changed under a scheduler's term")
    _at_most("transitions", len(request.transitions), MAX_BATCH_TASKS)
    names = _Names()
    events = _TaskEvents(pb.EVENT_KIND_TASK_CHANGED, term, now_ms)
    out = []
    for item in request.transitions:
        tenant, ident, status = item.tenant, item.id, item.status
        state, attempt, agent = status.state, status.attempt, status.agent
        names.check(parse_tenant_id, tenant)
        parse_task_id(ident)
        if agent:
            names.check(parse_agent_id, agent)
        _check_change(item.expect_state, item.expect_attempt, state, attempt)
        _check_versions(0, status.version)
        outcome, blob = b"", ""
        if item.HasField("outcome"):
            outcome, blob = item.outcome.SerializeToString(), item.outcome.output_blob
            if blob:
                check_sha256("outcome.output_blob", blob)
        ended = state >= FIRST_ENDED
        told = outcome if ended and len(outcome) <= MAX_EVENT_OUTCOME_BYTES else b""
        out.append(
            Change(
                tenant,
                ident,
                item.expect_state,
                item.expect_attempt,
                state,
                attempt,
                agent,
                status.SerializeToString(),
                outcome,
                blob,
                events.head(tenant, ended=ended),
                events.event(ident, tenant, item.skill, status, told),
            )
        )
    return out


def notices(request: pb.PublishRequest, now_ms: int) -> tuple[int, list[Notice]]:
    """The term of all events, 0 = not a scheduler's, and the events; raises InvalidInput."""
    _at_most("events", len(request.events), MAX_EVENTS)
    terms = {event.term for event in request.events}
    if len(terms) > 1:
        raise InvalidInput("events.term", sorted(terms), "all events of one call have one term")
    names = _Names()
    out = []
    for event in request.events:
        if event.kind not in _PUBLISHED:
            limit = "an event of a task's progress, of an agent or of the cluster"
            raise InvalidInput("events.kind", event.kind, limit)
        if len(event.partial_json) > MAX_PARTIAL_BYTES:
            raise TooLarge(
                "events.partial_json", len(event.partial_json), f"at most {MAX_PARTIAL_BYTES} bytes"
            )
        if len(event.note) > MAX_NOTE_CHARS:
            raise TooLarge("events.note", len(event.note), f"at most {MAX_NOTE_CHARS} characters")
        progress = b""
        at_ms = event.at_ms or now_ms
        if event.kind in _OF_TASKS:
            names.check(parse_tenant_id, event.tenant)
            parse_task_id(event.task_id)
        if event.kind == pb.EVENT_KIND_TASK_PROGRESS:
            # A partial output alone says nothing about progress: its fraction is unknown, or unset.
            if event.fraction > 0 or event.note or not event.partial_json:
                progress = task_pb2.TaskProgress(
                    fraction=event.fraction, note=event.note, at_ms=at_ms
                ).SerializeToString()
        elif event.kind in _OF_AGENTS:
            names.check(parse_agent_id, event.agent)
            if event.tenant:
                names.check(parse_tenant_id, event.tenant)
        event.id = ""
        event.at_ms = at_ms
        about = event.task_id if event.kind == pb.EVENT_KIND_TASK_PROGRESS else ""
        head = event_head(event.kind, event.tenant, event.term)
        body = event.SerializeToString()
        out.append(Notice(event.tenant, about, event.attempt, progress, head, body))
    return next(iter(terms), 0), out


def labels_of(spec: task_pb2.TaskSpec) -> tuple[str, ...]:
    """Labels as `key=value`; raises InvalidInput when there are too many or one is too long."""
    if not spec.labels:
        return ()
    if len(spec.labels) > MAX_LABELS:
        raise TooLarge("spec.labels", len(spec.labels), f"at most {MAX_LABELS} labels")
    for key, value in spec.labels.items():
        if len(key) > MAX_LABEL_CHARS or len(value) > MAX_LABEL_CHARS:
            raise TooLarge("spec.labels", key, f"at most {MAX_LABEL_CHARS} characters")
    return tuple(sorted(f"{key}={value}" for key, value in spec.labels.items()))


def check_sha256(field: str, text: str) -> str:
    """`text` as the name of a blob; raises InvalidInput."""
    if len(text) != 64 or not set(text) <= set("0123456789abcdef"):
        raise InvalidInput(field, text, "a SHA-256 is 64 characters of 0-9 a-f")
    return text


def _at_most(field: str, count: int, most: int) -> None:
    if count > most:
        raise TooLarge(field, count, f"at most {most} in one call")


def _check_versions(*versions: int) -> None:
    for version in versions:
        if version > NEWEST_VERSION:
            raise InvalidInput("version", version, f"at most {NEWEST_VERSION} is known here")


def _check_change(expect_state: int, expect_attempt: int, state: int, attempt: int) -> None:
    if not PENDING <= expect_state < FIRST_ENDED:
        raise InvalidInput("expect_state", expect_state, "an open state: an ended task is final")
    if not PENDING <= state <= LAST_STATE:
        raise InvalidInput("status.state", state, f"{PENDING} to {LAST_STATE}")
    if attempt < expect_attempt:
        raise InvalidInput("status.attempt", attempt, f"at least expect_attempt {expect_attempt}")
