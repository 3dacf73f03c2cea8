"""Plans in a process of its own, so that the leader's loop goes on whatever a plan takes.

`plan_elsewhere` starts `python -m muster_scheduler.planning`, which reads one job from its input,
writes one reply to its output, and ends. The job is MessagePack; tasks and answer travel in it as
the messages that they came and go in, so that the leader looks at neither.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import msgspec
import numpy as np
from numpy.typing import NDArray

from muster.api.v1 import scheduler_pb2
from muster.domain.errors import DeadlineExceeded, InvalidInput, Overloaded, TooLarge
from muster.domain.policy import Policy, parse_policy
from muster.domain.task import MAX_FRONT_TASKS, MAX_PLAN_TASKS
from muster.rpc.call_stream import MAX_CALL_BYTES
from muster.rpc.conversion import spec_from_proto
from muster_scheduler.core.foretelling import response_of
from muster_scheduler.core.state import ClusterState, held_demand, spread_of
from muster_scheduler.elsewhere import answer_pipe, ask_elsewhere
from muster_scheduler.learning.attempts import task_features
from muster_scheduler.placement import fast
from muster_scheduler.placement import strategy as strategies
from muster_scheduler.placement.classes import ClassTable, TaskBatch
from muster_scheduler.placement.front import FrontPoint, pareto_front
from muster_scheduler.placement.objective import evaluate
from muster_scheduler.placement.plan import Plan, Unplaceable
from muster_scheduler.placement.snapshot import Snapshot
from muster_scheduler.placement.snapshot_bytes import from_bytes, to_bytes

# Each takes a processor for as long as its budget.
MAX_PLANS = 2
# What a plan takes unless more is asked for; strategies that only construct end much sooner.
PLAN_BUDGET_S = 5.0
# Beside the budget: starting, loading compiled loops (or compiling them, the first time), reasons.
PLAN_GRACE_S = 120.0
# Kept of the RPC's deadline for the way back.
_ANSWER_S = 2.0
# Distinct reasons that are worked out; a batch that differs in more is told of the first.
MAX_REASONS = 200
# Predicted run times of each task on each agent are 8 bytes each, of each shape a look at a model.
_MOST_PAIRS = 20_000_000
_MOST_SHAPE_PAIRS = 200_000
# Each is one look at every agent.
_REASONS_S = 10.0
# Points of a front whose assignments travel; evenly spread over it.
MAX_FRONT_POINTS = 32
_NICENESS = 10
_NO_LIMIT = 2**62
_FEW = 2
_MANY = 4096

_NOT_LOOKED_AT = "the budget was over before it was looked at"
_NOT_WORKED_OUT = "it fits nowhere; plan it with fewer others to be told why"


class _Job(msgspec.Struct):
    """`run_s`: float64 by shape and row of the snapshot; empty where nothing was learned."""

    snapshot: bytes
    request: bytes
    policy: Policy
    now_s: float
    run_s: bytes


class _Refusal(msgspec.Struct):
    field: str
    value: str
    limit: str


class _Reply(msgspec.Struct):
    response: bytes = b""
    refusal: _Refusal | None = None


class Planner:
    """Starts plans, a few at a time."""

    def __init__(self) -> None:
        self._running = 0

    async def plan(
        self,
        snapshot: Snapshot,
        request: scheduler_pb2.PlanRequest,
        policy: Policy,
        now_s: float,
        left_s: float | None,
        run_s: NDArray[np.float64] | None = None,
    ) -> scheduler_pb2.PlanResponse:
        """`policy` is the one in force; `left_s` is what is left until the RPC's deadline.

        `run_s` float64 [shapes, rows]: predicted run times, where there are any.

        Raises InvalidInput for what the request asks, Overloaded at MAX_PLANS plans,
        DeadlineExceeded, Unavailable when the process fails, TooLarge for the answer.
        """
        chosen = _chosen(request, policy, left_s)
        if self._running >= MAX_PLANS:
            raise Overloaded(f"{MAX_PLANS} plans are being made already", retry_after_s=1.0)
        self._running += 1
        try:
            times = b"" if run_s is None else np.ascontiguousarray(run_s).tobytes()
            job = _Job(to_bytes(snapshot), request.SerializeToString(), chosen, now_s, times)
            return await _plan_elsewhere(job, len(request.shape_of), left_s)
        finally:
            self._running -= 1


def _chosen(request: scheduler_pb2.PlanRequest, policy: Policy, left_s: float | None) -> Policy:
    """The policy in force, as the request would have it otherwise. Raises InvalidInput."""
    count = len(request.shape_of)
    if not 1 <= count <= MAX_PLAN_TASKS:
        raise InvalidInput("tasks", f"{count} tasks", f"a plan has 1 to {MAX_PLAN_TASKS} tasks")
    if request.front and count > MAX_FRONT_TASKS:
        limit = f"a front is worked out for at most {MAX_FRONT_TASKS} tasks"
        raise InvalidInput("front", f"{count} tasks", limit)
    try:
        document = msgspec.json.decode(request.policy_json or b"{}")
    except msgspec.DecodeError as error:
        raise InvalidInput(
            "policy_json", request.policy_json[:80], f"must be JSON: {error}"
        ) from None
    default = replace(policy, budget_s=PLAN_BUDGET_S)
    chosen = replace(parse_policy(document, default), measured=True)
    if left_s is not None and chosen.budget_s > left_s - _ANSWER_S:
        if left_s <= _ANSWER_S:
            raise DeadlineExceeded("a plan", left_s)
        chosen = replace(chosen, budget_s=left_s - _ANSWER_S)
    return chosen


async def _plan_elsewhere(
    job: _Job, count: int, left_s: float | None
) -> scheduler_pb2.PlanResponse:
    most_s = job.policy.budget_s + PLAN_GRACE_S
    timeout_s = most_s if left_s is None else min(most_s, left_s)
    request = msgspec.msgpack.encode(job)
    out = await ask_elsewhere(
        "muster_scheduler.planning", request, timeout_s=timeout_s, what="planning"
    )
    reply = msgspec.msgpack.decode(out, type=_Reply)
    if reply.refusal is not None:
        raise InvalidInput(reply.refusal.field, reply.refusal.value, reply.refusal.limit)
    if len(reply.response) > MAX_CALL_BYTES:
        limit = f"an answer has at most {MAX_CALL_BYTES} bytes; plan fewer tasks at once"
        raise TooLarge("tasks", f"{count} tasks", limit)
    return scheduler_pb2.PlanResponse.FromString(reply.response)


def predicted_run_s(
    state: ClusterState, snapshot: Snapshot, request: scheduler_pb2.PlanRequest
) -> NDArray[np.float64] | None:
    """float64 [shapes, rows]; None where nothing was learned, or for more pairs of task and agent
    than are foretold. Of inputs, which do not travel, nothing is known."""
    rows, shapes = snapshot.row_count, len(request.shapes)
    if (
        state.foresight.model is None
        or rows * shapes > _MOST_SHAPE_PAIRS
        or rows * len(request.shape_of) > _MOST_PAIRS
    ):
        return None
    features = [task_features(one.skill, b"null", one.estimate_ms / 1000) for one in request.shapes]
    return response_of(state, snapshot, features)


# ------------------------------------------------------------------------- in the other process


def main() -> None:
    """The process: one job, one reply."""
    parent = os.getppid()
    os.nice(_NICENESS)
    answers = answer_pipe()
    job = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=_Job)
    try:
        reply = _Reply(_answer(job, lambda: os.getppid() != parent).SerializeToString())
    except InvalidInput as error:
        reply = _Reply(refusal=_Refusal(error.field, str(error.value), error.limit))
    with answers:
        answers.write(msgspec.msgpack.encode(reply))


def _answer(job: _Job, is_orphan: Callable[[], bool]) -> scheduler_pb2.PlanResponse:
    request = scheduler_pb2.PlanRequest.FromString(job.request)
    snapshot, batch = from_bytes(job.snapshot), batch_of(request)
    if job.run_s:
        by_shape = np.frombuffer(job.run_s, np.float64).reshape(-1, snapshot.row_count)
        batch = replace(batch, response_s=by_shape[np.array(request.shape_of, np.int64)])
    policy, count = job.policy, len(request.shape_of)
    _load(snapshot, batch, policy, front=request.front)
    began_s = time.monotonic()

    def stop_at(share: float) -> Callable[[], bool]:
        end_s = began_s + share * policy.budget_s
        return lambda: time.monotonic() >= end_s or is_orphan()

    steps = request.max_steps or _NO_LIMIT
    rng = np.random.default_rng(request.seed)
    strategy = strategies.get(policy.strategy)
    stop = stop_at(0.5 if request.front else 1.0)
    plan = strategy.plan(snapshot, batch, policy, job.now_s, rng, stop, steps)
    response = scheduler_pb2.PlanResponse(
        strategy=plan.strategy,
        seed=request.seed,
        budget_s=policy.budget_s,
        objective=policy.objective,
        learned=bool(job.run_s),
        score=_score(snapshot, batch, plan.assignment, policy),
    )
    if plan.lower_bound is not None and np.isfinite(plan.lower_bound):
        response.lower_bound = plan.lower_bound
    used = [plan.assignment]
    if request.front:
        rng = np.random.default_rng(request.seed)
        points = pareto_front(snapshot, batch, policy, job.now_s, rng, stop_at(1.0), steps)
        used += [point.assignment for point in _spread_evenly(points)]
    response.elapsed_s = time.monotonic() - began_s
    rows, places = _as_places(used)
    response.agents.extend(snapshot.agent_ids[row] for row in rows)
    response.places.extend(places[0])
    for assignment, place in zip(used[1:], places[1:], strict=True):
        point = response.front.add(score=_score(snapshot, batch, assignment, policy))
        point.places.extend(place)
    _fill_reasons(response, plan, batch, count)
    for index, devices in plan.devices.items():
        for name, indices in devices.items():
            response.devices.add(task=index, resource=name, indices=indices)
    return response


def batch_of(request: scheduler_pb2.PlanRequest) -> TaskBatch:
    """The request's tasks. Raises InvalidInput."""
    classes = ClassTable()
    class_ids, priorities, estimates = [], [], []
    for index, message in enumerate(request.shapes):
        try:
            spec = spec_from_proto(message)
        except InvalidInput as error:
            raise InvalidInput(f"shapes[{index}].{error.field}", error.value, error.limit) from None
        spread = spread_of(spec) if spec.constraints else ()
        demand = held_demand(spec.resources)
        class_ids.append(classes.id_of(spec.skill, demand, spec.constraints, frozenset(), spread))
        priorities.append(spec.priority)
        estimates.append(spec.estimate_ms / 1000 or 1.0)
    shape_of = np.array(request.shape_of, np.int64)
    if shape_of.size and int(shape_of.max()) >= len(class_ids):
        limit = f"there are {len(class_ids)} shapes"
        raise InvalidInput("shape_of", int(shape_of.max()), limit)
    return TaskBatch(
        classes,
        np.array(class_ids, np.int32)[shape_of],
        np.array(priorities, np.int32)[shape_of],
        np.array(estimates, np.float64)[shape_of],
    )


