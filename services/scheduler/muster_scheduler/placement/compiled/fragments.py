"""Tasks in order, each to the row whose fragments grow least: the loops of `fragmentation.py`.

Fragments are counted as by FGD (Weng et al., USENIX ATC'23): for a type of tasks, what is free on a
row and that type could not use; in expectation over the types. The score of a (class, row) is kept
until the row changes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from muster_scheduler.placement.compiled.jit import kernel
from muster_scheduler.placement.snapshot import BoolArray, FloatArray, IntArray

WHOLE = 1000
# Added to a score where a class has had its quota of a kind of row: above every other term.
_BEYOND_QUOTA = 1e12
# Floats that should be equal may differ in their last bits; a step below is no difference.
_SAME = 1e-9


class Field(NamedTuple):
    """Classes, the mix and what is weighed; read only. C classes, H held columns, F types.

    find      int64 [C, H], what must be free of held columns, at least what is taken
    need      int64 [C, H], what is taken of them  size    float64 [C], the value that it takes
    ask       int64 [C, S], thousandths of devices of S resources
    level     int64 [C, S], index of `ask` among the L distinct ones, -1 for none
    level_of  int64 [L, 2], (resource, thousandths)
    mask_of   int64 [C], column of Rows.eligible
    types     int64 [F], classes; weight float64 [F], their expectation's weights
    start     int64 [S + 1], where the devices of a resource begin in Rows.devices
    per_value float64 [H], what the mix asks of a column for one of value; 0 where nothing
    strand    float64 [H], weight of what is free and no value can go with
    lack      float64 [H], weight of value that is free and no held resource can go with
    value_at  the column that is the value where there are no devices, value_scale its factor
    """

    find: IntArray
    need: IntArray
    size: FloatArray
    ask: IntArray
    level: IntArray
    level_of: IntArray
    mask_of: IntArray
    types: IntArray
    weight: FloatArray
    start: IntArray
    per_value: FloatArray
    strand: FloatArray
    lack: FloatArray
    value_at: int
    value_scale: float
    open_row: float
    open_device: float
    leftover: float
    idle_device: float
    order: float
    step: float


class Rows(NamedTuple):
    """What is free while a plan grows; changed in place. M rows, D devices, G masks.

    free     int64 [M, H]            devices  int64 [M, D], thousandths
    eligible bool [M, G]             untouched bool [M], nothing runs on the row
    kind     int64 [M], of quotas    quota    int64 [C, kinds], tasks left; [0, 0]: no quotas
    """

    free: IntArray
    devices: IntArray
    eligible: BoolArray
    untouched: BoolArray
    kind: IntArray
    quota: IntArray


class Memo(NamedTuple):
    """Scores that stay right while their row's version does, for classes by slot.

    version int64 [M]; owner int64 [slots], class of a slot or -1; at int64 [slots, M], the version
    that a score is of; score float64 and option int16 [slots, M]; before float64 [M] and before_at
    int64 [M]: a row's fragments as it is. can, loss, kept, left: scratch.
    """

    version: IntArray
    owner: IntArray
    at: IntArray
    score: FloatArray
    option: NDArray[np.int16]
    before: FloatArray
    before_at: IntArray
    can: BoolArray
    loss: IntArray
    kept: IntArray
    left: IntArray


@kernel
def holds(field: Field, free: IntArray, c: int) -> bool:
    for h in range(free.shape[0]):
        if field.find[c, h] > 0 and field.find[c, h] > free[h]:
            return False
    return True


@kernel
def value_of(field: Field, free: IntArray, devices: IntArray) -> float:
    total = 0.0
    if field.start.shape[0] == 1:
        if free.shape[0] > 0:
            total += max(0, free[field.value_at]) * field.value_scale
        return total
    for d in range(devices.shape[0]):
        total += max(0, devices[d])
    return total


@kernel
def weigh_levels(field: Field, devices: IntArray, memo: Memo) -> None:
    """For each distinct demand on devices: whether it fits, and what is free on smaller ones."""
    for v in range(field.level_of.shape[0]):
        s, ask = field.level_of[v, 0], field.level_of[v, 1]
        each = min(ask, WHOLE)
        wanted, small = (ask + WHOLE - 1) // WHOLE, 0
        for d in range(field.start[s], field.start[s + 1]):
            if devices[d] >= each:
                wanted -= 1
            else:
                small += max(0, devices[d])
        memo.can[v] = wanted <= 0
        memo.loss[v] = small


@kernel
def lost_to(field: Field, devices: IntArray, memo: Memo, c: int) -> int:
    """What is free and of no use to a class whose held resources fit; -1: its devices do not."""
    lost, used = 0, field.start.shape[0] == 1
    for s in range(field.start.shape[0] - 1):
        v = field.level[c, s]
        if v < 0:
            for d in range(field.start[s], field.start[s + 1]):
                lost += max(0, devices[d])
        elif memo.can[v]:
            used = True
            lost += memo.loss[v]
        else:
            return -1
    return lost if used else -1


@kernel
def fragments(
    field: Field, free: IntArray, devices: IntArray, eligible: BoolArray, memo: Memo
) -> float:
    """Value that is free on the row and expected to be of no use to the next task."""
    value = value_of(field, free, devices)
    if value == 0.0:
        return 0.0
    weigh_levels(field, devices, memo)
    useful = 0.0
    for f in range(field.types.shape[0]):
        c = field.types[f]
        if not eligible[field.mask_of[c]] or field.size[c] <= 0.0:
            continue
        lost = lost_to(field, devices, memo, c)
        if lost >= 0 and holds(field, free, c):
            useful += field.weight[f] * (value - lost)
    return value - useful


@kernel
def put(field: Field, devices: IntArray, c: int, option: int) -> bool:
    """Take the class's devices of one row, the fraction at `option`; whether there are such.

    Whole ones are the lowest that are idle; a second fraction goes to the fullest that has room.
    """
    for s in range(field.start.shape[0] - 1):
        ask = field.ask[c, s]
        if ask >= WHOLE:
            left = ask // WHOLE
            for d in range(field.start[s], field.start[s + 1]):
                if left > 0 and devices[d] >= WHOLE:
                    devices[d] -= WHOLE
                    left -= 1
            if left > 0:
                return False
        elif ask > 0:
            chosen = -1
            if field.start[s] <= option < field.start[s + 1]:
                chosen = option
            else:
                for d in range(field.start[s], field.start[s + 1]):
                    if devices[d] >= ask and (chosen < 0 or devices[d] < devices[chosen]):
                        chosen = d
            if chosen < 0 or devices[chosen] < ask:
                return False
            devices[chosen] -= ask
    return True


@kernel
def balance(field: Field, rows: Rows, n: int, c: int, value: float) -> float:
    """How much more is stranded once the task is there: held resources without value, and value
    without held resources, in units of value by the mix's own proportions."""
    change = 0.0
    for h in range(field.need.shape[1]):
        if field.per_value[h] <= 0.0:
            continue
        free = rows.free[n, h]
        old = free / field.per_value[h] - value
        new = (free - field.need[c, h]) / field.per_value[h] - (value - field.size[c])
        change += field.strand[h] * (max(0.0, new) - max(0.0, old))
        change += field.lack[h] * (max(0.0, -new) - max(0.0, -old))
    return change


