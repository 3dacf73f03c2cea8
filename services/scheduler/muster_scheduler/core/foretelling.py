"""What a leader expects of tasks on its agents, by the model that it has learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from muster.domain.ids import AgentId
from muster_scheduler.core.choices import MAX_JUDGED_TASKS, Followed
from muster_scheduler.core.notes import load_of
from muster_scheduler.core.records import AgentEntry, Begun, Now, OpenTask
from muster_scheduler.core.state import ClusterState
from muster_scheduler.learning.attempts import AgentFeatures, TaskFeatures, task_features
from muster_scheduler.learning.estimates import Quantiles
from muster_scheduler.learning.evaluation import LEVELS, UNKNOWN_S
from muster_scheduler.placement.classes import TaskBatch
from muster_scheduler.placement.learned import ForetoldBatch
from muster_scheduler.placement.objective import dominant_shares
from muster_scheduler.placement.plan import Plan
from muster_scheduler.placement.snapshot import FIRST_COLUMNS, FloatArray, Snapshot

# Strategies that use t_ij; the others would only pay for it.
_FORESEEING = frozenset({"learned", "auto", "search", "annealing", "genetic", "swarm", "exact"})
# Only this one can let a task wait for a fast agent: for the others that is work left out.
_WAITING = "learned"
# Tasks beyond free room that such a strategy is shown, so that it sees what will need the room.
LOOK_AHEAD = 128
# Pairs of task and agent foretold at once: some 10 ms.
_MAX_PAIRS = 500_000
_LEAST_TASKS = 32
_P50, _P90 = LEVELS.index(0.5), LEVELS.index(0.9)


def foresees(state: ClusterState) -> bool:
    """Whether the policy's strategy uses predictions, and there are any."""
    return state.policy.strategy in _FORESEEING and state.foresight.model is not None


def tasks_beyond(state: ClusterState) -> int:
    """How many tasks beyond free room each line shows to placement."""
    return LOOK_AHEAD if state.policy.strategy == _WAITING and foresees(state) else 0


