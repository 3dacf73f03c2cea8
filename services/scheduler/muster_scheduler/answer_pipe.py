"""The pipe on which a process that works for the scheduler answers, kept clean of other words."""

from __future__ import annotations

import os
from typing import BinaryIO


def answer_pipe() -> BinaryIO:
    """What was standard output, for the answers alone; what is printed goes to standard error.

    Libraries print from their own code, past Python: HiGHS says a line when it repairs a solution,
    and it would stand in the midst of an answer. To be called once, first of all.
    """
    pipe = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return pipe