def _load(snapshot: Snapshot, batch: TaskBatch, policy: Policy, *, front: bool) -> None:
    """Loads what is needed at a small plan: that is no part of the budget."""
    if len(batch) >= _MANY:
        fast.load()
    few = TaskBatch(
        batch.classes,
        batch.class_id[:_FEW],
        batch.priority[:_FEW],
        batch.estimate_s[:_FEW],
        None if batch.response_s is None else batch.response_s[:_FEW],
    )
    rng = np.random.default_rng(0)
    strategies.get(policy.strategy).plan(snapshot, few, policy, 0.0, rng, lambda: False, 1)
    if front:
        pareto_front(snapshot, few, policy, 0.0, rng, lambda: False, 1)


def _score(
    snapshot: Snapshot, batch: TaskBatch, assignment: NDArray[np.int32], policy: Policy
) -> scheduler_pb2.PlanScore:
    score = evaluate(snapshot, batch, assignment, policy)
    unplaced = int((assignment < 0).sum())
    return scheduler_pb2.PlanScore(t=score.T, u=score.U, b=score.B, j=score.J, unplaced=unplaced)


def _as_places(
    assignments: Sequence[NDArray[np.int32]],
) -> tuple[list[int], list[list[int]]]:
    """The rows that any of them uses; each with 1 + the index into these, 0 where unplaced."""
    rows = np.unique(np.concatenate(assignments))
    rows = rows[rows >= 0]
    places = [np.where(a >= 0, np.searchsorted(rows, a) + 1, 0).tolist() for a in assignments]
    return rows.tolist(), places


