"""What happens to tasks: admitted, started, ended, cancelled, lost, late; and written."""

from __future__ import annotations

from enum import Enum

from msgspec.structs import replace

from muster.domain.ids import AgentId
from muster.domain.task import OnDisconnect, Outcome, TaskSpec, TaskStatus, Wish
from muster.domain.task_lifecycle import ENDED_STATES, HELD_STATES, TaskEvent, TaskState
from muster_scheduler.core import progress, quarantine
from muster_scheduler.core.deadlines import STOP_GIVEN_AWAY_MS, TIMEOUT_GRACE_MS, Moment
from muster_scheduler.core.notes import LOST
from muster_scheduler.core.outcomes import (
    MAX_AVOID,
    after_loss,
    after_outcome,
    ended,
    has_started_before,
    started,
)
from muster_scheduler.core.records import (
    AttemptRef,
    Effect,
    EffectKind,
    Now,
    OpenTask,
    Write,
)
from muster_scheduler.core.state import ClusterState
from muster_scheduler.core.suspects import charged


class Verdict(Enum):
    """How storage answered a write."""

    OK = "written"
    STALE = "state or attempt were others"
    GONE = "there is no such task"


def admit(state: ClusterState, spec: TaskSpec, wire: object, now: Now) -> OpenTask:
    """A new task waits for a place; `place` may give it one before it is first written."""
    assert spec.id not in state.tasks, f"{spec.id} is open already"
    status = TaskStatus(created_clock_ms=now.clock_ms)
    task = OpenTask(spec, status, wire, stored=False)
    state.tasks[spec.id] = task
    state.deadlines.add_created(task)
    state.decide(task, status)
    state.enqueue(task)
    return task


def load(
    state: ClusterState,
    spec: TaskSpec,
    status: TaskStatus,
    wire: object,
    now: Now,
    *,
    held_too: bool = True,
) -> None:
    """Takes over a task that storage holds; one that is open already is left as it is.

    `held_too` False: only a waiting one. Once a leader has loaded all tasks, it has placed every
    task that an agent holds; one that it does not know has ended while storage was being read.
    """
    if spec.id in state.tasks:
        return
    if status.state in ENDED_STATES or (status.state in HELD_STATES and not held_too):
        state.cancel_again.discard(spec.id)
        return
    task = OpenTask(spec, status, wire, stored=True)
    state.tasks[spec.id] = task
    state.deadlines.add_created(task)
    if status.state is TaskState.PENDING:
        _wait(state, task, now)
    else:
        _load_held(state, task, now)
    if task.id in state.cancel_again:
        state.cancel_again.discard(task.id)
        cancel(state, task, now)


def _load_held(state: ClusterState, task: OpenTask, now: Now) -> None:
    status = task.status
    state.classify(task)
    agent = state.entry(status.agent, now)
    overtaken = [task] if status.incarnation < agent.incarnation else []
    if status.incarnation > agent.incarnation:
        # A leader died while it gave away what the agent's older incarnation held.
        overtaken = list(agent.tasks.values())
        agent.incarnation = status.incarnation
    state.charge(task, agent)
    if task.started and task.spec.timeout_ms:
        due = status.started_clock_ms + task.spec.timeout_ms + TIMEOUT_GRACE_MS
        state.deadlines.add(due, Moment.TIMEOUT, task)
    if task.started:
        progress.begin(state, task, now)
    to_charge = charged(older for older in overtaken if older.started)
    for older in overtaken:
        why = f"agent {agent.id} was restarted as incarnation {agent.incarnation}"
        stop = older.spec.on_disconnect is OnDisconnect.STOP
        fence_ms = STOP_GIVEN_AWAY_MS if stop else 0
        lost(state, older, why, older in to_charge, now, fence_ms=fence_ms)


def _wait(state: ClusterState, task: OpenTask, now: Now) -> None:
    if task.status.not_before_clock_ms > now.clock_ms:
        state.deadlines.add(task.status.not_before_clock_ms, Moment.RETRY, task)
    else:
        state.enqueue(task)


def _held(
    state: ClusterState, agent: AgentId, incarnation: int, ref: AttemptRef
) -> OpenTask | None:
    """The task, when this very attempt is that incarnation's."""
    task = state.tasks.get(ref.task_id)
    if task is None or task.status.attempt != ref.attempt or task.status.agent != agent:
        return None
    if task.status.incarnation != incarnation or task.status.state not in HELD_STATES:
        return None
    return task


