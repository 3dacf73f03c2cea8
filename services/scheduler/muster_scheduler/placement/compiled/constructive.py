"""The constructive pass as machine code: the same choices as the plain pass, task by task.

Trees of least keys are implicit and eight wide, so that a node's children share a cache line: the P
leaves (a power of eight) come first, then the P / 8 nodes above them, and so on to the root at the
end.
"""

from __future__ import annotations

import numpy as np

from muster_scheduler.placement.compiled.jit import kernel
from muster_scheduler.placement.dense import Int16Array, Int32Array
from muster_scheduler.placement.snapshot import BoolArray, FloatArray, IntArray

# Positions that are sifted at once: four vectors of 16 amounts in each column.
BLOCK = 64
# The greatest amount that the sieve holds.
MOST = 2**15 - 1
# What no key reaches; also the key of a row where the demand does not fit.
_NOWHERE = np.inf


@kernel
def block_that_may_fit(sieve: Int16Array, wanted: Int16Array, block: int) -> int:
    """The first block from `block` on where a position passes the sieve; their number: none.

    Amounts are 0 to 32767, so that a difference's sign bit says "too little", and bits joined by
    `|` and `&` say it of all columns and positions without a branch: the compiler turns the inner
    loop into vector instructions, a tenth of a nanosecond per position.
    """
    a, b, c, d = wanted[0], wanted[1], wanted[2], wanted[3]
    while block < sieve.shape[1]:
        short = np.int16(-1)
        for i in range(BLOCK):
            lacking = (
                (sieve[0, block, i] - a)
                | (sieve[1, block, i] - b)
                | (sieve[2, block, i] - c)
                | (sieve[3, block, i] - d)
            )
            short = np.int16(short & lacking)
        if short >= 0:
            return block
        block += 1
    return block


@kernel
def fits(room: IntArray, need: IntArray, position: int, c: int) -> bool:
    enough = True
    for k in range(room.shape[1]):
        enough &= room[position, k] >= need[c, k]
    return enough


@kernel
def first_that_fits(
    sieve: Int16Array,
    wanted: Int16Array,
    room: IntArray,
    eligible: BoolArray,
    need: IntArray,
    position: int,
    c: int,
) -> int:
    """The first position from `position` on that the class may have and that fits; -1: none."""
    block, blocks = position // BLOCK, sieve.shape[1]
    # A class that returns mostly finds its last place still good.
    if block < blocks and eligible[position] and fits(room, need, position, c):
        return position
    while block < blocks:
        block = block_that_may_fit(sieve, wanted, block)
        if block == blocks:
            return -1
        position = max(position, block * BLOCK)
        while position < (block + 1) * BLOCK:
            if eligible[position] and fits(room, need, position, c):
                return position
            position += 1
        block += 1
    return -1


