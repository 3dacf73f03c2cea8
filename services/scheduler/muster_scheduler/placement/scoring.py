"""Which agents a strategy likes best for one task, and by what terms; worked out when asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from muster_scheduler.placement.classes import ClassTable, Demand, TaskClass, compile_demand
from muster_scheduler.placement.constructive import ConstructiveStrategy
from muster_scheduler.placement.devices import device_fits
from muster_scheduler.placement.objective import dominant_shares
from muster_scheduler.placement.shares import free_shares_after
from muster_scheduler.placement.snapshot import BoolArray, FloatArray, IntArray, Snapshot
from muster_scheduler.placement.strategy import get

MOST_CANDIDATES = 5


@dataclass(frozen=True, slots=True)
class Candidate:
    """An agent as the strategy sees it. `rank` 1 is the best.

    Of the terms `score` is what the strategy compares, the rest is what it is made of:
    free_share_after (of the scarcest resource that the task asks for; below 0: so much is
    missing), health, cost, alignment, row, imbalance_after (B), run_s (predicted seconds).
    """

    row: int
    rank: int
    fits: bool
    terms: Mapping[str, float]


def best_candidates(
    strategy: str,
    snapshot: Snapshot,
    task_class: TaskClass,
    own_row: int = -1,
    run_s: FloatArray | None = None,
    most: int = MOST_CANDIDATES,
) -> list[Candidate]:
    """Eligible agents, those that fit first, best first. Of a task that has a place on `own_row`
    that agent is among them, and all are seen as they would be without it.

    `run_s` float64 [M]: predicted run times, where known.
    """
    demand = compile_demand(task_class.demand, snapshot.columns)
    free = snapshot.free
    if own_row >= 0:
        free = free.copy(order="K")
        free[own_row] += np.array(demand.amounts, np.int64)
    eligible = ClassTable().eligible_for(task_class, snapshot)
    if own_row >= 0:
        # What it holds itself may be all that keeps it from being eligible.
        eligible = eligible.copy()
        eligible[own_row] = True
    rows = np.flatnonzero(eligible)
    if not rows.size:
        return []
    fits = _fitting(snapshot, free, demand, own_row)[rows]
    keys, terms = _keys(strategy, snapshot, free, demand, run_s)
    order = rows[np.lexsort((rows, keys[rows], ~fits))].tolist()
    shown = order[:most]
    if own_row >= 0 and own_row not in shown:
        shown[-1:] = [own_row]
    fit_of = dict(zip(rows.tolist(), fits.tolist(), strict=True))
    return [
        Candidate(row, order.index(row) + 1, fit_of[row], {n: float(v[row]) for n, v in terms})
        for row in shown
    ]


def _fitting(snapshot: Snapshot, free: IntArray, demand: Demand, own_row: int) -> BoolArray:
    fits = np.full(snapshot.row_count, not demand.missing)
    for column, amount in demand.columns:
        fits &= free[:, column] >= amount
        if column in snapshot.device_free:
            on_devices = device_fits(snapshot.device_free[column], amount)
            if own_row >= 0:
                on_devices[own_row] = True
            fits &= on_devices
    return fits


_Terms = list[tuple[str, FloatArray]]


def _keys(
    name: str,
    snapshot: Snapshot,
    free: IntArray,
    demand: Demand,
    run_s: FloatArray | None,
) -> tuple[FloatArray | IntArray, _Terms]:
    """What the strategy sorts by, the least first, and the terms to be shown."""
    strategy = get(name)
    terms = _TERMS.get(name)
    if terms is not None and isinstance(strategy, ConstructiveStrategy):
        keys = strategy.scan_keys(snapshot, free, demand)
        return keys, terms(snapshot, free, demand, keys)
    imbalance = _imbalances_after(snapshot, free, demand)
    share = free_shares_after(snapshot, free, demand)
    shown: _Terms = [("imbalance_after", imbalance), ("free_share_after", share)]
    if run_s is not None:
        return run_s, [("score", run_s), ("run_s", run_s), *shown]
    return imbalance, [("score", imbalance), *shown]


def _imbalances_after(snapshot: Snapshot, free: IntArray, demand: Demand) -> FloatArray:
    """float64 [M]: B with the task on each row in turn."""
    alive = snapshot.alive
    used = (snapshot.capacity - free).astype(np.float64)
    before = dominant_shares(used, snapshot.capacity)
    after = dominant_shares(used + np.array(demand.amounts, np.float64), snapshot.capacity)
    count = max(1, int(alive.sum()))
    total = before[alive].sum() - before + after
    squares = (before[alive] ** 2).sum() - before**2 + after**2
    spread: FloatArray = np.sqrt(np.maximum(0.0, squares / count - (total / count) ** 2))
    return spread


def _shares(
    snapshot: Snapshot, free: IntArray, demand: Demand, keys: FloatArray | IntArray
) -> _Terms:
    return [
        ("score", -keys.astype(np.float64)),
        ("free_share_after", free_shares_after(snapshot, free, demand)),
        ("health", snapshot.health),
    ]


def _plain(
    name: str, sign: float
) -> Callable[[Snapshot, IntArray, Demand, FloatArray | IntArray], _Terms]:
    def terms(
        snapshot: Snapshot, free: IntArray, demand: Demand, keys: FloatArray | IntArray
    ) -> _Terms:
        shares = free_shares_after(snapshot, free, demand)
        score = keys.astype(np.float64) * sign
        return [("score", score), (name, score), ("free_share_after", shares)]

    return terms


_TERMS: Mapping[str, Callable[[Snapshot, IntArray, Demand, FloatArray | IntArray], _Terms]] = {
    "worst_fit": _shares,
    "best_fit": _plain("free_share_after", 1.0),
    "greedy": _plain("cost", 1.0),
    "first_fit": _plain("row", 1.0),
    "dot_product": _plain("alignment", -1.0),
}
