"""T, U and B before a failure and after each action, and which actions break a bound."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from muster_scheduler.recovery.costs import FloatArray
from muster_scheduler.recovery.settings import Bounds
from muster_scheduler.recovery.situation import Cluster, Failure


@dataclass(frozen=True, slots=True)
class Measures:
    """T in seconds, U and B as shares."""

    T: float
    U: float
    B: float


def before(failure: Failure, cluster: Cluster) -> Measures:
    """As it was when the failed agent still worked."""
    held = len(failure.tasks)
    slots = sum(cluster.slots) + failure.slots
    loads = _loads(cluster)
    if failure.slots:
        loads = np.append(loads, held / failure.slots)
    return Measures(
        T=cluster.open_response_s,
        U=(sum(cluster.used) + held) / slots if slots else 0.0,
        B=float(loads.std()) if loads.size else 0.0,
    )


def after(
    failure: Failure, cluster: Cluster, moved: int, free: int, idle_share: float, cost: float
) -> Measures:
    """As it is expected when `moved` tasks are given away and the others held.

    `free`: slots that they can count on. `idle_share`: of the horizon, how much the held ones are
    expected to stand still. `cost`: expected, in task-seconds. Tasks that find no slot do not
    count in U.
    """
    was = before(failure, cluster)
    held = len(failure.tasks) - moved
    placed = min(moved, free)
    slots = sum(cluster.slots) + failure.slots
    working = sum(cluster.used) + placed + held * (1.0 - idle_share)
    loads = _spread(cluster, placed)
    return Measures(
        T=was.T + cost,
        U=working / slots if slots else 0.0,
        B=float(loads.std()) if loads.size else 0.0,
    )


def broken(was: Measures, then: Measures, bounds: Bounds) -> dict[str, float]:
    """The excess over each bound that is broken: T as a share of what is allowed, U and B as is."""
    excess: dict[str, float] = {}
    if bounds.delta_t_s is not None:
        allowed = was.T + bounds.delta_t_s
        excess["T"] = (then.T - allowed) / max(allowed, 1.0)
    if bounds.delta_u is not None:
        excess["U"] = was.U - bounds.delta_u - then.U
    if bounds.delta_b is not None:
        excess["B"] = then.B - was.B - bounds.delta_b
    # What is but rounding breaks nothing.
    return {name: value for name, value in excess.items() if value > 1e-9}


def _loads(cluster: Cluster) -> FloatArray:
    slots = np.array(cluster.slots, np.float64)
    used = np.array(cluster.used, np.float64)
    loads: FloatArray = used[slots > 0] / slots[slots > 0]
    return loads


def _spread(cluster: Cluster, tasks: int) -> FloatArray:
    """Loads when `tasks` more are placed, the emptiest agent first (by share, as water fills)."""
    loads = _loads(cluster)
    slots = np.array([s for s in cluster.slots if s > 0], np.float64)
    if not tasks or not loads.size:
        return loads
    order = np.argsort(loads, kind="stable")
    level_loads, level_slots = loads[order], slots[order]
    # To raise the first k agents to the load of the next takes these many tasks.
    width = np.cumsum(level_slots)
    needed = width[:-1] * np.diff(level_loads)
    filled = np.concatenate(([0.0], np.cumsum(needed)))
    k = int(np.searchsorted(filled, tasks, side="right")) - 1
    level = level_loads[k] + (tasks - filled[k]) / width[k]
    filled_up: FloatArray = np.maximum(loads, level)
    return filled_up
