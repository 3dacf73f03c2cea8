"""Random numbers inside compiled loops, from a state that the caller owns.

numba's own generator is one per thread, so two plans in a process would disturb each other.
SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): a word of state, good enough to draw moves.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from muster_scheduler.placement.compiled.jit import inlined, kernel

Words: TypeAlias = NDArray[np.uint64]

_STEP = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31, _S11 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(11)
_UNIT = 2.0**-53


def words_from(rng: Generator) -> Words:
    """uint64 [1], the state."""
    return rng.integers(0, 2**64, 1, np.uint64)


@inlined
def uniform(words: Words) -> float:
    """In [0, 1)."""
    words[0] += _STEP
    z = words[0]
    z = (z ^ (z >> _S30)) * _MIX_1
    z = (z ^ (z >> _S27)) * _MIX_2
    z = z ^ (z >> _S31)
    return float(z >> _S11) * _UNIT


@inlined
def below(words: Words, count: int) -> int:
    """0 to count - 1; `count` at least 1."""
    return int(uniform(words) * count)


@kernel
def shuffle(words: Words, items: NDArray[np.int32]) -> None:
    for last in range(items.shape[0] - 1, 0, -1):
        other = below(words, last + 1)
        items[last], items[other] = items[other], items[last]
