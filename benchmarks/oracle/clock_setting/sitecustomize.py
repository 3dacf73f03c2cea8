"""Imported by each Python process that has this folder on its path: makes its wall clock settable.

Only modules of Muster are lied to. gRPC measures deadlines as differences of the wall clock that
Python shows and the one that its C core reads: telling one alone a wrong time would break what no
real clock breaks.
"""

import mmap
import os
import sys
import time
from pathlib import Path

_PREFIXES = ("muster", "benchmarks")


def _install(file: Path) -> None:
    with file.open("rb") as opened:
        wrong_by = memoryview(mmap.mmap(opened.fileno(), 8, prot=mmap.PROT_READ)).cast("q")
    true_ns, true_s = time.time_ns, time.time

    def lied_to() -> bool:
        return str(sys._getframe(2).f_globals.get("__name__", "")).startswith(_PREFIXES)

    def time_ns() -> int:
        return true_ns() + wrong_by[0] if lied_to() else true_ns()

    def time_s() -> float:
        return true_s() + wrong_by[0] / 1e9 if lied_to() else true_s()

    time.time_ns, time.time = time_ns, time_s


if "ORACLE_CLOCK" in os.environ:
    _install(Path(os.environ["ORACLE_CLOCK"]))