def _spread_evenly(points: Sequence[FrontPoint]) -> list[FrontPoint]:
    """At most MAX_FRONT_POINTS of them, both ends among them."""
    if len(points) <= MAX_FRONT_POINTS:
        return list(points)
    chosen = np.linspace(0, len(points) - 1, MAX_FRONT_POINTS).round().astype(int)
    return [points[index] for index in chosen.tolist()]


def _fill_reasons(
    response: scheduler_pb2.PlanResponse, plan: Plan, batch: TaskBatch, count: int
) -> None:
    unplaced = np.flatnonzero(plan.assignment < 0).tolist()
    reason_of = [0] * count
    by_class: dict[int, int] = {}
    end_s = time.monotonic() + _REASONS_S
    known: dict[str, int] = {}

    def note(text: str, why: Unplaceable | None = None) -> int:
        if text not in known:
            message = response.reasons.add(text=text)
            if why is not None:
                message.agents = why.agents
                message.excluded.update(why.reasons)
            known[text] = len(response.reasons)
        return known[text]

    for task in unplaced:
        class_id = int(batch.class_id[task])
        if task >= plan.considered:
            reason_of[task] = note(_NOT_LOOKED_AT)
        elif class_id in by_class:
            reason_of[task] = by_class[class_id]
        elif len(by_class) >= MAX_REASONS or time.monotonic() > end_s:
            reason_of[task] = note(_NOT_WORKED_OUT)
        else:
            why = plan.reasons[task]
            reason_of[task] = by_class[class_id] = note(str(why), why)
    response.reason_of.extend(reason_of)


if __name__ == "__main__":
    main()
