"""StorageService: requests checked, taken apart, handed to the store, and answered."""

# The contract names the methods and gives each a context.

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from muster.api.v1 import agent_pb2, storage_pb2_grpc, task_pb2
from muster.api.v1 import storage_pb2 as pb
from muster.domain.errors import (
    Conflict,
    InvalidInput,
    NotFound,
    PreconditionFailed,
    StaleTerm,
    TooLarge,
)
from muster.domain.ids import parse_agent_id, parse_idempotency_key, parse_task_id, parse_tenant_id
from muster.domain.task import MAX_BATCH_TASKS
from muster.rpc.clock import wall_ms
from muster_storage import intake
from muster_storage.event_feed import EventFeed, EventFilter
from muster_storage.metrics import REFUSED_WRITES, TASK_WRITES
from muster_storage.records import (
    APPLIED,
    MAX_PAGE_BYTES,
    NO_WISH,
    PENDING,
    RUNNING,
    Row,
    StoredKey,
    TaskFilter,
    VerdictCode,
    event_head,
)
from muster_storage.task_store import Store
from muster_storage.wire import repeated_first_field, task_bytes

DEFAULT_PAGE, MAX_PAGE = 100, 1_000
# Of one message to a new leader.
OPEN_TASKS = 500
# A GetTasks answer; gRPC's bound is 16 MiB.
MAX_ANSWER_BYTES = 15 * 1024 * 1024
# A step of the cluster's clock: a leader that was stopped for longer has lost its term.
MAX_ADVANCE_MS = 10_000
MAX_POLICY_BYTES = 1024 * 1024
# Of terms and incarnations: scripts count exactly up to here.
MAX_COUNTER = 2**53 - 1
MAX_KEY_ID_CHARS = 64
MAX_NAME_CHARS = 128
ROLES = ("viewer", "submitter", "operator", "admin")
BODY_HASH_BYTES = SHA256_BYTES = 32

_CREATED = pb.CreateResult(code=pb.CREATE_CODE_CREATED)
_OK = pb.ApplyResult(code=pb.APPLY_CODE_OK)
_NOT_FOUND = pb.ApplyResult(code=pb.APPLY_CODE_NOT_FOUND)


