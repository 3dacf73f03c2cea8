"""A placement as dense arrays and plain numbers: what the improving strategies work on.

The agents here are those alive, in the order of their rows; empty rows are left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from muster_scheduler.placement.classes import TaskBatch
from muster_scheduler.placement.plan import Policy
from muster_scheduler.placement.snapshot import BoolArray, Snapshot

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]
Ints32: TypeAlias = NDArray[np.int32]

# Order 32: steep enough that the most busy agent decides, smooth enough for small steps.
_DOUBLINGS = 5
# Entries of t_ij or of r_ijk that are built from a class's estimate or demand: none, they stay
# one per task or class. This bounds the eligibility mask, one byte per class and agent.
MAX_MASK = 500_000_000


class Problem(NamedTuple):
    """N tasks, M agents, K resources, C distinct classes, R demand rows. Nobody writes to it.

    time          float64 [N, M] or [N, 1], t_ij in seconds; the agent's column is j * time_step
    demand        int64 [R, M, K] or [R, 1, K], base units; as `time` with demand_step
    demand_row    int32 [N], the task's row in `demand`: its class, or itself where r_ijk is given
    used_share    float64 [R, M or 1], what the task adds to U on agent j
    unplaced_share float64 [R], what it adds to the unplaced share
    weight        float64 [N], 1 + priority
    class_row     int32 [N], the task's row in `allowed` and `choices`
    allowed       bool [C, M]: may take it, as far as anything but what is left there says
    choices       int32 [C, W], allowed agents, -1 behind the last; choice_count int64 [C], 0 for
                  classes that want devices, or of which agents hold only so many: which indices
                  are free and who holds what is not in the problem, so their tasks stay where a
                  constructive strategy put them
    capacity, used int64 [M, K]; `used` is held by what runs already
    inverse       float64 [M, K], 1 / capacity, 0 where there is none
    least_load    float64 [M], L_j from the resources that no task asks for; K counts the others
    scale         a makespan's size, seconds, > 0; 2**doublings is the order p of the norm
                  (Σ pressure_j busy_j^p)^(1/p) that stands for the makespan during a walk
    pressure      float64 [M], > 0, sum 1: what a second on agent j costs when all are equally
                  busy. With equal pressures the norm would trade balance for less total time
    centre        about the mean L_j: sums of squares around it lose no digits
    k_…           the energy's factors of T, U, unplaced share, B, makespan, unplaced weight and
                  excess over bounds; j_… those of J; bound_… infinite where not asked for
    """

    time: Floats
    time_step: int
    demand: Ints
    demand_step: int
    demand_row: Ints32
    used_share: Floats
    unplaced_share: Floats
    weight: Floats
    class_row: Ints32
    allowed: BoolArray
    choices: Ints32
    choice_count: Ints
    capacity: Ints
    used: Ints
    inverse: Floats
    least_load: Floats
    pressure: Floats
    scale: float
    doublings: int
    centre: float
    used_before: float
    k_time: float
    k_used: float
    k_unplaced: float
    k_spread: float
    k_longest: float
    k_weight: float
    k_excess: float
    bounded: bool
    j_time: float
    j_used: float
    j_unplaced: float
    j_spread: float
    bound_t: float
    bound_u: float
    bound_b: float
    bound_j: float


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """A problem and the way back. rows: int32 [M], the snapshot's row of each agent.

    index: int32 [rows of the snapshot], the agent of each row, -1 where none is.
    """

    problem: Problem
    rows: Ints32
    index: Ints32

    def to_rows(self, place: Ints32) -> Ints32:
        """The plan's assignment (snapshot rows) of agents by index."""
        if not len(self.rows):
            return np.full_like(place, -1)
        return np.where(place >= 0, self.rows[place], np.int32(-1)).astype(np.int32)

    def from_rows(self, assignment: Ints32) -> Ints32:
        if not len(self.rows):
            return np.full_like(assignment, -1)
        return np.where(assignment >= 0, self.index[assignment], np.int32(-1)).astype(np.int32)


