"""The one way in which a function here becomes machine code."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from muster_scheduler.placement.compiled.disk_cache import compiled

_F = TypeVar("_F", bound=Callable[..., object])


def kernel(function: _F) -> _F:
    """Compile at the first call, and keep the code on disk for the next process.

    It runs without the interpreter's lock: a loop beside it keeps answering.

    Not `fastmath`: plans must be equal from one machine to the next, and NaN must stay NaN.
    """
    code: _F = compiled(function, error_model="numpy", nogil=True, _nrt=False)
    return code


def inlined(function: _F) -> _F:
    """As `kernel`, for what kernels call in their innermost loop: LLVM copies it into them.

    A problem's fifty arrays and numbers are then looked up once instead of passed at every call.
    """
    code: _F = compiled(function, error_model="numpy", nogil=True, forceinline=True, _nrt=False)
    return code
