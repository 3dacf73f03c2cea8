"""How many tasks of each class to have on each kind of agent, were tasks a fluid: a linear program.

Agents are of one kind where they offer the same and may take the same classes. The program knows
capacities in sum alone: what whole devices and single agents make impossible is left to the rule
that fills the quotas.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from muster_scheduler.placement.devices import WHOLE
from muster_scheduler.placement.field import Scene
from muster_scheduler.placement.snapshot import FloatArray, IntArray

# Variables of the program: beyond, it takes longer than what it could gain.
MAX_PAIRS = 50_000
# A tenth of a device's worth of imbalance costs a hundredth of the value of a task.
_IMBALANCE = 0.05


@dataclass(frozen=True, slots=True, eq=False)
class Quotas:
    """kind: int64 [M], kind of each row. left: int64 [C, kinds], tasks per class and kind."""

    kind: IntArray
    left: IntArray


def fluid_quotas(scene: Scene, expected_value: float) -> Quotas | None:
    """The quotas of greatest value of the tasks that are expected to ask for `expected_value`.

    Among equal ones those that use held resources and devices of an agent evenly. None where
    there is nothing to place, too much to work out, or no solution is found.
    """
    kind, first = _kinds(scene)
    free, devices, lone = _room(scene, kind, len(first))
    pairs = [
        (f, k)
        for f, c in enumerate(scene.types.tolist())
        for k, row in enumerate(first.tolist())
        if scene.eligible[row, scene.mask_of[c]] and _fits(scene, c, lone[0][k], lone[1][k])
    ]
    if not pairs or len(pairs) > MAX_PAIRS:
        return None
    of_type, of_kind = np.array(pairs, np.int64).T
    classes = scene.types[of_type]
    mean = float(scene.frequency @ scene.size[scene.types])
    if mean <= 0:
        return None
    arriving = scene.frequency * expected_value / mean
    amounts = _solve(scene, classes, of_type, of_kind, arriving, free, devices)
    if amounts is None:
        return None
    left = np.zeros((len(scene.class_ids), len(first)), np.int64)
    left[classes, of_kind] = np.rint(amounts).astype(np.int64)
    return Quotas(kind, left)


def _kinds(scene: Scene) -> tuple[IntArray, IntArray]:
    """int64 [M], kind of each row; a row of each kind."""
    snapshot = scene.snapshot
    look = np.concatenate(
        [snapshot.capacity[:, scene.columns], scene.eligible.astype(np.int64)], axis=1
    )
    _, first, kind = np.unique(look, axis=0, return_index=True, return_inverse=True)
    return kind.reshape(-1).astype(np.int64), first.astype(np.int64)


def _room(
    scene: Scene, kind: IntArray, kinds: int
) -> tuple[FloatArray, FloatArray, tuple[IntArray, IntArray]]:
    """Free in sum by kind: float64 [kinds, H] and [kinds, S]; and the most on any one row."""
    snapshot = scene.snapshot
    held = np.maximum(snapshot.free[:, scene.columns], 0)
    parts = [np.maximum(snapshot.device_free[k], 0).sum(axis=1) for k in scene.device_columns]
    on_devices = np.array(parts, np.int64).reshape(len(parts), len(kind)).T
    free = np.zeros((kinds, held.shape[1]))
    devices = np.zeros((kinds, on_devices.shape[1]))
    np.add.at(free, kind, held)
    np.add.at(devices, kind, on_devices)
    most_held = np.zeros((kinds, held.shape[1]), np.int64)
    most_on_devices = np.zeros((kinds, on_devices.shape[1]), np.int64)
    np.maximum.at(most_held, kind, held)
    np.maximum.at(most_on_devices, kind, on_devices)
    return free, devices, (most_held, most_on_devices)


def _fits(scene: Scene, c: int, held: IntArray, devices: IntArray) -> bool:
    return bool((scene.held[c] <= held).all() and (scene.ask[c] <= devices).all())


def _solve(
    scene: Scene,
    classes: IntArray,
    of_type: IntArray,
    of_kind: IntArray,
    arriving: FloatArray,
    free: FloatArray,
    devices: FloatArray,
) -> FloatArray | None:
    """float64 [pairs], tasks of the pair's type on the pair's kind."""
    from scipy.optimize import linprog  # noqa: PLC0415 - heavy
    from scipy.sparse import csr_matrix, vstack  # noqa: PLC0415

    pairs, kinds = len(classes), len(free)
    index = np.arange(pairs)
    parts = [csr_matrix((np.ones(pairs), (of_type, index)), shape=(len(arriving), pairs))]
    limits = [arriving]
    for amounts, room in ((scene.held, free), (scene.ask, devices)):
        for h in range(amounts.shape[1]):
            # Shares of the cluster keep bytes and cores alike in size for the solver.
            unit = max(1.0, float(room[:, h].sum()) / max(1, kinds))
            weights = amounts[classes, h] / unit
            parts.append(csr_matrix((weights, (of_kind, index)), shape=(kinds, pairs)))
            limits.append(room[:, h] / unit)
    cost = -(scene.size[classes] / WHOLE + 0.01) + _IMBALANCE * _imbalance(
        scene, classes, of_kind, free, devices
    )
    found = linprog(
        cost, A_ub=vstack(parts, format="csr"), b_ub=np.concatenate(limits), method="highs"
    )
    if found.status != 0:
        return None
    return np.asarray(found.x, np.float64)


def _imbalance(
    scene: Scene, classes: IntArray, of_kind: IntArray, free: FloatArray, devices: FloatArray
) -> FloatArray:
    """float64 [pairs]: how far a task uses a kind's devices and held resources unevenly.

    In devices; 0 where the kind has no devices or the tasks ask for none.
    """
    if not scene.device_columns:
        return np.zeros(len(classes))
    value = devices.sum(axis=1)
    share = scene.size[classes] / np.maximum(value[of_kind], 1.0)
    worst = np.zeros(len(classes))
    for h in range(scene.held.shape[1]):
        if scene.per_value[h] > 0:
            held = scene.held[classes, h] / np.maximum(free[of_kind, h], 1.0)
            worst = np.maximum(worst, scene.scarcity[h] * np.abs(held - share))
    uneven: FloatArray = worst * value[of_kind] / WHOLE
    return uneven