def tasks_at_once(state: ClusterState, most: int) -> int:
    """How many tasks one plan may be of, so that foretelling them stays quick."""
    if not foresees(state):
        return most
    return max(_LEAST_TASKS, min(most, _MAX_PAIRS // max(1, len(state.table))))


def features_of_task(task: OpenTask) -> TaskFeatures:
    """Worked out once a task."""
    if task.features is None:
        spec = task.spec
        task.features = task_features(spec.skill, spec.input_json, spec.estimate_ms / 1000)
    return task.features


def features_of_agent(agent: AgentEntry | None, ident: str, load: float) -> AgentFeatures:
    """`load` is the dominant share in use; an agent that is gone is known by its name alone."""
    record = None if agent is None else agent.record
    if record is None:
        return AgentFeatures(ident, load=load)
    capacity = record.spec.capacity
    amounts = tuple(float(capacity.get(name)) for name in FIRST_COLUMNS)
    return AgentFeatures(ident, tuple(sorted(record.spec.labels)), amounts, load)


def response_s(
    state: ClusterState, snapshot: Snapshot, tasks: Sequence[OpenTask]
) -> FloatArray | None:
    """t_ij, float64 [N, M] over the snapshot's rows; None where nothing was learned yet."""
    if state.foresight.model is None:
        return None
    return response_of(state, snapshot, [features_of_task(task) for task in tasks])


def response_of(
    state: ClusterState, snapshot: Snapshot, features: Sequence[TaskFeatures]
) -> FloatArray | None:
    """The same for tasks that are known by their features alone."""
    foresight = state.foresight
    if foresight.model is None:
        return None
    seen = (snapshot.version, snapshot.layout, snapshot.row_count)
    if state.foreseen != seen:
        idents = snapshot.agent_ids[: snapshot.row_count]
        foresight.set_agents(
            [features_of_agent(state.agents.get(AgentId(i)), i, 0.0) for i in idents]
        )
        state.foreseen = seen
    load = dominant_shares(snapshot.used.astype(np.float64), snapshot.capacity)
    return foresight.response_s(features, load)


def release_s(state: ClusterState, snapshot: Snapshot, now: Now) -> FloatArray | None:
    """float64 [M, R], when what runs is expected to end, as ForetoldBatch has it; None: nothing."""
    running = [
        (task.row, *_expected(task, now))
        for agent in state.agents.values()
        for task in agent.tasks.values()
        if task.row >= 0
    ]
    if not running:
        return None
    of_row, predicted, elapsed = np.array(running).T
    left = state.foresight.remaining_s(predicted, elapsed)
    rows = of_row.astype(np.int64)
    order = np.lexsort((left, rows))
    rows, left = rows[order], left[order]
    place = np.arange(rows.shape[0]) - np.searchsorted(rows, rows)
    release = np.full((snapshot.row_count, int(place.max()) + 1), np.inf)
    release[rows, place] = left
    return release


def _expected(task: OpenTask, now: Now) -> tuple[float, float]:
    """Predicted and passed seconds of what an agent holds."""
    predicted_s = task.predicted_s or task.spec.estimate_ms / 1000 or UNKNOWN_S
    return predicted_s, elapsed_s(task, now)


def elapsed_s(task: OpenTask, now: Now) -> float:
    """Since the attempt started, as far as that is known; 0 before."""
    since_ms = task.status.started_clock_ms
    return max(0, now.clock_ms - since_ms) / 1000 if task.started and since_ms else 0.0


def foretold(
    state: ClusterState,
    snapshot: Snapshot,
    tasks: Sequence[OpenTask],
    batch: TaskBatch,
    now: Now,
) -> TaskBatch:
    """The batch with what is expected of its tasks, where the policy's strategy uses that."""
    times = response_s(state, snapshot, tasks) if foresees(state) else None
    if times is None:
        return batch
    if state.policy.strategy != _WAITING:
        return replace(batch, response_s=times)
    known = {name: getattr(batch, name) for name in batch.__dataclass_fields__}
    known["response_s"] = times
    return ForetoldBatch(**known, release_s=release_s(state, snapshot, now))


def quantiles(state: ClusterState, task: OpenTask, ident: AgentId) -> Quantiles:
    """Of the task's run time on that agent, as it is loaded now."""
    view = state.table.view()
    row = view.rows.get(ident, -1)
    load = load_of(view, row) if row >= 0 else 0.0
    agent = features_of_agent(state.agents.get(ident), ident, load)
    return state.foresight.quantiles(features_of_task(task), agent)


def expected_run_s(
    state: ClusterState, task: OpenTask, ident: AgentId
) -> tuple[float, float] | None:
    """(median, 90th percentile) of the task's run time on the agent, seconds.

    None where no model that is trusted knows the skill; the declared estimate is all there is.
    """
    found = quantiles(state, task, ident)
    if found.source != "learned":
        return None
    return found.seconds[_P50], found.seconds[_P90]


def remaining_s(state: ClusterState, task: OpenTask, now: Now) -> float | None:
    """Median of what is left of the task's running attempt, given how long it has run.

    None when it has not started, or nothing is known of how long it takes.
    """
    if not task.started or not task.status.agent:
        return None
    found = quantiles(state, task, task.status.agent)
    if found.source != "learned" and not task.spec.estimate_ms:
        return None
    return found.remaining_s(elapsed_s(task, now))


def placed_as_proposed(state: ClusterState, snapshot: Snapshot, task: OpenTask, row: int) -> None:
    """Notes a task that was assigned to the row's agent by a plan of an earlier moment."""
    task.predicted_s = 0.0
    if state.notes.allowed > 0:
        state.notes.allowed -= 1
        task.begun = Begun(load_of(snapshot, row))


class Placements:
    """Notes the tasks of one plan as they are placed; see `notes` for which."""

    __slots__ = ("_followed", "_snapshot", "_state", "_times")

    def __init__(
        self, state: ClusterState, snapshot: Snapshot, batch: TaskBatch, plan: Plan, now: Now
    ) -> None:
        self._state, self._snapshot = state, snapshot
        self._times = batch.response_s
        self._followed: Followed | None = state.choices.follow(plan, now)

    def placed(self, index: int, task: OpenTask, row: int) -> None:
        """The plan's task `index` was assigned to the row's agent."""
        times = self._times
        task.predicted_s = 0.0 if times is None else times.item(index, row)
        followed = self._followed
        notes = self._state.notes
        if followed is not None:
            followed.tasks += 1
            if followed.tasks >= MAX_JUDGED_TASKS:
                self._followed = None
        elif notes.allowed > 0:
            notes.allowed -= 1
        else:
            return
        least_s = (
            0.0
            if times is None
            else float(times[index][self._snapshot.placeable].min(initial=np.inf))
        )
        number = 0 if followed is None else followed.number
        least_s = min(least_s, task.predicted_s)
        task.begun = Begun(load_of(self._snapshot, row), least_s, number)