@kernel
def place_in_order(
    sieve: Int16Array,
    sifted: IntArray,
    shift: IntArray,
    wanted: Int16Array,
    room: IntArray,
    eligible: BoolArray,
    mask_of: Int32Array,
    group_of: Int32Array,
    need: IntArray,
    take: IntArray,
    first: Int32Array,
    class_ids: Int32Array,
    out: Int32Array,
) -> None:
    """Each task to the first position that fits: what first-fit and the article's greedy do.

    sieve     int16 [4, blocks, BLOCK], room >> shift of four columns by position, changed in place:
              who has too little by it has too little, who has enough by it is looked at
    sifted    int64 [4], these columns, -1: none; shift int64 [4]
    wanted    int16 [4] of zeros, to work in
    room      int64 [P, K] by position, P = blocks x BLOCK, each ≥ 0; charged in place
    eligible  bool [E, P], whether a position may take the tasks of some groups of classes
    mask_of   int32 [G], row of `eligible` by group; group_of int32 [C], group by class
    need      int64 [C, K], the room that a class must find, each ≥ 0
    take      int64 [C, K], what its task then takes, each 0 to `need`
    first     int32 [C], the first position where a class may still fit, kept from call to call:
              room only shrinks, so what did not fit stays unfit
    class_ids int32 [N]; out int32 [N], position or -1
    """
    positions = room.shape[0]
    for i in range(class_ids.shape[0]):
        c = class_ids[i]
        for s in range(4):
            if sifted[s] >= 0:
                wanted[s] = min(need[c, sifted[s]] >> shift[s], MOST)
        mask = eligible[mask_of[group_of[c]]]
        place = first_that_fits(sieve, wanted, room, mask, need, first[c], c)
        out[i] = place
        first[c] = positions if place < 0 else place
        if place >= 0:
            for k in range(room.shape[1]):
                room[place, k] -= take[c, k]
            for s in range(4):
                if sifted[s] >= 0:
                    sieve[s, place // BLOCK, place % BLOCK] = room[place, sifted[s]] >> shift[s]


@kernel
def share_key(
    room: IntArray,
    divisor: FloatArray,
    factor: FloatArray,
    need: IntArray,
    asked: IntArray,
    row: int,
    c: int,
) -> float:
    """factor x the least free share that the class's task leaves on the row; inf: does not fit.

    The divisions and their order are those of `free_share_after`, so that the bits are the same.
    """
    least = 1.0
    for k in range(room.shape[1]):
        if room[row, k] < need[c, k]:
            return _NOWHERE
        if asked[c, k] > 0:
            share = (room[row, k] - asked[c, k]) / divisor[row, k]
            least = min(least, share)
    key: float = least * factor[row]
    return key


@kernel
def least_of_eight(tree: FloatArray, first: int) -> float:
    least: float = tree[first]
    for i in range(first + 1, first + 8):
        least = tree[i] if tree[i] < least else least
    return least


@kernel
def mend(tree: FloatArray, row: int, key: float) -> None:
    """Set a leaf, and the least keys above it."""
    tree[row] = key
    base, size, node = 0, (7 * tree.shape[0] + 1) // 8, row
    while size > 1:
        least = least_of_eight(tree, base + node // 8 * 8)
        base, size, node = base + size, size // 8, node // 8
        if tree[base + node] == least:
            return
        tree[base + node] = least


@kernel
def grow_least(
    tree: FloatArray,
    room: IntArray,
    divisor: FloatArray,
    factor: FloatArray,
    eligible: BoolArray,
    need: IntArray,
    asked: IntArray,
    c: int,
) -> None:
    """Fill a tree with the keys of all rows for a class."""
    base, size = 0, (7 * tree.shape[0] + 1) // 8
    tree[:size] = _NOWHERE
    for row in range(room.shape[0]):
        if eligible[row]:
            tree[row] = share_key(room, divisor, factor, need, asked, row, c)
    while size > 1:
        for node in range(size // 8):
            tree[base + size + node] = least_of_eight(tree, base + 8 * node)
        base, size = base + size, size // 8


@kernel
def best_by_scan(
    room: IntArray,
    divisor: FloatArray,
    factor: FloatArray,
    eligible: BoolArray,
    need: IntArray,
    asked: IntArray,
    c: int,
) -> int:
    """The first row of least key; -1 where none fits."""
    best, least = -1, _NOWHERE
    for row in range(room.shape[0]):
        if eligible[row]:
            key = share_key(room, divisor, factor, need, asked, row, c)
            if key < least:
                least, best = key, row
    return best


@kernel
def best_by_tree(
    tree: FloatArray,
    stale: bool,
    room: IntArray,
    divisor: FloatArray,
    factor: FloatArray,
    need: IntArray,
    asked: IntArray,
    c: int,
) -> int:
    """As `best_by_scan`. `stale`: keys in the tree may be too small, and are mended as they come
    up."""
    root = tree.shape[0] - 1
    while tree[root] < _NOWHERE:
        least, base, size, row = tree[root], root, 1, 0
        while base > 0:
            size *= 8
            base -= size
            row *= 8
            while tree[base + row] != least:
                row += 1
        if not stale:
            return row
        key = share_key(room, divisor, factor, need, asked, row, c)
        if key == least:
            return row
        mend(tree, row, key)
    return -1


@kernel
def place_by_share(
    room: IntArray,
    divisor: FloatArray,
    factor: FloatArray,
    only_worsens: bool,
    eligible: BoolArray,
    mask_of: Int32Array,
    group_of: Int32Array,
    need: IntArray,
    take: IntArray,
    asked: IntArray,
    trees: FloatArray,
    tree_of: Int32Array,
    seen: IntArray,
    log: Int32Array,
    logged: int,
    class_ids: Int32Array,
    out: Int32Array,
) -> int:
    """Each task to the row of least key that fits, the lower row among equals.

    room       int64 [M, K], charged in place        divisor  float64 [M, K], capacity, ≥ 1
    factor     float64 [M], of `share_key`: 1 packs (the share itself is the key), -health spreads
    only_worsens  whether placing on a row never lessens a key of it (`factor` ≤ 0): then a stale
               key is too small, and is mended when it comes up
    eligible   bool [E, M]; mask_of, group_of, need, take as in `place_in_order`
    asked      int64 [C, K], the demands that count in the key
    trees      float64 [T, (8P - 1) / 7], a tree for each class that returns often enough
    tree_of    int32 [C], -1: all rows are looked at for each task of the class
    seen       int64 [T], the length of `log` when a tree was last right; -1: not grown
    log        int32 [≥ all tasks], the rows placed on; `logged` of them before this call
    Returns the new length of `log`.
    """
    for i in range(class_ids.shape[0]):
        c = class_ids[i]
        mask = eligible[mask_of[group_of[c]]]
        t = tree_of[c]
        if t < 0:
            best = best_by_scan(room, divisor, factor, mask, need, asked, c)
        else:
            if seen[t] < 0 or (not only_worsens and logged - seen[t] > room.shape[0] // 4):
                grow_least(trees[t], room, divisor, factor, mask, need, asked, c)
            elif not only_worsens:
                for index in range(seen[t], logged):
                    row = log[index]
                    if mask[row]:
                        key = share_key(room, divisor, factor, need, asked, row, c)
                        mend(trees[t], row, key)
            seen[t] = logged
            best = best_by_tree(trees[t], only_worsens, room, divisor, factor, need, asked, c)
        out[i] = best
        if best >= 0:
            for k in range(room.shape[1]):
                room[best, k] -= take[c, k]
            log[logged] = best
            logged += 1
    return logged