def started_attempt(
    state: ClusterState, agent: AgentId, incarnation: int, ref: AttemptRef, at_ms: int, now: Now
) -> None:
    """The agent has begun the attempt. RUNNING is written by `flush_started`, unless it ends."""
    task = _held(state, agent, incarnation, ref)
    if task is None or task.started:
        return
    task.started = True
    at_ms = at_ms if at_ms > 0 else now.wall_ms
    task.status = replace(task.status, started_at_ms=at_ms, started_clock_ms=now.clock_ms)
    state.to_start[task.id] = task
    if task.spec.timeout_ms:
        due = now.clock_ms + task.spec.timeout_ms + TIMEOUT_GRACE_MS
        state.deadlines.add(due, Moment.TIMEOUT, task)
    progress.begin(state, task, now)


def waiting_attempt(
    state: ClusterState, agent: AgentId, incarnation: int, ref: AttemptRef, waiting: bool
) -> None:
    """The attempt waits for tasks that it submitted, or goes on."""
    task = _held(state, agent, incarnation, ref)
    if task is not None:
        state.set_waiting(task, waiting)


def flush_started(state: ClusterState, now: Now) -> None:
    """Writes RUNNING for attempts that have not ended since they began; called now and then."""
    tasks, state.to_start = state.to_start, {}
    for task in tasks.values():
        if task.status.state is TaskState.ASSIGNED:
            at_ms = task.status.started_at_ms
            clock_ms = task.status.started_clock_ms or now.clock_ms
            state.decide(task, started(task.status, task.id, at_ms, clock_ms))


def outcome(
    state: ClusterState,
    agent: AgentId,
    incarnation: int,
    ref: AttemptRef,
    result: Outcome,
    now: Now,
) -> bool:
    """An attempt has ended. False: it is stale, and the agent is told so."""
    task = _held(state, agent, incarnation, ref)
    if task is None:
        known = state.tasks.get(ref.task_id)
        if known is not None and _will_be_acknowledged(known, ref):
            return True  # a repeat: it is acknowledged when the first is durable
        state.commands.pushes[agent].acks.append((ref, False))
        return False
    if task.begun is not None:
        state.notes.end(task, task.begun, result.kind.value, result, now)
    state.release(task)
    quarantine.attempt_ended(state, task, result, now)
    status = after_outcome(
        task.spec,
        task.status,
        progress.outcome_of(task.spec, task.status, result),
        clock_ms=now.clock_ms,
        wall_ms=now.wall_ms,
        jitter=state.jitter(),
    )
    state.decide(task, status, Effect(EffectKind.ACK, agent, ref))
    if status.state is TaskState.PENDING:
        _wait(state, task, now)
    return True


def _will_be_acknowledged(task: OpenTask, ref: AttemptRef) -> bool:
    written = task.write.effects if task.write is not None else ()
    return any(e.kind is EffectKind.ACK and e.ref == ref for e in (*written, *task.effects))


def take_back(state: ClusterState, task: OpenTask, why: str, now: Now) -> None:
    """Its agent lives and did not begin it: others are asked first from now on."""
    # Noted first: a task that waits stands in its line, and must not be taken out to change lines.
    avoid = tuple(dict.fromkeys((*task.status.avoid, task.status.agent)))[-MAX_AVOID:]
    task.status = replace(task.status, avoid=avoid)
    lost(state, task, why, False, now)


def lost(
    state: ClusterState,
    task: OpenTask,
    why: str,
    blamed: bool,
    now: Now,
    *,
    fence_ms: int = 0,
) -> None:
    """The task's agent is gone, or taken to be; should it live, it is told to drop the attempt.

    `fence_ms`: how much longer the attempt may run there; the next one is not given out before.
    """
    state.commands.pushes[task.status.agent].drop.append(task.ref())
    if task.begun is not None:
        state.notes.end(task, task.begun, LOST, None, now)
    state.release(task)
    status = after_loss(
        task.spec,
        task.status,
        why=why,
        blamed=blamed,
        not_before_clock_ms=now.clock_ms + fence_ms if fence_ms > 0 else 0,
        clock_ms=now.clock_ms,
        wall_ms=now.wall_ms,
    )
    state.decide(task, status)
    if status.state is TaskState.PENDING:
        _wait(state, task, now)


def cancel(state: ClusterState, task: OpenTask, now: Now) -> TaskState:
    """Ends a waiting task; of a placed one the wish is kept until its agent confirms."""
    if task.status.state in ENDED_STATES:
        return task.status.state
    if task.status.state is TaskState.PENDING:
        state.unqueue(task)
        status = ended(
            task.status, task.id, TaskEvent.CANCEL, now.wall_ms, why="cancelled on request"
        )
        state.decide(task, status)
    else:
        _wish(state, task, Wish.CANCEL)
    return task.status.state


def _wish(state: ClusterState, task: OpenTask, wish: Wish) -> None:
    if task.status.wish in (wish, Wish.CANCEL):
        return
    status = replace(task.status, wish=wish)
    state.decide(task, status, Effect(EffectKind.CANCEL, status.agent, task.ref()))