def frame(snapshot: Snapshot, tasks: TaskBatch, policy: Policy) -> Frame | None:
    """None where there is nothing to improve: no task, no agent, or a mask beyond MAX_MASK."""
    rows = np.flatnonzero(snapshot.alive).astype(np.int32)
    class_ids, inverse = np.unique(tasks.class_id, return_inverse=True)
    class_row: Ints32 = inverse.astype(np.int32)
    if not len(tasks) or not len(rows) or len(class_ids) * len(rows) > MAX_MASK:
        return None
    index = np.full(snapshot.row_count, -1, np.int32)
    index[rows] = np.arange(len(rows), dtype=np.int32)
    capacity, used = snapshot.capacity[rows], snapshot.used[rows]
    demand, demand_row = _demand(snapshot, tasks, rows, class_ids, class_row)
    time = _time(tasks, rows)
    allowed = _allowed(snapshot, tasks, rows, class_ids)
    finite = np.isfinite(time)
    if not finite.all():
        # A response time that is no number makes the pair impossible, for this task alone.
        allowed = allowed[class_row] & finite
        class_row = np.arange(len(tasks), dtype=np.int32)
        time = np.where(finite, time, 0.0)
    fitting = _may_ever_fit(demand, demand_row, class_row, allowed, capacity, used)
    choices, counts = _choices(fitting)
    counts[_on_devices(demand, demand_row, class_row, snapshot)] = 0
    counts[class_row[tasks.classes.dense.is_spread[tasks.class_id]]] = 0
    problem = _problem(tasks, policy, time, demand, capacity, used)
    return Frame(
        problem._replace(
            demand_row=demand_row,
            class_row=class_row,
            allowed=allowed,
            choices=choices,
            choice_count=counts,
        ),
        rows,
        index,
    )


def _demand(
    snapshot: Snapshot,
    tasks: TaskBatch,
    rows: Ints32,
    class_ids: Ints32,
    class_row: Ints32,
) -> tuple[Ints, Ints32]:
    if tasks.demand_by_agent is not None:
        own = np.ascontiguousarray(tasks.demand_by_agent[:, rows, :], np.int64)
        return own, np.arange(len(tasks), dtype=np.int32)
    demand = np.zeros((len(class_ids), 1, len(snapshot.names)), np.int64)
    for position, class_id in enumerate(class_ids.tolist()):
        for column, amount in tasks.classes.demand(class_id, snapshot).columns:
            demand[position, 0, column] = amount
    return demand, class_row


def _time(tasks: TaskBatch, rows: Ints32) -> Floats:
    if tasks.response_s is None:
        return np.ascontiguousarray(tasks.estimate_s[:, None], np.float64)
    return np.ascontiguousarray(tasks.response_s[:, rows], np.float64)


def _allowed(snapshot: Snapshot, tasks: TaskBatch, rows: Ints32, class_ids: Ints32) -> BoolArray:
    allowed = np.zeros((len(class_ids), len(rows)), np.bool_)
    for position, class_id in enumerate(class_ids.tolist()):
        if not tasks.classes.demand(class_id, snapshot).missing:
            allowed[position] = tasks.classes.eligible(class_id, snapshot)[rows]
    return allowed


def _may_ever_fit(
    demand: Ints,
    demand_row: Ints32,
    class_row: Ints32,
    allowed: BoolArray,
    capacity: Ints,
    used: Ints,
) -> BoolArray:
    """bool [C, M]: allowed, and some task of the class fits while nothing else is placed."""
    room = capacity - used
    fits = np.zeros((demand.shape[0], capacity.shape[0]), np.bool_)
    for row in range(demand.shape[0]):
        wanted = demand[row]
        fits[row] = ((wanted == 0) | (wanted <= room)).all(axis=1)
    by_class = np.zeros_like(allowed)
    np.logical_or.at(by_class, class_row, fits[demand_row])
    return by_class & allowed