@kernel
def first_fraction(field: Field, c: int) -> int:
    """The first resource of which the class wants a part of a device; -1 for none."""
    for s in range(field.start.shape[0] - 1):
        if 0 < field.ask[c, s] < WHOLE:
            return s
    return -1


@kernel
def rate_row(field: Field, rows: Rows, memo: Memo, n: int, c: int) -> float:
    """The part of a score that is the same whichever device a fraction is given."""
    devices = rows.devices[n]
    if memo.before_at[n] != memo.version[n]:
        memo.before[n] = fragments(field, rows.free[n], devices, rows.eligible[n], memo)
        memo.before_at[n] = memo.version[n]
    value = value_of(field, rows.free[n], devices)
    score: float = balance(field, rows, n, c, value) - memo.before[n]
    if rows.untouched[n]:
        score += field.open_row * value / WHOLE
    for d in range(devices.shape[0]):
        if devices[d] == WHOLE:
            score += field.idle_device
    return score


@kernel
def rate_option(field: Field, rows: Rows, memo: Memo, n: int, c: int, option: int) -> float:
    """The rest of the score with the fraction on device `option` (-1: there is none)."""
    devices, kept = rows.devices[n], memo.kept
    for d in range(devices.shape[0]):
        kept[d] = devices[d]
    if not put(field, kept, c, option):
        return math.inf
    score: float = fragments(field, memo.left, kept, rows.eligible[n], memo)
    if option >= 0:
        score += field.leftover * kept[option] / WHOLE
        if devices[option] == WHOLE:
            score += field.open_device
    return score


