"""What libraries print does not stand among the answers of a process."""

from __future__ import annotations

import subprocess
import sys

_CHILD = """
import os
from muster_scheduler.elsewhere import answer_pipe
answers = answer_pipe()
os.write(1, b"printed past Python")
print("printed")
answers.write(b"answer")
answers.close()
"""


def test_only_answers_are_on_the_pipe() -> None:
    done = subprocess.run([sys.executable, "-c", _CHILD], capture_output=True, check=True)
    assert done.stdout == b"answer"
    assert b"printed past Python" in done.stderr
    assert b"printed\n" in done.stderr