class StorageService(storage_pb2_grpc.StorageServiceServicer):
    """Every method may raise any MusterError, which the server turns into a status."""

    def __init__(self, store: Store, feed: EventFeed) -> None:
        self._store = store
        self._feed = feed

    async def Reserve(self, request: pb.ReserveRequest, context: Any) -> pb.ReserveResponse:
        parse_tenant_id(request.tenant)
        parse_idempotency_key(request.key)
        if len(request.body_hash) != BODY_HASH_BYTES:
            raise InvalidInput("body_hash", request.body_hash, "a SHA-256 of 32 bytes")
        if request.now_ms <= 0:
            raise InvalidInput("now_ms", request.now_ms, "unix milliseconds")
        found = await self._store.tasks.reserve(
            request.tenant, request.key, request.body_hash, request.now_ms
        )
        return pb.ReserveResponse(
            first_ms=found.first_ms, first=found.first, conflict=found.conflict, gone=found.gone
        )

    async def Create(self, request: pb.CreateRequest, context: Any) -> pb.CreateResponse:
        tasks = intake.creations(request, wall_ms())
        created = await self._store.tasks.create(request.term, tasks)
        if request.brief and not any(created.standing):
            TASK_WRITES.labels("create").inc(len(tasks))
            return pb.CreateResponse(clock_ms=created.clock_ms)
        results = []
        for standing in created.standing:
            if not standing:
                results.append(_CREATED)
                continue
            status = task_pb2.TaskStatus.FromString(standing)
            results.append(pb.CreateResult(code=pb.CREATE_CODE_EXISTS, status=status))
        existing = sum([1 for standing in created.standing if standing])
        TASK_WRITES.labels("create").inc(len(results) - existing)
        REFUSED_WRITES.labels("exists").inc(existing)
        return pb.CreateResponse(results=results, clock_ms=created.clock_ms)

    async def Apply(self, request: pb.ApplyRequest, context: Any) -> pb.ApplyResponse:
        changes = intake.changes(request, wall_ms())
        verdicts = await self._store.tasks.apply(request.term, changes)
        if request.brief and verdicts.count(APPLIED) == len(verdicts):
            TASK_WRITES.labels("apply").inc(len(verdicts))
            return pb.ApplyResponse()
        results = []
        stale = missing = 0
        for verdict in verdicts:
            if verdict.code is VerdictCode.OK:
                results.append(_OK)
            elif verdict.code is VerdictCode.NOT_FOUND:
                missing += 1
                results.append(_NOT_FOUND)
            else:
                stale += 1
                status = task_pb2.TaskStatus.FromString(verdict.standing)
                results.append(pb.ApplyResult(code=pb.APPLY_CODE_STALE, status=status))
        TASK_WRITES.labels("apply").inc(len(results) - stale - missing)
        REFUSED_WRITES.labels("stale").inc(stale)
        REFUSED_WRITES.labels("not_found").inc(missing)
        return pb.ApplyResponse(results=results)

    async def Publish(self, request: pb.PublishRequest, context: Any) -> pb.PublishResponse:
        term, notices = intake.notices(request, wall_ms())
        taken = await self._store.tasks.publish(term, notices)
        TASK_WRITES.labels("publish").inc(taken)
        REFUSED_WRITES.labels("stale").inc(len(notices) - taken)
        return pb.PublishResponse()

    async def GetTasks(self, request: pb.GetTasksRequest, context: Any) -> pb.GetTasksResponse:
        parse_tenant_id(request.tenant)
        ids = list(request.ids)
        if len(ids) > MAX_BATCH_TASKS:
            raise TooLarge("ids", len(ids), f"at most {MAX_BATCH_TASKS} in one call")
        for ident in ids:
            parse_task_id(ident)
        answer = pb.GetTasksResponse()
        while len(answer.tasks) < len(ids):
            rest = ids[len(answer.tasks) :]
            some = _tasks(await self._store.tasks.get(request.tenant, rest, MAX_PAGE_BYTES))
            _lighten(some, request)
            answer.tasks.extend(some)
            if answer.ByteSize() > MAX_ANSWER_BYTES:
                raise TooLarge(
                    "ids", len(ids), "these tasks do not fit in one answer; ask for less"
                )
        return answer

    async def ListTasks(self, request: pb.ListTasksRequest, context: Any) -> pb.ListTasksResponse:
        parse_tenant_id(request.tenant)
        limit = request.limit or DEFAULT_PAGE
        if not 1 <= limit <= MAX_PAGE:
            raise InvalidInput("limit", request.limit, f"1 to {MAX_PAGE}, 0 = {DEFAULT_PAGE}")
        if request.state not in task_pb2.TaskState.values():
            raise InvalidInput("state", request.state, "a known state")
        if request.cursor:
            parse_task_id(request.cursor)
        wanted = TaskFilter(
            state=request.state,
            skill=request.skill,
            agent=request.agent,
            labels=tuple(sorted(f"{key}={value}" for key, value in request.labels.items())),
        )
        page = await self._store.tasks.page(
            request.tenant, wanted, request.cursor, limit, newest_first=not request.oldest_first
        )
        tasks = _tasks(page.rows)
        _lighten(tasks, request)
        return pb.ListTasksResponse(tasks=tasks, next=page.next)

    async def CountTasks(
        self, request: pb.CountTasksRequest, context: Any
    ) -> pb.CountTasksResponse:
        if request.tenant:
            parse_tenant_id(request.tenant)
        counts = await self._store.tasks.count(request.tenant)
        prefix = "TASK_STATE_"
        by_state = {
            task_pb2.TaskState.Name(task_pb2.TaskState.ValueType(state)).removeprefix(prefix): n
            for state, n in counts.items()
        }
        return pb.CountTasksResponse(by_state=by_state)

    async def LoadOpen(
        self, request: pb.LoadOpenRequest, context: Any
    ) -> AsyncIterator[pb.LoadOpenResponse]:
        """Only the holder of the present term changes tasks, so what it reads stands still.

        What others create meanwhile comes by Tail from `tail_from`, which is taken first. Term 0
        reads without that promise. There is at least one message.
        """
        await self._check_term(request.term)
        tail_from = str(await self._store.events.last())
        for tenant in await self._store.tasks.tenants():
            for state in range(PENDING, RUNNING + 1):
                cursor = ""
                while True:
                    page = await self._store.tasks.page(
                        tenant, TaskFilter(state), cursor, OPEN_TASKS, newest_first=False
                    )
                    if page.rows:
                        yield pb.LoadOpenResponse(tasks=_tasks(page.rows), tail_from=tail_from)
                    cursor = page.next
                    if not cursor:
                        break
        await self._check_term(request.term)
        yield pb.LoadOpenResponse(tail_from=tail_from)

    async def Tail(self, request: pb.TailRequest, context: Any) -> AsyncIterator[pb.TailResponse]:
        """The first message comes at once and holds no event: what is written after it is seen."""
        after: int | None = None
        if request.from_id:
            if not request.from_id.isascii() or not request.from_id.isdigit():
                raise InvalidInput("from_id", request.from_id, "an event's id, 0, or nothing")
            after = int(request.from_id)
        if request.tenant:
            parse_tenant_id(request.tenant)
        wanted = EventFilter(
            frozenset(request.kinds),
            request.tenant,
            only_term_zero=request.only_term_zero,
            only_ended=request.only_ended,
        )
        async with aclosing(self._feed.tail(after, wanted)) as batches:
            async for batch in batches:
                answer = pb.TailResponse.FromString(batch.frames)
                answer.last_id = str(batch.last)
                answer.gap = batch.gap
                yield answer

    async def AcquireTerm(
        self, request: pb.AcquireTermRequest, context: Any
    ) -> pb.AcquireTermResponse:
        """The event LEADER_CHANGED holds the candidate as its note."""
        _short("candidate", request.candidate)
        kind = pb.EVENT_KIND_LEADER_CHANGED
        event = pb.Event(kind=kind, at_ms=wall_ms(), note=request.candidate)
        if not 0 <= request.above_term < MAX_COUNTER:
            raise InvalidInput("above_term", request.above_term, f"0 to {MAX_COUNTER}")
        cluster = self._store.cluster
        name = await cluster.name(secrets.token_hex(16))
        term, clock_ms = await cluster.acquire_term(
            event_head(kind, "", 1), event.SerializeToString(), request.above_term
        )
        kept = cluster.durability
        return pb.AcquireTermResponse(
            term=term, clock_ms=clock_ms, store=name, weak=kept.weak, run=kept.run
        )

    async def ConfirmTerm(
        self, request: pb.ConfirmTermRequest, context: Any
    ) -> pb.ConfirmTermResponse:
        if request.advance_ms < 0:
            raise InvalidInput("advance_ms", request.advance_ms, "the clock never goes back")
        current, clock_ms = await self._store.cluster.confirm_term(
            request.term, min(request.advance_ms, MAX_ADVANCE_MS)
        )
        if not current:
            REFUSED_WRITES.labels("fenced").inc()
        run = self._store.cluster.durability.run
        return pb.ConfirmTermResponse(current=current, clock_ms=clock_ms, run=run)

    async def NextIncarnation(
        self, request: pb.NextIncarnationRequest, context: Any
    ) -> pb.NextIncarnationResponse:
        parse_agent_id(request.agent)
        if not 0 <= request.above < MAX_COUNTER:
            raise InvalidInput("above", request.above, f"0 to {MAX_COUNTER}")
        incarnation = await self._store.cluster.next_incarnation(request.agent, request.above)
        return pb.NextIncarnationResponse(incarnation=incarnation)

    async def GetPolicy(self, request: pb.GetPolicyRequest, context: Any) -> pb.GetPolicyResponse:
        policy, etag = await self._store.cluster.policy()
        return pb.GetPolicyResponse(policy_json=policy, etag=etag)

    async def PutPolicy(self, request: pb.PutPolicyRequest, context: Any) -> pb.PutPolicyResponse:
        if len(request.policy_json) > MAX_POLICY_BYTES:
            raise TooLarge(
                "policy_json", len(request.policy_json), f"at most {MAX_POLICY_BYTES} bytes"
            )
        kind = pb.EVENT_KIND_POLICY_CHANGED
        event = pb.Event(kind=kind, at_ms=wall_ms())
        written, etag = await self._store.cluster.put_policy(
            request.policy_json,
            request.if_match,
            event_head(kind, "", 0),
            event.SerializeToString(),
        )
        if not written:
            raise PreconditionFailed(
                f"if_match: the policy's etag is {etag}, not {request.if_match}"
            )
        return pb.PutPolicyResponse(etag=etag)

    async def SetAgentWish(
        self, request: pb.SetAgentWishRequest, context: Any
    ) -> pb.SetAgentWishResponse:
        """The event AGENT_WISH_CHANGED holds the wish's name as its note, who as its why."""
        parse_agent_id(request.agent)
        _short("who", request.who)
        if request.wish not in agent_pb2.AgentWish.values() or request.wish < NO_WISH:
            raise InvalidInput("wish", request.wish, "NONE, CORDON or DRAIN")
        kind = pb.EVENT_KIND_AGENT_WISH_CHANGED
        event = pb.Event(
            kind=kind,
            at_ms=wall_ms(),
            agent=request.agent,
            note=agent_pb2.AgentWish.Name(request.wish).removeprefix("AGENT_WISH_"),
            why=request.who,
        )
        await self._store.cluster.set_wish(
            request.agent,
            request.wish,
            request.who,
            event_head(kind, "", 0),
            event.SerializeToString(),
        )
        return pb.SetAgentWishResponse()

    async def ListAgentWishes(
        self, request: pb.ListAgentWishesRequest, context: Any
    ) -> pb.ListAgentWishesResponse:
        wishes = await self._store.cluster.wishes()
        return pb.ListAgentWishesResponse(
            wishes={agent: agent_pb2.AgentWish.ValueType(wish) for agent, wish in wishes.items()}
        )

    async def CreateApiKey(
        self, request: pb.CreateApiKeyRequest, context: Any
    ) -> pb.CreateApiKeyResponse:
        key = request.key
        _check_key_id(key.id)
        parse_tenant_id(key.tenant)
        _short("key.name", key.name)
        if key.role not in ROLES:
            raise InvalidInput("key.role", key.role, "one of " + " ".join(ROLES))
        if len(key.secret_sha256) != SHA256_BYTES:
            # What is wrong here may be the secret itself, so it is not quoted.
            raise InvalidInput("key.secret_sha256", "…", f"{SHA256_BYTES} bytes")
        key.ClearField("revoked_at_ms")
        key.ClearField("last_used_at_ms")
        if not await self._store.cluster.create_api_key(key.id, key.SerializeToString()):
            raise Conflict(f"there is an API key {key.id} already")
        return pb.CreateApiKeyResponse()

    async def GetApiKey(self, request: pb.GetApiKeyRequest, context: Any) -> pb.GetApiKeyResponse:
        return pb.GetApiKeyResponse(key=await self._api_key(request.id, ""))

    async def ListApiKeys(
        self, request: pb.ListApiKeysRequest, context: Any
    ) -> pb.ListApiKeysResponse:
        if request.tenant:
            parse_tenant_id(request.tenant)
        keys = [_key(stored) for stored in await self._store.cluster.api_keys()]
        return pb.ListApiKeysResponse(
            keys=[key for key in keys if request.tenant in ("", key.tenant)]
        )

    async def RevokeApiKey(
        self, request: pb.RevokeApiKeyRequest, context: Any
    ) -> pb.RevokeApiKeyResponse:
        parse_tenant_id(request.tenant)
        await self._api_key(request.id, request.tenant)
        await self._store.cluster.revoke_api_key(request.id, request.now_ms or wall_ms())
        return pb.RevokeApiKeyResponse(key=await self._api_key(request.id, request.tenant))

    async def TouchApiKeys(
        self, request: pb.TouchApiKeysRequest, context: Any
    ) -> pb.TouchApiKeysResponse:
        await self._store.cluster.touch_api_keys(dict(request.last_used_at_ms))
        return pb.TouchApiKeysResponse()

    async def _check_term(self, term: int) -> None:
        if term:
            present = await self._store.cluster.term()
            if present != term:
                REFUSED_WRITES.labels("fenced").inc()
                raise StaleTerm(term, present)

    async def _api_key(self, ident: str, tenant: str) -> pb.ApiKey:
        _check_key_id(ident)
        stored = await self._store.cluster.api_key(ident)
        key = _key(stored) if stored is not None else None
        if key is None or tenant not in ("", key.tenant):
            raise NotFound("API key", ident)
        return key


