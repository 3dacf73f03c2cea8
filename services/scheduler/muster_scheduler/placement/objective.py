"""T, U, L, B and J of an assignment: the one place where they are computed.

The model is the article's (section 4.1), for any number of resources and unequal agents. With
equal agents and one resource U = Σ r_ij / (M·R) and B = sqrt(Σ (L_j - L̄)² / M), the article's own.
Work that already runs counts in U, L and B. Response times and demands may differ by agent
(t_ij and r_ijk of the batch).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from muster_scheduler.placement.classes import ClassTable, TaskBatch
from muster_scheduler.placement.plan import Policy
from muster_scheduler.placement.snapshot import FloatArray, Snapshot


@dataclass(frozen=True, slots=True)
class Score:
    """What an assignment is worth. T and makespan in seconds; U, B and unplaced are shares."""

    T: float
    U: float
    B: float
    J: float
    makespan: float
    unplaced: float
    unplaced_weight: float

    def order(self, policy: Policy) -> tuple[float, float, float]:
        """Smaller is better: unplaced work by priority, then broken bounds, then the objective.

        So a plan never looks better for leaving work out.
        """
        value = {"J": self.J, "T": self.T, "makespan": self.makespan}[policy.objective]
        excess = 0.0
        for name, bound in policy.bounds.items():
            measured = {"T": self.T, "U": self.U, "B": self.B, "J": self.J}[name]
            excess += max(0.0, bound - measured if name == "U" else measured - bound)
        return self.unplaced_weight, excess, value


def evaluate(
    snapshot: Snapshot, tasks: TaskBatch, assignment: NDArray[np.int32], policy: Policy
) -> Score:
    """Score `assignment` (int32 [N], rows or -1) in full.

    T = Σ t_ij over placed tasks, makespan the greatest Σ t_ij of one agent. U = mean over
    resources of used / capacity of the cluster. L_j = max over resources of used / capacity of
    the agent, B their standard deviation over the M agents alive.
    J = w_t·T/T_ref + w_u·(1-U) + w_b·B + penalty·unplaced, where T_ref = Σ_i min_j t_ij over
    agents alive, and `unplaced` is the unplaced demand as U measures it: what an unplaced task
    wants is the least that it wants on any agent alive, resource by resource.
    """
    placed = assignment >= 0
    used, unplaced_demand = _used_and_unplaced(snapshot, tasks, assignment)
    alive = snapshot.alive
    capacity = snapshot.capacity[alive]
    shares = dominant_shares(used[alive], capacity)
    response, best = _response(snapshot, tasks, assignment)
    total, reference = float(response.sum()), float(best.sum())
    per_row = np.bincount(
        assignment[placed], weights=response[placed], minlength=max(1, snapshot.row_count)
    )
    total_capacity = capacity.sum(axis=0, dtype=np.float64)
    utilisation = _cluster_share(used[alive].sum(axis=0), total_capacity)
    imbalance = float(np.sqrt(np.mean((shares - shares.mean()) ** 2))) if shares.size else 0.0
    unplaced = _cluster_share(unplaced_demand, total_capacity)
    return Score(
        T=total,
        U=utilisation,
        B=imbalance,
        J=policy.w_t * (total / reference if reference else 0.0)
        + policy.w_u * (1.0 - utilisation)
        + policy.w_b * imbalance
        + policy.penalty * unplaced,
        makespan=float(per_row.max()),
        unplaced=unplaced,
        unplaced_weight=float((1.0 + tasks.priority[~placed]).sum()),
    )


def of_running(
    snapshot: Snapshot, left_s: FloatArray, policy: Policy
) -> tuple[float, float, float]:
    """T, U and B of what the agents hold: `left_s` is float64 [R], what each of their tasks is
    expected to take yet, so T is the seconds of work in sum; U and B as in `evaluate`."""
    nothing = TaskBatch.of(ClassTable(), ())
    score = evaluate(snapshot, nothing, nothing.class_id, policy)
    return float(left_s.sum()), score.U, score.B


def loads(snapshot: Snapshot, tasks: TaskBatch, assignment: NDArray[np.int32]) -> FloatArray:
    """L_j, float64 [M], with what runs and what `assignment` adds; 0 on rows without an agent."""
    return dominant_shares(_used_and_unplaced(snapshot, tasks, assignment)[0], snapshot.capacity)


def dominant_shares(used: FloatArray, capacity: NDArray[np.int64]) -> FloatArray:
    """L, float64 [M]: per agent the largest used / capacity, over the resources that it has."""
    has = capacity > 0
    shares: FloatArray = np.where(has, used / np.maximum(capacity, 1), 0.0).max(axis=1, initial=0.0)
    return shares


def _used_and_unplaced(
    snapshot: Snapshot, tasks: TaskBatch, assignment: NDArray[np.int32]
) -> tuple[FloatArray, FloatArray]:
    """float64 [M, K], used on every row with the assignment; float64 [K], unplaced demand.

    Resources that no agent offers have no column and no weight.
    """
    used = snapshot.used.astype(np.float64, order="K")
    placed = np.flatnonzero(assignment >= 0)
    left = np.flatnonzero(assignment < 0)
    by_agent = tasks.demand_by_agent
    if by_agent is None:
        demands = _demands(snapshot, tasks)
        np.add.at(used, assignment[placed], demands[placed])
        return used, demands[left].sum(axis=0)
    np.add.at(used, assignment[placed], by_agent[placed, assignment[placed]])
    if not left.size or not snapshot.alive.any():
        return used, np.zeros(used.shape[1])
    least = by_agent[left][:, snapshot.alive].min(axis=1)
    unplaced: FloatArray = least.sum(axis=0, dtype=np.float64)
    return used, unplaced


def _demands(snapshot: Snapshot, tasks: TaskBatch) -> FloatArray:
    """float64 [N, K], the classes' demands."""
    ids, inverse = np.unique(tasks.class_id, return_inverse=True)
    per_class = np.zeros((ids.shape[0], len(snapshot.names)))
    for position, class_id in enumerate(ids.tolist()):
        for column, amount in tasks.classes.demand(class_id, snapshot).columns:
            per_class[position, column] = amount
    return per_class[inverse]


def _response(
    snapshot: Snapshot, tasks: TaskBatch, assignment: NDArray[np.int32]
) -> tuple[FloatArray, FloatArray]:
    """float64 [N] twice: t_ij as assigned (0 where unplaced), and the least over agents."""
    placed = assignment >= 0
    if tasks.response_s is None:
        return np.where(placed, tasks.estimate_s, 0.0), tasks.estimate_s
    chosen = np.zeros(len(tasks))
    chosen[placed] = tasks.response_s[np.flatnonzero(placed), assignment[placed]]
    if not snapshot.alive.any():
        return chosen, chosen
    return chosen, tasks.response_s[:, snapshot.alive].min(axis=1)


def _cluster_share(amounts: FloatArray, capacity: FloatArray) -> float:
    """Mean over the resources that the cluster has of amount / capacity; 0 when it has none."""
    has = capacity > 0
    return float(np.mean(amounts[has] / capacity[has])) if has.any() else 0.0