def due(state: ClusterState, now: Now) -> None:
    """Handles the deadlines that have come."""
    state.deadlines.shed(state.tasks)
    for moment, task, attempt in state.deadlines.due(now.clock_ms):
        if state.tasks.get(task.id) is not task or task.status.state in ENDED_STATES:
            continue
        pending = task.status.state is TaskState.PENDING
        if moment is Moment.RETRY:
            if pending and not task.queued and task.id not in state.suspects:
                _wait(state, task, now)
        elif moment is Moment.TIMEOUT:
            if not pending and task.status.attempt == attempt:
                _wish(state, task, Wish.TIME_OUT)
        elif moment is Moment.PROGRESS:
            if task.status.attempt == attempt:
                _look_for_progress(state, task, now)
        elif moment is Moment.START and _has_started(task):
            continue
        elif now.clock_ms < task.status.created_clock_ms + _counted_ms(task, moment):
            # Storage has another moment of its creation; that one's deadline is still to come.
            continue
        elif pending:
            state.unqueue(task)
            why = f"{moment.value} (waited {now.clock_ms - task.status.created_clock_ms} ms)"
            state.decide(
                task, ended(task.status, task.id, TaskEvent.TIME_OUT, now.wall_ms, why=why)
            )
        else:
            _wish(state, task, Wish.TIME_OUT)


def _look_for_progress(state: ClusterState, task: OpenTask, now: Now) -> None:
    stuck = progress.due(state, task, now)
    if stuck is not None:
        task.status = replace(task.status, why=stuck.why)
        _wish(state, task, Wish.TIME_OUT)
        state.commands.stuck.append(stuck)


def _counted_ms(task: OpenTask, moment: Moment) -> int:
    """How long after its creation the moment comes."""
    spec = task.spec
    return spec.start_deadline_ms if moment is Moment.START else spec.total_deadline_ms


def _has_started(task: OpenTask) -> bool:
    """Now or in an earlier attempt; `started` is left over from the last one while it waits."""
    held = task.status.state in HELD_STATES
    return (held and task.started) or has_started_before(task.status)


def written(
    state: ClusterState, write: Write, verdict: Verdict, standing: TaskStatus | None
) -> None:
    """Storage has answered a write. A repeated write that had succeeded counts as OK."""
    task = write.task
    assert task.write is write, f"{task!r}: an answer to another write"
    task.write = None
    if verdict is Verdict.STALE and standing is not None and _same(standing, write.status):
        verdict = Verdict.OK
        if standing.created_clock_ms != task.status.created_clock_ms:
            # A gateway has created it, too, and was first.
            task.status = replace(task.status, created_clock_ms=standing.created_clock_ms)
            state.deadlines.add_created(task)
    if verdict is not Verdict.OK:
        _disown(state, task, write, verdict)
        return
    if task.ahead:
        task.ahead = False
        state.dirty[task.id] = task
    task.stored = (write.status.state, write.status.attempt)
    for effect in write.effects:
        _perform(state, task, effect)
    if write.status.state in ENDED_STATES:
        state.ended_count += 1
        state.forget(task)


def _same(standing: TaskStatus, ours: TaskStatus) -> bool:
    return (
        standing.state,
        standing.attempt,
        standing.agent,
        standing.incarnation,
        standing.devices,
    ) == (ours.state, ours.attempt, ours.agent, ours.incarnation, ours.devices)


def _disown(state: ClusterState, task: OpenTask, write: Write, verdict: Verdict) -> None:
    """What was believed of the task is wrong: forget it, and look it up again."""
    for effect in (*write.effects, *task.effects):
        if effect.kind is EffectKind.ACK:
            state.commands.pushes[effect.agent].acks.append((effect.ref, False))
    if task.status.state in HELD_STATES and task.stored is not None:
        state.commands.pushes[task.status.agent].drop.append(task.ref())
    cancelled = task.status.state is TaskState.CANCELLED or task.status.wish is Wish.CANCEL
    state.forget(task)
    if verdict is Verdict.STALE:
        state.commands.reload.append((task.spec.tenant, task.id))
        if cancelled:
            state.cancel_again.add(task.id)


def _perform(state: ClusterState, task: OpenTask, effect: Effect) -> None:
    push = state.commands.pushes[effect.agent]
    if effect.kind is EffectKind.ACK:
        push.acks.append((effect.ref, True))
        return
    # The decision may have been overtaken while it was being written.
    current = task.status.attempt == effect.ref.attempt and task.status.state in HELD_STATES
    if not current:
        return
    if effect.kind is EffectKind.ASSIGN:
        push.assign.append(task)
    else:
        push.cancel.append((effect.ref, task.status.wish))