def _lighten(tasks: list[task_pb2.Task], wanted: pb.GetTasksRequest | pb.ListTasksRequest) -> None:
    """Takes out of the tasks what the caller does not want."""
    for task in tasks:
        if wanted.without_input and task.HasField("spec"):
            task.spec.ClearField("input_json")
        if wanted.without_output and task.HasField("outcome"):
            task.outcome.ClearField("output_json")


def _tasks(rows: list[Row] | list[Row | None]) -> list[task_pb2.Task]:
    return list(pb.GetTasksResponse.FromString(repeated_first_field(map(task_bytes, rows))).tasks)


def _key(stored: StoredKey) -> pb.ApiKey:
    key = pb.ApiKey.FromString(stored.record)
    key.revoked_at_ms = stored.revoked_at_ms
    key.last_used_at_ms = stored.last_used_at_ms
    return key


def _check_key_id(ident: str) -> None:
    if not 0 < len(ident) <= MAX_KEY_ID_CHARS or not (ident.isascii() and ident.isalnum()):
        raise InvalidInput("id", ident, f"1 to {MAX_KEY_ID_CHARS} of A-Z a-z 0-9")


def _short(field: str, text: str) -> None:
    if len(text) > MAX_NAME_CHARS or not (text == "" or text.isprintable()):
        raise InvalidInput(field, text, f"at most {MAX_NAME_CHARS} printable characters")