@kernel
def repeats(devices: IntArray, begin: int, d: int) -> bool:
    """Whether a device from `begin` on has just as much free as device `d`."""
    found = False
    for other in range(begin, d):
        found = found or devices[other] == devices[d]
    return found


@kernel
def in_steps(field: Field, score: float) -> float:
    """The score as it counts: rounded for each device, as the published rule does."""
    if field.step > 0.0 and score < math.inf:
        return math.ceil(score / field.step - _SAME) * field.step
    return score


@kernel
def rate(field: Field, rows: Rows, memo: Memo, n: int, c: int) -> tuple[float, int]:
    """(score, device of the fraction or -1) of the class on the row; infinite: it does not fit."""
    if not rows.eligible[n, field.mask_of[c]] or not holds(field, rows.free[n], c):
        return math.inf, -1
    row = rate_row(field, rows, memo, n, c)
    for h in range(memo.left.shape[0]):
        memo.left[h] = rows.free[n, h] - field.need[c, h]
    best, option, s = math.inf, -1, first_fraction(field, c)
    if s < 0:
        best = in_steps(field, rate_option(field, rows, memo, n, c, -1) + row)
    else:
        begin = field.start[s]
        for d in range(begin, field.start[s + 1]):
            if rows.devices[n, d] < field.ask[c, s] or repeats(rows.devices[n], begin, d):
                continue
            score = in_steps(field, rate_option(field, rows, memo, n, c, d) + row)
            if score < best - _SAME:
                best, option = score, d
    if best == math.inf:
        return best, -1
    return best + field.order * n / rows.free.shape[0], option


@kernel
def pick(field: Field, rows: Rows, memo: Memo, c: int) -> tuple[int, int]:
    """The row of least score, the first among equal ones, and the fraction's device; -1: none."""
    slot = c % memo.owner.shape[0]
    if memo.owner[slot] != c:
        memo.owner[slot] = c
        for n in range(rows.free.shape[0]):
            memo.at[slot, n] = -1
    at, scores, options = memo.at[slot], memo.score[slot], memo.option[slot]
    best, row = math.inf, -1
    for n in range(rows.free.shape[0]):
        if at[n] != memo.version[n]:
            scores[n], options[n] = rate(field, rows, memo, n, c)
            at[n] = memo.version[n]
        score = scores[n]
        if score < math.inf and rows.quota.shape[0] > 0 and rows.quota[c, rows.kind[n]] <= 0:
            score += _BEYOND_QUOTA
        if score < best - _SAME:
            best, row = score, n
    if row < 0:
        return -1, -1
    return row, int(options[row])


@kernel
def place_all(
    field: Field,
    rows: Rows,
    memo: Memo,
    classes: NDArray[np.int32],
    out: NDArray[np.int32],
    given: BoolArray,
) -> float:
    """Place `classes` (int32 [N]) in order; returns the value that found a place.

    out   int32 [N], rows or -1
    given bool [N or 0, D], the devices of each task; not written where it has no rows
    """
    placed = 0.0
    for i in range(classes.shape[0]):
        c = classes[i]
        row, option = pick(field, rows, memo, c)
        out[i] = row
        if row < 0:
            continue
        placed += field.size[c]
        devices = rows.devices[row]
        for d in range(devices.shape[0]):
            memo.kept[d] = devices[d]
        put(field, devices, c, option)
        if given.shape[0] > 0:
            for d in range(devices.shape[0]):
                given[i, d] = memo.kept[d] != devices[d]
        for h in range(rows.free.shape[1]):
            rows.free[row, h] -= field.need[c, h]
        rows.untouched[row] = False
        memo.version[row] += 1
        if rows.quota.shape[0] > 0:
            rows.quota[c, rows.kind[row]] -= 1
    return placed