def _on_devices(
    demand: Ints, demand_row: Ints32, class_row: Ints32, snapshot: Snapshot
) -> NDArray[np.int32]:
    """Rows of the classes that ask for a device resource."""
    columns = sorted(snapshot.device_free)
    rows = np.flatnonzero((demand[:, :, columns] > 0).any(axis=(1, 2)))
    return np.unique(class_row[np.isin(demand_row, rows)])


def _choices(fitting: BoolArray) -> tuple[Ints32, Ints]:
    counts = fitting.sum(axis=1).astype(np.int64)
    choices = np.full((fitting.shape[0], max(1, int(counts.max(initial=0)))), -1, np.int32)
    for row in range(fitting.shape[0]):
        choices[row, : counts[row]] = np.flatnonzero(fitting[row])
    return choices, counts


def _problem(
    tasks: TaskBatch, policy: Policy, time: Floats, demand: Ints, capacity: Ints, used: Ints
) -> Problem:
    """All but what says where a task may go."""
    total = capacity.sum(axis=0, dtype=np.float64)
    has = total > 0
    share = np.where(has, 1.0 / np.maximum(total, 1.0), 0.0) / max(1, int(has.sum()))
    inverse = np.where(capacity > 0, 1.0 / np.maximum(capacity, 1), 0.0)
    before = used * inverse
    asked = (demand > 0).any(axis=(0, 1))
    best = time.min(axis=1)
    reference = float(best.sum())
    bound = {name: float(policy.bounds.get(name, math.inf)) for name in "TBJ"}
    return Problem(
        time=time,
        time_step=int(time.shape[1] > 1),
        demand=np.ascontiguousarray(demand[:, :, asked]),
        demand_step=int(demand.shape[1] > 1),
        demand_row=np.zeros(0, np.int32),
        used_share=np.ascontiguousarray(demand @ share),
        unplaced_share=np.ascontiguousarray(demand.min(axis=1) @ share),
        weight=1.0 + tasks.priority.astype(np.float64),
        class_row=np.zeros(0, np.int32),
        allowed=np.zeros((0, 0), np.bool_),
        choices=np.zeros((0, 0), np.int32),
        choice_count=np.zeros(0, np.int64),
        capacity=np.ascontiguousarray(capacity[:, asked]),
        used=np.ascontiguousarray(used[:, asked]),
        inverse=np.ascontiguousarray(inverse[:, asked]),
        least_load=np.ascontiguousarray(before[:, ~asked].max(axis=1, initial=0.0)),
        pressure=np.full(capacity.shape[0], 1.0 / capacity.shape[0]),
        scale=max(reference / capacity.shape[0], float(best.max()), 1e-300),
        doublings=_DOUBLINGS,
        centre=float(before.max(axis=1, initial=0.0).mean()),
        used_before=float(used.sum(axis=0) @ share),
        bounded=bool(policy.bounds),
        bound_t=bound["T"],
        bound_u=float(policy.bounds.get("U", -math.inf)),
        bound_b=bound["B"],
        bound_j=bound["J"],
        **_factors(policy, reference),
    )


def _factors(policy: Policy, reference: float) -> dict[str, float]:
    j_time = policy.w_t / reference if reference > 0 else 0.0
    of_j = policy.objective == "J"
    size = {
        "J": policy.w_t + policy.w_u + policy.w_b + policy.penalty,
        "T": max(reference, 1e-9),
        "makespan": max(reference, 1e-9),
    }[policy.objective]
    # Two orders of the objective's size keep the order of plans: a task without a place (its
    # weight is at least 1) outweighs all bounds, these outweigh the objective.
    return {
        "k_time": j_time if of_j else float(policy.objective == "T"),
        "k_used": policy.w_u if of_j else 0.0,
        "k_unplaced": policy.penalty if of_j else 0.0,
        "k_spread": policy.w_b if of_j else 0.0,
        "k_longest": float(policy.objective == "makespan"),
        "k_weight": 1e6 * size if policy.bounds else 1e3 * size,
        "k_excess": 1e3 * size,
        "j_time": j_time,
        "j_used": policy.w_u,
        "j_unplaced": policy.penalty,
        "j_spread": policy.w_b,
    }
