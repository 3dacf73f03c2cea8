"""The one way in which a function here becomes machine code."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numba

_F = TypeVar("_F", bound=Callable[..., object])


def kernel(function: _F) -> _F:
    """Compile at the first call, and keep the code on disk for the next process.

    Not `fastmath`: plans must be equal from one machine to the next, and NaN must stay NaN.
    """
    compiled: _F = numba.njit(cache=True, error_model="numpy", _nrt=False)(function)
    return compiled




def inlined(function: _F) -> _F:
    """As `kernel`, for what kernels call in their innermost loop: LLVM copies it into them.

    A problem's fifty arrays and numbers are then looked up once instead of passed at every call.
    """
    compiled: _F = numba.njit(cache=True, error_model="numpy", forceinline=True, _nrt=False)(function)
    return compiled
